"""Scorers of text: the lexicon, and users' functions, which are stopped in one line."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.errors import InputError
from toolkit.scoring import functions
from toolkit.scoring.functions import (
    FunctionScorer,
    Lexicon,
    as_scorer,
    call_reward_function,
    load_function,
)
from toolkit.scoring.scorer import Completions

CHAT = [{"role": "user", "content": "Hi."}]
SAID = [{"role": "assistant", "content": "Ho."}]


def test_what_a_function_edits_is_its_own() -> None:
    def edits(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        prompts[0][0]["content"] = "changed"
        completions[0][0]["content"] = "changed"
        columns["facts"][0]["n"] = 7
        prompts.clear(), completions.clear(), columns.clear()
        return [1.0]

    prompts, completions, columns = [[dict(CHAT[0])]], [[dict(SAID[0])]], {"facts": [{"n": 1}]}
    assert call_reward_function(edits, prompts, completions, columns) == [1.0]
    assert (prompts, completions, columns) == ([CHAT], [SAID], {"facts": [{"n": 1}]})


def test_what_it_returns_is_read_while_it_is_a_guest(capsys: pytest.CaptureFixture[str]) -> None:
    def lazy(prompts: list[Any], completions: list[Any]) -> Any:
        for _ in completions:
            sys.exit(0)
            yield 1.0

    with pytest.raises(InputError, match=r"reward function lazy: .*it called sys.exit\(0\)"):
        call_reward_function(lazy, ["p"], ["c"], {})


@pytest.mark.parametrize(
    ("body", "said"),
    [("import sys; sys.exit(0)", "it called sys.exit"), ("raise SystemExit", "it called sys.exit"),
     ("exit()", "it called sys.exit"), ("1/0", "ZeroDivisionError"), ("x = (", "SyntaxError")],
)  # fmt: skip
def test_a_module_that_ends_at_its_import_is_named(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"ends_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"{body}\n\n\ndef score(**_):\n    return []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(InputError, match=f"^reward_function: {name}: .*{said}") as caught:
        load_function(f"{name}:score")
    assert caught.value.field == "reward_function"


def test_the_toolkits_own_scorers_are_no_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words.txt").write_text("good\t1.5\n")
    monkeypatch.setattr(functions, "as_guest", lambda _: pytest.fail("it costs time"))
    lexicon = Lexicon(tmp_path / "words.txt")
    assert as_scorer(lexicon) is lexicon
    assert lexicon(Completions(["p"], ["a good one"], {"n": [1]})).tolist() == [1.5]


@pytest.fixture
def lexicon(tmp_path: Path) -> Lexicon:
    path = tmp_path / "lexicon.txt"
    path.write_text("# words\ngood\t2.0\t0.5\t[1, 3]\nbad\t-2.5\ndon't\t-0.5\n\n")
    return Lexicon(path)


def test_lexicon_sums_the_valences_of_whole_words(lexicon: Lexicon) -> None:
    texts = [" Good, GOOD bad.", " goodness", "", " Don't!"]
    assert lexicon.of_texts(texts) == [1.5, 0.0, 0.0, -0.5]


def test_lexicon_does_not_count_the_prompt(lexicon: Lexicon) -> None:
    assert lexicon(Completions(["good good"], [" bad"])).tolist() == [-2.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [("good 2\n", r"l\.txt:1: 'good 2' is not"), ("good\ttwo\n", r"l\.txt:1"), ("", "no words"),
     *((f"bad\t-1\ngood\t{word}\n", r"l\.txt:2: the valence of 'good' is .*finite number")
       for word in ("nan", "NaN", "inf", "-Infinity", "1e999"))],
)  # fmt: skip
def test_broken_lexicon_is_named_by_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "l.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        Lexicon(path)


def test_a_function_is_found_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_scores_xyz.py").write_text(
        "def length(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    function = load_function("my_scores_xyz:length")
    assert call_reward_function(function, ["a", "b"], ["xx", "y"], {}) == [2.0, 1.0]


def test_a_function_that_raises_is_named_with_its_line() -> None:
    def fails(prompts: list[str], completions: list[str]) -> list[float]:
        raise KeyError("missing")

    with pytest.raises(InputError, match=r"fails: .*test_functions.py:\d+: KeyError"):
        call_reward_function(fails, ["p"], ["a"], {})


def test_arrays_and_tensors_are_scores_too() -> None:
    for scores in (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])):
        assert call_reward_function(lambda s=scores, **_: s, ["p"] * 2, ["a"] * 2, {}) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [([1.0], "1 scores for 2 completions"), (["x", 1], "not numbers"), (None, "not numbers"),
     ([1.0, float("inf")], "scored 'bb' as inf")],
)  # fmt: skip
def test_a_function_that_returns_rubbish_is_named(returned: object, message: str) -> None:
    def rubbish(prompts: list[str], completions: list[str]) -> object:
        return returned

    with pytest.raises(InputError, match=f"reward function rubbish.*{message}"):
        call_reward_function(rubbish, ["p", "p"], ["a", "bb"], {})  # type: ignore[arg-type]


def test_what_has_no_score_is_nan_and_a_mistake_where_all_are_wanted() -> None:
    def some(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [1.0, None]

    asked = Completions(["p", "p"], ["a", "bb"])
    scores = FunctionScorer(some)(asked).tolist()  # type: ignore[arg-type]
    assert scores[0] == 1.0 and math.isnan(scores[1])
    with pytest.raises(InputError, match="^reward function some scored 'bb' as nan$"):
        FunctionScorer(some).finite_scores(asked)  # type: ignore[arg-type]
