"""One batch of experience: completions, what four roles say of them, and their scores."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.data.text import decode_pair, token_id
from toolkit.errors import InputError
from toolkit.maths.distributions import token_logprobs
from toolkit.maths.sequences import pad, truncate
from toolkit.models.generation import Sampled, sample
from toolkit.models.roles import Roles

RewardFunction = Callable[..., list[float]]


@dataclass
class SamplingRule:
    """How completions come about, and how much of each the scorer sees.

    Attributes:
        response_length: C.
        temperature: of sampling and of all log-probs.
        pad_id: written behind an end.
        stop_id: end a completion behind this token; None samples C tokens whatever they are.
        truncate_id: the scorer sees a completion up to the first such token ...
        truncate_after: ... at this index or later.
        penalty: score of a completion without one there.
        missing_eos_penalty: taken off the score of a completion without ``stop_id``.
    """

    response_length: int
    temperature: float
    pad_id: int
    stop_id: int | None = None
    truncate_id: int | None = None
    truncate_after: int = 0
    penalty: float = -1.0
    missing_eos_penalty: float | None = None

    def visible(self, sampled: Sampled) -> tuple[Tensor, Tensor]:
        """What the scorer sees of each completion: bool mask (B, C); and bool (B,) valid.

        The stop token itself is hidden: it is no part of the text that people compare. Padding
        is told by the mask alone, so a pad token that is also a real one does no harm.
        """
        mask = sampled.mask
        if self.stop_id is not None:
            mask = mask & (sampled.completion_ids != self.stop_id)
        if self.truncate_id is None:
            return mask, torch.ones_like(mask[:, 0])
        ids = torch.where(mask, sampled.completion_ids, -1)
        kept, valid = truncate(ids, self.truncate_id, self.truncate_after, pad_id=-1)
        return kept != -1, valid


def sampling_rule(
    tokenizer: PreTrainedTokenizerBase,
    response_length: int,
    temperature: float,
    stop_token: str | None = None,
    truncate_token: str | None = None,
    truncate_after: int = 0,
    penalty: float = -1.0,
    missing_eos_penalty: float | None = None,
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
    if truncate_token is not None and truncate_token == stop_token:
        raise InputError(
            f"truncate_token and stop_token are both {truncate_token!r}: the scorer never sees the "
            "stop token, so every completion would be penalised", "truncate_token",
        )  # fmt: skip
    return SamplingRule(
        response_length=response_length,
        temperature=temperature,
        pad_id=tokenizer.pad_token_id,
        stop_id=token_id(tokenizer, stop_token, "stop_token"),
        truncate_id=token_id(tokenizer, truncate_token, "truncate_token"),
        truncate_after=truncate_after,
        penalty=penalty,
        missing_eos_penalty=missing_eos_penalty,
    )


@dataclass
class Rollout:
    """B episodes. P prompt tokens, padded on the left; C completion tokens.

    Attributes:
        prompt_ids, prompt_mask: (B, P).
        completion_ids, mask: (B, C); mask is True up to and including a stop token.
        logprobs, ref_logprobs, values: (B, C) fp32, 0 outside the mask.
        scores: (B,) after penalties.
        valid: bool (B,), the truncation rule was met.
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

    @property
    def ids(self) -> Tensor:
        return torch.cat([self.prompt_ids, self.completion_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        return torch.cat([self.prompt_mask, self.mask], dim=1)


@torch.no_grad()
def collect(
    roles: Roles,
    prompts: list[list[int]],
    rule: SamplingRule,
    tokenizer: PreTrainedTokenizerBase,
    reward_function: RewardFunction | None,
    generator: torch.Generator,
) -> Rollout:
    """Sample a completion for each prompt, then ask policy, reference, value and reward.

    The log-probabilities are computed anew after sampling, in a pass of the same shape as the one
    that trains: so the ratio is 1 at the first step to the last bit or two, whatever the precision.

    Args:
        roles: the four of them; its reward adapter scores unless ``reward_function`` is given.
        prompts: B lists of token ids.
        rule: sampling and truncation.
        tokenizer: for a reward function, which reads text.
        reward_function: ``fn(prompts, completions) -> scores``, lists of B.
        generator: the source of randomness.
    """
    prompt_ids, prompt_mask = (t.to(roles.device) for t in pad(prompts, rule.pad_id, "left"))
    length = rule.response_length
    sampled = sample(
        roles.act_as_policy(), prompt_ids, prompt_mask, length, rule.temperature, generator,
        rule.pad_id, rule.stop_id,
    )  # fmt: skip
    ids = torch.cat([prompt_ids, sampled.completion_ids], dim=1)
    attention = torch.cat([prompt_mask, sampled.mask], dim=1)
    logits, values = roles.policy_logits_and_values(ids, attention, length)
    logprobs = token_logprobs(logits, sampled.completion_ids, rule.temperature)
    ref_logits = roles.reference_logits(ids, attention, length)
    ref_logprobs = token_logprobs(ref_logits, sampled.completion_ids, rule.temperature)
    visible, valid = rule.visible(sampled)
    scores = score(roles, prompts, sampled.completion_ids, visible, tokenizer, reward_function)
    if rule.missing_eos_penalty is not None and rule.stop_id is not None:
        ended = (sampled.completion_ids == rule.stop_id).any(dim=1)
        scores = scores - rule.missing_eos_penalty * (~ended).float()
    scores = torch.where(valid, scores, rule.penalty)
    mask = sampled.mask
    return Rollout(
        prompt_ids, prompt_mask, sampled.completion_ids, mask,
        logprobs * mask, ref_logprobs * mask, values * mask, scores, valid,
    )  # fmt: skip


def join(rollouts: list[Rollout], pad_id: int) -> Rollout:
    """Several rollouts as one; their prompts are padded on the left to the longest."""
    width = max(rollout.prompt_ids.shape[1] for rollout in rollouts)

    def widen(tensor: Tensor, value: int | bool) -> Tensor:
        return torch.nn.functional.pad(tensor, (width - tensor.shape[1], 0), value=value)

    parts = {}
    for name in Rollout.__dataclass_fields__:
        tensors = [getattr(rollout, name) for rollout in rollouts]
        if name in ("prompt_ids", "prompt_mask"):
            tensors = [widen(t, pad_id if name == "prompt_ids" else False) for t in tensors]
        parts[name] = torch.cat(tensors)
    return Rollout(**parts)


@torch.no_grad()
def score(
    roles: Roles,
    prompts: list[list[int]],
    completion_ids: Tensor,
    visible: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    reward_function: RewardFunction | None = None,
) -> Tensor:
    """Scores (B,) of the visible part of each completion, by function or by reward adapter.

    Raises:
        InputError: the reward function raised, or did not return B finite numbers.
    """
    kept = [ids[m].tolist() for ids, m in zip(completion_ids, visible, strict=True)]
    if reward_function is not None:
        texts = [decode_pair(tokenizer, p, c) for p, c in zip(prompts, kept, strict=True)]
        values = call_reward_function(
            reward_function, [prompt for prompt, _ in texts], [text for _, text in texts]
        )
        return torch.tensor(values, device=roles.device)
    rows = [prompt + completion for prompt, completion in zip(prompts, kept, strict=True)]
    ids, mask = pad(rows, tokenizer.pad_token_id)
    return roles.scores(ids.to(roles.device), mask.to(roles.device))


def call_reward_function(
    function: RewardFunction, prompts: list[str], completions: list[str]
) -> list[float]:
    """Its scores as finite floats, one for each completion, or an InputError that names it."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        scores = function(prompts=prompts, completions=completions)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"reward function {name}: {place.filename}:{place.lineno}: "
            f"{type(error).__name__}: {error}"
        ) from error
    try:
        values = [float(s) for s in scores]
    except (TypeError, ValueError):
        raise InputError(f"reward function {name}: returned {scores!r:.80}, not numbers") from None
    if len(values) != len(completions):
        raise InputError(
            f"reward function {name}: {len(values)} scores for {len(completions)} completions"
        )
    for value, completion in zip(values, completions, strict=True):
        if value - value != 0:  # nan or infinite
            raise InputError(f"reward function {name}: scored {completion!r:.60} as {value}")
    return values
