"""Sampling completions, with the log-probability (and the value) of each sampled token."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from toolkit.maths.distributions import inverse_cdf_sample
from toolkit.maths.sequences import is_any, mask_after_stop, position_ids
from toolkit.models.families import fit_inputs
from toolkit.models.static_decoding import (
    BufferLayer,
    Masks,
    StaticState,
    fits,
    replayed,
    room_for,
    static_cache,
)

# After so many tokens the host asks whether all completions have ended; a GPU keeps it waiting.
ASK_EVERY = {"cpu": 1, "cuda": 8}


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
            of the last position, and its value (B,) or None. Later passes may come with the masks
            of ``StaticMasks``.
        model: the language model; its config determines what each layer keeps.
        exact: whether passes run in fp32.
        prepared: a context in which all passes of one batch are run.
        static: whether passes over one token may be of one shape, if the model allows it.
    """

    run: Callable[[Tensor, Masks, Tensor, Cache | None], tuple[Tensor, Tensor | None]]
    model: PreTrainedModel
    exact: bool = True
    prepared: Callable[[], AbstractContextManager[None]] = nullcontext
    static: bool = True

    @property
    def config(self) -> PreTrainedConfig:
        """The model's config."""
        return self.model.config

    @property
    def is_static(self) -> bool:
        """Whether passes over one token can be of one shape (``static_decoding``)."""
        return self.static and fits(
            self.run, self.model, lambda room: new_cache(self.config, room), self.exact
        )


def new_cache(config: PreTrainedConfig, room: int) -> Cache:
    """Make an empty cache for ``room`` tokens, with the right layer for each of the model's.

    Layers with full attention keep keys and values in a buffer. transformers' own layers are used
    for sliding windows and for states (convolutions, linear attention, Mamba).
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        BufferLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def step_of(model: PreTrainedModel, banned: Tensor | None = None) -> Step:
    """Make the step of a plain causal language model, which has no values.

    Args:
        model: the language model.
        banned: (V,), added to the logits (``Actors.banned``), or None.
    """

    def step(
        inputs: Tensor, mask: Masks, positions: Tensor, cache: Cache | None
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

    return Step(step, model, model.get_input_embeddings().weight.dtype == torch.float32)


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
    with step.prepared():
        decode = _decode_static if step.is_static else _decode_growing
        drawn = _Drawn(prompt_ids, uniforms, temperature, pad_id, stop_ids)
        decode(step, prompt_ids, prompt_mask, drawn, not stop_ids or all_steps)
    return drawn.sampled()


class _Drawn:
    """The tokens drawn so far, with what is known of them; all of it is changed in place."""

    def __init__(
        self,
        prompt_ids: Tensor,
        uniforms: Tensor,
        temperature: float,
        pad_id: int,
        stop_ids: Sequence[int],
    ) -> None:
        device = prompt_ids.device
        self.temperature, self.pad_id, self.stop_ids = temperature, pad_id, stop_ids
        self.uniforms = uniforms.to(device)
        shape = uniforms.shape
        self.ids = torch.full(shape, pad_id, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(shape, device=device)
        self.values = torch.zeros(shape, device=device)
        self.has_values = False
        self.running = torch.ones(shape[0], dtype=torch.bool, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)

    def draw(self, logits: Tensor, value: Tensor | None) -> Tensor:
        """Draw a token (B,) from logits (B, V) for each completion, and write it down."""
        scaled = logits.float() / self.temperature
        p = torch.softmax(scaled, dim=-1)
        token = inverse_cdf_sample(p, self.uniforms.index_select(1, self.column).squeeze(1))

        # This is log softmax at the token without another pass: z - max z + log max p.
        chosen = scaled.gather(1, token.unsqueeze(1)).squeeze(1)
        logprob = chosen - scaled.amax(dim=-1) + p.amax(dim=-1).log()

        shown = torch.where(self.running, token, self.pad_id)
        self._write(self.ids, shown)
        self._write(self.logprobs, torch.where(self.running, logprob, 0.0))
        if value is not None:
            self.has_values = True
            self._write(self.values, torch.where(self.running, value, 0.0))
        if self.stop_ids:
            self.running.logical_and_(~is_any(shown, self.stop_ids))
        self.column.add_(1)
        return token

    def _write(self, rows: Tensor, now: Tensor) -> None:
        rows.index_copy_(1, self.column, now.unsqueeze(1).to(rows.dtype))

    def all_ended(self) -> bool:
        """Whether no completion goes on; the host waits for the answer."""
        return not self.running.any()

    def sampled(self) -> Sampled:
        mask = mask_after_stop(self.ids, self.stop_ids)
        return Sampled(self.ids, mask, self.logprobs, self.values if self.has_values else None)


def _decode_growing(
    step: Step, prompt_ids: Tensor, prompt_mask: Tensor, drawn: _Drawn, to_the_end: bool
) -> None:
    """Decode with transformers' caches, which grow by a token at each step."""
    prompt_length, response_length = prompt_ids.shape[1], drawn.ids.shape[1]
    mask = prompt_mask.new_ones((len(prompt_ids), prompt_length + response_length))
    mask[:, :prompt_length] = prompt_mask
    positions = position_ids(mask)
    cache = new_cache(step.config, prompt_length + response_length)
    inputs = prompt_ids.masked_fill(~prompt_mask, 0)

    for t in range(response_length):
        end = prompt_length + t
        token = drawn.draw(
            *step.run(inputs, mask[:, :end], positions[:, end - inputs.shape[1] : end], cache)
        )
        if not to_the_end and drawn.all_ended():
            break
        inputs = token.unsqueeze(1)


def _decode_static(
    step: Step, prompt_ids: Tensor, prompt_mask: Tensor, drawn: _Drawn, to_the_end: bool
) -> None:
    """Decode in steps of one shape; on CUDA each is the replay of a captured graph."""
    prompt_length, response_length = prompt_ids.shape[1], drawn.ids.shape[1]
    device = prompt_ids.device
    cache = static_cache(step.config, room_for(prompt_length + response_length))
    assert cache is not None
    inputs = prompt_ids.masked_fill(~prompt_mask, 0)
    logits, value = step.run(inputs, prompt_mask, position_ids(prompt_mask), cache)
    state = StaticState(step.run, cache, step.config, prompt_mask, response_length)
    state.follow(drawn.draw(logits, value))

    def advance() -> None:
        state.follow(drawn.draw(*state.step()))
        state.move()

    run = advance
    ask_every = ASK_EVERY.get(device.type, ASK_EVERY["cuda"])
    for t in range(1, response_length):
        if not to_the_end and (t - 1) % ask_every == 0 and drawn.all_ended():
            break
        if state.widen(prompt_length + t):
            advance()  # once as it is, so that nothing sets itself up while it is captured
            run = replayed(step.model, advance, device)
        else:
            run()
