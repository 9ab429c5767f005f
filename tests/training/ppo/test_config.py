"""PPO's settings: what cannot be meant is refused before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.maths.kl_controllers import AdaptiveKLController, FixedKLController
from toolkit.models.loading import load_tokenizer
from toolkit.training.ppo.config import PPOConfig, check_steps


@pytest.mark.parametrize(
    "flag",
    [
        {"fp16": True},
        {"max_steps": 10},
        {"label_smoothing_factor": 0.1},
        {"torch_compile": True},
        {"hub_token": "hf_x"},
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(tmp_path: Path, flag: dict) -> None:
    with pytest.raises(InputError, match="is not used by PPO"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **flag)


def test_a_penalty_for_a_missing_end_needs_an_end(demo_model: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(demo_model)  # no chat template, so nothing ends a completion
    config = PPOConfig(output_dir=str(tmp_path), use_cpu=True, missing_eos_penalty=1.0)
    with pytest.raises(InputError, match="missing_eos_penalty needs a stop_token"):
        config.rule(tokenizer)
    config.stop_token = "eos"
    assert config.rule(tokenizer).ends == (tokenizer.eos_token_id,)


def config(**kwargs: Any) -> PPOConfig:
    return PPOConfig(output_dir="x", use_cpu=True, **kwargs)


def test_a_run_that_was_begun_before_these_fields_acted_goes_on() -> None:
    """Its settings do not name them; only what differs from the default is noted."""
    assert not {"weight_decay", "optim", "warmup_steps"} & config().identity().keys()
    assert config(weight_decay=0.1).identity()["weight_decay"] == 0.1
    assert config(optim="adafactor").identity()["optim"] == "adafactor"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "galore_adamw"}, "optim is 'galore_adamw', but must be one of adamw_torch,"),
        ({"optim": "lomo"}, "optim is 'lomo'"),
        ({"optim": "sgd", "optim_args": "momentum"}, "optim: sgd: optim_args 'momentum'"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type is 'reduce_lr_on_pl"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 3}}, "cycles"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"save_steps": 2.5}, "save_steps is 2.5, but must be whole"),
        ({"adam_tf_style": True, "weight_decay": 0.1}, "adam_tf_style replaces the optimizer"),
        ({"gradient_checkpointing_kwargs": {"reentrant": True}}, "must be one of use_reentrant"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_named_before_a_model_is_loaded(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        config(**options)
    assert message in str(raised.value)


def test_a_batch_is_the_passes_of_an_update_and_minibatches_divide_it() -> None:
    batch = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 4}
    assert config(**batch, num_mini_batches=3).local_batch_size == 24
    with pytest.raises(InputError, match="must divide the batch of 24"):
        config(**batch, num_mini_batches=5)


def test_settings_on_which_nothing_learned_depends_are_no_part_of_a_runs_identity() -> None:
    one = config(save_steps=5, report_to="none", eval_every=7).identity()
    assert one == config(save_steps=50, disable_tqdm=True, resume="auto").identity()
    for change in ({"seed": 2}, {"kl_coef": 0.5}, {"response_length": 9}, {"learning_rate": 1e-3}):
        assert config(**change).identity() != one


def test_the_controller_is_the_one_that_was_named_at_its_start() -> None:
    fixed = config(kl_controller="fixed", kl_coef=0.3).kl_state()
    assert (type(fixed), fixed.value, fixed.kl_target) == (FixedKLController, 0.3, None)
    adaptive = config(kl_controller="adaptive", kl_coef=0.3, kl_target=4.0).kl_state()
    assert (type(adaptive), adaptive.value, adaptive.kl_target) == (AdaptiveKLController, 0.3, 4.0)
    capped = config(kl_controller="adaptive", kl_coef=0.3, kl_coef_max=0.31).kl_state()
    for controller in (adaptive, capped):
        controller.update(kl=1000.0, episodes=10_000)
    assert adaptive.value > 0.31 and capped.value == 0.31


def test_steps_are_whole_or_a_part_of_the_run() -> None:
    for value in (0.25, 1, 20.0):
        check_steps("save_steps", value)
    for value in (1.25, 20.5):
        with pytest.raises(InputError, match="must be whole, or a part below 1"):
            check_steps("save_steps", value)
    with pytest.raises(InputError, match="must be above 0"):
        check_steps("save_steps", 0)


def test_an_algorithm_without_a_value_has_no_value_role() -> None:
    assert config(value="trunk").value_role == "trunk"
    assert config(algorithm="group_relative").value_role is None
