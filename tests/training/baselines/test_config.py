"""Settings of the baselines: what is refused before a model is loaded, and what reaches TRL."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.baselines.conftest import preference
from toolkit.errors import InputError
from toolkit.training.baselines.config import PreferenceConfig, RLOOBaselineConfig


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "ppo"}, "must be one of dpo, kto, orpo, cpo"),
        ({"method": "kto", "loss_type": "ipo"}, "must be one of kto, apo_zero_unpaired"),
        ({"method": "cpo", "loss_type": "ipo,hinge"}, "one loss at a time"),
        ({"loss_weights": [1.0, 2.0]}, "same length"),
        ({"method": "kto", "label_smoothing": 0.1}, "label_smoothing is not used by kto"),
        ({"simpo_gamma": 1.0}, "simpo_gamma is not used by dpo"),
        ({"method": "kto", "per_device_train_batch_size": 1}, "pass 2 or more"),
        ({"padding_free": True}, "padding_free is not used"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"beta": -1.0}, "must be at least 0"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    kwargs: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):  # TRL's own too: the command line shows a line
        PreferenceConfig(output_dir=str(tmp_path), use_cpu=True, **kwargs)


def test_rloo_refuses_a_batch_that_its_groups_do_not_fill(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="divisible"):
        RLOOBaselineConfig(
            output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=6, num_generations=4
        )


def test_several_dpo_losses_are_weighed(tmp_path: Path) -> None:
    config = preference(tmp_path, "dpo", loss_type="sigmoid, sft", loss_weights=[1.0, 0.2])
    args: Any = config.for_trl()
    assert (args.loss_type, args.loss_weights) == (["sigmoid", "sft"], [1.0, 0.2])
    assert config.loss_type == "sigmoid, sft" and not args.gradient_checkpointing and not args.bf16


@pytest.mark.parametrize("method", ["orpo", "cpo"])
def test_a_trl_without_the_method_is_one_line_with_the_cure(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preference(tmp_path, method)
    monkeypatch.setitem(sys.modules, f"trl.experimental.{method}", None)
    with pytest.raises(InputError, match=rf"TRL 1\.\S+ has no {method.upper()} \(pip install"):
        preference(tmp_path, method)


def test_grpo_gets_the_same_settings_under_trls_own_config(tmp_path: Path) -> None:
    shared = {"output_dir": str(tmp_path), "use_cpu": True, "response_length": 9, "beta": 0.2}
    made = RLOOBaselineConfig(**shared, method="grpo", loss_type="dr_grpo").for_trl()
    assert type(made).__name__ == "GRPOConfig"
    assert (made.beta, made.max_completion_length, made.num_generations) == (0.2, 9, 4)
    assert (made.loss_type, made.scale_rewards) == ("dr_grpo", "none")
    assert RLOOBaselineConfig(**shared, method="grpo").for_trl().scale_rewards == "group"

    for flags, name in (
        ({"loss_type": "bnpo"}, "loss_type"),
        ({"method": "grpo", "normalize_advantages": True}, "normalize_advantages"),
    ):
        with pytest.raises(InputError, match=f"^{name} is not used by") as refused:
            RLOOBaselineConfig(**shared, **flags)
        assert refused.value.field == name
