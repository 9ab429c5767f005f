"""Collating rows of token ids to padded batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.data.records import Row
from toolkit.maths.sequences import pad


@dataclass
class ComparisonCollator:
    """Flatten comparisons of any K each: one row of tokens a candidate, padded on the right.

    >>> collate = ComparisonCollator(pad_token_id=0)
    >>> collate([{"candidate_ids": [[5, 6], [5, 7, 8]], "best": 1}])
    {'input_ids': tensor([[5, 6, 0],
            [5, 7, 8]]), 'attention_mask': tensor([[1, 1, 0],
            [1, 1, 1]]), 'candidates': tensor([2]), 'best': tensor([1])}

    With B comparisons and N candidates in all: ids and mask are (N, T), candidates and best (B,).
    If every row has them, there are also ranking (B, R), padded with -1; target_scores (N,), which
    are (scores - score_mean) / score_std; margin (B,); and weight (B,). If any row has it, there is
    worst (B,), -1 where a row has none.
    """

    pad_token_id: int
    score_mean: float = 0.0
    score_std: float = 1.0

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        """Collate rows; raises ValueError for a candidate that ends in the pad token, because
        transformers' pooling would take the score from the token before it."""
        flat = [ids for row in rows for ids in row["candidate_ids"]]
        if any(ids[-1] == self.pad_token_id for ids in flat):
            raise ValueError(
                f"a candidate ends in the pad token ({self.pad_token_id}): give the tokenizer a "
                "pad token that is not its end-of-text token"
            )

        ids, mask = pad(flat, self.pad_token_id)
        batch = {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "candidates": torch.tensor([len(row["candidate_ids"]) for row in rows]),
            "best": torch.tensor([row["best"] for row in rows]),
        }

        if all(row.get("ranking") is not None for row in rows):
            batch["ranking"] = pad([row["ranking"] for row in rows], pad_id=-1)[0]
        if any(row.get("worst") is not None for row in rows):
            worst = [-1 if row.get("worst") is None else row["worst"] for row in rows]
            batch["worst"] = torch.tensor(worst)
        if all(row.get("scores") is not None for row in rows):
            scores = torch.tensor([s for row in rows for s in row["scores"]], dtype=torch.float64)
            batch["target_scores"] = ((scores - self.score_mean) / self.score_std).float()

        if all(row.get("margin") is not None for row in rows):
            batch["margin"] = torch.tensor([float(row["margin"]) for row in rows])
        if all(row.get("weight") is not None for row in rows):
            batch["weight"] = torch.tensor([float(row["weight"]) for row in rows])
        return batch


def by_comparison(scores: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Make flat scores a table: (N,) and counts (B,) -> scores (B, K) and bool mask (B, K)."""
    k = int(candidates.max())
    mask = torch.arange(k, device=scores.device) < candidates.unsqueeze(1)
    table = scores.new_zeros(mask.shape)
    table[mask] = scores
    return table, mask


def buckets(lengths: Sequence[int], waste: float = 0.15) -> list[list[int]]:
    """Group indices by similar length, so that padding each group to its longest costs little.

    >>> buckets([10, 3, 9, 10, 3])
    [[0, 3, 2], [1, 4]]

    Args:
        lengths: lengths of the sequences.
        waste: largest share of its group's longest by which a sequence is padded; so at most this
            share of all tokens is padding.
    """
    groups: list[list[int]] = []
    longest = 0.0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not groups or lengths[i] < (1 - waste) * longest:
            groups.append([])
            longest = lengths[i]
        groups[-1].append(i)
    return groups
