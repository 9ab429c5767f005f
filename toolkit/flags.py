"""How a flag is declared: its default, its help, and in its type what it may hold.

    kl_target: Positive = flag(6.0, "Nats per completion that the KL is held at.")
    value: Literal["adapter", "trunk"] = flag("adapter", "What the value model is.")
    limit: Count | None = flag(None, "Use only so many prompts.")

A range is written into the type by ``Annotated``, so that parsers which know nothing of it
(``HfArgumentParser`` in a user's own script) see a plain number.
"""

import dataclasses
import enum
import inspect
import typing
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeVar, cast

from toolkit.errors import check_choice, check_range

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The finite numbers from ``low`` to ``high`` that are greater than ``above``; and ``words``.

    A field that takes words, too, has the type ``float | str``.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class InYAML:
    """A list of NAME=VALUE words that a YAML file may write as a mapping, too."""


Named = Annotated[list[str], InYAML()]
Count = Annotated[int, Range(low=1)]
CountOrZero = Annotated[int, Range(low=0)]
Seed = Annotated[int, Range(low=0, high=2**32 - 1)]  # numpy takes no other
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(low=0, high=1)]


class Flags:
    """The base of a dataclass of flags, which checks them.

    A subclass that has more to check calls ``super().__post_init__()`` first.

    Attributes:
        RENAMED: earlier names of flags, which are still read, and their names now.
        FIRST_WORD: the flag that the first word of a command line belongs to, if it has none.
    """

    RENAMED: ClassVar[dict[str, str]] = {}
    FIRST_WORD: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_flags(self)


def flag(default: T, help: str, bare: T | None = None) -> T:
    """A dataclass field with this default and this line of help.

    A list is copied for each instance. ``bare`` is the value of a flag that stands without one; it
    is for numbers.
    """
    if bare is not None:
        return field(default=default, metadata={"help": help, "nargs": "?", "const": bare})
    if isinstance(default, list):
        return cast(T, field(default_factory=default.copy, metadata={"help": help}))
    return field(default=default, metadata={"help": help})


def other_default(default: T, owner: type, name: str) -> T:
    """The field ``name`` of the dataclass ``owner`` again, with another default."""
    declared = {f.name: f for f in dataclasses.fields(owner)}
    return field(default=default, metadata=declared[name].metadata)


def check_flags(flags: object) -> None:
    """Raise InputError for the first field that holds what its type forbids; None passes.

    Args:
        flags: a dataclass. A library's own fields are looked at where the class says in a
            dictionary ``INHERITED`` what they may hold.
    """
    for name, allowed in _allowed(type(flags)).items():
        held = getattr(flags, name)
        for value in held if isinstance(held, list) else [held]:
            if value is None:
                continue
            if isinstance(allowed, Range):
                if isinstance(value, str):
                    check_choice(name, value, ("a number", *allowed.words))
                    continue
                check_range(name, value, allowed.low, allowed.high, allowed.above)
            else:
                plain = value.value if isinstance(value, enum.Enum) else value
                check_choice(name, plain, allowed)


def choices_of(cls: type) -> dict[str, tuple[str, ...]]:
    """The fields of our own that hold one of a few words, with these words."""
    return {name: found for name, found in _allowed(cls).items() if isinstance(found, tuple)}


def words_of(cls: type) -> dict[str, tuple[str, ...]]:
    """The fields that hold a number or one of a few words, with these words."""
    allowed = _allowed(cls).items()
    return {name: a.words for name, a in allowed if isinstance(a, Range) and a.words}


def named_of(cls: type) -> list[str]:
    """The fields of our own that are ``Named``."""
    return [
        name
        for parent in cls.__mro__
        if not is_library(parent)
        for name, hint in inspect.get_annotations(parent).items()
        if hint == Named
    ]


def is_library(cls: type) -> bool:
    """Whether a class comes from transformers or TRL, whose fields follow rules of their own."""
    return cls.__module__.split(".")[0] in ("transformers", "trl", "builtins")


def _allowed(cls: type) -> dict[str, Range | tuple[str, ...]]:
    """What the fields may hold.

    A class that gives a field another default, under a plain type, leaves its range as it was.
    """
    found: dict[str, Range | tuple[str, ...]] = {}
    for parent in reversed(cls.__mro__):
        if is_library(parent):
            continue
        declared = inspect.get_annotations(parent) | parent.__dict__.get("INHERITED", {})
        for name, hint in declared.items():
            allowed = _allowed_by(hint)
            if allowed is not None:
                found[name] = allowed
    return {f.name: found[f.name] for f in dataclasses.fields(cls) if f.name in found and f.init}


def _allowed_by(hint: object) -> Range | tuple[str, ...] | None:
    """The range or the words in a type, also within ``list[...]`` and ``... | None``."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        _, *notes = typing.get_args(hint)
        return next((note for note in notes if isinstance(note, Range)), None)
    inner = map(_allowed_by, typing.get_args(hint))
    return next((allowed for allowed in inner if allowed is not None), None)
