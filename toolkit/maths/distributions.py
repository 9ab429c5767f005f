"""Log-probabilities and entropies of the temperature-scaled next-token distribution."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from toolkit.maths.precision import autocast_device, autocast_type

# fp32 logits that exist at once: on a CPU what its cache holds (measured: 32 MiB take five times as
# long to normalize as four times 8), on a GPU what keeps it busy.
CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}


def head_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    temperature: float,
    chunk_bytes: int | None = None,
    cap: float | None = None,
    banned: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of tokens, and entropies, straight from hidden states: logits a piece at a time.

    Those of softmax((hidden @ weight.T + bias) / temperature), but no (B, C, V) tensor is ever
    whole. The temperature is that of sampling: with another one the KL is of a distribution that
    nobody samples from, and climbs too fast. Where the output head is frozen, as under LoRA, the
    backward pass needs no logits at all: with p = softmax,
    d logprob / d hidden = (weight[token] - p @ weight) / temperature, which is known while p is at
    hand; kept are d numbers a token instead of V.

    Capped logits are cap tanh(z / cap); each row of ``weight`` then counts by the cap's derivative
    there, 1 - tanh(z / cap)^2.

    Args:
        hidden: (B, C, d), the state before each token.
        weight: (V, d); under autocast it is used in autocast's type.
        bias: (V,) or None.
        token_ids: int (B, C).
        temperature: > 0. A family's constant factor on its logits divides it.
        chunk_bytes: of fp32 logits that may exist at once; by default CHUNK_BYTES.
        cap: what the logits are capped at before the temperature divides them; None for nothing.
        banned: (V,), added to the logits behind the cap; None for nothing.

    Returns:
        log-probs (B, C) fp32, in nats, with gradients; entropies (B, C) fp32, without one: they are
        a by-product of the gradient, and NaN where none is wanted.
    """
    chunk_bytes = chunk_bytes or CHUNK_BYTES.get(hidden.device.type, 1 << 28)
    chunk = max(1, chunk_bytes // (4 * weight.shape[0]))
    states, ids = hidden.reshape(-1, hidden.shape[-1]), token_ids.reshape(-1)

    if cap is None and banned is not None and weight.dtype == torch.float32:
        # One addition less; a rounded head takes no fp32 bias, and adds it to its logits instead.
        bias, banned = banned if bias is None else bias.float() + banned, None

    trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trains and torch.is_grad_enabled():
        pieces = [
            checkpoint(
                _logits_path, s, weight, bias, i, temperature, cap, banned, use_reentrant=False
            )
            for s, i in zip(states.split(chunk), ids.split(chunk), strict=True)
        ]
        logprobs, entropies = (torch.cat([piece[n] for piece in pieces]) for n in (0, 1))
    else:
        logprobs, entropies = _FrozenHead.apply(
            states, weight, bias, ids, temperature, chunk, cap, banned
        )

    return logprobs.view(token_ids.shape), entropies.detach().view(token_ids.shape)


def _logits_path(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    temperature: float,
    cap: float | None,
    banned: Tensor | None,
) -> tuple[Tensor, Tensor]:
    logits = linear(states, weight, bias).float()
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    if banned is not None:
        logits = logits + banned
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    entropies = -(logprobs.detach().exp() * logprobs.detach()).sum(dim=-1)
    return logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), entropies


class _FrozenHead(torch.autograd.Function):
    """(N, d) states to (N,) log-probs and entropies; the gradient's direction is made on the way.

    The entropy falls out: H = logsumexp(z) - E[z], and E[z] of z = h.W / T is h.(p @ W) / T.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        temperature: float,
        chunk: int,
        cap: float | None,
        banned: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = autocast_type(states)
        if dtype is not None:
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)

        # What the head's output is divided by: the temperature, or what the cap is tanh's of.
        divisor = temperature if cap is None else cap
        divided = None if bias is None else bias / divisor

        count = states.shape[0]
        logprobs = torch.empty(count, device=states.device)
        entropies = torch.full_like(logprobs, float("nan"))  # no by-product without a gradient
        wants_gradient = ctx.needs_input_grad[0]
        direction = torch.empty_like(states) if wants_gradient else None

        with torch.autocast(autocast_device(states.device), enabled=False):
            for start in range(0, count, chunk):
                rows = slice(start, start + chunk)
                state = states[rows].to(weight.dtype)
                if weight.dtype == torch.float32:  # d divisions a token instead of V
                    scaled = linear(state / divisor, weight, divided)
                else:  # the rounded logits are the model's: they are divided
                    scaled = linear(state, weight, bias).float().div_(divisor)

                slope = None
                if cap is not None:
                    scaled.tanh_()
                    if wants_gradient:
                        slope = scaled.new_ones(()).addcmul(scaled, scaled, value=-1)
                    scaled.mul_(cap / temperature)
                if banned is not None:
                    scaled.add_(banned)

                # logsumexp without a pass of its own: max z - log max p.
                p = torch.softmax(scaled, dim=-1)
                total = scaled.amax(dim=-1) - p.amax(dim=-1).log()
                token = ids[rows].unsqueeze(-1)
                logprobs[rows] = scaled.gather(-1, token).squeeze(-1) - total

                if direction is None:
                    continue

                own = weight[ids[rows]].float()
                if slope is None:
                    mean_row = (p.to(weight.dtype) @ weight).float()
                    expected = (state.float() * mean_row).sum(dim=-1)
                    if bias is not None:
                        expected = expected + p @ bias.float()
                    entropies[rows] = total - expected / temperature
                else:
                    entropies[rows] = total - torch.linalg.vecdot(p, scaled)
                    own = own * slope.gather(-1, token)
                    mean_row = (slope.mul_(p).to(weight.dtype) @ weight).float()

                direction[rows] = ((own - mean_row) / temperature).to(direction.dtype)

        if direction is not None:
            ctx.save_for_backward(direction)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        states = (direction * grads[0].unsqueeze(-1)).to(direction.dtype)
        return states, *(None,) * 7


def inverse_cdf_sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token at which the cumulative probability first exceeds a uniform number.

    One number a token instead of V: a completion's tokens then depend on its own numbers alone, and
    not on which others share its batch. Cumulated in fp64.

    Args:
        probabilities: (B, V).
        uniforms: (B,), in [0, 1).

    Returns:
        int64 (B,).
    """
    cumulative = probabilities.double().cumsum(dim=-1)
    mark = uniforms.double().unsqueeze(1) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, mark, right=True).squeeze(1)
    return token.clamp(max=probabilities.shape[1] - 1)
