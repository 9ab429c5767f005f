"""What flags name of the data is read: comparisons, and prompts with those held out."""

import json
from pathlib import Path

import pytest

from toolkit.arguments.comparisons import ComparisonArguments, RewardDataArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.data.from_arguments import (
    RewardSplits,
    held_out_facts,
    split_comparisons,
    split_demonstrations,
    split_picks,
    training_prompts,
)
from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer


def test_a_fifth_is_held_out_of_few_comparisons_and_a_share_of_the_rest_trained_on(
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"{i}", "completions": ["a", "b"], "best": 0} for i in range(20)]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for share, trained in ((1.0, 16), (0.5, 8)):
        args = RewardDataArguments(comparisons=str(path), train_fraction=share)
        train, held_out = split_comparisons(args, "best", seed=0).folds[0]
        assert (train.sum(), held_out.sum(), (train & held_out).sum()) == (trained, 4, 0)


def test_prompts_held_out_have_limits_of_their_own(demo_model: str, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("".join(f"It was number {i}.\n" for i in range(10)))
    args = PromptArguments(
        prompts=str(path), limit=3, eval_prompts=str(path), eval_limit=2, eval_skip=2
    )
    prompts, held_out, left_out = training_prompts(args, load_tokenizer(demo_model))
    assert held_out is not None and (len(prompts), len(held_out), left_out) == (3, 2, 0)
    assert prompts[2] == held_out[0]


def test_held_out_prompts_that_are_trained_on_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    facts = held_out_facts(Prompts([[1], [2, 3]]), Prompts([[2, 3], [4]]))
    assert facts == {"held_out_prompts": 2, "held_out_trained_on": 1}
    assert "1 of the 2 prompts of --eval_prompts are also trained on" in capsys.readouterr().out
    assert held_out_facts(Prompts([[1]]), None) == {
        "held_out_prompts": 0,
        "held_out_trained_on": 0,
    }


def test_demonstrations_are_split_by_prompt_as_comparisons_are(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.jsonl"
    rows = [{"instruction": f"Say {i // 2}.", "output": f"{i}"} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ComparisonArguments(comparisons="nowhere", eval_rows=4, as_messages=True)
    found, train, held_out = split_demonstrations(str(path), args, 0)
    assert (train.sum(), held_out.sum()) == (16, 4)
    kept = [row for _, row in found.where(held_out)]
    assert all(len(row["completions"]) == 1 and row["best"] == 0 for row in kept)
    assert {row["prompt"][0]["content"] for row in kept} == {
        f"Say {int(row['completions'][0]) // 2}." for row in kept
    }
    assert len({row["prompt"][0]["content"] for row in kept}) == 2  # no prompt is on both sides


def test_a_policy_holds_out_the_rows_that_a_reward_model_holds_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completions": ["a", "b"], "best": 0} for i in range(20)]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ComparisonArguments(comparisons=str(path), eval_rows=5)
    _, *sides = split_picks(args, 3)
    given = RewardDataArguments(comparisons=str(path), eval_rows=5, folds=0)
    alone = split_comparisons(given, "best", 3).folds[0]
    assert all((one == other).all() for one, other in zip(sides, alone, strict=True))


def test_a_held_out_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    """The same prompt as text and as a message would count as two, and be held out in vain."""
    rows = [{"prompt": f"We went {i}.", "completions": [" a", " b"], "best": 0} for i in range(9)]
    turns = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    for name, those in (("text", rows), ("messages", turns), ("both", [*rows[:5], *turns[5:]])):
        (tmp_path / name).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, those)))

    def split(train: str, held_out: str, as_messages: bool = False) -> RewardSplits:
        paths = [str(tmp_path / f"{name}.jsonl") for name in (train, held_out)]
        args = RewardDataArguments(
            comparisons=paths[0], eval_comparisons=paths[1], as_messages=as_messages
        )
        return split_comparisons(args, "best", 0)

    for train, held_out in (("messages", "text"), ("text", "messages"), ("text", "both")):
        with pytest.raises(InputError, match=r"^eval_comparisons: .* has prompts of (text|mess)"):
            split(train, held_out)
    with pytest.raises(InputError, match="none is left to train on"):  # now they are the same
        split("messages", "text", as_messages=True)


def test_halves_are_cut_by_prompt_whatever_the_seed_and_the_other_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Number {i // 2}.", "completions": ["a", f"{i}"], "best": 0} for i in range(200)
    ]

    def prompts_of(half: str | None, count: int, seed: int) -> tuple[set[str], set[str], int]:
        path = tmp_path / "c.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        args = RewardDataArguments(comparisons=str(path), half=half, folds=0)  # type: ignore[arg-type]
        splits = split_comparisons(args, "best", seed)
        train, held_out = splits.folds[0]
        assert not (train & held_out).any()
        trained, apart = (
            {row["prompt"] for _, row in splits.comparisons.where(part)}
            for part in (train, held_out)
        )
        assert splits.prompts == len(trained | apart)
        return trained, apart, int((train | held_out).sum())

    a, b = (set().union(*prompts_of(half, 200, 0)[:2]) for half in ("a", "b"))
    assert not a & b and len(a | b) == 100 and 30 < len(a) < 70
    for half, of in (("a", a), ("b", b)):
        assert set().union(*prompts_of(half, 200, 7)[:2]) == of  # another seed
        assert set().union(*prompts_of(half, 60, 0)[:2]) <= of  # fewer rows
        trained, apart, used = prompts_of(half, 200, 0)
        assert used == 2 * len(of) and len(apart) == -(-(used // 5) // 2)  # a fifth of the half
        assert not trained & apart


def test_a_half_is_cross_validated_alone_and_held_out_files_stay_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"Number {i}.", "completions": ["a", "b"], "best": 0} for i in range(100)]
    for name, those in (("c", rows), ("e", rows[:10])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, those)))
    path, other = str(tmp_path / "c.jsonl"), str(tmp_path / "e.jsonl")
    whole = {}
    for half in ("a", "b"):
        args = RewardDataArguments(comparisons=path, half=half)  # type: ignore[arg-type]
        splits = split_comparisons(args, "best", 0)
        assert splits.validated == 5
        held_out = sum(apart.astype(int) for _, apart in splits.folds)
        assert set(held_out.tolist()) == {0, 1} and held_out.sum() == splits.prompts
        whole[half] = held_out
        named = RewardDataArguments(comparisons=path, eval_comparisons=other, half=half)  # type: ignore[arg-type]
        beside = split_comparisons(named, "best", 0)
        ((train, everything),) = beside.folds
        assert everything.sum() == 10 and beside.shared + train.sum() == held_out.sum()
    assert (whole["a"] + whole["b"] == 1).all()


def test_an_empty_half_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"prompt": "One.", "completions": ["a", "b"], "best": 0}))

    def refused(half: str) -> str | None:
        try:
            split_comparisons(
                RewardDataArguments(comparisons=str(path), half=half),  # type: ignore[arg-type]
                "best",
                0,
            )
        except InputError as error:
            return str(error)
        return None

    said = [refused(half) for half in ("a", "b")]
    assert sum("has no prompt in half" in str(each) for each in said) == 1
