"""Rows of token ids to padded batches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toolkit.maths.sequences import pad


@dataclass
class ComparisonCollator:
    """Comparisons with any K each, flattened: one row of tokens a candidate, padded on the right.

    >>> collate = ComparisonCollator(pad_token_id=0)
    >>> collate([{"candidate_ids": [[5, 6], [5, 7, 8]], "best": 1}])
    {'input_ids': tensor([[5, 6, 0],
            [5, 7, 8]]), 'attention_mask': tensor([[1, 1, 0],
            [1, 1, 1]]), 'candidates': tensor([2]), 'best': tensor([1])}

    With B comparisons and N candidates in all: ids and mask (N, T), candidates and best (B,).
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Raises ValueError for a candidate that ends in the pad token: transformers' pooling
        would take the score from the token before it."""
        flat = [ids for row in rows for ids in row["candidate_ids"]]
        if any(ids[-1] == self.pad_token_id for ids in flat):
            raise ValueError(
                f"a candidate ends in the pad token ({self.pad_token_id}): give the tokenizer a "
                "pad token that is not its end-of-text token"
            )
        ids, mask = pad(flat, self.pad_token_id)
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "candidates": torch.tensor([len(row["candidate_ids"]) for row in rows]),
            "best": torch.tensor([row["best"] for row in rows]),
        }


def by_comparison(scores: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Flat scores as a table: (N,) and counts (B,) -> scores (B, K) and bool mask (B, K)."""
    k = int(candidates.max())
    mask = torch.arange(k, device=scores.device) < candidates.unsqueeze(1)
    table = scores.new_zeros(mask.shape)
    table[mask] = scores
    return table, mask
