"""Embeddings of prompts by the base itself: its last hidden states, averaged over the tokens.

No other model and no other library is needed, and the base is there anyway. (ELM, arXiv 2302.03202,
takes a sentence encoder.) The states are those after the last norm, of which no token outweighs the
others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from toolkit.errors import InputError
from toolkit.maths.sequences import length_sorted_batches, pad, position_ids
from toolkit.models.families import trunk_of


@torch.no_grad()
def embeddings(
    base: PreTrainedModel, rows: Sequence[list[int]], pad_id: int, batch_size: int
) -> Tensor:
    """Return fp32 (N, d) on the CPU: the mean of each row's last hidden states, not normalized.

    Args:
        base: the causal language model, without adapters.
        rows: N lists of token ids, each of one or more.
        pad_id: fills up shorter rows; its states are not averaged.
        batch_size: rows in one pass.

    Raises:
        InputError: a state is NaN or infinite.
    """
    trunk = trunk_of(base.eval())
    device = next(base.parameters()).device
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    batches = list(length_sorted_batches([len(row) for row in rows], batch_size))
    for batch in tqdm(batches, desc="Embedding", unit="batch", leave=False):
        ids, mask = (t.to(device) for t in pad([rows[i] for i in batch], pad_id))
        states = trunk(
            input_ids=ids.masked_fill(~mask, 0),  # a pad token may lie outside the embedding
            attention_mask=mask.long(),
            position_ids=position_ids(mask),
            use_cache=False,
        ).last_hidden_state.float()
        kept = states.masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        for place, one in zip(batch.tolist(), kept.cpu(), strict=True):
            found[place] = one

    made = torch.stack(found)
    if not bool(made.isfinite().all()):
        raise InputError(
            "model_name_or_path: the model's hidden states are NaN or infinite. Its weights are "
            "broken or the precision is too low (try --precision fp32)"
        )
    return made
