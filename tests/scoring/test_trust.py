"""What is known to be worthless is not trained on: the verdict that lies beside a reward model."""

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.records import to_row
from toolkit.errors import InputError
from toolkit.scoring.accuracy import best_of_k_accuracy
from toolkit.scoring.trust import Trust, check_trust, with_earlier


def measured(folder: Path, right: int, n: int, k: int = 4) -> str:
    """A folder with the metrics of a reward model that is right on so many of n comparisons."""
    row = [1.0] + [0.0] * (k - 1)
    facts = best_of_k_accuracy([row] * n, [0] * right + [1] * (n - right))
    folder.mkdir()
    facts.write(folder / "metrics.json")
    return str(folder)


def test_a_model_at_chance_is_refused_with_accuracy_p_and_the_way_out(tmp_path: Path) -> None:
    model = measured(tmp_path / "rm", 50, 200)
    with pytest.raises(InputError) as caught:
        check_trust({"reward_adapter": model}, False)
    said = str(caught.value)
    assert said.startswith(
        f"reward_adapter: {model}: Cannot be distinguished from chance: 25.0% of 200"
    )
    assert "probability 0.53" in said  # P(at least 50 of 200 at 1 in 4), scipy's binomtest
    assert said.endswith("(--allow_untrusted_reward goes on with it all the same)")
    assert "\n" not in said


def test_a_model_whose_labels_were_turned_round_is_refused_though_few_were_held_out(
    tmp_path: Path,
) -> None:
    model = measured(tmp_path / "rm", 1, 15, k=2)
    with pytest.raises(InputError, match="Worse than chance: 6.7% of 15 .* too little .* inverted"):
        check_trust({"reward_model": model}, False)


def test_fifteen_labels_that_decide_nothing_stop_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = measured(tmp_path / "rm", 8, 15, k=2)
    (found,) = check_trust({"reward_adapter": model, "reward_model": None}, False)
    assert (found.answer, found.allowed) == ("not decided", False)
    assert capsys.readouterr().out.startswith(f"note: reward_adapter: {model}: Too few comparisons")


def test_what_is_allowed_is_done_and_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = check_trust({"reward_adapter": measured(tmp_path / "rm", 50, 200)}, True)
    assert (found.answer, found.allowed, found.accuracy) == ("no", True, 0.25)
    assert capsys.readouterr().out.startswith("warning: reward_adapter: ")


def test_a_good_model_is_passed_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = check_trust({"reward_adapter": measured(tmp_path / "rm", 150, 200)}, True)
    assert (found.answer, found.allowed) == ("yes", False)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "metrics",
    [
        None,
        "",
        "[]",
        '{"eval_loss": 0.5}',
        '{"accuracy": NaN, "p": 0.5}',
        '{"accuracy": "0.5", "accuracy_low": 0, "accuracy_high": 1, "chance": 0.5, "p": 1, '
        '"comparisons": 9}',
    ],
    ids=["no file", "an empty file", "a list", "another tool's", "not a number", "text"],
)
def test_a_model_that_nobody_measured_goes_on_and_that_is_said(
    metrics: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if metrics is not None:
        (tmp_path / "metrics.json").write_text(metrics)
    (found,) = check_trust({"reward_adapter": str(tmp_path)}, False)
    assert found.answer == "not measured" and found.p is None
    assert "Nobody measured whether it has learned" in capsys.readouterr().out


def test_a_merge_of_a_model_at_chance_is_refused_as_that_model_is(tmp_path: Path) -> None:
    bad = measured(tmp_path / "bad", 50, 200)
    merged = tmp_path / "merged"
    merged.mkdir()
    parents = [{"adapter": str(tmp_path / "good")}, {"adapter": bad}]
    (merged / "toolkit.json").write_text(json.dumps({"merged": {"parents": parents}}))
    with pytest.raises(InputError, match="It was merged from .*bad"):
        check_trust({"reward_adapter": str(merged)}, False)


def test_figures_of_an_earlier_version_without_p_below_are_judged_as_well(tmp_path: Path) -> None:
    """Wilson's interval then; a model at chance stays one."""
    facts = {
        "accuracy": 0.24,
        "accuracy_low": 0.186,
        "accuracy_high": 0.304,
        "p": 0.66,
        "chance": 0.25,
        "comparisons": 200,
    }
    for change, words in (
        ({}, "Cannot be distinguished"),
        ({"accuracy_high": 0.2, "p": 0.99}, "Worse"),
    ):
        (tmp_path / "metrics.json").write_text(json.dumps(facts | change))
        with pytest.raises(InputError, match=words):
            check_trust({"reward_adapter": str(tmp_path)}, False)


def test_a_run_that_goes_on_keeps_the_verdicts_of_its_earlier_reward_models(
    tmp_path: Path,
) -> None:
    bad = Trust("a", "no", "Not to be told from chance.", 0.5, 0.25, allowed=True)
    good = Trust("b", "yes", "It has learned.", 1e-9, 0.9)
    assert with_earlier(tmp_path, [bad], True) == [bad]
    (tmp_path / "run.json").write_text(json.dumps({"reward_verdicts": [to_row(bad)]}))
    assert with_earlier(tmp_path, [good], True) == [bad, good]
    assert with_earlier(tmp_path, [bad], True) == [bad]
    assert with_earlier(tmp_path, [good], False) == [good]
