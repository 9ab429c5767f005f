"""Which settings fit: against trying all of them, on plans whose bytes are made up."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import LlamaConfig

from tests.models.conftest import SMALL, no_count, plan_of
from toolkit.errors import InputError
from toolkit.models import cards, memory
from toolkit.models.adapters import lora_config
from toolkit.models.cards import Room
from toolkit.models.memory import MIB, MemoryPlan
from toolkit.models.memory_fit import (
    ALL_OPEN,
    Passes,
    check_memory,
    largest_that_fit,
    what_would_fit,
)

WANTED = Passes(48, 48, False, "fp32")


def made_up(passes: Passes) -> MemoryPlan:
    """A base of 100 or 30 bytes, and bytes for each episode."""
    each = 2 if passes.checkpointing else 10
    base = {"fp32": 100, "4bit": 33 if passes.plain_scales else 30}[passes.precision]
    phases = {
        "sampling": {"all": 3 * passes.rollout_batch},
        "reference and scores": {"all": 10 + passes.rollout_batch},
        "optimizing": {"all": 20 + each * passes.micro_batch},
    }
    more = 3 if passes.precision == "4bit" and not passes.plain_scales else 0
    return MemoryPlan({"base": base}, phases, plain_scales=more)


def planner_of(config: LlamaConfig, **kwargs: Any) -> Any:
    def plan(passes: Passes) -> MemoryPlan:
        return plan_of(
            config,
            passes.micro_batch,
            passes.checkpointing,
            rollout_batch=passes.rollout_batch,
            precision=passes.precision,
            plain_scales=passes.plain_scales,
            **kwargs,
        )

    return plan


@pytest.mark.parametrize("room", [100, 122, 125, 130, 145, 150, 170, 216, 243, 244, 300, 1000])
@pytest.mark.parametrize("batch", [1, 7, 48, 64])
def test_the_largest_passes_that_fit_are_found(room: int, batch: int) -> None:
    wanted = replace(WANTED, micro_batch=batch, rollout_batch=batch)
    found = largest_that_fit(made_up, wanted, batch, room)
    sizes = [size for size in range(1, batch + 1) if batch % size == 0]
    micro = max((n for n in sizes if 100 + 20 + 2 * n <= room), default=None)
    rollout = max((n for n in sizes if 100 + max(3 * n, 10 + n) <= room), default=None)
    if micro is None or rollout is None:
        assert found is None
    else:
        assert found == Passes(micro, rollout, True, "fp32")


def test_what_was_given_stays() -> None:
    wanted = Passes(8, 16, False, "4bit")
    assert largest_that_fit(made_up, wanted, 48, 1000, frozenset()) == wanted
    assert largest_that_fit(made_up, wanted, 48, 129, frozenset()) is None
    found = largest_that_fit(made_up, wanted, 48, 130, frozenset({"checkpointing"}))
    assert found == replace(wanted, checkpointing=True)


def test_scales_are_held_in_fp32_where_there_is_room() -> None:
    wanted = Passes(4, 4, True, "4bit")  # 58 bytes
    assert largest_that_fit(made_up, wanted, 4, 60, ALL_OPEN) == wanted
    assert largest_that_fit(made_up, wanted, 4, 61) == replace(wanted, plain_scales=True)


def test_a_family_that_cannot_recompute_is_left_without() -> None:
    def plan(passes: Passes) -> MemoryPlan:
        if passes.checkpointing:
            raise InputError("not this family", "gradient_checkpointing")
        return made_up(passes)

    found = largest_that_fit(plan, WANTED, 48, 160)
    assert found == Passes(4, 16, False, "fp32")
    said, fitting = what_would_fit(plan, WANTED, 48, 160)
    assert fitting == found and "checkpointing" not in said


def test_checkpointing_is_named_first_with_what_it_alone_would_need() -> None:
    """Then come smaller passes, then 4 bits, and what fits really does."""
    big, n = WANTED, 1 << 20

    def plan(passes: Passes) -> MemoryPlan:
        whole = made_up(passes)
        held = {name: size * n for name, size in whole.held.items()}
        phases = {k: {"all": v["all"] * n} for k, v in whole.phases.items()}
        return MemoryPlan(held, phases)

    said, found = what_would_fit(plan, big, 48, 250 * n)
    assert said == "--gradient_checkpointing true alone would need 244 MiB, which fits"
    assert found == replace(big, checkpointing=True)

    said, found = what_would_fit(plan, big, 48, 170 * n)
    assert said == (
        "--gradient_checkpointing true alone would need 244 MiB; with it, "
        "--per_device_train_batch_size 24 --gradient_accumulation_steps 2 "
        "--local_rollout_forward_batch_size 16 would need 168 MiB, which fits"
    )
    assert found is not None and plan(found).peak == 168 * n

    said, found = what_would_fit(plan, big, 48, 60 * n)
    assert "with it, --precision 4bit " in said and found is not None
    assert found.precision == "4bit" and plan(found).peak <= 60 * n

    said, found = what_would_fit(plan, big, 48, 10 * n)
    assert found is None and "no smaller pass fits: take a smaller base" in said


def test_a_run_that_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room("a toy", 2 * MIB, MIB)
    monkeypatch.setattr(cards, "free_room", lambda device: room)
    plan = planner_of(LlamaConfig(**SMALL | {"num_hidden_layers": 4}))
    with pytest.raises(InputError, match=r"there are 1 \(a toy.*--gradient_checkpointing true"):
        check_memory(lambda: plan, Passes(8, 8, False, "fp32"), 8, "cpu")


def test_a_family_that_cannot_be_planned_is_warned_of() -> None:
    def planner() -> Any:
        raise ValueError("needs real numbers")

    with pytest.warns(UserWarning, match="no memory plan for this model: needs real numbers"):
        check_memory(planner, WANTED, 48, "cpu")


def test_an_estimate_that_does_not_fit_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "count_kept", no_count)
    monkeypatch.setattr(cards, "free_room", lambda device: Room("a toy", MIB >> 1))
    plan = planner_of(LlamaConfig(**SMALL))
    with pytest.warns(UserWarning, match=r"there are 0 \(a toy.*estimated from sizes"):
        check_memory(lambda: plan, Passes(8, 8, False, "fp32"), 8, "cpu")


def test_a_wrong_argument_is_no_want_of_a_plan() -> None:
    lora = lora_config(8, 16, "no_such_layer", "CAUSAL_LM")
    plan = planner_of(LlamaConfig(**SMALL), lora=lora)
    with pytest.raises(InputError, match="no_such_layer"):
        check_memory(lambda: plan, Passes(8, 8, False, "fp32"), 8, "cpu")
