"""Policy against reference on held-out prompts, paired by prompt, under a scorer."""

from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from toolkit.data.text import decode_pair
from toolkit.maths.sequences import pad
from toolkit.maths.statistics import mean_and_error, wilson_interval
from toolkit.models.actors import POLICY, REFERENCE
from toolkit.models.roles import Roles
from toolkit.training.rewards import RewardFunction, score
from toolkit.training.rollouts import SamplingRule

Row = dict[str, Any]


@torch.no_grad()
def compare(
    roles: Roles,
    prompts: list[list[int]],
    rule: SamplingRule,
    tokenizer: PreTrainedTokenizerBase,
    scorer: RewardFunction | None,
    seed: int,
    batch_size: int = 256,
) -> tuple[dict[str, float], list[Row]]:
    """One completion from each side for each prompt.

    Args:
        roles: policy and reference (and a reward adapter, if it is the scorer).
        prompts: token ids.
        rule: how completions are sampled, and how much of each is judged.
        tokenizer: to turn them into text.
        scorer: function of texts, or None for the reward adapter.
        seed: both sides draw from it.
        batch_size: prompts in one pass.

    Returns:
        The summary (``summarize``), and for each prompt both texts and scores and the KL's sample.
    """
    generators = [torch.Generator().manual_seed(seed + side) for side in (0, 1)]
    rows: list[Row] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="Evaluating", leave=False):
        batch = prompts[start : start + batch_size]
        sides: dict[str, tuple[list[str], list[float]]] = {}
        for side, generator in zip((POLICY, REFERENCE), generators, strict=True):
            mask, sampled = rule.sample(roles.step(side), batch, generator, roles.device)
            visible, _ = rule.visible(sampled)
            scores = score(roles, batch, sampled.completion_ids, visible, tokenizer, scorer)
            kept = [i[m].tolist() for i, m in zip(sampled.completion_ids, visible, strict=True)]
            texts = [decode_pair(tokenizer, p, c)[1] for p, c in zip(batch, kept, strict=True)]
            sides[side] = (texts, scores.tolist())
            if side == POLICY:
                ids, _ = pad(batch, rule.pad_id, "left")
                passage = (
                    torch.cat([ids.to(roles.device), sampled.completion_ids], dim=1),
                    torch.cat([mask, sampled.mask], dim=1),
                )
                reference = roles.reference_logprobs(
                    *passage, sampled.completion_ids, rule.temperature
                )
                kl = ((sampled.logprobs - reference) * sampled.mask).sum(dim=1).tolist()
        for i, prompt_ids in enumerate(batch):
            prompt, _ = decode_pair(tokenizer, prompt_ids, [])
            row: Row = {"prompt": prompt, "kl": kl[i]}
            for side, (texts, values) in sides.items():
                row |= {side: texts[i], f"{side}_score": values[i]}
            rows.append(row)
    return summarize(rows), rows


def summarize(rows: list[Row]) -> dict[str, float]:
    """Wins, ties and losses of the policy; scores and KL with standard errors.

    ``win_rate`` is over decided pairs, with Wilson's 95 % interval. ``score_gain`` is the rise of
    the mean score in standard deviations of the reference's scores.
    """
    wins = sum(row["policy_score"] > row["reference_score"] for row in rows)
    losses = sum(row["policy_score"] < row["reference_score"] for row in rows)
    low, high = wilson_interval(wins, wins + losses)
    policy, policy_error = mean_and_error([row["policy_score"] for row in rows])
    reference, reference_error = mean_and_error([row["reference_score"] for row in rows])
    kl, kl_error = mean_and_error([row["kl"] for row in rows])
    spread = (sum((row["reference_score"] - reference) ** 2 for row in rows) / len(rows)) ** 0.5
    return {
        "prompts": len(rows),
        "wins": wins,
        "ties": len(rows) - wins - losses,
        "losses": losses,
        "win_rate": wins / (wins + losses) if wins + losses else 0.5,
        "win_rate_low": low,
        "win_rate_high": high,
        "policy_score": policy,
        "policy_score_error": policy_error,
        "reference_score": reference,
        "reference_score_error": reference_error,
        "reference_score_std": spread,
        "score_gain": (policy - reference) / spread if spread > 0 else 0.0,
        "kl": kl,
        "kl_error": kl_error,
    }
