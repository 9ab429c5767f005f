"""What the tests of layouts share: one row in, its comparison or the reason out."""

from collections import Counter
from typing import Any

from toolkit.data.convert import convert, converted
from toolkit.data.layouts.reader import LayoutReader
from toolkit.data.problems import problems_of


def one(row: dict, **kwargs: Any) -> dict:
    (made,) = convert([("f:1", row)], **kwargs)
    assert problems_of(made, "best") == []
    return made


def dropped(row: dict, **kwargs: Any) -> str:
    reasons: Counter[str] = Counter()
    assert list(convert([("f:1", row)], dropped=reasons, **kwargs)) == []
    ((reason, count),) = reasons.items()
    assert count == 1
    return reason


def picked(row: dict) -> str:
    return row["completions"][row["best"]]


def demonstrations(row: dict) -> list[dict]:
    return [made for _, made in converted([("f:1", row)], LayoutReader("demonstrations"))]


def prompts(row: dict) -> list:
    return [made["prompt"] for _, made in converted([("f:1", row)], LayoutReader("prompts"))]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def bot(text: str) -> dict:
    return {"role": "assistant", "content": text}
