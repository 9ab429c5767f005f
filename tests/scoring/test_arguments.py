"""One grammar for who scores or picks, its short flags, and what a new scorer takes: one file."""

import sys
from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.scoring.arguments import (
    KINDS,
    FunctionArguments,
    JudgeArguments,
    RewardArguments,
    ScorerArguments,
    Spec,
    load_picker,
    load_scorer,
    parse_specs,
    short_forms,
)
from toolkit.scoring.functions import Lexicon
from toolkit.scoring.reward_models import RewardAdapter
from toolkit.scoring.scorer import Completions

OWN = """
import torch

from toolkit.scoring.scorer import Scorer


class Shortest(Scorer):
    name = "shortest"
    identity = "shortest 1"

    def __call__(self, completions):
        return torch.tensor([-float(len(text)) for text in completions.texts])


shortest = Shortest()


def longest(prompts, completions, **columns):
    return [float(len(text)) for text in completions]
"""


def test_each_kind_is_read_and_a_value_may_hold_both_marks() -> None:
    texts = [f"n{i}={kind}:a=b:c" for i, kind in enumerate(KINDS)]
    assert parse_specs(texts, "judges") == [
        Spec(f"n{i}", kind, "a=b:c") for i, kind in enumerate(KINDS)
    ]
    for wrong in ("", "x", "x=", "x=lexicon:", "=lexicon:y", "x=Lexicon:y", "lexicon:y"):
        with pytest.raises(InputError, match="flag: .* is not NAME=KIND:VALUE with a KIND of lex"):
            parse_specs([wrong], "flag")


def test_the_short_flags_are_short_for_the_grammar() -> None:
    flags = {
        "lexicon": "w.txt",
        "reward_function": "m:f",
        "reward_adapter": "out/adapter",
        "reward_model": "org/rm",
    }
    assert short_forms(flags) == parse_specs(
        [
            "lexicon=lexicon:w.txt",
            "f=function:m:f",
            "reward=reward_adapter:out/adapter",
            "reward_model=reward_model:org/rm",
        ],
        "judges",
    )
    assert short_forms(dict.fromkeys(flags)) == []


def test_rewards_come_in_the_order_of_their_weights() -> None:
    rewards = RewardArguments(
        reward_function="m:f, m:g", lexicon="w.txt", reward_model="org/rm", reward_adapter="out"
    )
    assert [spec.value for spec in rewards.specs()] == ["out", "org/rm", "w.txt", "m:f", "m:g"]


def test_who_picks_does_not_score() -> None:
    with pytest.raises(ValueError, match="http does not score"):
        load_scorer(Spec("q", "http", "m@u"), "base", "fp32")


def test_a_new_scorer_is_one_file_for_labeling_evaluation_and_ppo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_scorers_xyz.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    asked = Completions(["p", "p"], ["aa", "b"])
    for name, best, identity in [
        ("shortest", 1, "shortest 1"),
        ("longest", 0, "own_scorers_xyz:longest"),
    ]:
        spec = f"own_scorers_xyz:{name}"
        found = load_picker(JudgeArguments(), FunctionArguments(reward_function=spec))
        assert found is not None and found[0] == spec
        assert found[1].best("p", ["aa", "b"]) == [best]

        judge = load_scorer(parse_specs([f"j=function:{spec}"], "judges")[0], "base", "fp32")
        (reward,) = RewardArguments(reward_function=spec).load("base", "fp32")
        for scorer in (judge, reward):
            assert (scorer.name, scorer.identity) == (name, identity)
            assert scorer(asked).argmax().item() == best


def test_best_of_n_takes_one_scorer_by_its_short_flag(root: Path) -> None:
    words = str(root / "data" / "lexicon.txt")
    assert isinstance(ScorerArguments(lexicon=words).load("base", "fp32"), Lexicon)
    with pytest.raises(
        InputError,
        match="^lexicon and reward_adapter given: give exactly one of "
        "--lexicon, --reward_function, --reward_adapter$",
    ):
        ScorerArguments(lexicon=words, reward_adapter="out").load("base", "fp32")
    assert RewardAdapter("out", title="--reward_adapter").cure.startswith(" (the weights of out ")
