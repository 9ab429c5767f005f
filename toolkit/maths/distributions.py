"""Log-probabilities and entropies of the temperature-scaled next-token distribution."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from toolkit.maths.precision import autocast_device, autocast_type

# fp32 logits that exist at once: on a CPU, what fits its cache (32 MiB took five times as long to
# normalize as four times 8 MiB); on a GPU, what keeps it busy.
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
    """Log-probs and entropies of tokens, from hidden states; logits exist one chunk at a time.

    The distribution is softmax((hidden @ weight.T + bias) / temperature), but no (B, C, V) tensor
    is ever whole. Use the sampling temperature: with another one, the KL is that of a distribution
    that nobody samples from, and climbs too fast. If the output head is frozen, as under LoRA, the
    backward pass needs no logits: with p = softmax,
    d logprob / d hidden = (weight[token] - p @ weight) / temperature. The forward pass computes
    this while it has p, and keeps d numbers a token instead of V.

    Capped logits are cap tanh(z / cap). Each row of ``weight`` is then multiplied by the cap's
    derivative, 1 - tanh(z / cap)^2.

    Args:
        hidden: (B, C, d), the state before each token.
        weight: (V, d); under autocast it is used in autocast's type.
        bias: (V,) or None.
        token_ids: int (B, C).
        temperature: > 0. Divide it by a model family's constant factor on its logits.
        chunk_bytes: most bytes of fp32 logits at once; by default CHUNK_BYTES.
        cap: cap on the logits, applied before the temperature; None for no cap.
        banned: (V,), added to the logits after the cap; None for no ban.

    Returns:
        log-probs (B, C) fp32, in nats, with gradients; entropies (B, C) fp32, without: they are a
        by-product of the gradient, and NaN when gradients are off.
    """
    chunk_bytes = chunk_bytes or CHUNK_BYTES.get(hidden.device.type, 1 << 28)
    chunk = max(1, chunk_bytes // (4 * weight.shape[0]))
    states, ids = hidden.reshape(-1, hidden.shape[-1]), token_ids.reshape(-1)

    if cap is None and banned is not None and weight.dtype == torch.float32:
        # This saves an addition. A bf16 head takes no fp32 bias: there it is added to the logits.
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
    """(N, d) states to (N,) log-probs and entropies; the forward pass also computes the gradient.

    The entropy is a by-product: H = logsumexp(z) - E[z], and E[z] of z = h.W / T is h.(p @ W) / T.
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

        # The head's output is divided by this: the temperature, or the cap inside tanh.
        divisor = temperature if cap is None else cap
        divided = None if bias is None else bias / divisor

        count = states.shape[0]
        logprobs = torch.empty(count, device=states.device)
        entropies = torch.full_like(logprobs, float("nan"))  # computed only with the gradient
        wants_gradient = ctx.needs_input_grad[0]
        direction = torch.empty_like(states) if wants_gradient else None

        with torch.autocast(autocast_device(states.device), enabled=False):
            for start in range(0, count, chunk):
                rows = slice(start, start + chunk)
                state = states[rows].to(weight.dtype)
                if weight.dtype == torch.float32:  # d divisions a token instead of V
                    scaled = linear(state / divisor, weight, divided)
                else:  # divide the rounded logits, which are the model's
                    scaled = linear(state, weight, bias).float().div_(divisor)

                slope = None
                if cap is not None:
                    scaled.tanh_()
                    if wants_gradient:
                        slope = scaled.new_ones(()).addcmul(scaled, scaled, value=-1)
                    scaled.mul_(cap / temperature)
                if banned is not None:
                    scaled.add_(banned)

                # This gets logsumexp without another pass: max z - log max p.
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
    """Return the token at which the cumulative probability first exceeds a uniform number.

    This needs one random number a token instead of V, so a completion does not depend on which
    others share its batch. Probabilities are cumulated in fp64.

    Args:
        probabilities: (B, V).
        uniforms: (B,), in [0, 1).

    Returns:
        int64 (B,).
    """
    cumulative = _cumulated(probabilities.double())
    mark = uniforms.double().unsqueeze(1) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, mark, right=True).squeeze(1)
    return token.clamp(max=probabilities.shape[1] - 1)


def _cumulated(rows: Tensor) -> Tensor:
    """Return the cumulative sums of rows (B, V), also where only deterministic operations may run.

    torch refuses ``cumsum`` on a GPU then, because it adds up a single row in an order that varies
    (aten/src/ATen/native/cuda/ScanUtils.cuh: scan_dim). Two rows and more have a fixed order.
    """
    if not (rows.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return rows.cumsum(dim=-1)

    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        several = rows if rows.shape[0] > 1 else rows.repeat(2, 1)
        return several.cumsum(dim=-1)[: rows.shape[0]]
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warns)
