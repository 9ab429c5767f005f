"""TRL's configurations have the toolkit's defaults, all of them."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from toolkit.training.baselines.config import (
    PreferenceConfig,
    RLOOBaselineConfig,
    SFTBaselineConfig,
)
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.trl_defaults import TRLDefaults

CONFIGS = [BestOfKConfig, PreferenceConfig, RLOOBaselineConfig, SFTBaselineConfig]


@pytest.mark.parametrize("config", CONFIGS)
def test_no_training_uses_bf16_checkpoints_or_strange_code_unless_asked(
    config: Any, tmp_path: Path
) -> None:
    made = config(output_dir=str(tmp_path), use_cpu=True)
    assert not made.bf16 and not made.activation_checkpointing and not made.gradient_checkpointing
    assert made.save_strategy == "no"


@pytest.mark.parametrize("config", CONFIGS)
def test_trls_own_defaults_give_way_in_every_config(config: Any) -> None:
    found = {f.name: f.default for f in fields(config)}
    for field in fields(TRLDefaults):
        assert found[field.name] == field.default, field.name


def test_what_another_flag_says_is_no_flag() -> None:
    flags = {f.name for f in fields(TRLDefaults) if f.init}
    assert not flags & {"gradient_checkpointing", "trust_remote_code"}
