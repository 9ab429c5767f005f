"""evaluation.json: read as it was written, and refused with the key that is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.chat import Chat
from toolkit.errors import InputError
from toolkit.evaluation.result import Evaluation, Pair, Written


def test_what_was_written_is_read_back(evaluation: Callable[..., Any], tmp_path: Path) -> None:
    result, _ = evaluation(["a", "b", "c"])
    result.write(tmp_path / "evaluation.json")
    assert Evaluation.read(tmp_path / "evaluation.json", "x") == result
    kept = json.loads((tmp_path / "evaluation.json").read_text())
    assert kept["contenders"][1]["scores"]["rm"]["gain"] == result.contenders[1].scores["rm"].gain
    assert kept["frontier"]["rm"]["optimal"][0]["kl"] == 0.0


def test_what_only_judges_that_score_say_is_left_out_of_the_others_pairs(
    evaluation: Callable[..., Any], tmp_path: Path
) -> None:
    result, _ = evaluation(["a", "b"])
    (pair, _) = result.pairs
    counted = {k: v for k, v in vars(pair).items() if not k.startswith(("difference", "p_sc"))}
    result.pairs[0] = Pair(**counted)
    result.write(tmp_path / "evaluation.json")
    first, second = json.loads((tmp_path / "evaluation.json").read_text())["pairs"]
    assert "p_scores" not in first and "difference" not in first and "p_scores" in second
    assert not result.pairs[0].surely_scores_higher


def test_a_pair_turned_round_is_its_mirror(evaluation: Callable[..., Any]) -> None:
    (pair, _) = evaluation(["a", "b", "c"])[0].pairs
    turned = pair.turned()
    assert (turned.a, turned.b) == (pair.b, pair.a)
    assert (turned.wins, turned.losses, turned.judged) == (pair.losses, pair.wins, pair.judged)
    assert turned.win_rate == 1 - pair.win_rate
    assert (turned.low, turned.high) == (1 - pair.high, 1 - pair.low)
    assert turned.difference == -pair.difference


def test_an_evaluation_that_ended_before_the_judges_is_read_as_far_as_it_goes(
    contender_row: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"prompts": 2, "contenders": [contender_row("reference")]}))
    written = Written.read(path, "--samples")
    assert written.contenders[0].trained_prompts is None  # files of before do not say
    assert written.chat is None and written.vocabulary is None
    with pytest.raises(
        InputError, match="was not written by preftune evaluate .*reference: missing"
    ):
        Evaluation.read(path, "--evaluation")


def test_how_messages_were_rendered_is_known_where_it_was_noted(
    evaluation: Callable[..., Any],
) -> None:
    assert evaluation(["a", "b"])[0].chat == Chat()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda e: e["pairs"][0].update(wins="3"),
            "pairs: wins is '3', but must be a whole number",
        ),
        (
            lambda e: e["contenders"][0].update(kl="x"),
            "contenders: kl is 'x', but must be a number",
        ),
        (lambda e: e["contenders"][1]["scores"]["rm"].pop("gain"), "scores: rm: gain: missing"),
        (lambda e: e.update(judges=3), "judges is 3, but must be a list"),
        (lambda e: e.update(seed=True), "seed is True, but must be a whole number"),
    ],
)
def test_a_value_of_another_type_is_named(
    evaluation: Callable[..., Any], tmp_path: Path, spoil: Callable[[Any], Any], said: str
) -> None:
    path = tmp_path / "evaluation.json"
    evaluation(["a", "b"])[0].write(path)
    whole = json.loads(path.read_text())
    spoil(whole)
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match=said):
        Evaluation.read(path, "--evaluation")
