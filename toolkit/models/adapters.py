"""Adapter folders: reading and checking them, and putting adapters on a base."""

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from toolkit.data.files import read_object
from toolkit.errors import Caution, InputError
from toolkit.models.adapter_config import (
    CONFIG,
    MERGE,
    Config,
    check_common_fields,
    check_patterns,
    check_ranks,
    lora_config_of,
    read_config,
)
from toolkit.models.base_config import base_fingerprint, is_tied, vocabulary_size
from toolkit.models.base_weights import BaseWeights
from toolkit.models.families import LANGUAGE_HEADS
from toolkit.models.finite_weights import check_file, check_tensors
from toolkit.models.peft_wrappers import (
    Overrides,
    base_module,
    base_of,
    equal_weights,
    heed_whose_rows,
    of_adapter,
    tie_copies,
)
from toolkit.models.toolkit_json import adapter_digest, read_facts


def lora_config(r: int, alpha: int, target_modules: str, task_type: str) -> LoraConfig:
    """Configure LoRA without dropout (the ratio must be 1 before the first step).

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


def put_adapter(model: nn.Module, config: LoraConfig, name: str) -> PeftModel:
    """Put one more adapter on the model; from the first one on, the result is peft's model.

    Raises:
        InputError: peft refuses the adapter.
    """
    try:
        with warnings.catch_warnings():
            # peft sets it correctly for GPT-2's Conv1D, and warns: huggingface/peft#324
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
                return model
            config.base_model_name_or_path = None  # peft would warn that the base has another name
            made = get_peft_model(model, config, adapter_name=name)
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"peft: {' '.join(str(error).split())[:300]}") from None
    assert isinstance(made, PeftModel)
    return made


def plain_adapter(model: nn.Module, folder: str | Path, is_trainable: bool = False) -> PeftModel:
    """Load a saved adapter onto the model with peft alone; the base does not change.

    Args:
        model: a base without an adapter.
        folder: the adapter's, which has passed ``check_adapter``.
        is_trainable: whether the adapter will be trained.

    Raises:
        InputError: the configuration is not supported, or weights are not finite or do not fit.
    """
    config, path = read_config(folder, "adapter"), Path(folder) / WEIGHTS
    check_patterns(config, [name for name, _ in model.named_modules()], f"{Path(folder) / CONFIG}")
    check_file(path)
    before = BaseWeights(model)
    try:
        made = PeftModel.from_pretrained(
            model, str(folder), is_trainable=is_trainable, config=lora_config_of(config)
        )
    except (ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: peft cannot load the adapter: {reason[:300]}") from None
    before.check(folder)
    return made


def check_copyable(folder: str | Path, what: str) -> None:
    """Raise InputError unless a reward adapter can start as an exact copy of this policy adapter.

    A reward adapter is LoRA on the trunk, and a head. What else a policy adapter may hold has no
    place there.

    Args:
        folder: the adapter's, which has passed ``check_adapter``.
        what: the argument that names the folder.
    """
    parts, _ = _header(Path(folder))
    cure = MERGE.format(folder=folder)
    if beside := parts.beside_lora():
        raise InputError(
            f"{what}: {folder}: besides LoRA it has {beside}, which a reward model cannot copy "
            f"({cure}, and start from the merged model)"
        )
    if any(f".{name}." in key for key in parts.lora for name in LANGUAGE_HEADS):
        raise InputError(
            f"{what}: {folder}: it has LoRA on the output head, which a reward model lacks "
            f"({cure}, and start from the merged model)"
        )


def lora_config_like(folder: str | Path, task_type: str) -> LoraConfig:
    """Configure LoRA of the shape of a saved adapter's, for its copy, without dropout.

    Args:
        folder: the adapter's.
        task_type: "CAUSAL_LM" or "SEQ_CLS", of the copy.
    """
    config = lora_config_of(read_config(folder, "adapter"))
    config.task_type, config.inference_mode, config.lora_dropout = task_type, False, 0.0
    config.init_lora_weights = True  # all weights come from the file
    config.base_model_name_or_path = None  # peft would warn that the base has another name
    return config


def copy_lora(model: nn.Module, folder: str | Path, name: str = "default") -> None:
    """Set the LoRA weights of an adapter on the model to those of a saved adapter.

    Args:
        model: peft's model, with an adapter made by ``lora_config_like``.
        folder: the saved adapter's, which has passed ``check_copyable``.
        name: of the adapter on the model.

    Raises:
        InputError: the copy would differ from the file.
    """
    state = load_file(Path(folder) / WEIGHTS)
    check_tensors(state.items(), f"{Path(folder) / WEIGHTS}")

    def held() -> dict[str, Tensor]:
        return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)

    try:  # peft wants the new score head as well
        set_peft_model_state_dict(model, held() | state, adapter_name=name)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: the adapter does not fit the base: {reason[:200]}") from None

    copied = {key: tensor for key, tensor in held().items() if ".lora_" in key}
    odd = sorted(copied.keys() ^ state.keys())
    odd += [
        key
        for key in copied.keys() & state.keys()
        if not torch.equal(copied[key].cpu(), state[key].to(copied[key].dtype))
    ]
    if odd:
        raise InputError(
            f"{folder}: the reward model cannot start as an exact copy of it: {len(odd)} weights "
            f"differ, for example {odd[0]} ({MERGE.format(folder=folder)}, and start from the "
            "merged model)"
        )


def other_start(reward_adapter: str | Path, policy_adapter: str | Path | None) -> list[str]:
    """Return a line if a reward adapter was normalized on samples of another start.

    Its scores then do not have mean 0 and standard deviation 1 where the policy starts, so one
    ``kl_coef`` does not mean the same as elsewhere.

    Args:
        reward_adapter: its folder, where toolkit.json records the digest of the adapter whose
            samples it was normalized on.
        policy_adapter: what the policy starts from; None for the base.
    """
    facts = read_facts(reward_adapter)
    if not facts.get("samples"):  # not normalized, or not by this toolkit
        return []
    then, now = facts.get("start"), None
    if policy_adapter is not None:
        now = adapter_digest(policy_adapter)
    if then == now:
        return []
    whose = "the base" if then is None else "the policy adapter that it started from"
    begins = "the base" if now is None else str(policy_adapter)
    cure = "give the policy that adapter by --policy_adapter"
    if policy_adapter is not None:
        cure = f"train the reward model with --start_adapter {policy_adapter}"
    return [
        f"the reward adapter was normalized on samples of {whose}, but the policy starts as "
        f"{begins}: scores do not begin at mean 0 and standard deviation 1 ({cure})"
    ]


def check_round_trip(model: nn.Module, name: str) -> None:
    """Raise InputError if peft could not load again what it saves of a new adapter.

    peft 0.21.2 renames weights of some families as transformers renames a checkpoint's, and loses
    some on the way (Laguna's shared experts), after the whole training and without an error.
    """
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    outcome: Any = set_peft_model_state_dict(model, dict(state), adapter_name=name)
    lost = list(outcome.unexpected_keys)
    lost += [key for key in outcome.missing_keys if of_adapter(key, name)]
    if lost:
        raise InputError(
            f"lora_target_modules: peft could not load {len(lost)} weights of this adapter again, "
            f"for example {lost[0]} (leave these layers out)",
            "lora_target_modules",
        )


def absolute_if_local(base_name: str) -> str:
    """Return a Hub id unchanged, a folder as a full path, so that an adapter loads anywhere."""
    return str(Path(base_name).resolve()) if Path(base_name).is_dir() else base_name


WEIGHTS = "adapter_model.safetensors"
# The prefix of the base's model in the keys of an adapter's file.
PREFIX = "base_model.model."
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")


@dataclass
class Parts:
    """The keys of an adapter's file, by what they hold.

    Attributes:
        lora: LoRA's own matrices and vectors.
        saved: modules that were trained whole (``modules_to_save``): embedding, head, norms. A
            whole block (an MLP, say) is among the unknown, because other adapters' LoRA is inside
            it.
        tokens: rows of the embedding (``trainable_token_indices``).
        biases: biases of the base's layers (``bias``).
        copies: the base's embedding or head, which peft saves beside LoRA on them.
        score: the head of a reward adapter.
        unknown: anything else.
    """

    lora: list[str]
    saved: list[str]
    tokens: list[str]
    biases: list[str]
    copies: list[str]
    score: list[str]
    unknown: list[str]

    @classmethod
    def of(cls, keys: Iterable[str], config: Config) -> "Parts":
        """Sort the keys of a file by its ``adapter_config.json``."""
        parts = cls([], [], [], [], [], [], [])
        whole = [name for name in config.get("modules_to_save") or [] if name != "score"]
        if config.get("ensure_weight_tying") and set(whole) & set(EMBEDDINGS):
            whole += EMBEDDINGS  # the head is trained with the embedding

        known = set(keys)
        for key in sorted(known):
            if key.replace(".modules_to_save.", ".") in known - {key}:
                continue  # peft wrote it twice, beside a copy of the embedding

            module = key.removeprefix(PREFIX).rpartition(".")[0]
            copied = module.endswith((".base_layer", ".original_module"))
            module = module.removesuffix(".base_layer").removesuffix(".original_module")

            last = module.rpartition(".")[2]
            if last == "score":
                parts.score.append(key)
            elif ".lora_" in key:
                parts.lora.append(key)
            elif ".token_adapter." in key:
                parts.tokens.append(key)
            elif not copied and any(module.endswith(name) for name in whole):  # as peft does
                parts.saved.append(key)
            elif key.endswith("bias") and config.get("bias", "none") != "none":
                parts.biases.append(key)
            elif last in EMBEDDINGS and (key.endswith("weight") or copied):
                parts.copies.append(key)
            else:
                parts.unknown.append(key)
        return parts

    def beside_lora(self) -> str:
        """Describe what the file has besides LoRA; empty if there is nothing."""
        named = {
            "modules trained whole": self.saved,
            "rows of the embedding": self.tokens,
            "biases": self.biases,
            "copies of embedding or head": self.copies,
        }
        return ", ".join(name for name, keys in named.items() if keys)


def check_adapter(
    folder: str | Path, base_name: str, task_type: str, what: str, precision: str | None = None
) -> None:
    """Raise InputError unless ``folder`` holds an adapter for this base and task.

    This reads a few small files and loads no model. A base that was moved is recognized by its
    fingerprint.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        base_name: the base that it will be put on.
        task_type: "CAUSAL_LM" or "SEQ_CLS".
        what: the argument that names the folder.
        precision: how the base will be held; prints a warning if it differs from training.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        hint = "give an adapter's folder"
        if (folder / "config.json").is_file():
            hint = "it holds a whole model: pass a reward model as --reward_model"
        raise InputError(f"{what}: {folder} has no adapter_config.json ({hint})")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{what}: {folder} has no {WEIGHTS} (pickles are not loaded)")

    config = read_config(folder, what)
    targets = config.get("target_modules") or []
    named = {targets} if isinstance(targets, str) else set(targets)
    if config.get("ensure_weight_tying") and named & set(EMBEDDINGS):
        raise InputError(
            f"{what}: {folder}: LoRA on the embedding is tied to the output head, which is not "
            f"supported ({MERGE.format(folder=folder)})"
        )

    if config.get("task_type") != task_type and (config.get("task_type"), task_type) != (
        None,
        "CAUSAL_LM",
    ):
        wanted = "a reward" if task_type == "SEQ_CLS" else "a policy"
        raise InputError(
            f"{what}: {folder}: its task_type is {config.get('task_type')}, but must be "
            f"that of {wanted} adapter ({task_type})"
        )

    _check_weights(folder, config, base_name, task_type, what)
    trained_in = read_facts(folder).get("precision")
    if precision is not None and trained_in not in (None, precision):
        warnings.warn(
            f"{what}: {folder} was trained on a base in {trained_in}; this one is in {precision}",
            Caution,
            stacklevel=2,
        )

    trained_on, place = config.get("base_model_name_or_path") or "", absolute_if_local(base_name)
    if trained_on == place:
        return

    known = read_facts(folder).get("base_fingerprint")
    if known is None and trained_on and absolute_if_local(trained_on) == place:
        # A script that loaded its base by a relative path. peft reads the path in the same way.
        if not Path(trained_on).is_absolute():
            warnings.warn(
                f"{what}: {folder} names its base {trained_on}, a path that depends on the folder "
                f"one works in; it is taken to be {place}",
                Caution,
                stacklevel=2,
            )
        return

    if known is None or known != base_fingerprint(base_name):
        raise InputError(
            f"{what}: {folder} was trained on {trained_on or 'an unnamed base'}, not {base_name} "
            "(pass that base as --model_name_or_path; if it is the same model in another place, "
            "write this place into base_model_name_or_path of adapter_config.json)"
        )


def _header(folder: Path) -> tuple[Parts, dict[str, list[int]]]:
    """Read the keys of an adapter's file, and the shape of each weight, without loading it."""
    path = folder / WEIGHTS
    try:
        with safe_open(path, framework="pt") as weights:
            keys = list(weights.keys())
            shapes = {key: weights.get_slice(key).get_shape() for key in keys}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    return Parts.of(shapes, read_config(folder, "adapter")), shapes


def count_beside_lora(folder: str | Path) -> int:
    """Count the weights that an adapter has besides LoRA."""
    parts, shapes = _header(Path(folder))
    return sum(math.prod(shapes[k]) for k in parts.saved + parts.tokens + parts.biases)


def check_for_trl(folder: str | Path, base_name: str, what: str, copied: bool, head: bool) -> None:
    """Raise InputError if TRL's trainers could not continue this adapter.

    For a frozen reference, TRL 1.16 adds a second adapter and copies what is named after the first
    (trl/trainer/dpo_trainer.py, rloo_trainer.py). Biases belong to the base, so the reference would
    move with the policy; rows of the embedding are not copied. Its fused output head refuses LoRA
    on the head, and fails on rows of a tied embedding.

    Args:
        folder: the adapter's.
        base_name: of the base.
        what: the argument that names the folder.
        copied: whether the method has a reference.
        head: whether the method computes its loss by TRL's fused head (all but ORPO and CPO).
    """
    parts, _ = _header(Path(folder))
    held = {"biases": parts.biases, "rows of the embedding": parts.tokens}
    for name, found in held.items():
        if copied and found:
            raise InputError(
                f"{what}: {folder}: the adapter has trained {name}, of which TRL keeps no frozen "
                f"copy ({MERGE.format(folder=folder)}; or use preftune ppo, which does)"
            )

    if head and any(f".{name}." in key for key in parts.lora for name in LANGUAGE_HEADS):
        raise InputError(
            f"{what}: {folder}: it has LoRA on the output head, which TRL's trainers refuse "
            f"({MERGE.format(folder=folder)}; or use preftune ppo, which trains it)"
        )
    if head and parts.tokens and is_tied(base_name):
        raise InputError(
            f"{what}: {folder}: the adapter has rows of an embedding that is also the output head: "
            f"TRL's trainers fail ({MERGE.format(folder=folder)}; or use preftune ppo, which "
            "trains them)"
        )


def _check_weights(folder: Path, config: Config, base_name: str, task_type: str, what: str) -> None:
    """Check the adapter's weights: each has a place and is finite; a reward has its head."""
    check_file(folder / WEIGHTS, what)
    parts, shapes = _header(folder)
    for key, shape in shapes.items():
        if not shape:
            raise InputError(
                f"{what}: {folder / WEIGHTS}: {key} is a single number, but must be a matrix "
                "(the file is broken)"
            )

    check_patterns(config, _modules_of(shapes), f"{what}: {folder / CONFIG}")
    if task_type == "SEQ_CLS":
        heads = {key: shapes[key] for key in parts.score}
        if len(heads) != 1 or not all(
            k.endswith(".weight") and s[0] == 1 for k, s in heads.items()
        ):
            raise InputError(
                f"{what}: {folder}: the score head must have one output and no bias, but the file "
                f"has {heads or 'none'} (was it trained with num_labels=1?)"
            )
    elif parts.score:
        parts.unknown += parts.score

    if parts.unknown:
        raise InputError(
            f"{what}: {folder}: {len(parts.unknown)} weights are neither LoRA nor named in "
            f"adapter_config.json, for example {parts.unknown[0]}; they would be lost "
            f"({MERGE.format(folder=folder)})"
        )

    check_ranks(config, shapes, f"{what}: {folder / CONFIG}")

    whole = [key for key in parts.saved if len(shapes[key]) > 1 and not _embedding_of(key)]
    if whole:
        raise InputError(
            f"{what}: {folder}: {whole[0]} was trained whole, but is a linear layer on which other "
            f"roles have LoRA ({MERGE.format(folder=folder)})"
        )

    rows = vocabulary_size(base_name)
    listed = config.get("trainable_token_indices") or []
    ids = [i for part in (listed.values() if isinstance(listed, dict) else [listed]) for i in part]
    if rows is not None and max(ids, default=0) >= rows:
        raise InputError(
            f"{what}: {folder}: it has a row for token {max(ids)}, but the base has {rows}: the "
            f"vocabulary was resized ({MERGE.format(folder=folder)})"
        )

    for key in parts.saved + parts.copies:
        last = _embedding_of(key)
        if rows is not None and last and shapes[key][0] != rows:
            raise InputError(
                f"{what}: {folder}: its {last} has {shapes[key][0]} rows, but the base has {rows}: "
                f"the vocabulary was resized ({MERGE.format(folder=folder)})"
            )


def check_for_merging(folder: Path) -> None:
    """Raise InputError for an adapter of any type that plain peft cannot load safely.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
    """
    config = read_object(folder / CONFIG, "adapter")
    check_common_fields(config, folder / CONFIG)
    check_file(folder / WEIGHTS, "adapter")
    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        shapes = {k: weights.get_slice(k).get_shape() for k in weights.keys()}  # noqa: SIM118
    check_patterns(config, _modules_of(shapes), f"adapter: {folder / CONFIG}")
    if config["peft_type"] == "LORA":
        check_ranks(config, shapes, f"adapter: {folder / CONFIG}")


def _modules_of(keys: Iterable[str]) -> list[str]:
    """Names of the base's modules to which the keys of an adapter's file belong."""
    names: set[str] = set()
    for key in keys:
        parts = key.removeprefix(PREFIX).partition(".lora_")[0].split(".")
        names |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return sorted(names)


def _embedding_of(key: str) -> str:
    """The embedding or head that a key belongs to; "" for none."""
    return next((name for name in key.split(".") if name in EMBEDDINGS), "")


def add_saved_adapter(
    model: nn.Module, folder: str | Path, name: str, overrides: Overrides, dtype: torch.dtype | None
) -> tuple[PeftModel, dict[str, Tensor]]:
    """Put a saved LoRA adapter on the base, frozen; return the model and a reward's head.

    A reward adapter was trained inside a sequence classifier: the keys of its trunk are those of
    the language model; the score head is returned to the caller.

    Args:
        model: the base, with peft's layers if it has adapters already.
        folder: the adapter's.
        name: the adapter's name on this base.
        overrides: receives what peft's layers have no place for (biases, copies of weights).
        dtype: type of what is not LoRA; None for the base's own.

    Raises:
        InputError: adapter and base do not fit each other.
    """
    base = base_of(model)
    place = f"{Path(folder) / CONFIG}"
    written = read_config(folder, "adapter")
    check_patterns(written, [path for path, _ in base.named_modules()], place)
    config = lora_config_of(written)
    if config.target_parameters and getattr(base, "is_loaded_in_4bit", False):
        raise InputError(
            f"{folder}: it has LoRA on experts, which are in 4 bits here (pass --precision bf16 or "
            "fp32)"
        )

    state = load_file(Path(folder) / WEIGHTS)
    check_tensors(state.items(), f"{Path(folder) / WEIGHTS}")
    check_ranks(written, {key: tensor.shape for key, tensor in state.items()}, place)

    parts = Parts.of(state, written)
    _lay_over(model, folder, name, overrides, {k: state[k] for k in parts.biases + parts.copies})

    config.task_type, config.inference_mode, config.bias = "CAUSAL_LM", True, "none"
    config.init_lora_weights = True  # all weights come from the file

    whole = [module for module in config.modules_to_save or [] if module != "score"]
    tied = bool(config.ensure_weight_tying) and bool(set(whole) & set(EMBEDDINGS))
    if tied:  # peft 0.21.2 finds tied weights only for the first adapter
        config.ensure_weight_tying = False
        held = {key.rpartition(".")[0].rpartition(".")[2] for key in parts.saved}
        whole = sorted(set(whole) | held & set(EMBEDDINGS))
    config.modules_to_save = whole or None

    try:
        model = put_adapter(model, config, name)
    except InputError as error:
        raise InputError(
            f"{folder}: the adapter does not fit the base, or the other roles' adapters: {error} "
            f"({MERGE.format(folder=folder)})"
        ) from None
    if tied:
        tie_copies(base, name)
    heed_whose_rows(model)

    kept = {key: state[key] for key in parts.lora + parts.saved + parts.tokens}
    try:
        outcome: Any = set_peft_model_state_dict(model, kept, adapter_name=name)
    except KeyError as error:  # a module of modules_to_save that the file does not hold
        raise InputError(f"{folder}: the adapter's file lacks {error}") from None
    except RuntimeError as error:  # shapes
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder}: the adapter does not fit the base: {reason[:200]} (was it trained on "
            "another model?)"
        ) from None

    unexpected = list(outcome.unexpected_keys) + parts.unknown
    # The file has one copy of tied rows, under one of two names.
    named = dict(model.named_parameters(remove_duplicate=False))
    loaded = {id(p) for key, p in named.items() if key not in outcome.missing_keys}
    missing = [
        key
        for key in outcome.missing_keys
        if of_adapter(key, name) and id(named.get(key)) not in loaded
    ]

    if missing or unexpected:
        first = (missing or unexpected)[0]
        raise InputError(
            f"{folder}: the adapter does not fit the base ({len(missing)} weights are missing, "
            f"{len(unexpected)} are unexpected, for example {first}): was it trained on another?"
        )

    for key, parameter in model.named_parameters():
        if dtype is not None and ".lora_" not in key and of_adapter(key, name):
            parameter.data = parameter.data.to(dtype)

    return model, {key: state[key] for key in parts.score}


def _lay_over(
    model: nn.Module, folder: str | Path, name: str, overrides: Overrides, state: dict[str, Tensor]
) -> None:
    """Keep these weights for the adapter, except those that equal the base's."""
    base = base_of(model)
    places: dict[str, tuple[nn.Module, str]] = {}
    tensors: dict[str, Tensor] = {}
    for key, saved in state.items():
        path, _, attribute = key.removeprefix(PREFIX).rpartition(".")
        module = base_module(base, path)
        own: Any = None if module is None else module._parameters.get(attribute)
        if module is None or own is None or own.shape != saved.shape:
            found = "nothing with that name" if own is None else f"one of {list(own.shape)}"
            raise InputError(
                f"{folder}: {key} is {list(saved.shape)}, but the base has {found} "
                f"({MERGE.format(folder=folder)})"
            )

        if not equal_weights(saved, own):
            places[key] = module, attribute
            tensors[key] = saved.to(own.device, own.dtype)

    if tensors:
        overrides.add(name, places, tensors)
