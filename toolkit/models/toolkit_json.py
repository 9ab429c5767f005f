"""toolkit.json, in an adapter's folder: typed facts that the next stage needs."""

import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.arguments.model import PRECISIONS
from toolkit.data.files import read_object, write_json
from toolkit.errors import InputError
from toolkit.models.adapter_config import line_of
from toolkit.models.base_config import base_fingerprint

FACTS = "toolkit.json"  # beside adapter_config.json: the base's fingerprint, gain and bias, ...
TRAINED_ON = ("messages", "text", "both")


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


# What each fact must be, in words and as a test, because the file may come from anywhere.
FACTS_HELD: dict[str, tuple[str, Callable[[object], bool]]] = {
    "gain": ("a finite number", _finite),
    "bias": ("a finite number", _finite),
    "precision": (
        "4bit, bf16 or fp32",
        lambda v: v is None or (isinstance(v, str) and v in PRECISIONS),
    ),
    "base_fingerprint": ("a text", _text_or_none),
    "ends_with": ("a token's text", _text_or_none),
    "whole_turns": ("true or false", lambda v: isinstance(v, bool)),
    "trained_on": (
        "messages, text or both",
        lambda v: isinstance(v, str) and v in TRAINED_ON,
    ),
    "chat_template": ("a template's text", _text_or_none),
    "start": (
        "16 digits of a SHA-256",
        lambda v: v is None or (isinstance(v, str) and bool(re.fullmatch("[0-9a-f]{16}", v))),
    ),
    "chat_template_kwargs": ("an object", lambda v: v is None or isinstance(v, dict)),
    "head_seed": ("a whole number", lambda v: type(v) is int),
    "beta": ("a finite number", _finite),
    "merged": ("an object", lambda v: isinstance(v, dict)),
}


def write_facts(folder: str | Path, base_name: str, **facts: object) -> None:
    """Write ``toolkit.json``: the base's fingerprint and these facts.

    Raises:
        InputError: a fact is not what ``read_facts`` would accept.
    """
    for name, (wanted, holds) in FACTS_HELD.items():
        if name in facts and not holds(facts[name]):
            raise InputError(f"{folder}: {name} is {facts[name]!r:.60}, but must be {wanted}")
    write_json(Path(folder) / FACTS, {"base_fingerprint": base_fingerprint(base_name)} | facts)


def read_facts(folder: str | Path) -> dict[str, Any]:
    """Read ``toolkit.json``; empty if another tool wrote the adapter.

    Raises:
        InputError: a fact has the wrong type (file:line).
    """
    path = Path(folder) / FACTS
    if not path.is_file():
        return {}
    facts = read_object(path, "adapter")
    for name, (wanted, holds) in FACTS_HELD.items():
        if name in facts and not holds(facts[name]):
            raise InputError(
                f"{path}:{line_of(path, name)}: {name} is {facts[name]!r:.60}, but must be {wanted}"
            )
    return facts


def adapter_digest(folder: str | Path) -> str:
    """Return the first 16 digits of the SHA-256 of an adapter's weights."""
    path = Path(folder) / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def start_of(policy_adapter: str | Path | None) -> dict[str, str | None]:
    """Return the fact that says which adapter the training started from; null for the base."""
    return {"start": None if policy_adapter is None else adapter_digest(policy_adapter)}
