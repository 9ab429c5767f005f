"""Rows of evaluation.json, of which a test says only what it is about."""

from collections.abc import Callable

import pytest

from toolkit.evaluation.result import ContenderResult


@pytest.fixture
def contender_row() -> Callable[..., dict[str, object]]:
    """A contender as evaluation.json has it, by its name and what is told of it."""

    def make(name: str, **told: object) -> dict[str, object]:
        row: dict[str, object] = dict.fromkeys(
            ("words", "distinct_1", "distinct_2", "repetition", "unique", "new_sentences",
             "copied_3grams", "copies_opening"), 0.5,
        )  # fmt: skip
        row |= {"name": name, "kind": "adapter", "source": "x", "adapter": "/x", "n": 1}
        row |= {"tokens": 8.0, "kl": 1.0, "kl_error": 0.25, "scores": {}}
        return row | told

    return make


@pytest.fixture
def contender_result(contender_row: Callable[..., dict[str, object]]) -> Callable[..., object]:
    """The same as it is read; nothing is known of the prompts that it was trained on."""

    def make(name: str, **told: object) -> ContenderResult:
        unknown = {"trained_prompts": None, "trained_prompts_note": None}
        return ContenderResult(**contender_row(name, **unknown | told))  # type: ignore[arg-type]

    return make
