"""TRL 1.12's configuration, field by field, against the dialect and the page that tells of it."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from toolkit.errors import InputError
from toolkit.training.ppo.config import USED
from toolkit.trl_compat import PPOConfig, PPOTrainer
from toolkit.trl_compat.config import TAKEN

# trl.experimental.ppo.PPOConfig of TRL 1.12.0 on transformers 5.23.0: each field and its default,
# written down by dataclasses.fields in an environment of its own.
FIELDS: dict[str, Any] = {
    "output_dir": None,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "learning_rate": 3e-06,
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
    "optim": "adamw_torch_fused",
    "optim_args": None,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-08,
    "optim_target_modules": None,
    "gradient_accumulation_steps": 1,
    "average_tokens_across_devices": True,
    "max_grad_norm": 1.0,
    "label_smoothing_factor": 0.0,
    "bf16": None,
    "fp16": False,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
    "tf32": None,
    "activation_checkpointing": None,
    "activation_checkpointing_kwargs": None,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": None,
    "torch_compile": False,
    "torch_compile_backend": None,
    "torch_compile_mode": None,
    "use_liger_kernel": False,
    "liger_kernel_config": None,
    "use_cache": False,
    "neftune_noise_alpha": None,
    "torch_empty_cache_steps": None,
    "auto_find_batch_size": False,
    "logging_strategy": "steps",
    "logging_steps": 10,
    "logging_first_step": False,
    "log_on_each_node": True,
    "logging_nan_inf_filter": True,
    "include_num_input_tokens_seen": "no",
    "log_level": "passive",
    "log_level_replica": "warning",
    "disable_tqdm": None,
    "report_to": "none",
    "run_name": None,
    "project": "huggingface",
    "trackio_space_id": None,
    "trackio_bucket_id": None,
    "trackio_static_space_id": None,
    "eval_strategy": "no",
    "eval_steps": None,
    "eval_delay": 0,
    "per_device_eval_batch_size": 8,
    "prediction_loss_only": False,
    "eval_on_start": False,
    "eval_do_concat_batches": True,
    "eval_use_gather_object": False,
    "eval_accumulation_steps": None,
    "include_for_metrics": [],
    "batch_eval_metrics": False,
    "save_only_model": False,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_on_each_node": False,
    "save_total_limit": None,
    "enable_jit_checkpoint": False,
    "push_to_hub": False,
    "hub_token": None,
    "hub_private_repo": None,
    "hub_model_id": None,
    "hub_strategy": "every_save",
    "hub_always_push": False,
    "hub_revision": None,
    "load_best_model_at_end": False,
    "metric_for_best_model": None,
    "greater_is_better": None,
    "ignore_data_skip": False,
    "restore_callback_states_from_checkpoint": False,
    "full_determinism": False,
    "seed": 42,
    "data_seed": None,
    "use_cpu": False,
    "accelerator_config": None,
    "parallelism_config": None,
    "dataloader_drop_last": False,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": True,
    "dataloader_persistent_workers": False,
    "dataloader_prefetch_factor": None,
    "dataloader_multiprocessing_context": None,
    "dataloader_in_order": True,
    "remove_unused_columns": True,
    "label_names": None,
    "train_sampling_strategy": "random",
    "length_column_name": "length",
    "ddp_find_unused_parameters": None,
    "ddp_bucket_cap_mb": None,
    "ddp_broadcast_buffers": None,
    "ddp_static_graph": None,
    "ddp_backend": None,
    "ddp_timeout": 1800,
    "fsdp": None,
    "fsdp_config": None,
    "deepspeed": None,
    "debug": "",
    "skip_memory_metrics": True,
    "do_train": False,
    "do_eval": False,
    "do_predict": False,
    "resume_from_checkpoint": None,
    "local_rank": -1,
    "dataset_num_proc": None,
    "num_mini_batches": 1,
    "total_episodes": None,
    "local_rollout_forward_batch_size": 64,
    "num_sample_generations": 10,
    "response_length": 53,
    "stop_token": None,
    "stop_token_id": None,
    "temperature": 0.7,
    "missing_eos_penalty": None,
    "sft_model_path": "EleutherAI/pythia-160m",
    "world_size": None,
    "num_total_batches": None,
    "micro_batch_size": None,
    "local_batch_size": None,
    "batch_size": None,
    "local_mini_batch_size": None,
    "mini_batch_size": None,
    "reward_model_path": "EleutherAI/pythia-160m",
    "model_adapter_name": None,
    "ref_adapter_name": None,
    "num_ppo_epochs": 4,
    "whiten_rewards": False,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "cliprange": 0.2,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "ds3_gather_for_generation": True,
}
# What its own methods are called, and those that scripts call of transformers' Trainer.
METHODS = [
    "train", "save_model", "generate_completions", "get_train_dataloader", "get_eval_dataloader",
    "null_ref_context", "evaluate", "push_to_hub", "create_model_card", "log", "add_callback",
    "is_world_process_zero",
]  # fmt: skip
# What a value other than the default may look like, where the default does not tell.
OTHER: dict[str, Any] = {
    "max_steps": 5,
    "fp16": True,
    "fp16_full_eval": True,
    "bf16_full_eval": True,
    "load_best_model_at_end": True,
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "accelerator_config": {"split_batches": True},
    "parallelism_config": {"tp": 2},
    "fsdp": "full_shard",
    "fsdp_config": {"version": 2},
    "deepspeed": "ds.json",
    "push_to_hub": True,
    "optim_target_modules": "all-linear",
}


def own_defaults() -> dict[str, Any]:
    defaults = {}
    for f in dataclasses.fields(PPOConfig):
        made = f.default_factory is not dataclasses.MISSING
        default: Any = f.default_factory() if made else f.default  # type: ignore[misc]
        defaults[f.name] = getattr(default, "value", default)
    return defaults


def told(root: Path) -> set[str]:
    """All that the page names in backticks, a word at a time."""
    text = (root / "docs" / "from-trl.md").read_text(encoding="utf-8")
    return {word for name in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"\W+", name)}


def acts(name: str) -> bool:
    inherited = {f.name for f in dataclasses.fields(TrainingArguments)}
    return name in USED or (name not in inherited and name not in TAKEN)


def test_every_field_of_trls_is_there() -> None:
    assert not FIELDS.keys() - own_defaults().keys()


def test_the_page_names_every_field_that_differs(root: Path) -> None:
    """By its default, by having no effect, or by being refused."""
    ours = own_defaults()
    differ = {n for n, default in FIELDS.items() if ours[n] != default or not acts(n)}
    assert len(differ) > 60
    assert not differ - told(root)


def test_the_page_names_no_field_that_is_not_there(root: Path) -> None:
    text = (root / "docs" / "from-trl.md").read_text(encoding="utf-8")
    listed = text.split("### Fields with another default")[1]
    words = {w for w in re.findall(r"`([a-z0-9_]{6,})`", listed) if "_" in w}
    values = {"reduce_lr_on_plateau", "trainer_output"}
    assert not words - own_defaults().keys() - values


@pytest.mark.parametrize("name", sorted(TAKEN & FIELDS.keys()))
def test_what_changes_nothing_stops_no_script(name: str, tmp_path: Path) -> None:
    """With a value that is not the default, as a script would set it."""
    default = FIELDS[name]
    other: dict[str, Any] = {
        "logging_strategy": "epoch",
        "eval_strategy": "epoch",
        "log_level": "info",
        "log_level_replica": "info",
        "include_num_input_tokens_seen": "all",
        "hub_strategy": "end",
        "debug": "underflow_overflow",
        "include_for_metrics": ["inputs"],
        "resume_from_checkpoint": "true",
        "train_sampling_strategy": "group_by_length",
        "dataloader_prefetch_factor": None,
        "liger_kernel_config": {"rope": True},
        "label_names": ["labels"],
        "torch_compile": None,
        "ddp_backend": None,
    }
    if isinstance(default, bool):
        value: Any = not default
    elif isinstance(default, int):
        value = default + 1
    else:
        value = "text"
    if name in (
        "eval_steps",
        "eval_accumulation_steps",
        "data_seed",
        "torch_empty_cache_steps",
        "ddp_bucket_cap_mb",
    ):
        value = 7
    value = other.get(name, value)
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})
    assert dataclasses.is_dataclass(args)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_what_would_change_numbers_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{name}"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: OTHER[name]})


def test_every_field_acts_or_is_taken_or_is_refused() -> None:
    assert not {n for n in FIELDS if not acts(n)} - TAKEN - OTHER.keys()


def test_a_method_is_there_or_the_page_says_that_it_is_not(root: Path) -> None:
    assert {m for m in METHODS if not hasattr(PPOTrainer, m)} <= told(root)


def test_fields_of_transformers_4_are_taken(tmp_path: Path) -> None:
    args = PPOConfig(
        output_dir=str(tmp_path),
        no_cuda=True,
        warmup_ratio=0.1,
        logging_dir="runs",
        overwrite_output_dir=True,
        save_safetensors=True,
    )
    assert args.use_cpu and args.warmup_steps == 0.1
    both = PPOConfig(output_dir=str(tmp_path), use_cpu=True, warmup_ratio=0.1, warmup_steps=3)
    assert both.warmup_steps == 3


def test_the_defaults_are_trls() -> None:
    theirs = PPOConfig(use_cpu=True)
    assert (theirs.kl_controller, theirs.kl_coef, theirs.whiten_rewards) == ("fixed", 0.05, False)
    assert (theirs.response_length, theirs.learning_rate, theirs.num_ppo_epochs) == (53, 3e-6, 4)
    assert (theirs.per_device_train_batch_size, theirs.adam_epsilon) == (8, 1e-8)


# The parameters of its PPOTrainer, in their order.
PARAMETERS = [
    "args", "processing_class", "model", "ref_model", "reward_model", "train_dataset",
    "value_model", "data_collator", "eval_dataset", "optimizers", "callbacks", "peft_config",
]  # fmt: skip


def test_the_trainer_takes_trls_arguments_in_trls_order() -> None:
    assert list(inspect.signature(PPOTrainer.__init__).parameters)[1:13] == PARAMETERS
