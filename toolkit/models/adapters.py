"""Adapter folders: what they say of themselves, and whether they fit the base at hand."""

import math
import warnings
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from toolkit.data.files import read_object, write_json
from toolkit.errors import InputError
from toolkit.models.loading import base_fingerprint

FACTS = "toolkit.json"  # beside adapter_config.json: the base's fingerprint, gain and bias, ...


def lora_config(r: int, alpha: int, target_modules: str, task_type: str) -> LoraConfig:
    """LoRA without dropout (the ratio must be 1 before the first step) on the layers named.

    Args:
        r: rank.
        alpha: the update is alpha / r * B A.
        target_modules: "all-linear" (all but the output head), or names joined by commas.
        task_type: "CAUSAL_LM" or "SEQ_CLS"; the latter saves the score head with the adapter.
    """
    targets: str | list[str] = target_modules
    if target_modules != "all-linear":
        targets = [name.strip() for name in target_modules.split(",") if name.strip()]
    return LoraConfig(
        r=r, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, task_type=task_type
    )


def absolute_if_local(base_name: str) -> str:
    """A Hub id as it is, a folder's path in full, so that the adapter loads from anywhere."""
    return str(Path(base_name).resolve()) if Path(base_name).is_dir() else base_name


def write_facts(folder: str | Path, base_name: str, **facts: Any) -> None:
    """Write ``toolkit.json``: the base's fingerprint and what else the next stage must know."""
    write_json(Path(folder) / FACTS, {"base_fingerprint": base_fingerprint(base_name)} | facts)


def read_facts(folder: str | Path) -> dict[str, Any]:
    """The contents of ``toolkit.json``; empty where another tool wrote the adapter."""
    path = Path(folder) / FACTS
    if not path.is_file():
        return {}
    facts = read_object(path, "adapter")
    for name in ("gain", "bias"):
        value = facts.get(name, 0.0)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{path}: {name} is {value!r}, but must be a finite number")
    return facts


def check_adapter(
    folder: str | Path, base_name: str, task_type: str, what: str, precision: str | None = None
) -> None:
    """Raise InputError unless ``folder`` holds such an adapter and it was made for this base.

    Reads a few small files and loads no model. A base that was moved is recognised by its
    fingerprint.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        base_name: the base that it is to sit on.
        task_type: "CAUSAL_LM" or "SEQ_CLS".
        what: the argument that named the folder.
        precision: how the base will be held; another than in training is warned of.
    """
    folder = Path(folder)
    config_path = folder / "adapter_config.json"
    if not config_path.is_file():
        raise InputError(f"{what}: {folder}: no adapter_config.json (give an adapter's folder)")
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{what}: {folder}: no adapter_model.safetensors (pickles are not loaded)")
    config = read_object(config_path, what)
    if config.get("peft_type", "LORA") != "LORA":
        raise InputError(f"{what}: {folder}: a {config['peft_type']} adapter (LoRA is wanted)")
    if config.get("task_type") != task_type:
        wanted = "a reward" if task_type == "SEQ_CLS" else "a policy"
        raise InputError(
            f"{what}: {folder}: its task_type is {config.get('task_type')}, but {wanted} adapter "
            f"({task_type}) is wanted"
        )
    _check_weights(folder, task_type, what)
    trained_in = read_facts(folder).get("precision")
    if precision is not None and trained_in not in (None, precision):
        warnings.warn(
            f"{what}: {folder} was trained on a base in {trained_in}; this one is in {precision}",
            stacklevel=2,
        )
    trained_on = config.get("base_model_name_or_path") or ""
    if trained_on == absolute_if_local(base_name):
        return
    known, here = read_facts(folder).get("base_fingerprint"), base_fingerprint(base_name)
    if known is None or known != here:
        raise InputError(
            f"{what}: {folder}: trained on {trained_on or 'an unnamed base'}, not on {base_name} "
            "(pass that base as --model_name_or_path, or train the adapter on this one)"
        )


def _check_weights(folder: Path, task_type: str, what: str) -> None:
    """Read the header of the adapter's weights: whole, and with the head that a reward needs."""
    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as weights:
            others = [key for key in weights.keys() if ".lora_" not in key]  # noqa: SIM118
            heads = {key: weights.get_slice(key).get_shape() for key in others}
    except SafetensorError as error:
        raise InputError(f"{what}: {path}: not readable: {error}") from None
    names = [key for key in heads if key.endswith("score.weight")]
    if task_type == "SEQ_CLS" and (len(heads) != 1 or len(names) != 1 or heads[names[0]][0] != 1):
        raise InputError(
            f"{what}: {folder}: no score head with one output and no bias in it, but "
            f"{heads or 'nothing'} (was it trained with num_labels=1?)"
        )


def add_saved_adapter(model: PeftModel, folder: str | Path, name: str) -> dict[str, Tensor]:
    """Put a saved LoRA adapter on the base under ``name``, frozen; return what was not LoRA.

    A reward adapter was trained inside a sequence classifier: its trunk's keys are those of the
    language model, and the score head is left over, to be kept by the caller.

    Raises:
        InputError: a key of the adapter has no place in this base, or the other way round.
    """
    from peft import set_peft_model_state_dict

    config = LoraConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True
    state = load_file(Path(folder) / "adapter_model.safetensors")
    lora = {key: value for key, value in state.items() if ".lora_" in key}
    model.add_adapter(name, config)
    outcome: Any = set_peft_model_state_dict(model, lora, adapter_name=name)
    unexpected = outcome.unexpected_keys
    missing = [key for key in outcome.missing_keys if f".{name}." in key]
    if missing or unexpected:
        raise InputError(
            f"{folder}: the adapter does not fit the base ({len(missing)} weights missing, "
            f"{len(unexpected)} unexpected): was it trained on another model?"
        )
    return {key: value for key, value in state.items() if key not in lora}
