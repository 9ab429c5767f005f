"""Log-probabilities, entropies and KLs of the temperature-scaled next-token distribution."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from toolkit.maths.precision import autocast_device, autocast_type

# fp32 logits that exist at once: on a CPU, what fits its cache (32 MiB took five times as long to
# normalize as four times 8 MiB); on a GPU, what keeps it busy.
CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}


class Head(NamedTuple):
    """Hidden states (B, C, d), and the weight (V, d) and bias (V,) or None that read them."""

    states: Tensor
    weight: Tensor
    bias: Tensor | None


class TokenDistribution(NamedTuple):
    """Of each token: its log-prob; the entropy, and the KL or None, of the distribution it is from.

    All are (B, C) fp32, in nats.
    """

    logprobs: Tensor
    entropies: Tensor
    kl: Tensor | None


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
    """Log-probs and entropies of tokens; arguments as for head_distribution.

    Returns:
        log-probs (B, C) fp32, in nats, with gradients; entropies (B, C) fp32, without: they are a
        by-product of the gradient, and NaN when gradients are off.
    """
    found = head_distribution(
        Head(hidden, weight, bias), token_ids, temperature, chunk_bytes, cap, banned
    )
    return found.logprobs, found.entropies


def head_distribution(
    head: Head,
    token_ids: Tensor,
    temperature: float,
    chunk_bytes: int | None = None,
    cap: float | None = None,
    banned: Tensor | None = None,
    entropy_gradient: bool = False,
    reference: Head | None = None,
) -> TokenDistribution:
    """Log-probs and entropies of tokens, from hidden states; logits exist one chunk at a time.

    The distribution is softmax((hidden @ weight.T + bias) / temperature), but no (B, C, V) tensor
    is ever whole. Use the sampling temperature: with another one, the KL is that of a distribution
    that nobody samples from, and climbs too fast. If the output head is frozen, as under LoRA, the
    backward pass needs no logits: with p = softmax,
    d logprob / d hidden = (weight[token] - p @ weight) / temperature. The forward pass computes
    this while it has p, and keeps d numbers a token instead of V. Entropy H = -sum p log p and
    KL = sum p log(p / q) have such directions, too:
    dH / d hidden = -(p (log p + H)) @ weight / temperature, and
    dKL / d hidden = (p (log p / q - KL)) @ weight / temperature.

    Capped logits are cap tanh(z / cap). Each row of ``weight`` is then multiplied by the cap's
    derivative, 1 - tanh(z / cap)^2.

    Args:
        head: the state before each token, and the output head; under autocast the weight is used
            in autocast's type.
        token_ids: int (B, C).
        temperature: > 0. Divide it by a model family's constant factor on its logits.
        chunk_bytes: most bytes of fp32 logits at once; by default CHUNK_BYTES.
        cap: cap on the logits, applied before the temperature; None for no cap.
        banned: (V,), added to the logits after the cap; None for no ban.
        entropy_gradient: whether entropies have gradients. Otherwise they are a by-product of the
            gradient, and NaN when gradients are off.
        reference: where q comes from, which gets no gradient; None for no KL.
    """
    hidden, weight, bias = head
    chunk_bytes = chunk_bytes or CHUNK_BYTES.get(hidden.device.type, 1 << 28)
    if entropy_gradient or reference is not None:
        chunk_bytes = chunk_bytes // 4  # because up to four such tensors exist at once
    chunk = max(1, chunk_bytes // (4 * weight.shape[0]))
    states, ids = hidden.reshape(-1, hidden.shape[-1]), token_ids.reshape(-1)

    other = None
    if reference is not None:
        other = Head(
            reference.states.detach().reshape(-1, reference.states.shape[-1]),
            reference.weight.detach(),
            None if reference.bias is None else reference.bias.detach(),
        )

    if cap is None and banned is not None and weight.dtype == torch.float32:
        # This saves an addition. A bf16 head takes no fp32 bias: there it is added to the logits.
        bias = banned if bias is None else bias.float() + banned
        if other is not None:
            other_bias = banned if other.bias is None else other.bias.float() + banned
            other = other._replace(bias=other_bias)
        banned = None

    trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    kls: Tensor | None
    if trains and torch.is_grad_enabled():
        pieces = []
        for start in range(0, len(states), chunk):
            at = slice(start, start + chunk)
            beside = None if other is None else other._replace(states=other.states[at])
            made = checkpoint(
                _logits_path,
                states[at],
                weight,
                bias,
                ids[at],
                temperature,
                cap,
                banned,
                entropy_gradient,
                beside,
                use_reentrant=False,
            )
            pieces.append(made)
        logprobs, entropies, kls = (torch.cat([piece[n] for piece in pieces]) for n in range(3))
    else:
        logprobs, entropies, kls = _FrozenHead.apply(
            states, weight, bias, ids, temperature, chunk, cap, banned, entropy_gradient, other
        )

    shape = token_ids.shape
    if not entropy_gradient:
        entropies = entropies.detach()
    return TokenDistribution(
        logprobs.view(shape),
        entropies.view(shape),
        None if reference is None else kls.view(shape),
    )


def _logits_path(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    temperature: float,
    cap: float | None,
    banned: Tensor | None,
    entropy_gradient: bool,
    other: Head | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the same with gradients by autograd, for a head that is trained itself."""

    def log_softmax(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        logits = linear(states, weight, bias).float()
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        if banned is not None:
            logits = logits + banned
        return torch.log_softmax(logits / temperature, dim=-1)

    logprobs = log_softmax(states, weight, bias)
    counted = logprobs if entropy_gradient else logprobs.detach()
    entropies = -(counted.exp() * counted).sum(dim=-1)

    kl = logprobs.new_zeros(len(states))
    if other is not None:
        with torch.no_grad():
            there = log_softmax(*other)
        kl = (logprobs.exp() * (logprobs - there)).sum(dim=-1)
    return logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), entropies, kl


class _FrozenHead(torch.autograd.Function):
    """(N, d) states to (N,) log-probs, entropies and KLs, computing the gradients meanwhile.

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
        entropy_gradient: bool,
        other: Head | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = autocast_type(states)
        if dtype is not None:
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            if other is not None:
                other = Head(
                    other.states,
                    other.weight.to(dtype),
                    None if other.bias is None else other.bias.to(dtype),
                )

        # The head's output is divided by this: the temperature, or the cap inside tanh.
        divisor = temperature if cap is None else cap

        count = states.shape[0]
        logprobs = torch.empty(count, device=states.device)
        entropies = torch.full_like(logprobs, float("nan"))  # computed only with the gradient
        kls = torch.zeros_like(logprobs)
        wants_gradient = ctx.needs_input_grad[0]
        direction = torch.empty_like(states) if wants_gradient else None
        of_entropy = torch.empty_like(states) if wants_gradient and entropy_gradient else None
        of_kl = torch.empty_like(states) if wants_gradient and other is not None else None

        def scale(
            states: Tensor, weight: Tensor, bias: Tensor | None, wants_slope: bool
        ) -> tuple[Tensor, Tensor | None]:
            """Return scaled logits, and the cap's derivative if there is a cap."""
            state = states.to(weight.dtype)
            if weight.dtype == torch.float32:  # d divisions a token instead of V
                divided = None if bias is None else bias / divisor
                scaled = linear(state / divisor, weight, divided)
            else:  # divide the rounded logits, which are the model's
                scaled = linear(state, weight, bias).float().div_(divisor)

            slope = None
            if cap is not None:
                scaled.tanh_()
                if wants_slope:
                    slope = scaled.new_ones(()).addcmul(scaled, scaled, value=-1)
                scaled.mul_(cap / temperature)
            if banned is not None:
                scaled.add_(banned)
            return scaled, slope

        starts = range(0, count, chunk)
        if states.is_meta:  # only memory is counted there, and each full chunk takes the same
            starts = starts[:3]

        with torch.autocast(autocast_device(states.device), enabled=False):
            for start in starts:
                rows = slice(start, start + chunk)
                state = states[rows].to(weight.dtype)
                scaled, slope = scale(states[rows], weight, bias, wants_gradient)

                # This gets logsumexp without another pass: max z - log max p.
                p = torch.softmax(scaled, dim=-1)
                total = scaled.amax(dim=-1) - p.amax(dim=-1).log()
                token = ids[rows].unsqueeze(-1)
                logprobs[rows] = scaled.gather(-1, token).squeeze(-1) - total

                gap = None
                if other is not None:
                    there, _ = scale(other.states[rows], other.weight, other.bias, False)
                    q = torch.softmax(there, dim=-1)
                    there_total = there.amax(dim=-1) - q.amax(dim=-1).log()
                    del q
                    gap = scaled - there - (total - there_total).unsqueeze(-1)
                    kls[rows] = torch.linalg.vecdot(p, gap)

                if direction is None:
                    continue

                own = weight[ids[rows]].float()
                shares = p
                if slope is None:
                    mean_row = (p.to(weight.dtype) @ weight).float()
                    expected = (state.float() * mean_row).sum(dim=-1)
                    if bias is not None:
                        expected = expected + p @ bias.float()
                    entropies[rows] = total - expected / temperature
                    if weight.dtype != torch.float32:  # these products were rounded, and cancel
                        entropies[rows] = total - torch.linalg.vecdot(p, scaled)
                else:
                    entropies[rows] = total - torch.linalg.vecdot(p, scaled)
                    own = own * slope.gather(-1, token)
                    shares = slope.mul_(p)
                    mean_row = (shares.to(weight.dtype) @ weight).float()

                direction[rows] = ((own - mean_row) / temperature).to(direction.dtype)

                if of_kl is not None and gap is not None:
                    turn = shares * gap.sub_(kls[rows].unsqueeze(-1))
                    row = (turn.to(weight.dtype) @ weight).float() / temperature
                    of_kl[rows] = row.to(of_kl.dtype)
                if of_entropy is not None:
                    # log p + H = z - total + H
                    turn = shares * scaled.sub_((total - entropies[rows]).unsqueeze(-1))
                    row = (turn.to(weight.dtype) @ weight).float() / -temperature
                    of_entropy[rows] = row.to(of_entropy.dtype)

        if direction is not None:
            ctx.save_for_backward(direction, of_entropy, of_kl)
        if of_entropy is None:
            ctx.mark_non_differentiable(entropies)
        if of_kl is None:
            ctx.mark_non_differentiable(kls)
        return logprobs, entropies, kls

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        direction, *others = ctx.saved_tensors
        states = (direction * grads[0].unsqueeze(-1)).to(direction.dtype)
        for other, grad in zip(others, grads[1:], strict=True):
            if other is not None:
                states = states + (other * grad.unsqueeze(-1)).to(direction.dtype)
        return states, *(None,) * 9


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
