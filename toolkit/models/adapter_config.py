"""Checking adapter_config.json: known and supported fields pass, every other field is refused.

peft acts on this file before it reads a weight: it starts LoRA in ways that change the base, runs
regular expressions over module names, and allocates memory by rank. So each field has a type and a
range here. A field that is not supported must have peft's default value; a field that this peft
does not know must be empty.
"""

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from peft import EvaConfig, LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.other import get_pattern_key

from toolkit.data.files import read_object
from toolkit.errors import InputError

Config = dict[str, Any]
CONFIG = "adapter_config.json"
MERGE = "merge it into the base first: preftune merge --adapter {folder}"
# Ways in which peft may initialize LoRA without changing the base.
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# Features of adapters that roles sharing one base do not support.
NOT_HELD = {
    "alora_invocation_tokens": "is switched on by tokens of the prompt (aLoRA)",
    "layer_replication": "repeats layers of the base",
    "arrow_config": "routes between other adapters (Arrow)",
    "monteclora_config": "draws its weights again in training (MonteCLoRA)",
    "kasa_config": "takes a part of the base's own weights away (KaSA)",
    "use_bdlora": "has matrices of blocks (BD-LoRA)",
    "velora_config": "compresses what it is trained on (VeLoRA)",
    "use_qalora": "pools what it reads (QALoRA)",
    "megatron_config": "is of Megatron's layers",
}
# Fields of initializations that change the base; peft ignores them with another one.
OTHER_STARTS = ("loftq_config", "corda_config", "lora_ga_config")
# Values of Megatron's fields if none of its layers are used.
MEGATRON = {"megatron_config": (None, {}), "megatron_core": (None, "megatron.core")}
# Fields that mean the same in every type of adapter.
COMMON = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "modules_to_save",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
}
SECONDS = 10.0  # for all patterns over all names; usual patterns take a hundredth of one
MOST_TOKENS = MOST_NAMES = 100_000
LARGEST_RANK = 1024  # of layers that the file has no weights for
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
# Remote code is in transformers_modules, below the names of a repository and a commit.
_LIBRARY = re.compile(r"(transformers(_modules)?|unsloth\w*)(\.[\w-]+)*", re.ASCII)
_REVISION = re.compile(r"\w(?!.*\.\.)[\w.+/-]{0,250}")
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in map(re.compile, patterns):
    for name in names:
        pattern.fullmatch(name)
"""


def _whole(value: object, low: int = 0) -> bool:
    return type(value) is int and value >= low


def _number(value: object) -> TypeGuard[float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def _name(value: object) -> bool:
    """Whether this can name a module: not a path, a wildcard or a private name."""
    return isinstance(value, str) and bool(_NAME.fullmatch(value)) and "__" not in value


def _names(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MOST_NAMES and all(map(_name, value))


def _text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= 10_000 and value.isprintable()


def _targets(value: object) -> bool:
    """Whether this is a pattern, or a list of names (full names or their ends)."""
    if isinstance(value, list):
        return len(value) <= MOST_NAMES and all(map(_text, value))
    return _text(value)


def _by_pattern(value: object, held: Callable[[object], bool]) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MOST_NAMES
        and all(_text(key) and held(inner) for key, inner in value.items())
    )


def _ids(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MOST_TOKENS and all(map(_whole, value))


def _indices(value: object) -> bool:
    return _ids(value) or (
        isinstance(value, dict) and all(_name(k) and _ids(v) for k, v in value.items())
    )


def _base(value: object) -> bool:
    return value == "" or (_text(value) and ".." not in Path(value).parts)


def _origin(value: object) -> bool:
    """Whether this is what peft records of a model without a task; it is never imported here."""
    known = {"base_model_class", "parent_library", "unsloth_fixed"}
    if not isinstance(value, dict) or value.keys() - known:
        return False

    library = value.get("parent_library", "transformers")
    return (
        isinstance(library, str)
        and bool(_LIBRARY.fullmatch(library))
        and _name(value.get("base_model_class", "A"))
        and isinstance(value.get("unsloth_fixed", True), bool)
    )


def _eva(value: object) -> bool:
    known = {f.name for f in dataclasses.fields(EvaConfig)}
    return (
        isinstance(value, dict)
        and not value.keys() - known
        and all(isinstance(v, bool) or _number(v) for v in value.values())
    )


def _switch(value: object) -> bool:
    return isinstance(value, bool)


# What each supported field must be, in words and as a test. None is a common default of peft.
HELD: dict[str, tuple[str, Callable[[object], bool]]] = {
    "peft_type": ("LORA", lambda v: v == "LORA"),
    "task_type": ("a task of peft", lambda v: v is None or _name(v)),
    "auto_mapping": ("a class of transformers", lambda v: v is None or _origin(v)),
    "peft_version": ("a version", lambda v: v is None or _text(v)),
    "base_model_name_or_path": (
        "a path without .. or a name (write the base's full path or its Hub id)",
        lambda v: v is None or _base(v),
    ),
    "revision": (
        "a branch, tag or commit",
        lambda v: v is None or (isinstance(v, str) and bool(_REVISION.fullmatch(v))),
    ),
    "inference_mode": ("true or false", _switch),
    "r": ("a whole number from 1", lambda v: _whole(v, 1)),
    "target_modules": ("a pattern or names", lambda v: v is None or _targets(v)),
    "exclude_modules": ("a pattern or names", lambda v: v is None or _targets(v)),
    "target_parameters": ("names", lambda v: v is None or _names(v)),
    "lora_alpha": ("a finite number above 0", lambda v: _number(v) and v > 0),
    "lora_dropout": ("from 0 to below 1", lambda v: _number(v) and 0 <= v < 1),
    "fan_in_fan_out": ("true or false", _switch),
    "bias": ("none, all or lora_only", lambda v: v in ("none", "all", "lora_only")),
    "use_rslora": ("true or false", _switch),
    "use_dora": ("true or false", _switch),
    "lora_bias": ("true or false", _switch),
    "ensure_weight_tying": ("true or false", _switch),
    "modules_to_save": ("names of modules", lambda v: v is None or _names(v)),
    "layers_to_transform": (
        "indices of layers",
        lambda v: v is None or _whole(v) or _ids(v),
    ),
    "layers_pattern": ("names", lambda v: v is None or v == "" or _name(v) or _names(v)),
    "rank_pattern": (
        "ranks by name",
        lambda v: v is None or _by_pattern(v, lambda rank: _whole(rank, 1)),
    ),
    "alpha_pattern": (
        "numbers above 0 by name",
        lambda v: v is None or _by_pattern(v, lambda alpha: _number(alpha) and alpha > 0),
    ),
    "trainable_token_indices": ("ids of tokens", lambda v: v is None or _indices(v)),
    "eva_config": ("EVA's settings", lambda v: v is None or _eva(v)),
    "qalora_group_size": ("a whole number", _whole),
    "runtime_config": ("nothing", lambda v: v in (None, {"ephemeral_gpu_offload": False})),
}


def read_config(folder: str | Path, what: str) -> Config:
    """Read an adapter's configuration and check every field.

    Raises:
        InputError: a field is not supported, or has another type or range (file:line).
    """
    path = Path(folder) / CONFIG
    config = read_object(path, what)
    check_fields(config, path, what)
    return config


def lora_config_of(config: Config) -> LoraConfig:
    """Make peft's configuration from a checked one, without the (empty) unknown fields."""
    known = {f.name for f in dataclasses.fields(LoraConfig)} - {"runtime_config"}
    return LoraConfig(**{name: value for name, value in config.items() if name in known})


def check_fields(config: Config, path: Path, what: str) -> None:
    """Raise InputError unless every field is known and supported; see the top of this file."""
    folder = path.parent
    if config.get("peft_type", "LORA") != "LORA":
        kind = str(config.get("peft_type"))[:40]
        raise InputError(
            f"{what}: {folder} is a {kind} adapter, but must be LoRA "
            f"({MERGE.format(folder=folder)})"
        )

    start = config.get("init_lora_weights", True)
    if not any(
        start is known or (type(start) is str and start == known) for known in HARMLESS_STARTS
    ):
        raise InputError(
            f"{what}: {folder}: its LoRA was initialized by {str(start)[:40]}, which changed the "
            "base's weights for all roles (save it with path_initial_model_for_weight_conversion "
            f"of peft, which makes plain LoRA of it, or {MERGE.format(folder=folder)})"
        )

    for name, does in NOT_HELD.items():
        if config.get(name):
            raise InputError(
                f"{what}: {folder}: the adapter {does}, which is not supported "
                f"({MERGE.format(folder=folder)}, if peft can)"
            )

    defaults = {f.name: f for f in dataclasses.fields(LoraConfig)}
    for name, value in config.items():
        place = f"{what}: {path}:{line_of(path, name)}"
        if name in HELD:
            wanted, holds = HELD[name]
            if not holds(value):
                raise InputError(f"{place}: {name} is {_shown(value)}, but must be {wanted}")
        elif name in OTHER_STARTS and value:
            raise InputError(
                f"{place}: {name} belongs to an initialization that changes the base's weights "
                "(write null there if peft has made plain LoRA of it)"
            )
        elif name == "init_lora_weights" or not value:
            continue
        elif name not in defaults:
            raise InputError(
                f"{place}: {name[:60]!r} is not known to the installed peft, which would ignore it "
                f"(remove it if it has no effect, or "
                f"{MERGE.format(folder=folder)})"
            )
        elif value != defaults[name].default:
            raise InputError(
                f"{place}: {name} is {_shown(value)}, which is not supported "
                f"({MERGE.format(folder=folder)}, if peft can)"
            )


def check_common_fields(config: Config, path: Path) -> None:
    """Raise InputError unless plain peft would load the adapter exactly as its file says.

    This is for merging, where the adapter may be of any type and may change the base. Of fields
    that peft does not know it would only warn, and the result would be another model.
    """
    kind = config.get("peft_type")
    kinds: Any = PEFT_TYPE_TO_CONFIG_MAPPING
    known = kinds.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise InputError(f"adapter: {path}: peft_type is {_shown(kind)}, which peft does not know")

    names = {f.name for f in dataclasses.fields(known)}
    of_lora = {*HELD} if kind == "LORA" else COMMON
    for name, value in config.items():
        place = f"adapter: {path}:{line_of(path, name)}"
        if name in HELD and name in of_lora:
            wanted, holds = HELD[name]
            if not holds(value) and name != "peft_type":
                raise InputError(f"{place}: {name} is {_shown(value)}, but must be {wanted}")
        elif value and name not in names:
            raise InputError(
                f"{place}: {name[:60]!r} is not known to the installed peft, which would ignore it "
                "(remove it if it has no effect)"
            )
        elif value not in MEGATRON.get(name, (value,)):
            raise InputError(f"{place}: {name} is {_shown(value)}, which is not supported")


def line_of(path: Path, name: str) -> int:
    """Return the line of a key in a JSON file; 1 if it cannot be found."""
    key = re.compile(rf"\s*{re.escape(json.dumps(name))}\s*:")
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((i for i, line in enumerate(lines, start=1) if key.match(line)), 1)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_ranks(config: Config, shapes: Mapping[str, Sequence[int]], place: str) -> None:
    """Raise InputError unless the ranks match the file's matrices, before memory is allocated."""
    ranks = config.get("rank_pattern") or {}
    largest = LARGEST_RANK

    for key, shape in shapes.items():
        if not key.endswith((".lora_A.weight", ".lora_embedding_A")) or not len(shape):
            continue

        module = key.removesuffix(".weight").rpartition(".")[0].removeprefix("base_model.model.")
        rank = ranks.get(get_pattern_key([*ranks], module), config.get("r", 8))
        largest = max(largest, shape[0])

        # LoRA on experts (target_parameters) keeps the matrices of all experts in one.
        experts = config.get("target_parameters")
        if shape[0] != rank and not (
            experts and any(shape[0] % k == 0 for k in (config.get("r", 8), *ranks.values()))
        ):
            raise InputError(
                f"{place}: {module} has rank {rank}, but the file has {key} of "
                f"{list(shape)} (the configuration belongs to another adapter)"
            )

    for rank in (config.get("r", 8), *ranks.values()):
        if rank > largest:
            raise InputError(
                f"{place}: rank {rank} is above the largest in the file, {largest} (the "
                "configuration belongs to another adapter)"
            )


def check_patterns(config: Config, names: Iterable[str], place: str) -> None:
    """Raise InputError for an invalid regular expression, or one that takes too long.

    All names are matched in a separate process, which is stopped after ``SECONDS``: Python cannot
    interrupt a match.
    """
    found: dict[str, str] = {}  # as peft will match it -> the field
    for field in ("target_modules", "exclude_modules"):
        if isinstance(config.get(field), str):
            found[config[field]] = field
    for field in ("rank_pattern", "alpha_pattern"):
        found |= {rf"(.*\.)?({key})$": field for key in config.get(field) or {}}

    odd = {pattern: field for pattern, field in found.items() if not _is_plain(pattern)}
    for pattern, field in odd.items():
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"{place}: {field}: {_shown(pattern)} is not a regular expression: {error}"
            ) from None

    if not odd:
        return

    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH],
            input=json.dumps([list(odd), [*names]]),
            text=True,
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        field = next(iter(odd.values()))
        raise InputError(
            f"{place}: {field}: {_shown(next(iter(odd)))} takes more than {SECONDS:g} s on the "
            f"names of the model's layers (name the layers in a list)"
        ) from None


def _is_plain(pattern: str) -> bool:
    """Whether this is a name, or a pattern that peft makes from a name, which matches fast."""
    inner = pattern.removeprefix(r"(.*\.)?(").removesuffix(")$")
    return bool(re.fullmatch(r"\^?(\w|\\?\.|-)+\$?", inner))
