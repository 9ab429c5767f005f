"""A batch of experience: completions, their log-probs and values, and their scores."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from toolkit.data.prompts import Prompts
from toolkit.maths.sequences import is_any, length_sorted_batches, pad
from toolkit.models.actors import POLICY, REFERENCE, Actors
from toolkit.models.generation import Sampled, draw_uniforms, sample
from toolkit.models.sampling import SamplingRule
from toolkit.scoring.scorer import Scorer, TokenCompletions


@dataclass
class Rollout:
    """B episodes. P prompt tokens, padded on the left; C completion tokens.

    Attributes:
        prompt_ids, prompt_mask: (B, P).
        completion_ids, mask: (B, C); mask is True up to and including a stop token.
        logprobs, ref_logprobs: (B, C) fp32, 0 outside the mask.
        values: (B, C) fp32, 0 outside the mask; None without a value role.
        scores: (B,) after penalties; 0 if there is none.
        valid: bool (B,), whether the truncation rule was met.
        scored: bool (B,), False if there is no score; nothing is learned from these.
        capture_gap: the largest difference, in nats, between captured and recomputed log-probs; 0
            if they were not recomputed.
        served_logprobs: (B, C) fp32, a sampler's own log-probs; None if the policy sampled here.
        noted: what the scorers measured beside their scores, by name: each (B,).
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor | None
    scores: Tensor
    valid: Tensor
    scored: Tensor
    capture_gap: float = 0.0
    served_logprobs: Tensor | None = None
    noted: dict[str, Tensor] = field(default_factory=dict)

    @property
    def learned(self) -> Tensor:
        """bool (B, C): the tokens to learn from."""
        return self.mask & self.scored.unsqueeze(1)

    @cached_property
    def prompt_lengths(self) -> Tensor:
        """int (B,) on the CPU: the prompts' tokens. It is read from the device once."""
        return self.prompt_mask.sum(dim=1).cpu()

    @cached_property
    def learned_counts(self) -> Tensor:
        """int (B,) on the CPU: the tokens to learn from. It is read from the device once."""
        return self.learned.sum(dim=1).cpu()

    def passage(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids and attention mask (n, T) of these episodes, without all-padding columns.

        Args:
            index: int (n,), on the CPU, so that the host need not wait for the device.
        """
        start = self.prompt_mask.shape[1] - int(self.prompt_lengths[index].max())
        index = index.to(self.prompt_ids.device, non_blocking=True)
        prompt_mask = self.prompt_mask[index]
        ids = torch.cat([self.prompt_ids[index, start:], self.completion_ids[index]], dim=1)
        return ids, torch.cat([prompt_mask[:, start:], self.mask[index]], dim=1)


Clock = Callable[[str], AbstractContextManager[None]]
# Prompt ids (B, P) padded on the left, their mask and the noise (B, C) to completions.
Sampler = Callable[[Tensor, Tensor, Tensor], Sampled]


def no_clock(phase: str) -> AbstractContextManager[None]:
    """Return a clock that does nothing, for callers that do not time phases."""
    return nullcontext()


@torch.no_grad()
def collect(
    actors: Actors,
    prompts: Prompts,
    uniforms: Tensor,
    rule: SamplingRule,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Scorer,
    batch_size: int = 256,
    recompute: bool = False,
    clock: Clock = no_clock,
    in_step: bool = False,
    sampler: Sampler | None = None,
) -> Rollout:
    """Sample a completion for each prompt, then run policy, reference, value and reward.

    Log-probs, and the values of a shared trunk, are captured while sampling. The training pass gets
    the same apart from rounding, which its first step measures (``max_log_ratio``).

    Args:
        actors: the four roles.
        prompts: B lists of token ids, and other columns for reward functions.
        uniforms: (B, C), the sampling's noise.
        rule: sampling and truncation.
        tokenizer: for reward functions, which read text.
        rewards: the scorers.
        batch_size: episodes in one pass.
        recompute: replace captured log-probs and values by those of a pass shaped as in training.
        clock: a context manager around each phase, given its name.
        in_step: make a number of passes that does not depend on the samples, as FSDP requires.
        sampler: samples elsewhere, and its log-probs are recomputed; None for the policy at hand.
    """
    device, length = actors.device, rule.response_length
    width, count = max(len(prompt) for prompt in prompts), len(prompts)
    prompt_ids, prompt_mask = (t.to(device) for t in pad(prompts, rule.pad_id, "left", width))
    completion_ids = torch.full((count, length), rule.pad_id, device=device)
    mask = torch.zeros((count, length), dtype=torch.bool, device=device)
    logprobs, ref_logprobs, values = (torch.zeros((count, length), device=device) for _ in range(3))
    step, gap = actors.step(POLICY), torch.zeros((), device=device)
    served = None if sampler is None else torch.zeros((count, length), device=device)

    # Prompts of similar length go together, whatever their order, to keep padding small.
    for piece in length_sorted_batches([len(prompt) for prompt in prompts], batch_size):
        index = piece.to(device, non_blocking=True)
        start = width - max(len(prompts[i]) for i in piece)
        ids, attention = prompt_ids[index, start:], prompt_mask[index, start:]

        with clock("sample"):
            if sampler is not None:
                sampled = sampler(ids, attention, uniforms[piece])
            else:
                sampled = sample(
                    step,
                    ids,
                    attention,
                    uniforms[piece],
                    rule.temperature,
                    rule.pad_id,
                    rule.stop_ids,
                    all_steps=in_step,
                )
        completion_ids[index], mask[index] = sampled.completion_ids, sampled.mask
        logprobs[index] = sampled.logprobs
        passage = (
            torch.cat([ids, sampled.completion_ids], dim=1),
            torch.cat([attention, sampled.mask], dim=1),
        )

        with clock("value"):
            if recompute or served is not None:
                again = actors.policy_outputs(*passage, sampled.completion_ids, rule.temperature)
                if served is not None:
                    served[index] = sampled.logprobs
                else:
                    gaps = (again.logprobs - sampled.logprobs).abs() * sampled.mask
                    gap = torch.maximum(gap, gaps.max())
                logprobs[index] = again.logprobs
                sampled = sampled._replace(values=again.values)
            if sampled.values is not None:  # captured while sampling, if the trunk is shared
                values[index] = sampled.values
            elif actors.has_value:
                values[index] = actors.values(*passage, length)

        with clock("reference"):
            ref_logprobs[index] = actors.reference_logprobs(
                *passage, sampled.completion_ids, rule.temperature
            )

    with clock("score"):
        scored = score(
            actors,
            prompts,
            Sampled(completion_ids, mask, logprobs),
            rule,
            tokenizer,
            rewards,
            batch_size,
        )

    return Rollout(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids,
        mask=mask,
        logprobs=logprobs * mask,
        ref_logprobs=ref_logprobs * mask,
        values=values * mask if actors.has_value else None,
        scores=scored.scores.nan_to_num(),
        valid=scored.valid,
        scored=~scored.scores.isnan(),
        capture_gap=gap.item() if recompute else 0.0,
        served_logprobs=served,
        noted=scored.noted,
    )


class Scored(NamedTuple):
    """Scores of B completions.

    Attributes:
        scores: (B,) fp32 after penalties; NaN where there is none.
        valid: bool (B,), whether the truncation rule was met.
        noted: what the scorers measured beside their scores, by name: each (B,).
    """

    scores: Tensor
    valid: Tensor
    noted: dict[str, Tensor]


def score(
    actors: Actors,
    prompts: Prompts,
    sampled: Sampled,
    rule: SamplingRule,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Scorer,
    batch_size: int,
) -> Scored:
    """Score completions as PPO does, with its penalties; arguments as for ``collect``.

    Scorers see the visible part of a completion, and penalties are applied to their scores.
    """
    visible, valid = rule.visible(sampled)
    seen = TokenCompletions.seen(
        prompts, sampled.completion_ids, visible, tokenizer, actors, batch_size
    )
    scores = rewards(seen).to(actors.device, torch.float32)
    if rule.missing_eos_penalty is not None and rule.ends:
        ended = (is_any(sampled.completion_ids, rule.ends) & sampled.mask).any(dim=1)
        scores = scores - rule.missing_eos_penalty * (~ended).float()
    return Scored(torch.where(valid, scores, rule.penalty), valid, seen.noted)


class ScoredSamples(NamedTuple):
    """Scores of N completions of each of P prompts, on the CPU.

    Attributes:
        scores: (P, N) fp32; NaN where there is none.
        log_ratios: (P, N) fp32, log policy - log reference of each completion, in nats; None if the
            policy was not asked.
    """

    scores: Tensor
    log_ratios: Tensor | None


@torch.no_grad()
def samples_for_estimate(
    actors: Actors,
    prompts: Prompts,
    each: int,
    seed: int,
    rule: SamplingRule,
    tokenizer: PreTrainedTokenizerBase,
    rewards: Scorer,
    batch_size: int = 256,
    in_step: bool = False,
    with_policy: bool = False,
) -> ScoredSamples:
    """Sample completions of the reference, and score them; further arguments as for ``collect``.

    Args:
        prompts: P prompts.
        each: N completions of each prompt.
        seed: of the sampling's noise.
        with_policy: let the policy make the second half of each prompt's completions.
    """
    generator = torch.Generator().manual_seed(seed)
    halves = {REFERENCE: (each + 1) // 2, POLICY: each // 2} if with_policy else {REFERENCE: each}
    named = "reference and policy" if with_policy else "the reference"
    scores, ratios = [], []

    for place in tqdm(range(len(prompts)), f"Sampling {named}", unit="prompt", leave=False):
        row = []
        for role, count in halves.items():
            repeated = prompts.pick([place] * count)
            uniforms = draw_uniforms(count, rule.response_length, generator)
            for start in range(0, count, batch_size):
                batch = repeated.pick(range(start, min(count, start + batch_size)))
                ids, attention = (t.to(actors.device) for t in pad(batch, rule.pad_id, "left"))
                sampled = sample(
                    actors.step(role),
                    ids,
                    attention,
                    uniforms[start : start + batch_size],
                    rule.temperature,
                    rule.pad_id,
                    rule.stop_ids,
                    all_steps=in_step,
                )
                scored = score(actors, batch, sampled, rule, tokenizer, rewards, batch_size)
                row.append(scored.scores.cpu())
                if with_policy:
                    ratios.append(_log_ratios(actors, role, ids, attention, sampled, rule).cpu())
        scores.append(torch.cat(row))

    found = torch.stack(scores)
    return ScoredSamples(found, torch.cat(ratios).view_as(found) if with_policy else None)


def _log_ratios(
    actors: Actors, role: str, ids: Tensor, attention: Tensor, sampled: Sampled, rule: SamplingRule
) -> Tensor:
    """Return log policy - log reference (B,) of whole completions that ``role`` has sampled."""
    other = actors.logprobs(
        POLICY if role == REFERENCE else REFERENCE,
        torch.cat([ids, sampled.completion_ids], dim=1),
        torch.cat([attention, sampled.mask], dim=1),
        sampled.completion_ids,
        rule.temperature,
    )
    ahead = ((sampled.logprobs - other) * sampled.mask).sum(dim=1)
    return -ahead if role == REFERENCE else ahead
