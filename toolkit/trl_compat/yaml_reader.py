"""Converting a YAML file for TRL 1.12's PPO script to one for recipes/ppo.py."""

import math
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from toolkit.arguments.lora import LoraArguments
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.cli import parse
from toolkit.data.files import read_object
from toolkit.data.leftovers import scratch_folder
from toolkit.errors import InputError
from toolkit.scoring.arguments import RewardArguments
from toolkit.training.ppo.config import PPOConfig as OwnConfig
from toolkit.trl_compat.config import TAKEN, PPOConfig

Settings = dict[str, object]
# Settings of which transformers has to say whether they are right.
CHECKED_BY_TRANSFORMERS = (
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "bf16",
    "tf32",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing_kwargs",
)


@dataclass
class CheckedConfig(OwnConfig):
    """ppo.py's config, checked and not made ready for a run: that imports models and peft."""

    def __post_init__(self) -> None:
        defaults = {f.name: f.default for f in fields(OwnConfig)}
        if any(getattr(self, name) != defaults[name] for name in CHECKED_BY_TRANSFORMERS):
            super().__post_init__()
        else:
            self.check()


# The dataclasses that recipes/ppo.py reads.
READ = (ModelArguments, LoraArguments, RewardArguments, PromptArguments, CheckedConfig)
IGNORED = "TRL 1.12's PPO ignored it"


@dataclass
class Translation:
    """The result of converting a file.

    Attributes:
        values: the settings to write, by their names in ppo.py.
        notes: a line for everything that changed.
        missing: flags that the command still needs, with a placeholder or a value.
    """

    values: Settings = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


# Converts a field of the file to settings and a note (or None); InputError if it cannot.
Rule = Callable[[object], tuple[Settings, str | None]]


def _same(name: str) -> Rule:
    return lambda value: ({name: value}, None)


def _renamed(name: str, why: str) -> Rule:
    return lambda value: ({name: value}, f"is {name} here: {why}")


def _dropped(why: str) -> Rule:
    return lambda value: ({}, f"left out: {why}")


def _only(wanted: tuple[object, ...], why: str) -> Rule:
    """Make a rule for a field that accepts only these values, because others do not exist here."""

    def rule(value: object) -> tuple[Settings, str | None]:
        if value not in wanted:
            raise InputError(f"{value!r}: {why}")
        return {}, None

    return rule


def _targets(value: object) -> tuple[Settings, str | None]:
    if not value:
        return {}, None
    if not isinstance(value, str):
        value = ",".join(typing.cast(list[str], value))
    return {"lora_target_modules": value}, None


# ``_precision`` handles these together.
PRECISION = ("load_in_4bit", "load_in_8bit", "dtype", "torch_dtype")
RULES: dict[str, Rule] = {
    "model_name_or_path": _same("model_name_or_path"),
    "model_revision": _same("model_revision"),
    "trust_remote_code": _same("trust_remote_code"),
    "attn_implementation": _dropped("transformers chooses it"),
    "lora_r": _same("lora_r"),
    "lora_alpha": _same("lora_alpha"),
    "lora_target_modules": _targets,
    "lora_dropout": _dropped("the ratio must be 1 before the first step, so there is none"),
    "lora_task_type": _dropped("each adapter gets the type that fits it"),
    "lora_target_parameters": _only((None, []), "only whole layers have adapters here"),
    "lora_modules_to_save": _only(
        (None, []), "only LoRA is trained here (train it with preftune sft)"
    ),
    "use_rslora": _only((None, False), "not supported (multiply lora_alpha by the root of lora_r)"),
    "use_dora": _only((None, False), "not here"),
    "bnb_4bit_quant_type": _only(("nf4",), "only nf4 is supported"),
    "use_bnb_nested_quant": _dropped("4-bit bases are double-quantized"),
    "bnb_4bit_quant_storage": _dropped("4-bit weights are held as bytes"),
    "reward_model_path": _renamed(
        "reward_model",
        "a model of its own, scored on text; or train an adapter with preftune reward and pass "
        "reward_adapter",
    ),
    "value_model": _dropped("the value is an adapter or a head on the policy's base"),
    "dataset_config": _only(
        (None, "default"),
        "--prompts reads a dataset's default configuration (load this one with load_dataset, write "
        "it with save_to_disk, name that folder as dataset_name, and leave dataset_config out)",
    ),
    "dataset_num_proc": _dropped("prompts are tokenized in one process"),
    "dataset_streaming": _dropped("prompts are counted and shuffled, so they are read whole"),
    "ignore_bias_buffers": _dropped("there is no DDP wrapper here"),
    "bf16": _dropped(IGNORED + "; set it again if you want autocast, which it turns on here"),
    "fp16": _dropped(IGNORED),
    "gradient_checkpointing": _dropped(IGNORED + "; set it again if you want it"),
    "gradient_checkpointing_kwargs": _dropped(IGNORED),
    "max_grad_norm": _dropped(IGNORED + "; set it again if you want clipping"),
    "max_steps": _dropped(IGNORED + "; total_episodes sets the length of a run"),
    "load_best_model_at_end": _dropped(IGNORED + "; the best is kept in output_dir/best"),
    "eval_steps": _renamed("eval_every", "updates between evaluations"),
    "eval_strategy": _dropped("evaluation is on if --eval_prompts is given"),
    "logging_steps": _dropped("every update is logged"),
    "num_sample_generations": _dropped("samples are shown every sample_every updates"),
    "ds3_gather_for_generation": _dropped("ZeRO-3 is not used here"),
    "deepspeed": _dropped("launch with recipes/accelerate/several_gpus.yaml"),
    "fsdp": _dropped("launch with recipes/accelerate/fsdp_qlora.yaml"),
    "fsdp_config": _dropped("launch with recipes/accelerate/fsdp_qlora.yaml"),
    "world_size": _dropped("TRL's trainer computed it; here it is the expected number"),
    "push_to_hub": _dropped("a run sends nothing; publish the adapter with preftune publish"),
    "warmup_ratio": _renamed("warmup_steps", "below 1 it is a part of the run"),
    "no_cuda": _renamed("use_cpu", "its name in transformers 5"),
    "model_adapter_name": _dropped("policy_adapter names the folder of an adapter to start from"),
    "ref_adapter_name": _dropped("--reference chooses the reference"),
}
for _name in (
    "num_total_batches",
    "micro_batch_size",
    "local_batch_size",
    "batch_size",
    "local_mini_batch_size",
    "mini_batch_size",
):
    RULES[_name] = _dropped("the trainer computes it")
for _name in ("overwrite_output_dir", "logging_dir", "save_safetensors", *sorted(TAKEN)):
    RULES.setdefault(_name, _dropped("it has no effect here"))
# Handled before the others, or separately.
OTHERS = (
    "sft_model_path",
    "use_peft",
    "dataset_name",
    "dataset_train_split",
    "dataset_test_split",
)
OUR_FIELDS = {f.name for cls in READ for f in fields(cls) if f.init}


def read_trl_config(path: str | Path) -> Translation:
    """Convert a YAML file for TRL 1.12's PPO script to settings for ``recipes/ppo.py``.

    Fields that the file leaves out get TRL's defaults if these differ from the toolkit's, so that
    the run means the same. ppo.py's own arguments are built from the result, so what they refuse is
    never written.

    Raises:
        InputError: it is not a YAML mapping, or fields are wrong (a line for each).
    """
    path = Path(path)
    given, lines = _read(path)
    problems: list[tuple[int, str]] = []
    done = Translation()

    # Fields that are converted one by one.
    for name, value in given.items():
        if name in PRECISION or name in OTHERS:
            continue
        if name not in RULES and name not in OUR_FIELDS:
            unknown = (
                f"{name} is not a field of TRL 1.12's PPO configuration, or is unknown here "
                "(leave it out)"
            )
            problems.append((lines[name], unknown))
            continue
        try:
            settings, note = RULES.get(name, _same(name))(value)
        except (InputError, TypeError) as error:
            problems.append((lines[name], f"{name}: {error}"))
            continue
        done.values |= {k: v for k, v in settings.items() if k == name or not given.get(k)}
        if note:
            done.notes.append(f"{name}: {note}")

    # Fields that are converted together, and those that the file leaves out.
    for settle in (_precision, _model, _adapter, _prompts):
        try:
            settle(given, done)
        except InputError as error:
            problems.append((lines.get(error.field or "", 1), f"{error.field}: {error}"))
    _add_defaults(done)

    problems += _problems(done.values, lines)
    if problems:
        listed = [f"{path}:{line}: {text}" for line, text in sorted(problems)]
        raise InputError(listed[0], details=listed[1:])
    return done


def _read(path: Path) -> tuple[Settings, dict[str, int]]:
    """Read the file's mapping, and the line of each key."""
    try:
        text = path.read_text(encoding="utf-8")
        given, node = yaml.safe_load(text), yaml.compose(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as YAML: {reason}") from None
    if not isinstance(given, dict) or not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}:1: not a YAML mapping (write one `name: value` a line)")

    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines or key.value == "<<":
            raise InputError(f"{path}:{line}: {key.value} twice, or a merge (write each key once)")
        lines[key.value] = line
    return {str(name): value for name, value in given.items()}, lines


def _precision(given: Settings, done: Translation) -> None:
    """Set the base's precision; with 4-bit, a dtype only says in which type it computes."""
    if given.get("precision") is not None and not given.get("load_in_4bit"):
        return
    if given.get("load_in_8bit"):
        raise InputError("8-bit bases are not supported (use load_in_4bit)", "load_in_8bit")

    dtypes = [name for name in ("torch_dtype", "dtype") if given.get(name) is not None]
    known = {"bfloat16": "bf16", "float32": "fp32", "auto": None}
    for name in dtypes:
        if not isinstance(given[name], str) or given[name] not in known:
            cure = "bfloat16 or float32"
            raise InputError(f"{given[name]!r} is not a type for a base (use {cure})", name)

    if given.get("load_in_4bit"):
        done.values["precision"] = "4bit"
        done.notes.append("load_in_4bit: is precision: 4bit here")
        for name in dtypes:
            done.notes.append(f"{name}: left out: 4-bit computes in bf16 on a GPU, fp32 on a CPU")
        return

    chosen = known[str(given[dtypes[-1]])] if dtypes else None
    done.values["precision"] = chosen or "fp32"
    if dtypes:
        done.notes.append(f"{dtypes[-1]}: is precision: {done.values['precision']} here")
    else:
        done.notes.append("precision: fp32, as TRL loads a model by default (here 4bit)")


def _model(given: Settings, done: Translation) -> None:
    """Set the policy's model: TRL's script read sft_model_path, and the tokenizer of the other."""
    sft, name = given.get("sft_model_path"), given.get("model_name_or_path")
    config = Path(str(sft)) / "adapter_config.json"
    if sft is not None and config.is_file():
        base = read_object(config, "sft_model_path").get("base_model_name_or_path") or name
        done.values |= {"model_name_or_path": base, "policy_adapter": sft}
        done.notes.append(
            f"sft_model_path: an adapter, so it is policy_adapter here, on its base {base}"
        )
    elif sft is not None:
        done.values["model_name_or_path"] = sft
        done.notes.append("sft_model_path: is model_name_or_path here: one base serves all roles")
        if name is not None and name != sft:
            done.notes.append(f"model_name_or_path: {name!r} left out: it gave the tokenizer only")
    elif name is None:
        done.missing.append("--model_name_or_path MODEL")


def _adapter(given: Settings, done: Translation) -> None:
    if given.get("use_peft"):
        done.notes.append("use_peft: left out: the recipes always train adapters")
    else:
        done.notes.append(
            "use_peft: not set, so TRL trained whole models; preftune ppo trains adapters, which "
            "usually need a learning_rate 5 to 30 times as high"
        )


def _prompts(given: Settings, done: Translation) -> None:
    name, split = given.get("dataset_name"), given.get("dataset_train_split", "train")
    for key in ("dataset_name", "dataset_train_split"):
        if key in given:
            done.notes.append(f"{key}: left out: rows with `prompt` come with --prompts")
    if "prompts" not in done.values:
        done.missing.append(f"--prompts {name}:{split}" if name else "--prompts PROMPTS.jsonl")

    # TRL's script read the test split where eval_strategy was on, though nothing was evaluated.
    test, evaluates = given.get("dataset_test_split", "test"), given.get("eval_strategy")
    if "dataset_test_split" in given:
        done.notes.append("dataset_test_split: left out: held-out prompts come with --eval_prompts")
    if name and evaluates in ("steps", "epoch") and "eval_prompts" not in done.values:
        done.missing.append(f"--eval_prompts {name}:{test}")

    rewards = ("reward_model", "reward_adapter", "lexicon", "reward_function")
    if not any(done.values.get(reward) for reward in rewards):
        done.missing.append("--reward_adapter REWARD/adapter")


def _add_defaults(done: Translation) -> None:
    """Add TRL's defaults that differ from the toolkit's, for fields that the file leaves out."""
    values = done.values
    if values.get("stop_token") is None and values.get("stop_token_id") is None:
        values["stop_token"] = "none"
        done.notes.append("stop_token: none, TRL's default (here a chat model's turns end)")
        if values.pop("missing_eos_penalty", None) is not None:
            done.notes.append(
                "missing_eos_penalty: left out: nothing ends without a stop_token (for example eos)"
            )

    defaults = {f.name: f.default for f in fields(OwnConfig)}
    for f in fields(PPOConfig):
        name = f.name
        if name in values or name in RULES or name not in defaults or f.default == defaults[name]:
            continue
        if name not in ("output_dir", "sample_every"):
            values[name] = f.default
            done.notes.append(f"{name}: {f.default!r}, TRL's default (here {defaults[name]!r})")


def _problems(values: Settings, lines: dict[str, int]) -> list[tuple[int, str]]:
    """Return what ppo.py's arguments refuse of these settings, with its line in the file.

    A refused setting is removed, and the rest is tried again.
    """
    sources = {
        "model_name_or_path": "sft_model_path",
        "reward_model": "reward_model_path",
        "eval_every": "eval_steps",
        "warmup_steps": "warmup_ratio",
    }
    left = dict(values)
    found: list[tuple[int, str]] = []

    with scratch_folder() as folder:
        written = folder / "config.yaml"
        for _ in range(len(values) + 1):
            written.write_text(yaml.safe_dump(left, sort_keys=False), encoding="utf-8")
            try:
                parse(*READ, argv=["--config", str(written)])
                return found
            except InputError as error:
                where = re.match(re.escape(str(written)) + r":(\d+): ", str(error))
                text = str(error)[where.end() :] if where else str(error)
                name = _key_at(written, int(where[1])) if where else error.field

            if name not in left:
                return [*found, (1, text)]
            del left[name]
            line = lines.get(name) or lines.get(sources.get(name, ""), 1)
            found.append((line, text if name in text else f"{name}: {text}"))
    return found


def _key_at(path: Path, line: int) -> str | None:
    """Return the key of a YAML mapping at a line, or the last key before it."""
    node = yaml.compose(path.read_text(encoding="utf-8"))
    assert isinstance(node, yaml.MappingNode)
    starts = {key.start_mark.line + 1: str(key.value) for key, _ in node.value}
    return starts.get(max((start for start in starts if start <= line), default=-math.inf))
