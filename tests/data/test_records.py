"""Rows of JSON and dataclasses: one is the other, and what is wrong is named with its place."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from toolkit.data.records import from_row, source_of, to_row
from toolkit.errors import InputError


@dataclass
class Inner:
    number: float
    note: str | None = None


@dataclass
class Outer:
    name: str
    count: int
    known: bool
    kind: Literal["a", "b"]
    perhaps: float | None
    first: Inner
    more: list[Inner] = field(default_factory=list)
    by_name: dict[str, Inner | str] = field(default_factory=dict)


ROW = {
    "name": "n",
    "count": 2,
    "known": True,
    "kind": "a",
    "perhaps": None,
    "first": {"number": 1.5},
    "more": [{"number": 2}, {"number": 3.0, "note": "x"}],
    "by_name": {"left": {"number": 4.0}, "right": "text"},
}


def test_a_row_becomes_a_dataclass_and_the_same_row_again() -> None:
    outer = from_row(Outer, ROW, "file")
    assert outer.more == [Inner(2), Inner(3.0, "x")]
    assert outer.by_name == {"left": Inner(4.0), "right": "text"}
    assert to_row(outer) == ROW  # perhaps is null; a note of None, its default, is left out


def test_strange_keys_are_passed_over_and_what_may_be_missing_is_its_default() -> None:
    least = {k: v for k, v in ROW.items() if k not in ("perhaps", "more", "by_name")}
    outer = from_row(Outer, least | {"strange": 1}, "file")
    assert (outer.perhaps, outer.more, outer.by_name) == (None, [], {})


@pytest.mark.parametrize(
    ("change", "said"),
    [({"name": 1}, "file: name is 1, but must be a text"),
     ({"count": 1.5}, "file: count is 1.5, but must be a whole number"),
     ({"count": True}, "file: count is True, but must be a whole number"),
     ({"known": 1}, "file: known is 1, but must be true or false"),
     ({"kind": "c"}, "file: kind is 'c', but must be one of a, b"),
     ({"perhaps": "x"}, "file: perhaps is 'x', but must be a number"),
     ({"first": {}}, "file: first: number: missing"),
     ({"first": [1]}, "file: first: .* is not an object with number, note"),
     ({"more": {}}, "file: more is {}, but must be a list"),
     ({"more": [{"number": "x"}]}, "file: more: number is 'x', but must be a number"),
     ({"by_name": {"left": 3}}, "file: by_name: left: 3 is not an object with number")],
)  # fmt: skip
def test_a_value_of_another_type_is_named_with_its_place(
    change: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        from_row(Outer, ROW | change, "file")


def test_the_lines_of_a_file_are_one_source() -> None:
    assert source_of({"source": "a.jsonl:12"}) == source_of({"source": "a.jsonl"}) == "a.jsonl"
    assert source_of({"source": {"b": 1, "a": 2}}) == '{"a": 2, "b": 1}'
    assert source_of({}) is source_of({"source": ""}) is None
