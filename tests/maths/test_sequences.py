"""O10, O11: truncation, positions, padding."""

import pytest
import torch

from toolkit.maths.sequences import (
    last_real_token,
    length_sorted_batches,
    mask_after_stop,
    pad,
    position_ids,
    real_tokens,
    truncate,
)

P = 50259


@pytest.mark.parametrize(
    ("ids", "expected", "valid"),
    [
        ([5, 13, 6, 13, 7, 13], [5, 13, 6, 13, P, P], True),
        ([5, 13, 6, 7, 8, 9], [5, 13, 6, 7, 8, 9], False),
        ([13, 1, 2, 3, 4, 13], [13, 1, 2, 3, 4, 13], True),
        ([1, 2, 13, 13, 3, 4], [1, 2, 13, P, P, P], True),
    ],
)
def test_truncation_behind_the_first_full_stop_that_counts(
    ids: list[int], expected: list[int], valid: bool
) -> None:
    kept, ok = truncate(torch.tensor([ids]), token=13, after=2, pad_id=P)
    assert kept[0].tolist() == expected
    assert ok.item() is valid


@pytest.mark.parametrize(
    ("index", "valid", "pads"), [(15, False, 0), (16, True, 7), (23, True, 0), (None, False, 0)]
)
def test_where_a_sole_full_stop_counts(index: int | None, valid: bool, pads: int) -> None:
    ids = torch.ones(1, 24, dtype=torch.long)
    if index is not None:
        ids[0, index] = 13
    kept, ok = truncate(ids, 13, after=16, pad_id=P)
    assert ok.item() is valid
    assert (kept == P).sum().item() == pads


def test_position_ids_do_not_count_padding() -> None:
    mask = torch.tensor([[1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    assert position_ids(mask).tolist() == [[0, 1, 1, 1, 2, 3], [0, 0, 0, 1, 2, 3]]


def test_last_real_token_under_any_padding() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0]], dtype=torch.bool)
    assert last_real_token(mask).tolist() == [1, 3, 2]
    with pytest.raises(ValueError, match="no real token"):
        last_real_token(torch.zeros(1, 3, dtype=torch.bool))


def test_mask_keeps_the_stop_token_and_drops_what_follows() -> None:
    ids = torch.tensor([[5, 2, 7, 2], [5, 6, 7, 8]])
    assert mask_after_stop(ids, [2]).tolist() == [[True, True, False, False], [True] * 4]
    assert mask_after_stop(ids, []).all()


def test_padding_on_either_side() -> None:
    ids, mask = pad([[5, 6, 7], [8]], 0, side="left")
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]
    ids, mask = pad([[5, 6, 7], [8]], 0, length=4)
    assert ids.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert mask.sum().item() == 4


def test_batches_of_like_length_have_every_row_once_and_equal_ones_in_order() -> None:
    lengths = [9, 2, 8, 2, 5]
    batches = [batch.tolist() for batch in length_sorted_batches(lengths, 2)]
    assert batches == [[1, 3], [4, 2], [0]]
    same = length_sorted_batches(torch.tensor(lengths), 2)
    assert [batch.tolist() for batch in same] == batches
    assert list(length_sorted_batches([], 2)) == []


def test_real_tokens_are_those_under_the_mask_wherever_they_stand() -> None:
    ids = torch.tensor([[0, 5, 6], [7, 0, 8], [9, 9, 9]])
    mask = torch.tensor([[False, True, True], [True, False, True], [False, False, False]])
    assert real_tokens(ids, mask) == [[5, 6], [7, 8], []]
