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
