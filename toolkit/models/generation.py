"""Sampling completions, with the log-probability of each sampled token."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from toolkit.maths.sequences import mask_after_stop, position_ids


class Sampled(NamedTuple):
    """completion_ids int (B, C); mask bool (B, C), True up to the stop; logprobs fp32 (B, C)."""

    completion_ids: Tensor
    mask: Tensor
    logprobs: Tensor


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_length: int,
    temperature: float,
    generator: torch.Generator,
    pad_id: int,
    stop_id: int | None = None,
) -> Sampled:
    """Plain categorical sampling from softmax(logits / temperature); no top-k, no top-p.

    The toolkit's own loop instead of ``generate``: without a stop token exactly ``response_length``
    tokens come out, end-of-text being a token like any other (``generate`` bans it then), and the
    log-probabilities fall out on the way.
    Source: openai/lm-human-preferences lm_human_preferences/language/sample.py:24-79.

    Args:
        model: a causal language model, with whatever adapter is active.
        prompt_ids: int (B, P), padded on the left.
        prompt_mask: bool (B, P).
        response_length: C.
        temperature: > 0.
        generator: on the model's device; the only source of randomness.
        pad_id: written behind the stop token.
        stop_id: end a completion behind this token; None for fixed length.
    """
    batch, prompt_length = prompt_ids.shape
    device = prompt_ids.device
    ids = torch.full((batch, response_length), pad_id, dtype=torch.long, device=device)
    logprobs = torch.zeros((batch, response_length), device=device)
    mask = torch.ones((batch, prompt_length + response_length), dtype=torch.bool, device=device)
    mask[:, :prompt_length] = prompt_mask
    positions = position_ids(mask)
    running = torch.ones(batch, dtype=torch.bool, device=device)
    cache = DynamicCache()
    inputs = prompt_ids
    for t in range(response_length):
        end = prompt_length + t
        output = model(
            input_ids=inputs,
            attention_mask=mask[:, :end],
            position_ids=positions[:, end - inputs.shape[1] : end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        step = torch.log_softmax(output.logits[:, -1].float() / temperature, dim=-1)
        token = torch.multinomial(step.exp(), 1, generator=generator)
        ids[:, t] = torch.where(running, token.squeeze(1), pad_id)
        logprobs[:, t] = torch.where(running, step.gather(1, token).squeeze(1), 0.0)
        if stop_id is not None:
            running &= ids[:, t] != stop_id
            if not running.any():
                break
        inputs = token
    return Sampled(ids, mask_after_stop(ids, stop_id), logprobs)
