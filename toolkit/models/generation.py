"""Sampling completions, with the log-probability (and the value) of each sampled token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from toolkit.maths.distributions import inverse_cdf_sample
from toolkit.maths.sequences import is_any, mask_after_stop, position_ids
from toolkit.models.families import fit_inputs


class Sampled(NamedTuple):
    """Completions: ids int (B, C); mask bool (B, C), True up to the stop; logprobs fp32 (B, C).

    values fp32 (B, C), or None if the step gives none. Both are 0 outside the mask.
    """

    completion_ids: Tensor
    mask: Tensor
    logprobs: Tensor
    values: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """One pass of a language model while sampling.

    Attributes:
        run: inputs (B, n), attention mask (B, past + n), positions (B, n), cache -> logits (B, V)
            of the last position, and its value (B,) or None.
        config: of the model; determines what each layer keeps.
    """

    run: Callable[[Tensor, Tensor, Tensor, Cache | None], tuple[Tensor, Tensor | None]]
    config: PreTrainedConfig

    def __call__(
        self, inputs: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.run(inputs, mask, positions, cache)


class _RoomyLayer(DynamicLayer):
    """Keeps keys and values in one buffer; transformers' layer copies them at each token."""

    def __init__(self, room: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.room, self.length = room, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._keys, self._values = (
            torch.empty((*s.shape[:2], self.room, s.shape[3]), dtype=s.dtype, device=s.device)
            for s in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = slice(self.length, self.length + key_states.shape[2])
        self._keys[:, :, new], self._values[:, :, new] = key_states, value_states
        self.length = new.stop
        self.keys, self.values = self._keys[:, :, : new.stop], self._values[:, :, : new.stop]
        return self.keys, self.values


def new_cache(config: PreTrainedConfig, room: int) -> Cache:
    """Make an empty cache for ``room`` tokens, with the right layer for each of the model's.

    Layers with full attention keep keys and values in a buffer. transformers' own layers are used
    for sliding windows and for states (convolutions, linear attention, Mamba).
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        _RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def step_of(model: PreTrainedModel, banned: Tensor | None = None) -> Step:
    """Make the step of a plain causal language model, which has no values.

    Args:
        model: the language model.
        banned: (V,), added to the logits (``Actors.banned``), or None.
    """

    def step(
        inputs: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        passed = {
            "input_ids": inputs,
            "attention_mask": mask,
            "position_ids": positions,
            "past_key_values": cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        logits = model(**fit_inputs(model, passed)).logits[:, -1]
        return logits if banned is None else logits.float() + banned, None

    return Step(step, model.config)


def draw_uniforms(batch: int, response_length: int, generator: torch.Generator) -> Tensor:
    """Draw the noise of ``batch`` completions: fp64 (B, C), uniform in [0, 1), on the CPU."""
    return torch.rand((batch, response_length), generator=generator, dtype=torch.float64)


@torch.no_grad()
def sample(
    step: Step,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    uniforms: Tensor,
    temperature: float,
    pad_id: int,
    stop_ids: Sequence[int] = (),
    all_steps: bool = False,
) -> Sampled:
    """Sample completions from softmax(logits / temperature), without top-k or top-p.

    Unlike ``generate``, this loop makes exactly C tokens if there is no stop token (``generate``
    would then ban end-of-text), and returns log-probabilities and values. A completion's randomness
    is its own row of ``uniforms``, so it does not depend on batch, order or number of processes.
    Source: openai/lm-human-preferences lm_human_preferences/language/sample.py:24-79.

    Args:
        step: one pass of a language model (``step_of``, or the roles').
        prompt_ids: int (B, P), padded on the left.
        prompt_mask: bool (B, P).
        uniforms: fp64 (B, C) in [0, 1) (``draw_uniforms``).
        temperature: > 0.
        pad_id: written after a stop token.
        stop_ids: end a completion after any of these tokens; empty for fixed length.
        all_steps: whether to make C steps even if every completion has ended.
    """
    (batch, prompt_length), response_length = prompt_ids.shape, uniforms.shape[1]
    device = prompt_ids.device
    uniforms = uniforms.to(device)

    ids = torch.full((batch, response_length), pad_id, dtype=torch.long, device=device)
    logprobs = torch.zeros((batch, response_length), device=device)
    values = torch.zeros_like(logprobs)
    mask = torch.ones((batch, prompt_length + response_length), dtype=torch.bool, device=device)
    mask[:, :prompt_length] = prompt_mask
    positions = position_ids(mask)

    running = torch.ones(batch, dtype=torch.bool, device=device)
    cache = new_cache(step.config, prompt_length + response_length)
    inputs, value = prompt_ids.masked_fill(~prompt_mask, 0), None

    for t in range(response_length):
        end = prompt_length + t
        logits, value = step(
            inputs, mask[:, :end], positions[:, end - inputs.shape[1] : end], cache
        )

        scaled = logits.float() / temperature
        p = torch.softmax(scaled, dim=-1)
        token = inverse_cdf_sample(p, uniforms[:, t])

        # This is log softmax at the token without another pass: z - max z + log max p.
        chosen = scaled.gather(1, token.unsqueeze(1)).squeeze(1)
        logprob = chosen - scaled.amax(dim=-1) + p.amax(dim=-1).log()

        ids[:, t] = torch.where(running, token, pad_id)
        logprobs[:, t] = torch.where(running, logprob, 0.0)
        if value is not None:
            values[:, t] = torch.where(running, value, 0.0)

        if stop_ids:
            running &= ~is_any(ids[:, t], stop_ids)
            if not all_steps and not running.any():
                break

        inputs = token.unsqueeze(1)

    return Sampled(ids, mask_after_stop(ids, stop_ids), logprobs, None if value is None else values)
