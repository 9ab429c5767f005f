"""For scripts and configurations that were written for TRL 1.12's PPOTrainer.

    from toolkit.trl_dialect import PPOConfig, PPOTrainer  # was: from trl.experimental.ppo ...

The trainer is the toolkit's own, which takes whole separate models as TRL's did. The configuration
has TRL 1.12's fields with TRL 1.12's defaults: a fixed KL coefficient of 0.05, no whitening of
rewards, 53 tokens. What differs all the same, and why, stands in the README.
"""

import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import yaml

from toolkit.errors import InputError
from toolkit.training.ppo_config import PPOConfig as _PPOConfig
from toolkit.training.ppo_trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer", "read_trl_config"]


@dataclass
class PPOConfig(_PPOConfig):
    """The toolkit's PPOConfig with TRL 1.12's fields and defaults.

    ``bf16``, ``gradient_checkpointing`` and ``max_grad_norm`` had no effect on TRL's PPO; here they
    have, so they are off unless set.
    """

    # What TRL's configuration has and its PPO never read, or worked out for itself.
    ALSO_TAKEN: ClassVar[set[str]] = {
        "logging_steps", "logging_strategy", "logging_first_step", "eval_strategy", "eval_steps",
        "dataloader_num_workers", "remove_unused_columns", "do_train", "do_eval", "hub_strategy",
    }  # fmt: skip
    NEEDS_STOP: ClassVar[bool] = False

    output_dir: str | None = field(default="trainer_output", metadata={"help": "Folder."})
    learning_rate: float = field(default=3e-6, metadata={"help": "Falls linearly to 0."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Episodes in a pass."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Adam's epsilon."})
    total_episodes: int | None = field(
        default=None, metadata={"help": "Episodes; by default num_train_epochs times the prompts."}
    )
    local_rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Episodes in a pass without gradients."}
    )
    num_sample_generations: int = field(
        default=10, metadata={"help": "Tables of completions in a run."}
    )
    response_length: int = field(default=53, metadata={"help": "Tokens sampled."})
    kl_controller: str = field(default="fixed", metadata={"help": "fixed, or adaptive."})
    kl_coef: float = field(default=0.05, metadata={"help": "The coefficient."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Divide rewards by their std."})
    sample_every: int = field(default=10**9, metadata={"help": "Updates between samples shown."})
    save_steps: int = field(default=500, metadata={"help": "Updates between checkpoints."})
    sft_model_path: str = field(
        default="EleutherAI/pythia-160m", metadata={"help": "For scripts: the policy's model."}
    )
    reward_model_path: str = field(
        default="EleutherAI/pythia-160m", metadata={"help": "For scripts: the reward's model."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "For scripts: processes that tokenise."}
    )
    model_adapter_name: str | None = field(
        default=None, metadata={"help": "The policy's adapter, of several."}
    )
    ref_adapter_name: str | None = field(
        default=None, metadata={"help": "The reference's adapter, of several."}
    )


def _same(name: str) -> Callable[[Any], tuple[dict[str, Any], str | None]]:
    return lambda value: ({name: value}, None)


def _renamed(name: str, why: str) -> Callable[[Any], tuple[dict[str, Any], str | None]]:
    return lambda value: ({name: value}, f"is {name} here: {why}")


def _dropped(why: str) -> Callable[[Any], tuple[dict[str, Any], str | None]]:
    return lambda value: ({}, f"left out: {why}")


def _four_bit(value: Any) -> tuple[dict[str, Any], str | None]:
    return ({"precision": "4bit"}, "is precision: 4bit here") if value else ({}, None)


def _dtype(value: Any) -> tuple[dict[str, Any], str | None]:
    known = {"bfloat16": "bf16", "float32": "fp32", "auto": None, None: None}
    if not isinstance(value, str | None) or value not in known:
        raise InputError(f"{value!r} is no type that a base is held in (bfloat16 or float32)")
    precision = known[value]
    return ({"precision": precision} if precision else {}), "is precision here"


IGNORED = "TRL 1.12's PPO ignored it"
TRANSLATION: dict[str, Callable[[Any], tuple[dict[str, Any], str | None]]] = {
    "model_name_or_path": _same("model_name_or_path"),
    "model_revision": _same("model_revision"),
    "trust_remote_code": _same("trust_remote_code"),
    "lora_r": _same("lora_r"),
    "lora_alpha": _same("lora_alpha"),
    "lora_target_modules": lambda value: (
        {"lora_target_modules": value if isinstance(value, str) else ",".join(value)}
        if value else {}, None,
    ),
    "lora_dropout": _dropped("the ratio must be 1 before the first step, so there is none"),
    "use_peft": _dropped("the recipes always train adapters"),
    "load_in_4bit": _four_bit,
    "dtype": _dtype,
    "torch_dtype": _dtype,
    "sft_model_path": _renamed("model_name_or_path", "one base serves all roles"),
    "reward_model_path": _renamed("reward_model", "a model of its own, scored on text; or train an "
                                  "adapter with reward.py and pass reward_adapter"),
    "value_model": _dropped("the value is an adapter or a head on the policy's base"),
    "dataset_name": _dropped("pass a file of prompts with --prompts"),
    "dataset_config": _dropped("pass a file of prompts with --prompts"),
    "dataset_train_split": _dropped("pass a file of prompts with --prompts"),
    "dataset_test_split": _dropped("pass a file of prompts with --eval_prompts"),
    "dataset_num_proc": _dropped("prompts are tokenised in one process"),
    "bf16": _dropped(IGNORED + "; set it anew if you want autocast, which is then on"),
    "fp16": _dropped(IGNORED),
    "gradient_checkpointing": _dropped(IGNORED + "; set it anew if you want it"),
    "max_grad_norm": _dropped(IGNORED + "; set it anew if you want clipping"),
    "weight_decay": _dropped("there is none here, as by default there"),
    "logging_steps": _dropped("every update is logged"),
    "eval_steps": _renamed("eval_every", "updates between evaluations"),
    "eval_strategy": _dropped("evaluation is on where --eval_prompts is given"),
    "num_sample_generations": _dropped("samples are shown every sample_every updates"),
    "ds3_gather_for_generation": _dropped("there is no ZeRO-3 here"),
    "world_size": _dropped("it was worked out by the trainer; here it is what you ask for"),
    "attn_implementation": _dropped("transformers' own choice is taken"),
}  # fmt: skip
for _name in ("num_total_batches", "micro_batch_size", "local_batch_size", "batch_size",
              "local_mini_batch_size", "mini_batch_size"):  # fmt: skip
    TRANSLATION[_name] = _dropped("the trainer works it out")


def read_trl_config(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """A YAML for TRL 1.12's PPO script as one for ``recipes/ppo.py``, and what changed.

    Fields that the file leaves out get TRL's defaults, where these differ from the toolkit's, so
    that the run means the same.

    Raises:
        InputError: not a YAML mapping, or a key that TRL 1.12 did not have (file:line).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        given, node = yaml.safe_load(text), typing.cast(Any, yaml.compose(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(given, dict):
        raise InputError(f"{path}:1: not a YAML mapping (write one `name: value` a line)")
    lines: dict[Any, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines or key.value == "<<":
            raise InputError(f"{path}:{line}: {key.value} twice, or a merge (write each key once)")
        lines[key.value] = line
    ours = {f.name for f in fields(_PPOConfig) if f.init}
    values: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in given.items():
        if name in TRANSLATION:
            try:
                translated, note = TRANSLATION[name](value)
            except (InputError, TypeError) as error:
                raise InputError(f"{path}:{lines[name]}: {name}: {error}") from None
            for key, item in translated.items():
                if key in values and values[key] != item:
                    notes.append(f"{name}: {item!r} takes the place of {values[key]!r} as {key}")
                values[key] = item
            if note:
                notes.append(f"{name}: {note}")
        elif name in ours:
            values[name] = value
        else:
            raise InputError(
                f"{path}:{lines.get(str(name), 1)}: {name} is no field of TRL 1.12's PPO "
                "configuration, or one that is not known here (leave it out)"
            )
    if "precision" not in values:
        values["precision"] = "fp32"
        notes.append("precision: fp32, as TRL loads a model by default (here 4bit)")
    if values.get("missing_eos_penalty") is not None and values.get("stop_token") is None:
        del values["missing_eos_penalty"]
        notes.append("missing_eos_penalty: left out: nothing ends without a stop_token (say eos)")
    for f in fields(PPOConfig):
        default = next((o.default for o in fields(_PPOConfig) if o.name == f.name), f.default)
        skip = f.name in values or f.name not in ours or f.name in TRANSLATION
        if not skip and f.default != default and f.name not in ("output_dir", "sample_every"):
            values[f.name] = f.default
            notes.append(f"{f.name}: {f.default!r}, TRL's default (here {default!r})")
    return values, notes
