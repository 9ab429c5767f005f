"""--columns in words and in YAML, and what is refused before a file is opened."""

from pathlib import Path

import pytest

from toolkit.arguments.comparisons import ComparisonArguments
from toolkit.arguments.layouts import LayoutArguments, as_words, nearest, read_words
from toolkit.cli import changed, parse
from toolkit.errors import InputError

WORDS = ["prompt=Prompt", "completions=Answer A,Answer B", "best=Best"]


def test_words_and_a_mapping_in_yaml_mean_the_same(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    mapping = "columns: {prompt: Prompt, completions: [Answer A, Answer B], best: Best}"
    for text in (mapping, f"columns: {WORDS}"):
        config.write_text(text)
        (given,) = parse(ComparisonArguments, argv=["--config", str(config)])
        (typed,) = parse(ComparisonArguments, argv=["--columns", *WORDS])
        assert given.columns == typed.columns == WORDS
        assert changed(given) == {"columns": WORDS}
    assert typed.mapping == {
        "prompt": ["Prompt"],
        "completions": ["Answer A", "Answer B"],
        "best": ["Best"],
    }


def test_a_header_with_a_comma_or_an_equals_sign_is_one_header() -> None:
    mapping = {"prompt": "Which, if any?", "completions": ["A, or", "B=C"]}
    words = as_words(mapping)
    assert words == ['prompt="Which, if any?"', 'completions="A, or",B=C']
    assert read_words(words) == {"prompt": ["Which, if any?"], "completions": ["A, or", "B=C"]}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["Prompt"], "'Prompt' is not NAME=HEADER"),
        (["best="], "'best=' is not NAME=HEADER"),
        (["promt=Q"], r"'promt' is not a name that it knows \(did you mean 'prompt'\?\)"),
        (["best=A", "best=B"], "best is given twice"),
        (["best=A,B"], "best is one column, but 2 are named"),
        (["prompt=A", "best=A"], "'A' is named twice"),
        (["completions=A,B", "chosen=C"], "completions stands beside chosen"),
        (["best=A", "rejected=C"], "best stands beside rejected"),
        (["completions=A,B", "scores=C"], "scores is a list in rows of JSON"),
    ],
)
def test_what_columns_does_not_understand_is_refused_in_one_line(
    words: list[str], problem: str
) -> None:
    with pytest.raises(InputError, match=f"^columns: {problem}") as caught:
        LayoutArguments(columns=words)
    assert caught.value.field == "columns"


def test_first_is_0_or_1_and_the_nearest_name_is_proposed_if_one_is_near() -> None:
    with pytest.raises(InputError, match="first is 2, but must be 0 or 1"):
        LayoutArguments(first=2)
    assert nearest("antwort a", ["Frage", "Antwort A"]) == " (did you mean 'Antwort A'?)"
    assert nearest("xyz", ["Frage"]) == ""
