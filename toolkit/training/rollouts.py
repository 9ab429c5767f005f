"""One batch of experience: completions, what four roles say of them, and their scores."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.data.prompts import Prompts
from toolkit.data.text import end_ids, stop_ids, token_id
from toolkit.errors import InputError
from toolkit.maths.sequences import is_any, pad, truncate
from toolkit.models.actors import POLICY, Actors
from toolkit.models.generation import Sampled, Step, draw_uniforms, sample
from toolkit.scoring.scorer import Scorer, TokenCompletions


@dataclass
class SamplingRule:
    """How completions come about, and how much of each the scorer sees.

    Attributes:
        response_length: C.
        temperature: of sampling and of all log-probs.
        pad_id: written behind an end.
        stop_ids: end a completion behind any of these; without any C tokens are sampled, whatever
            they are.
        truncate_id: the scorer sees a completion up to the first such token ...
        truncate_after: ... at this index or later.
        penalty: score of a completion without one there.
        missing_eos_penalty: taken off the score of a completion without any of ``ends``.
        end_ids: what ends a completion though sampling goes on; by default ``stop_ids``.
        known_ends: the model's end tokens, which the scorer does not see where text is cut at one.
        show_stop: the scorer sees the stop token too, as TRL's reward models do, which were trained
            with it.
    """

    response_length: int
    temperature: float
    pad_id: int
    stop_ids: tuple[int, ...] = ()
    truncate_id: int | None = None
    truncate_after: int = 0
    penalty: float = -1.0
    missing_eos_penalty: float | None = None
    show_stop: bool = False
    end_ids: tuple[int, ...] = ()
    known_ends: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        """What ends a completion."""
        return self.end_ids or self.stop_ids

    def sample(
        self, step: Step, prompts: list[list[int]], generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Sampled]:
        """A completion for each prompt: the prompts' mask (B, P), padded left, and what came."""
        uniforms = draw_uniforms(len(prompts), self.response_length, generator)
        ids, mask = (t.to(device) for t in pad(prompts, self.pad_id, "left"))
        return mask, sample(step, ids, mask, uniforms, self.temperature, self.pad_id, self.stop_ids)

    def visible(self, sampled: Sampled) -> tuple[Tensor, Tensor]:
        """What the scorer sees of each completion: bool mask (B, C); and bool (B,) valid.

        The stop token itself is hidden, unless ``show_stop``: it is no part of the text that people
        compare. Padding is told by the mask alone, so a pad token that is also a real one does no
        harm.
        """
        mask = sampled.mask
        if self.stop_ids and not self.show_stop:
            mask = mask & ~is_any(sampled.completion_ids, self.stop_ids)
        if self.truncate_id is None:
            return mask, torch.ones_like(mask[:, 0])
        ids = torch.where(mask, sampled.completion_ids, -1)
        kept, valid = truncate(ids, self.truncate_id, self.truncate_after, pad_id=-1)
        seen = kept != -1
        if self.truncate_id in self.known_ends and not self.show_stop:
            seen &= kept != self.truncate_id  # an end, and no part of the text
        return seen, valid


def sampling_rule(
    tokenizer: PreTrainedTokenizerBase,
    response_length: int,
    temperature: float,
    stop_token: str | None = None,
    truncate_token: str | None = None,
    truncate_after: int = 0,
    penalty: float = -1.0,
    missing_eos_penalty: float | None = None,
    stop_token_id: int | None = None,
) -> SamplingRule:
    """The rule with its tokens given by their text.

    Raises:
        InputError: a text that is not one token, or a rule that no completion could meet.
    """
    if truncate_token is not None and truncate_after >= response_length:
        raise InputError(
            f"truncate_after is {truncate_after}, but must be below response_length "
            f"({response_length}), or every completion is penalised", "truncate_after",
        )  # fmt: skip
    if stop_token_id is None:
        stops = stop_ids(tokenizer, stop_token)
    elif stop_token_id >= len(tokenizer):
        raise InputError(
            f"stop_token_id is {stop_token_id}, but the tokenizer has {len(tokenizer)} tokens",
            "stop_token_id",
        )
    else:
        stops = (stop_token_id,)
    truncate_id = token_id(tokenizer, truncate_token, "truncate_token")
    if truncate_id is not None and truncate_id in stops:
        raise InputError(
            f"truncate_token and stop token are both {truncate_token!r}: the scorer never sees the "
            "stop token, so every completion would be penalised", "truncate_token",
        )  # fmt: skip
    return SamplingRule(
        response_length=response_length,
        temperature=temperature,
        pad_id=tokenizer.pad_token_id,
        stop_ids=stops,
        truncate_id=truncate_id,
        truncate_after=truncate_after,
        penalty=penalty,
        missing_eos_penalty=missing_eos_penalty,
        known_ends=end_ids(tokenizer),
    )


@dataclass
class Rollout:
    """B episodes. P prompt tokens, padded on the left; C completion tokens.

    Attributes:
        prompt_ids, prompt_mask: (B, P).
        completion_ids, mask: (B, C); mask is True up to and including a stop token.
        logprobs, ref_logprobs, values: (B, C) fp32, 0 outside the mask.
        scores: (B,) after penalties; 0 where there is none.
        valid: bool (B,), the truncation rule was met.
        scored: bool (B,), False where no score could be given: nothing is learned from these.
        capture_gap: the largest difference, in nats, between captured and recomputed log-probs; 0
            where they were not recomputed.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    mask: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor
    valid: Tensor
    scored: Tensor
    capture_gap: float = 0.0

    @property
    def learned(self) -> Tensor:
        """bool (B, C): the tokens that are learned from."""
        return self.mask & self.scored.unsqueeze(1)

    def passage(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """ids and attention mask (n, T) of these episodes, without columns of padding alone."""
        prompt_mask = self.prompt_mask[index]
        start = int((~prompt_mask.any(dim=0)).sum())
        ids = torch.cat([self.prompt_ids[index, start:], self.completion_ids[index]], dim=1)
        return ids, torch.cat([prompt_mask[:, start:], self.mask[index]], dim=1)


Clock = Callable[[str], AbstractContextManager[None]]


def no_clock(phase: str) -> AbstractContextManager[None]:
    """For callers that do not time phases."""
    return nullcontext()


def by_length(lengths: list[int] | Tensor, size: int) -> Iterator[Tensor]:
    """Indices in pieces of at most ``size``, like lengths together: little padding in each."""
    order = torch.as_tensor(lengths).argsort(stable=True)
    yield from order.split(size)


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
) -> Rollout:
    """Sample a completion for each prompt, then ask policy, reference, value and reward.

    Log-probs, and the values of a shared trunk, are those captured while sampling; the training
    pass gets the same but for rounding, which its first step measures (``max_log_ratio``).

    Args:
        actors: the four roles.
        prompts: B lists of token ids, and further columns for reward functions.
        uniforms: (B, C), the sampling's noise.
        rule: sampling and truncation.
        tokenizer: for reward functions, which read text.
        rewards: who scores.
        batch_size: episodes in one pass.
        recompute: replace the captured log-probs and values by those of a pass of training's shape.
        clock: a context manager around each phase, given its name.
        in_step: make as many passes whatever is sampled, as processes under FSDP must.
    """
    device, length = actors.device, rule.response_length
    width, count = max(len(prompt) for prompt in prompts), len(prompts)
    prompt_ids, prompt_mask = (t.to(device) for t in pad(prompts, rule.pad_id, "left", width))
    completion_ids = torch.full((count, length), rule.pad_id, device=device)
    mask = torch.zeros((count, length), dtype=torch.bool, device=device)
    logprobs, ref_logprobs, values = (torch.zeros((count, length), device=device) for _ in range(3))
    step, gap = actors.step(POLICY), 0.0
    for piece in by_length([len(prompt) for prompt in prompts], batch_size):
        index = piece.to(device)
        start = width - max(len(prompts[i]) for i in piece)
        ids, attention = prompt_ids[index, start:], prompt_mask[index, start:]
        with clock("sample"):
            sampled = sample(
                step, ids, attention, uniforms[piece], rule.temperature, rule.pad_id, rule.stop_ids,
                in_step,
            )  # fmt: skip
        completion_ids[index], mask[index] = sampled.completion_ids, sampled.mask
        logprobs[index] = sampled.logprobs
        passage = (
            torch.cat([ids, sampled.completion_ids], dim=1),
            torch.cat([attention, sampled.mask], dim=1),
        )
        with clock("value"):
            if recompute:
                again = actors.policy_outputs(*passage, sampled.completion_ids, rule.temperature)
                gaps = (again.logprobs - sampled.logprobs).abs() * sampled.mask
                gap = max(gap, gaps.max().item())
                logprobs[index] = again.logprobs
                sampled = sampled._replace(values=again.values)
            if sampled.values is None:
                sampled = sampled._replace(values=actors.values(*passage, length))
            assert sampled.values is not None
            values[index] = sampled.values
        with clock("reference"):
            ref_logprobs[index] = actors.reference_logprobs(
                *passage, sampled.completion_ids, rule.temperature
            )
    visible, valid = rule.visible(Sampled(completion_ids, mask, logprobs))
    with clock("score"):
        seen = TokenCompletions.seen(
            prompts, completion_ids, visible, tokenizer, actors, batch_size
        )
        scores = rewards(seen).to(device, torch.float32)
    if rule.missing_eos_penalty is not None and rule.ends:
        ended = (is_any(completion_ids, rule.ends) & mask).any(dim=1)
        scores = scores - rule.missing_eos_penalty * (~ended).float()
    scores = torch.where(valid, scores, rule.penalty)
    scored = ~scores.isnan()
    return Rollout(
        prompt_ids, prompt_mask, completion_ids, mask, logprobs * mask, ref_logprobs * mask,
        values * mask, scores.nan_to_num(), valid, scored, gap,
    )  # fmt: skip
