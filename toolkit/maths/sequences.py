"""Operations on token rows: truncation, positions, the last real token, padding, batches."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def truncate(completion_ids: Tensor, token: int, after: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Cut each completion after the first ``token`` at an index >= ``after``.

    Later tokens become ``pad_id``; the token itself stays. A completion without that token is left
    whole and is not valid (a fixed penalty then replaces its score). Only the scorer
    sees the truncated text; PPO's own terms use all sampled tokens.
    Source: openai/lm-human-preferences lm_human_preferences/lm_tasks.py:39-65.

    Args:
        completion_ids: int (B, C).
        token: where to cut, for example a full stop.
        after: first 0-based index at which the token counts.
        pad_id: replaces the tokens after it.

    Returns:
        (B, C) truncated ids, and bool (B,) valid.
    """
    index = torch.arange(completion_ids.shape[1], device=completion_ids.device)
    is_stop = (completion_ids == token) & (index >= after)
    stops_before = is_stop.cumsum(dim=1) - is_stop.long()
    return completion_ids.masked_fill(stops_before > 0, pad_id), is_stop.any(dim=1)


def mask_after_stop(completion_ids: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """bool (B, C): True up to and including the first of ``stop_ids``; all True without any."""
    stops = is_any(completion_ids, stop_ids)
    return stops.cumsum(dim=1) - stops.long() == 0


def is_any(ids: Tensor, wanted: Sequence[int]) -> Tensor:
    """bool, shaped like ``ids``: where an id is one of ``wanted``."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    for one in wanted:  # they are few, and torch.isin would copy them to the device
        found |= ids == one
    return found


def position_ids(mask: Tensor) -> Tensor:
    """Exclusive cumulative sum of the attention mask: how many real tokens stand before each.

    This holds for padding on the left, on the right and in between. Source:
    openai/lm-human-preferences lm_human_preferences/language/model.py:265-269.

    >>> position_ids(torch.tensor([[1, 0, 0, 1, 1, 1]])).tolist()
    [[0, 1, 1, 1, 2, 3]]

    Args:
        mask: bool or int (B, T), true = real token.

    Returns:
        int64 (B, T).
    """
    mask = mask.long()
    return mask.cumsum(dim=1) - mask


def last_real_token(mask: Tensor) -> Tensor:
    """int64 (B,): index of the last True of each row of ``mask`` (B, T).

    Raises:
        ValueError: a row has no real token.
    """
    if not mask.any(dim=1).all():
        raise ValueError("last_real_token: a row of the mask has no real token")
    index = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask.bool(), index, -1).amax(dim=1)


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, side: str = "right", length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad rows of unequal length to one tensor.

    >>> pad([[5, 6, 7], [8]], pad_id=0, side="left")
    (tensor([[5, 6, 7],
            [0, 0, 8]]), tensor([[ True,  True,  True],
            [False, False,  True]]))

    Args:
        rows: B lists of token ids.
        side: where the padding goes, "left" or "right".
        length: pad to this length instead of to the longest row.

    Returns:
        int64 ids (B, T) and bool mask (B, T), True = real token.
    """
    length = max(len(row) for row in rows) if length is None else length
    ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = True
    return ids, mask


def real_tokens(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """Return each row's tokens where ``mask`` is True: ids and mask (B, T) -> B lists.

    Both leave their device once, not row by row.
    """
    return [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.cpu(), strict=True)]


def length_sorted_batches(lengths: Sequence[int] | Tensor, size: int) -> Iterator[Tensor]:
    """Yield indices in batches of similar length, the shortest first, to keep padding small.

    >>> [batch.tolist() for batch in length_sorted_batches([9, 2, 8, 2], 3)]
    [[1, 3, 2], [0]]

    Args:
        lengths: int (B,), lengths of the rows. Rows of equal length stay in order.
        size: most rows in a batch.

    Yields:
        int64 (at most ``size``,) on the CPU; nothing if there are no rows.
    """
    order = torch.as_tensor(lengths).cpu().argsort(stable=True)
    if len(order):
        yield from order.split(size)
