"""Conversion between dataclasses and rows of JSON, so that writer and reader share one shape.

A field that may be None and has no default is written as null. A field whose default is None is
left out while it is None. When a row is read, keys that the dataclass does not have are ignored.
"""

import dataclasses
import json
import re
import types
import typing
from typing import Any, Literal, TypeVar, Union

from toolkit.errors import InputError

Row = dict[str, Any]  # a JSON object: a line of JSON Lines, a row of a table
Placed = tuple[str, Row]  # a row after its place, file:line, or name:index
Messages = list[dict[str, Any]]  # {"role": ..., "content": ...} each
Prompt = str | Messages
Answer = str | Messages  # a completion in TRL's form: messages (one) where the prompt is messages
T = TypeVar("T")
WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def to_row(record: object) -> Row:
    """Convert a dataclass to the row that ``from_row`` reads; nested dataclasses become rows."""
    row: Row = {}
    for field in dataclasses.fields(typing.cast(Any, record)):
        value = getattr(record, field.name)
        if value is not None or field.default is not None:
            row[field.name] = _plain(value)
    return row


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value):
        return to_row(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def from_row(kind: type[T], row: object, place: str) -> T:
    """Make a dataclass from a row, checking each value's type.

    Raises:
        InputError: the row is not an object, a required field is missing, or a value has another
            type.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(row, dict):
        raise InputError(f"{place}: {row!r:.40} is not an object with {', '.join(hints)}")

    values: Row = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        hint = hints[field.name]
        if field.name in row:
            values[field.name] = _value(hint, row[field.name], f"{place}: {field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            if type(None) not in typing.get_args(hint):
                raise InputError(f"{place}: {field.name}: missing")
            values[field.name] = None
    return kind(**values)


def _value(hint: Any, value: object, place: str) -> object:
    """Convert a value to its hint: rows in it become dataclasses."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)

    if hint is object or hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return from_row(typing.cast(type, hint), value, place)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _first(inner, value, place)
    if origin is Literal:
        if value not in inner:
            raise InputError(f"{place} is {value!r:.40}, but must be one of {', '.join(inner)}")
        return value

    if origin is list and isinstance(value, list):
        return [_value(inner[0], each, place) for each in value]
    if origin is dict and isinstance(value, dict):
        return {key: _value(inner[1], each, f"{place}: {key}") for key, each in value.items()}

    wanted = (int, float) if hint is float else hint
    fits = origin is None and isinstance(value, wanted)
    if not fits or (isinstance(value, bool) and hint is not bool):
        words = WORDS.get(hint) or ("a list" if origin is list else "an object")
        raise InputError(f"{place} is {value!r:.40}, but must be {words}")
    return value


def _first(hints: tuple[Any, ...], value: object, place: str) -> object:
    """Convert a value to the first of several types that it fits."""
    problem = None
    for hint in hints:
        if hint is not type(None):
            try:
                return _value(hint, value, place)
            except InputError as error:
                problem = problem or error
    raise problem or InputError(f"{place} is {value!r:.40}")


def source_of(row: Row) -> str | None:
    """Return a row's source: a text without the number of a line, or an object as JSON.

    None if it has none.
    """
    source = row.get("source")
    if source is None or isinstance(source, str):
        return re.sub(r":\d+$", "", source) if source else None
    return json.dumps(source, sort_keys=True, ensure_ascii=False)
