"""No prompt on both sides of a split, every row held out once, and nested shares."""

import json
from pathlib import Path

import numpy as np
import pytest

from toolkit.data.comparisons import open_comparisons
from toolkit.data.splits import folds_by_prompt, split_by_prompt
from toolkit.errors import InputError

GOOD = {"prompt": "Hi.", "completions": [" a", " b", " c"], "best": 2}


def test_no_prompt_is_on_both_sides_of_the_split(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(GOOD | {"prompt": f"p{i % 40}"}) + "\n" for i in range(100)))
    source = open_comparisons(path, "best", "--comparisons")
    train, held_out = split_by_prompt(source.order, 30, seed=1)
    assert (train ^ held_out).all() and 30 <= held_out.sum() < 40
    sides = [{row["prompt"] for _, row in source.where(side)} for side in (train, held_out)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40
    assert (split_by_prompt(source.order, 30, seed=1)[1] == held_out).all()
    assert (split_by_prompt(source.order, 30, seed=2)[1] != held_out).any()
    with pytest.raises(InputError, match="leaves none of 100 rows"):
        split_by_prompt(source.order, 100, seed=1)


def test_a_smaller_share_of_the_labels_is_part_of_a_larger_one() -> None:
    order = np.arange(1000, dtype=np.uint64) // np.uint64(5) * np.uint64(2**40)
    shares = [split_by_prompt(order, 200, 3, share)[0] for share in (0.1, 0.25, 0.5, 1.0)]
    assert [int(share.sum()) for share in shares] == [80, 200, 400, 800]
    for small, large in zip(shares, shares[1:], strict=False):
        assert not (small & ~large).any()
    assert (split_by_prompt(order, 200, 3, 0.1)[1] == split_by_prompt(order, 200, 3)[1]).all()


def test_which_labels_are_left_out_depends_on_the_seed() -> None:
    order = np.arange(1000, dtype=np.uint64) * np.uint64(2**50 + 1)
    first, second = (split_by_prompt(order, 1, seed, 0.5)[0] for seed in (1, 2))
    assert 150 < (first & second).sum() < 350  # about a quarter of 1000 in both


def test_every_row_is_held_out_once_and_no_prompt_is_in_two_folds() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, 60, size=400)  # each some seven times
    order = (prompts * 2**50 + 7).astype(np.uint64)
    folds = folds_by_prompt(order, 80, 3, 5)
    first = split_by_prompt(order, 80, 3)
    assert len(folds) == 5 and all((a == b).all() for a, b in zip(folds[0], first, strict=True))
    held_out = np.array([each for _, each in folds])
    assert (held_out.sum(axis=0) == 1).all()
    assert all(60 <= count <= 110 for count in held_out.sum(axis=1))
    for train, held in folds:
        assert (train ^ held).all()
        assert not set(prompts[train]) & set(prompts[held])


def test_a_share_of_each_folds_rows_is_part_of_them() -> None:
    order = np.arange(1000, dtype=np.uint64) * np.uint64(2**50 + 1)
    whole, part = (folds_by_prompt(order, 400, 1, 4, share) for share in (1.0, 0.1))
    assert [int(held.sum()) for _, held in whole] == [400, 200, 200, 200]
    assert [int(train.sum()) for train, _ in part] == [60, 80, 80, 80]
    for (all_of_it, held), (few, same) in zip(whole, part, strict=True):
        assert (held == same).all() and not (few & ~all_of_it).any()


def test_more_folds_than_prompts_are_refused() -> None:
    order = np.repeat(np.arange(4, dtype=np.uint64) * np.uint64(2**50 + 1), 50)
    assert len(folds_by_prompt(order, 50, 0, 4)) == 4
    with pytest.raises(InputError, match="folds is 5, but there are too few prompts .* have 3;"):
        folds_by_prompt(order, 50, 0, 5)
