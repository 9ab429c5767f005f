"""The best of a run: which evaluation is worth how much, and what lies in its folder."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from toolkit.training.ppo.outputs import save_best, worth


def row(score: float, kl: float, target: float | None, reward: float = 0.0) -> dict[str, Any]:
    return {
        "update": 7,
        "eval/scores": score,
        "eval/kl": kl,
        "eval/rlhf_reward": reward,
        "objective/kl_target": target,
        "objective/kl": 1.0,
    }


def test_with_a_target_the_score_counts_of_those_that_keep_to_it_within_a_tenth() -> None:
    assert worth(row(2.0, kl=6.5, target=6.0)) == 2.0
    assert worth(row(9.0, kl=6.7, target=6.0)) is None


def test_without_a_target_the_score_counts_less_the_kls_price() -> None:
    assert worth(row(2.0, kl=100.0, target=None, reward=-3.0)) == -3.0


@pytest.mark.parametrize("target", [None, 6.0])
@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_what_is_no_number_is_no_candidate(score: float, target: float | None) -> None:
    assert worth(row(score, kl=1.0, target=target)) is None
    assert worth(row(1.0, kl=1.0, target=None, reward=math.nan)) is None


class Saves:
    """Stands in for the roles: notes what it is told, and writes one file."""

    def save(self, folder: Path, **facts: object) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "facts.json").write_text(json.dumps(facts))


class Tokenizer:
    """One of the run's own, or the base's."""

    def __init__(self, beside_base: bool) -> None:
        self.beside_base = beside_base

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").touch()


@pytest.mark.parametrize("beside_base", [True, False])
def test_the_best_takes_the_place_of_the_last_with_its_evaluation(
    beside_base: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "best"
    folder.mkdir()
    (folder / "left_over").touch()
    model: Any = Saves()
    tokenizer: Any = Tokenizer(beside_base)
    save_best(model, tokenizer, folder, row(2.0, kl=5.0, target=6.0), {"trained_on": "text"})

    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    own = {"policy/tokenizer.json"} if beside_base else set()
    assert found == {"evaluation.json", "policy/facts.json"} | own
    assert json.loads((folder / "policy" / "facts.json").read_text()) == {"trained_on": "text"}
    assert json.loads((folder / "evaluation.json").read_text()) == {
        "eval/scores": 2.0,
        "eval/kl": 5.0,
        "eval/rlhf_reward": 0.0,
        "update": 7,
    }
