"""How completions are sampled, and which part of each a scorer sees."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.data.tokens import end_ids, stop_ids, token_id
from toolkit.errors import InputError
from toolkit.maths.sequences import is_any, pad, truncate
from toolkit.models.generation import Sampled, Step, draw_uniforms, sample


@dataclass(frozen=True)
class SamplingRule:
    """How completions are sampled, and which part of each the scorer sees.

    Attributes:
        response_length: C.
        temperature: of sampling and of all log-probs.
        pad_id: written after an end.
        stop_ids: end a completion after any of these. Without any, exactly C tokens are sampled.
        truncate_id: the scorer sees a completion up to the first such token ...
        truncate_after: ... at this index or later.
        penalty: score of a completion without that token.
        missing_eos_penalty: subtracted from the score of a completion without any of ``ends``.
        end_ids: ids that end a completion although sampling goes on; by default ``stop_ids``.
        known_ends: the model's end tokens, hidden from the scorer if text is truncated at one.
        show_stop: whether the scorer sees the stop token, too, as TRL's reward models do, which
            were trained with it.
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
        """The ids that end a completion."""
        return self.end_ids or self.stop_ids

    @property
    def should_end(self) -> bool:
        """Whether completions are to end by one of ``ends``, and not behind a truncation token."""
        priced = self.missing_eos_penalty is not None
        return bool(self.ends) and (priced or (bool(self.stop_ids) and self.truncate_id is None))

    def sample(
        self, step: Step, prompts: list[list[int]], generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Sampled]:
        """Sample a completion for each prompt; also return the prompts' left-padded mask (B, P)."""
        uniforms = draw_uniforms(len(prompts), self.response_length, generator)
        ids, mask = (t.to(device) for t in pad(prompts, self.pad_id, "left"))
        return mask, sample(step, ids, mask, uniforms, self.temperature, self.pad_id, self.stop_ids)

    def visible(self, sampled: Sampled) -> tuple[Tensor, Tensor]:
        """Return what the scorer sees, as a bool mask (B, C), and whether it is valid, bool (B,).

        The stop token itself is hidden unless ``show_stop``, since it is not part of the text that
        people compare. Only the mask marks padding, so a pad token that is also a real one does no
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
            seen &= kept != self.truncate_id  # an end, which is not part of the text
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
    """Make the rule from tokens given as text.

    Raises:
        InputError: a text is not one token, or no completion could meet the rule.
    """
    if truncate_token is not None and truncate_after >= response_length:
        raise InputError(
            f"truncate_after is {truncate_after}, but must be below response_length "
            f"({response_length}), otherwise every completion is penalized",
            "truncate_after",
        )

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
            "stop token, so every completion would be penalized",
            "truncate_token",
        )

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
