"""Evaluating the policy on held-out prompts with the same noise each time."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.data.files import write_jsonl
from toolkit.data.prompts import Prompts
from toolkit.data.tokens import decode_pair
from toolkit.maths.sequences import real_tokens
from toolkit.models.actors import POLICY, Actors
from toolkit.models.generation import draw_uniforms
from toolkit.models.sampling import SamplingRule
from toolkit.scoring.scorer import Scorer, TokenCompletions
from toolkit.terminal import print_table
from toolkit.training.distributed import Ranks
from toolkit.training.ppo.rollouts import Rollout
from toolkit.training.run_log import Row

Collect = Callable[[Prompts, Tensor], Rollout]  # prompts and their noise (B, C) to episodes


def evaluate(
    collect: Collect,
    prompts: Prompts,
    parts: dict[str, Prompts],
    response_length: int,
    seed: int,
    ranks: Ranks,
    kl_coef: float,
) -> dict[str, float]:
    """Measure scores and KL on one completion for each prompt, always with the same noise.

    Args:
        collect: makes episodes of prompts and noise.
        prompts: all of them.
        parts: the prompts by name of dataset; empty if there is only one dataset.
        response_length: C.
        seed: seed of the noise.
        ranks: the processes, which share the prompts.
        kl_coef: the coefficient of the KL in the reward; NaN while it is not known, as before the
            training of a run with ``kl_coef: auto``.

    Returns:
        eval/scores, eval/scores_error (standard error), eval/kl, and eval/rlhf_reward if the
        coefficient is known. Each of several datasets also has its own metrics, eval/NAME/scores
        and so on, equal to those that it would have as the only dataset.
    """
    if not parts:
        sums = _sums(collect, prompts, response_length, seed, ranks)
        return _metrics("eval", sums, len(prompts), kl_coef)

    row: dict[str, float] = {}
    whole = torch.zeros(4, dtype=torch.float64)
    for name, part in parts.items():
        sums = _sums(collect, part, response_length, seed, ranks)
        row |= _metrics(f"eval/{name}", sums, len(part), kl_coef)
        whole = whole + sums
    return _metrics("eval", whole, sum(len(part) for part in parts.values()), kl_coef) | row


def _sums(
    collect: Collect, prompts: Prompts, response_length: int, seed: int, ranks: Ranks
) -> Tensor:
    """Return sums (4,) over prompts and processes: scores, squares, KL, number scored."""
    count = len(prompts)
    noise = torch.Generator().manual_seed(seed + 1)
    uniforms = draw_uniforms(count, response_length, noise)

    # All processes make equally many passes: one with fewer prompts repeats the first.
    mine = list(range(ranks.rank, count, ranks.world))
    filled = mine + [0] * (math.ceil(count / ranks.world) - len(mine))
    rollout = collect(prompts.pick(filled), uniforms[filled])

    own = slice(0, len(mine))
    kl = (rollout.logprobs - rollout.ref_logprobs).sum(dim=1)[own]
    scored = rollout.scored[own]
    scores = rollout.scores[own][scored].double()
    sums = torch.stack([scores.sum(), scores.square().sum(), kl.double().sum(), scored.sum()])
    return ranks.total(sums).cpu()


def _metrics(prefix: str, sums: Tensor, count: int, kl_coef: float) -> dict[str, float]:
    """Return the metrics from ``_sums`` over ``count`` prompts."""
    score, square, kl_sum, number = sums.tolist()
    mean = score / number if number else math.nan
    spread = max(square - number * mean**2, 0.0)
    error = (spread / (number - 1) / number) ** 0.5 if number > 1 else math.nan
    row = {
        f"{prefix}/scores": mean,
        f"{prefix}/scores_error": error,
        f"{prefix}/kl": kl_sum / count,
    }
    if math.isnan(kl_coef):
        return row
    return row | {f"{prefix}/rlhf_reward": mean - kl_coef * kl_sum / count}


@torch.no_grad()
def near_greedy_completions(
    model: Actors,
    prompts: Prompts,
    rule: SamplingRule,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Scorer,
    seed: int,
) -> list[Row]:
    """Sample completions at temperature 0.01, with their scores, as TRL 1.12 showed them.

    Returns:
        Rows of ``query``, ``model response`` and ``score``, which is None if there is no score.
    """
    cold = replace(rule, temperature=0.01)
    noise = torch.Generator().manual_seed(seed)
    _, sampled = cold.sample(model.step(POLICY), list(prompts), noise, model.device)
    visible, _ = cold.visible(sampled)
    seen = TokenCompletions.seen(prompts, sampled.completion_ids, visible, tokenizer, model)
    scores = rewards(seen).tolist()
    rows: list[Row] = []
    written = real_tokens(sampled.completion_ids, visible)
    for i, (prompt, kept) in enumerate(zip(prompts, written, strict=True)):
        query, response = decode_pair(tokenizer, prompt, kept)
        score = None if math.isnan(scores[i]) else scores[i]
        rows.append({"query": query, "model response": response, "score": score})
    return rows


def show_completions(rows: list[Row], path: Path) -> None:
    """Write all rows to a file, and print the first five as a table."""
    write_jsonl(path, rows)
    headers = list(rows[0]) if rows else []
    shown = [[str(value) for value in row.values()] for row in rows[:5]]
    print_table("Completions, almost greedy", headers, shown, lines=True)
