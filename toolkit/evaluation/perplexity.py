"""Perplexity on a file of text: whether a policy has forgotten what the base knew.

exp of the mean negative log-likelihood of the tokens, each text read from its beginning, at
temperature 1. The mean is over all tokens, so a long text counts for more than a short one. Errors
are those of a ratio estimate over texts, because the tokens of one text are not independent.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from tqdm.auto import tqdm

from toolkit.data.plain_text import TextRows
from toolkit.errors import InputError
from toolkit.evaluation.contenders import GIVEN, Contender, Sampling
from toolkit.evaluation.result import Perplexities, TextPerplexity
from toolkit.maths.sequences import length_sorted_batches, pad
from toolkit.maths.statistics import ratio_and_error
from toolkit.models.roles import Roles

TOKENS_IN_A_PASS = 1 << 14
# Kinds of contenders without weights of their own on the base.
OTHER_BASE = ("model", "best_of_n", *GIVEN)


def perplexities(
    sampling: Sampling, contenders: Sequence[Contender], text: TextRows, file: str
) -> Perplexities:
    """Measure the perplexity of the reference and of each contender that shares its base.

    Args:
        sampling: the base with its adapters.
        contenders: the reference first.
        text: two rows or more.
        file: where the text is from.

    Raises:
        InputError: log-probs are NaN or infinite.
    """
    predicted = [len(row) - 1 for row in text.rows]
    found: list[TextPerplexity] = []
    first: list[float] = []
    for contender in contenders:
        if contender.kind in OTHER_BASE:
            continue
        role = sampling.role(contender)
        losses = text_losses(sampling.roles, role, text.rows, sampling.rule.pad_id, contender.name)
        ratio = None
        if found:
            change = [loss - before for loss, before in zip(losses, first, strict=True)]
            ratio = _interval(change, predicted)
        else:
            first = losses
        found.append(_perplexity(contender.name, losses, predicted, ratio))
    return Perplexities(
        file=file,
        texts=len(text.rows),
        tokens=sum(predicted),
        cut=text.cut,
        left_out=text.short,
        contenders=found,
    )


def _perplexity(
    name: str,
    losses: Sequence[float],
    predicted: Sequence[int],
    ratio: tuple[float, float, float] | None,
) -> TextPerplexity:
    perplexity, low, high = _interval(losses, predicted)
    return TextPerplexity(
        name=name,
        perplexity=perplexity,
        low=low,
        high=high,
        ratio=None if ratio is None else ratio[0],
        ratio_low=None if ratio is None else ratio[1],
        ratio_high=None if ratio is None else ratio[2],
    )


def _interval(losses: Sequence[float], predicted: Sequence[int]) -> tuple[float, float, float]:
    """exp of the mean loss a token, and of the ends of its 95 % interval."""
    mean, error = ratio_and_error(losses, predicted)
    reach = NormalDist().inv_cdf(0.975) * error
    return math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)


@torch.no_grad()
def text_losses(
    roles: Roles, role: str, rows: Sequence[list[int]], pad_id: int, name: str
) -> list[float]:
    """Return the negative log-likelihood of each text in nats, without its first token.

    Args:
        roles: the models.
        role: whose.
        rows: token ids, two or more in each row.
        pad_id: fills up shorter rows.
        name: the role's name in messages.

    Raises:
        InputError: a log-prob is NaN or infinite.
    """
    lengths = [len(row) for row in rows]
    size = max(1, TOKENS_IN_A_PASS // max(lengths))
    losses = [0.0] * len(rows)
    batches = list(length_sorted_batches(lengths, size))
    for batch in tqdm(batches, desc=f"Perplexity of {name}", leave=False):
        ids, mask = (t.to(roles.device) for t in pad([rows[i] for i in batch], pad_id))
        logprobs = roles.logprobs(role, ids, mask, ids[:, 1:], 1.0)
        sums = -logprobs.masked_fill(~mask[:, 1:], 0.0).double().sum(dim=1)
        for place, loss in zip(batch.tolist(), sums.tolist(), strict=True):
            losses[place] = loss
    if not all(map(math.isfinite, losses)):
        raise InputError(
            f"perplexity_text: the log-probs of {name} are not finite. Its weights are broken or "
            "the precision is too low (try --precision fp32)",
            "perplexity_text",
        )
    return losses
