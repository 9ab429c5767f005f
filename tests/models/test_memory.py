"""The memory plan: counted, not guessed."""

import copy
import re
from functools import partial

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from toolkit.errors import InputError
from toolkit.models.adapters import lora_config
from toolkit.models.canaries import CANARIES
from toolkit.models.loading import load_base
from toolkit.models.memory import MIB, MemoryPlan, check_memory, plan_memory, what_fits
from toolkit.models.roles import Roles

LORA = lora_config(8, 16, "all-linear", "CAUSAL_LM")


def plan_of(config: object, micro: int = 8, checkpointing: bool = False, **kwargs) -> MemoryPlan:  # noqa: ANN003
    options = {"precision": "fp32", "lora": LORA, "value": "trunk", "prompt_length": 16,
               "response_length": 8, "rollout_batch": 8}  # fmt: skip
    return plan_memory(config, micro_batch=micro, checkpointing=checkpointing, **(options | kwargs))


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_activations_are_what_autograd_really_keeps(family_model: str, value: str) -> None:
    """Counted on a model without storage, and on the same one with its weights, in each family."""
    plan = plan_of(AutoConfig.from_pretrained(family_model), value=value, reward=False)
    roles = Roles(load_base(family_model, "fp32"), copy.deepcopy(LORA), value=value)
    held = {p.untyped_storage().data_ptr() for p in roles.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in held:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids, mask = torch.ones((8, 24), dtype=torch.long), torch.ones((8, 24), dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = roles.policy_outputs(ids, mask, ids[:, -8:], 1.0)
    really = sum(t.untyped_storage().nbytes() for t in seen.values())
    del outputs
    planned = plan.phases["optimising"]["activations kept for the backward pass"]
    assert planned == pytest.approx(really, rel=0.05)
    trained = sum(p.numel() for _, p in roles.trainable()) * 4
    assert plan.held["optimizer (two moments)"] == 2 * trained
    weights = sum(p.numel() for p in roles.parameters() if not p.requires_grad) * 4
    assert plan.held["base (fp32)"] == weights


def test_eight_billion_parameters_are_planned_in_a_moment_and_need_four_bits() -> None:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128_256, max_position_embeddings=8192,
    )  # fmt: skip
    sizes = {"prompt_length": 512, "response_length": 128, "rollout_batch": 16, "bf16": True,
             "device": "cuda"}  # fmt: skip
    quantised = plan_of(config, 2, True, precision="4bit", **sizes)
    whole = plan_of(config, 2, True, precision="bf16", **sizes)
    assert 8.0e9 < float(quantised.facts["base"].split()[0].replace(",", "")) < 8.1e9
    assert 5.2e9 < quantised.held["base (4bit)"] < 6.0e9
    assert whole.held["base (bf16)"] == pytest.approx(2 * 8.03e9, rel=0.01)
    assert quantised.peak < 24 * 2**30


def test_checkpointing_and_smaller_passes_need_less() -> None:
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                         num_attention_heads=4, vocab_size=256)  # fmt: skip
    whole, recomputed, half = plan_of(config), plan_of(config, 8, True), plan_of(config, 4)

    def kept(plan: MemoryPlan) -> int:
        return plan.phases["optimising"]["activations kept for the backward pass"]

    assert kept(recomputed) < kept(whole) / 3
    assert kept(half) == pytest.approx(kept(whole) / 2, rel=0.02)


def test_what_would_fit_is_said() -> None:
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4,
                         num_attention_heads=4, vocab_size=256)  # fmt: skip
    plan = partial(plan_of, config)
    room = plan(4, False).peak + 1
    assert "per_device_train_batch_size: 4" in what_fits(plan, 16, room)
    config.num_hidden_layers = 24
    tight = partial(plan_of, config, prompt_length=64, rollout_batch=1)
    assert "gradient_checkpointing" in what_fits(tight, 64, tight(1, False).peak - 1)
    assert "no micro-batch" in what_fits(plan, 4, 1000)


def test_a_run_that_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, vocab_size=256)  # fmt: skip
    monkeypatch.setattr("toolkit.models.memory.available_memory", lambda device: (MIB, "a toy"))
    with pytest.raises(InputError, match=re.escape("a toy has 1 free")):
        check_memory(lambda: partial(plan_of, config), 8, False, "cpu")


def test_a_family_that_cannot_be_planned_is_warned_of() -> None:
    def planner() -> None:
        raise ValueError("needs real numbers")

    with pytest.warns(UserWarning, match="no memory plan for this model: needs real numbers"):
        check_memory(planner, 8, False, "cpu")


@pytest.mark.parametrize("name", CANARIES)
def test_canaries_sing_here(name: str) -> None:
    assert CANARIES[name]() is None


def test_a_canary_dies_of_what_it_watches_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.models import actors

    monkeypatch.setattr(
        actors, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape)
    )
    assert "left-padded" in (CANARIES["padding on the left"]() or "")
    assert "captured" in (CANARIES["captured log-probs"]() or "")
