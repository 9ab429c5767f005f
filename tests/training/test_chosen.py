"""What is chosen for a card: only what was not given, the same each time, and kept at a resume."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.test_memory_fit import made_up
from toolkit.arguments.model import ModelArguments
from toolkit.cli import changed
from toolkit.models.cards import Room
from toolkit.models.memory_fit import Planner
from toolkit.training.chosen import choose_passes, passes_of, recorded_settings
from toolkit.training.ppo.config import PPOConfig

CARD = Room("a card", 200, 30, 10, bf16=True)  # 160 are left: 130 beside a base in 4 bits


def config_of(folder: Path, **given: Any) -> PPOConfig:
    return PPOConfig(output_dir=str(folder), use_cpu=True, **given)


def planner() -> Planner:
    return made_up


def test_on_a_card_the_split_of_the_batch_is_chosen_and_not_the_batch(tmp_path: Path) -> None:
    config, model = config_of(tmp_path), ModelArguments()
    said = choose_passes(config, model, planner, CARD)
    # 30 + 20 + 2 * 32 = 114 fits, and so does 30 + 3 * 32 = 126; twice as many do not.
    assert config.per_device_train_batch_size == 32 and config.gradient_accumulation_steps == 2
    assert config.local_rollout_forward_batch_size == 32 and config.local_batch_size == 64
    assert config.bf16 and config.gradient_checkpointing and config.activation_checkpointing
    assert model.plain_scales and not config.unpack_base  # 30 + 3 + 96 + 40 do not fit
    assert said is not None and said.startswith("chosen for a card (flags override it): bf16 true")
    assert "per_device_train_batch_size 32" in said and "plain_scales true" in said


def test_a_base_that_is_wanted_in_fp32_gets_no_autocast(tmp_path: Path) -> None:
    config, model = config_of(tmp_path), ModelArguments(precision="fp32")
    said = choose_passes(config, model, planner, CARD)
    assert not config.bf16 and said is not None and "bf16 false" in said


def test_the_record_of_another_method_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"method": "sft", "settings": {"bf16": True}}))
    (tmp_path / "checkpoint-000002").mkdir()
    assert recorded_settings(config_of(tmp_path, resume="auto")) is None


def test_checkpointing_that_was_refused_by_its_new_name_is_not_chosen(tmp_path: Path) -> None:
    config = config_of(tmp_path, activation_checkpointing=False)
    choose_passes(config, ModelArguments(), planner, CARD)
    assert not config.activation_checkpointing


def test_what_was_given_is_recorded_although_it_is_the_default_elsewhere(tmp_path: Path) -> None:
    """On a GPU something else would be chosen without it."""
    config = config_of(tmp_path, bf16=False, per_device_train_batch_size=64)
    told = changed(config)
    assert told["bf16"] is False and told["per_device_train_batch_size"] == 64
    assert "unpack_base" not in told and "bf16" not in changed(config_of(tmp_path))


def test_flags_override_what_would_be_chosen(tmp_path: Path) -> None:
    given = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 6,
        "local_rollout_forward_batch_size": 12,
        "bf16": False,
        "gradient_checkpointing": False,
        "unpack_base": False,
    }
    config, model = config_of(tmp_path, **given), ModelArguments(plain_scales=False)
    assert choose_passes(config, model, planner, CARD) is None
    assert {name: getattr(config, name) for name in given} == given and not model.plain_scales


def test_steps_of_accumulation_that_were_given_say_how_large_the_batch_is(tmp_path: Path) -> None:
    config = config_of(tmp_path, gradient_accumulation_steps=2)
    choose_passes(config, ModelArguments(), planner, CARD)
    assert config.local_batch_size == 128
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (32, 4)


def test_on_a_cpu_nothing_is_chosen(tmp_path: Path) -> None:
    config, model = config_of(tmp_path), ModelArguments()
    assert choose_passes(config, model, planner, None) is None
    assert (
        passes_of(config, model).micro_batch == 64 and passes_of(config, model).rollout_batch == 64
    )
    assert config.local_rollout_forward_batch_size == 256
    assert not config.bf16 and not config.gradient_checkpointing and model.plain_scales is None


def test_a_resumed_run_keeps_what_it_recorded(tmp_path: Path) -> None:
    settings = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 8,
        "local_rollout_forward_batch_size": 16,
        "bf16": True,
        "gradient_checkpointing": True,
        "unpack_base": True,
        "plain_scales": True,
    }
    (tmp_path / "run.json").write_text(json.dumps({"method": "ppo", "settings": settings}))
    assert recorded_settings(config_of(tmp_path, resume="auto")) is None  # nothing to go on from
    (tmp_path / "checkpoint-000002").mkdir()
    for room in (CARD, None):
        config, model = config_of(tmp_path, resume="auto"), ModelArguments()
        recorded = recorded_settings(config)
        assert choose_passes(config, model, planner, room, recorded=recorded) is None
        assert {k: getattr(config, k, None) for k in settings if k != "plain_scales"} == {
            k: v for k, v in settings.items() if k != "plain_scales"
        }
        assert model.plain_scales

    # A checkpoint named by its folder, of a run elsewhere.
    named = config_of(tmp_path / "new", resume=str(tmp_path / "checkpoint-000002"))
    recorded = recorded_settings(named)
    choose_passes(named, ModelArguments(), planner, CARD, recorded=recorded)
    assert named.per_device_train_batch_size == 8 and named.gradient_accumulation_steps == 8


def test_a_record_from_before_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Such a run had no gradient checkpointing and no bf16, on a GPU, too."""
    settings = {
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "local_rollout_forward_batch_size": 256,
        "bf16": False,
        "gradient_checkpointing": None,
    }
    (tmp_path / "run.json").write_text(json.dumps({"method": "ppo", "settings": settings}))
    (tmp_path / "checkpoint-000002").mkdir()
    config, model = config_of(tmp_path, resume="auto"), ModelArguments()
    recorded = recorded_settings(config)
    assert choose_passes(config, model, planner, CARD, recorded=recorded) is None
    assert passes_of(config, model).micro_batch == 64
    assert not config.bf16 and not config.gradient_checkpointing and not model.plain_scales


def test_where_nothing_fits_everything_stays_for_the_check_to_refuse(tmp_path: Path) -> None:
    config, model = config_of(tmp_path), ModelArguments()
    choose_passes(config, model, planner, Room("a toy", 20, bf16=True))
    assert config.per_device_train_batch_size == 64 and not config.gradient_checkpointing


def test_a_model_that_cannot_be_planned_gets_only_bf16(tmp_path: Path) -> None:
    def broken() -> Planner:
        raise RuntimeError("no storage")

    config = config_of(tmp_path)
    with pytest.warns(UserWarning, match="no settings were chosen for a card: no storage"):
        choose_passes(config, ModelArguments(), broken, CARD)
    assert config.bf16 and config.per_device_train_batch_size == 64


def test_a_base_that_several_gpus_share_stays_as_it_is(tmp_path: Path) -> None:
    config, model = config_of(tmp_path), ModelArguments()
    said = choose_passes(config, model, planner, CARD, sharded=True)
    assert config.gradient_checkpointing and not config.unpack_base and not model.plain_scales
    assert said is not None and "unpack_base" not in said
