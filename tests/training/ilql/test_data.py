"""From comparisons to completions with rewards."""

import json
from pathlib import Path

import pytest
import torch

from toolkit.arguments.comparisons import ComparisonArguments
from toolkit.data.from_arguments import encoder_of, split_picks
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer
from toolkit.training.baselines.data import prepare_completions
from toolkit.training.ilql.config import ILQLConfig
from toolkit.training.ilql.data import SCHEMA, collate, order_of, rewarded, with_learned_rewards

ROW = {"prompt_ids": [1, 5], "completion_ids": [[7, 8], [9], [4, 4, 4]]}


def test_a_pick_is_worth_1_and_each_other_completion_minus_1() -> None:
    row = ROW | {"best": 1, "scores": None}
    found = list(rewarded(ILQLConfig())([row]))
    assert [one["reward"] for one in found] == [-1.0, 1.0, -1.0]
    assert [one["completion_ids"] for one in found] == ROW["completion_ids"]


def test_what_is_alike_to_the_last_token_is_worth_the_same() -> None:
    row = {"prompt_ids": [1], "completion_ids": [[7, 8], [9], [7, 8]], "best": 2, "scores": None}
    assert [one["reward"] for one in rewarded(ILQLConfig())([row])] == [1.0, -1.0, 1.0]


def test_scores_are_taken_as_they_stand() -> None:
    row = ROW | {"best": None, "scores": [2, -0.5, 0]}
    found = list(rewarded(ILQLConfig(rewards="scores"))([row]))
    assert [one["reward"] for one in found] == [2.0, -0.5, 0.0]


def prepared(tmp_path: Path, demo_model: str, config: ILQLConfig, scores: list[float]) -> object:
    rows = [
        {"prompt": f"We met {name}.", "completions": [" Good.", " It was bad."], "scores": scores}
        for name in ("Ann", "Ben", "Cid", "Dot")
    ]
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = ComparisonArguments(comparisons=str(path), eval_rows=1)
    tokenizer = load_tokenizer(demo_model)
    encoder = encoder_of(args, tokenizer, 64)
    picks = split_picks(args, 0, "scores")
    data = prepare_completions(picks, encoder, None, rewarded(config), SCHEMA, tmp_path)
    return with_learned_rewards(data, config.normalize_rewards)


def test_rewards_are_standardized_by_the_training_rows(tmp_path: Path, demo_model: str) -> None:
    """Rows need no pick if their scores count. Three rows of (3, 1): mean 2, std sqrt(6 / 5)."""
    config = ILQLConfig(rewards="scores")
    train, held_out, facts = prepared(tmp_path, demo_model, config, [3.0, 1.0])  # type: ignore[misc]
    assert len(train) == 6 and len(held_out) == 2
    assert facts["reward_mean"] == 2.0 and facts["reward_std"] == pytest.approx((6 / 5) ** 0.5)
    for rows in (train, held_out):
        assert [row["reward"] for row in rows[:2]] == pytest.approx(
            [(5 / 6) ** 0.5, -((5 / 6) ** 0.5)]
        )

    raw = ILQLConfig(rewards="scores", normalize_rewards=False)
    train, _, facts = prepared(tmp_path, demo_model, raw, [3.0, 1.0])  # type: ignore[misc]
    assert [row["reward"] for row in train[:2]] == [3.0, 1.0] and facts["reward_mean"] == 2.0


def test_equal_rewards_are_refused_before_anything_is_loaded(
    tmp_path: Path, demo_model: str
) -> None:
    with pytest.raises(InputError, match="all completions have the same reward"):
        prepared(tmp_path, demo_model, ILQLConfig(rewards="scores"), [1.0, 1.0])


def test_a_row_without_scores_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    path.write_text(json.dumps({"prompt": "A", "completions": [" b", " c"], "best": 0}) + "\n")
    args = ComparisonArguments(comparisons=str(path))
    with pytest.raises(InputError, match=r"picks\.jsonl:1: scores: missing"):
        split_picks(args, 0, "scores")


def test_a_batch_pads_prompts_on_the_left_and_completions_on_the_right() -> None:
    rows = [
        {"prompt_ids": [1], "completion_ids": [5, 6, 7], "reward": 0.5},
        {"prompt_ids": [1, 2], "completion_ids": [8], "reward": -2.0},
    ]
    batch = collate(rows, 0, torch.device("cpu"))
    assert batch.ids.tolist() == [[0, 1, 5, 6, 7], [1, 2, 8, 0, 0]]
    assert batch.mask.tolist() == [
        [False, True, True, True, True],
        [True, True, True, False, False],
    ]
    assert batch.completion_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.completion_mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.rewards.tolist() == [0.5, -2.0]


def test_each_epoch_has_an_order_of_its_own_that_comes_again() -> None:
    first, second = order_of(0, 50, seed=1), order_of(1, 50, seed=1)
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    assert order_of(1, 50, seed=1) == second and order_of(1, 50, seed=2) != second
