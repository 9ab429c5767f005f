"""O9: temperature."""

import numpy as np
import pytest
import torch
import torch.utils._python_dispatch
from torch.distributions import Categorical

from toolkit.maths.distributions import (
    Head,
    head_distribution,
    head_logprobs,
    inverse_cdf_sample,
)

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])


@pytest.mark.parametrize(
    ("temperature", "expected", "entropy"),
    [
        (1.0, [-0.440190, -1.440190, -2.440190, -3.440190], 0.947537),
        (0.7, [-0.270674, -1.699245, -3.127817, -4.556388], 0.702028),
    ],
)
def test_logprobs_and_entropy_are_of_the_scaled_distribution(
    temperature: float, expected: list[float], entropy: float
) -> None:
    # Their product is the logits, four times; entropies are a by-product of the gradient.
    hidden, head = torch.ones(1, 4, 1, requires_grad=True), LOGITS[:, None]
    logprobs, entropies = head_logprobs(hidden, head, None, torch.arange(4)[None], temperature)
    np.testing.assert_allclose(logprobs[0].detach(), expected, atol=1e-6)
    np.testing.assert_allclose(entropies[0], [entropy] * 4, atol=1e-6)


def a_head(bias: bool, frozen: bool) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    hidden = torch.randn(3, 5, 16, requires_grad=True)
    weight = torch.randn(40, 16, requires_grad=not frozen)
    offset = torch.randn(40, requires_grad=not frozen) if bias else None
    return hidden, weight, offset, torch.randint(0, 40, (3, 5))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 40 * 4, 1 << 20])
def test_logprobs_from_hidden_states_equal_those_of_whole_logits(
    bias: bool, frozen: bool, chunk_bytes: int
) -> None:
    """Values, entropies and every gradient, whatever the size of the pieces."""
    hidden, weight, offset, ids = a_head(bias, frozen)
    logprobs, entropies = head_logprobs(hidden, weight, offset, ids, 0.7, chunk_bytes)
    factors = torch.randn(3, 5)
    (logprobs * factors).sum().backward()
    ours = [p.grad.clone() for p in (hidden, weight, offset) if p is not None and p.requires_grad]
    for p in (hidden, weight, offset):
        if p is not None:
            p.grad = None
    logits = torch.nn.functional.linear(hidden, weight, offset)
    whole = Categorical(logits=logits.float() / 0.7).log_prob(ids)
    (whole * factors).sum().backward()
    theirs = [p.grad for p in (hidden, weight, offset) if p is not None and p.requires_grad]
    assert torch.allclose(logprobs, whole, atol=1e-5)
    assert torch.allclose(entropies, Categorical(logits=logits / 0.7).entropy(), atol=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * 40 * 4, 1 << 20])
def test_capped_logprobs_equal_those_of_whole_capped_logits(
    bias: bool, frozen: bool, chunk_bytes: int
) -> None:
    """With logits that the cap bends (up to 3 caps), some of them banned behind it."""
    hidden, weight, offset, ids = a_head(bias, frozen)
    cap, banned = 3.0, torch.zeros(40)
    banned[5:7] = -1e30
    ids = ids.masked_fill((ids == 5) | (ids == 6), 0)
    parameters = [p for p in (hidden, weight, offset) if p is not None and p.requires_grad]
    factors = torch.randn(3, 5)
    logprobs, entropies = head_logprobs(
        hidden, weight, offset, ids, 0.7, chunk_bytes, cap=cap, banned=banned
    )
    ours = torch.autograd.grad((logprobs * factors).sum(), parameters)

    raw = torch.nn.functional.linear(hidden, weight, offset)
    assert raw.abs().max() > 3 * cap
    logits = cap * torch.tanh(raw / cap) + banned
    whole = Categorical(logits=logits.float() / 0.7).log_prob(ids)
    theirs = torch.autograd.grad((whole * factors).sum(), parameters)
    assert torch.allclose(logprobs, whole, atol=1e-5)
    assert torch.allclose(entropies, Categorical(logits=logits / 0.7).entropy(), atol=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("trains", [False, True])
def test_a_head_in_bf16_without_autocast_leaves_banned_tokens_out(trains: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 8, dtype=torch.bfloat16)
    weight = torch.randn(12, 8, dtype=torch.bfloat16).requires_grad_(trains)
    ids = torch.randint(0, 10, (2, 3))
    banned = torch.zeros(12)
    banned[10:] = -1e30
    logprobs, _ = head_logprobs(hidden, weight, None, ids, 0.7, banned=banned)
    logits = (hidden @ weight.T).float()[..., :10]
    expected = torch.log_softmax(logits / 0.7, dim=-1).gather(-1, ids[..., None]).squeeze(-1)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)


def test_no_tensor_of_all_logits_is_ever_made() -> None:
    """40 tokens by 5,000 words would be 200,000 numbers; none larger than a piece comes to be."""
    hidden = torch.randn(4, 10, 8, requires_grad=True)
    weight, ids = torch.randn(5000, 8), torch.randint(0, 5000, (4, 10))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001,ANN204
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        logprobs, _ = head_logprobs(hidden, weight, None, ids, 0.7, chunk_bytes=4 * 5000 * 3)
        logprobs.sum().backward()
        there = Head(torch.randn(4, 10, 8), weight, None)
        head = Head(hidden, weight, None)
        whole = head_distribution(head, ids, 0.7, 4 * 5000 * 3, None, None, True, there)
        torch.stack(whole).sum().backward()
    assert largest == 5000 * 8  # the weight itself, transposed; a piece of logits is 15,000


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_entropy_and_whole_kl_have_the_gradients_of_whole_logits(
    cap: float | None, bias: bool, frozen: bool, chunk_bytes: int
) -> None:
    """Against autograd in fp64, with banned tokens, and a reference with a head of its own."""
    hidden, weight, offset, ids = a_head(bias, frozen)
    ids = ids.masked_fill((ids == 5) | (ids == 6), 0)
    banned = torch.zeros(40)
    banned[5:7] = -1e30
    reference = Head(torch.randn(3, 5, 16), torch.randn(40, 16), torch.randn(40) if bias else None)
    factors = torch.randn(3, 3, 5)
    parameters = [p for p in (hidden, weight, offset) if p is not None and p.requires_grad]
    found = head_distribution(
        Head(hidden, weight, offset),
        ids,
        0.7,
        chunk_bytes,
        cap,
        banned,
        entropy_gradient=True,
        reference=reference,
    )
    assert found.kl is not None
    ours = torch.stack(found)
    gradients = torch.autograd.grad((ours * factors).sum(), parameters)

    def log_softmax(*head: torch.Tensor | None) -> torch.Tensor:
        z = torch.nn.functional.linear(*[None if t is None else t.double() for t in head])
        z = z if cap is None else cap * torch.tanh(z / cap)
        return ((z + banned) / 0.7).log_softmax(-1)

    log_p, log_q = log_softmax(hidden, weight, offset), log_softmax(*reference)
    p = log_p.exp()
    whole = torch.stack(
        [
            log_p.gather(-1, ids[..., None])[..., 0],
            -(p * log_p).sum(-1),
            (p * (log_p - log_q)).sum(-1),
        ]
    )
    torch.testing.assert_close(ours.double(), whole, atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad((whole * factors).sum(), parameters)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-4)


def test_entropy_and_kl_of_three_tokens_by_hand() -> None:
    """The logits (1, 0, -1) against (.5, .3, .2): values, and directions on the logits."""
    head = torch.eye(3)
    hidden = torch.tensor([[[1.0, 0.0, -1.0]]], requires_grad=True)
    reference = Head(torch.tensor([[[0.5, 0.3, 0.2]]]).log(), head, None)
    found = head_distribution(
        Head(hidden, head, None),
        torch.tensor([[0]]),
        1.0,
        entropy_gradient=True,
        reference=reference,
    )
    assert found.kl is not None
    assert found.entropies.item() == pytest.approx(0.832396, abs=1e-6)
    assert found.kl.item() == pytest.approx(0.068259, abs=1e-6)
    for output, expected in (
        (found.entropies, [-0.282587, 0.140770, 0.141817]),
        (found.kl, [0.144545, -0.066540, -0.078005]),
        (-2 * found.logprobs, [-0.669518, 0.489457, 0.180061]),
        (-2 * found.logprobs - 0.01 * found.entropies, [-0.666692, 0.488049, 0.178643]),
    ):
        (gradient,) = torch.autograd.grad(output.sum(), hidden, retain_graph=True)
        np.testing.assert_allclose(gradient[0, 0], expected, atol=2e-6)


def test_a_policy_that_is_its_reference_has_no_kl_and_no_gradient_of_it() -> None:
    hidden, weight, offset, ids = a_head(True, True)
    same = Head(hidden.detach().clone(), weight, offset)
    found = head_distribution(Head(hidden, weight, offset), ids, 0.7, reference=same)
    assert found.kl is not None and not found.kl.any()
    (gradient,) = torch.autograd.grad(found.kl.sum(), hidden)
    assert not gradient.any()


def test_logprobs_of_unlikely_tokens_are_not_lost() -> None:
    hidden = torch.tensor([[[1000.0, 0.0]]], requires_grad=True)
    weight, ids = torch.eye(2), torch.tensor([[1]])
    logprobs, entropies = head_logprobs(hidden, weight, None, ids, 1.0)
    assert logprobs.item() == pytest.approx(-1000.0) and entropies.item() == pytest.approx(0.0)


def test_autocast_computes_the_products_in_its_type() -> None:
    hidden, weight, _, ids = a_head(False, True)
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = head_logprobs(hidden, weight, None, ids, 0.7)
    rounded = hidden.detach().bfloat16() @ weight.bfloat16().T
    expected = Categorical(logits=rounded.float() / 0.7).log_prob(ids)
    exact = Categorical(logits=hidden @ weight.T / 0.7).log_prob(ids)
    assert logprobs.dtype == torch.float32
    assert torch.allclose(logprobs, expected, atol=1e-5) and not torch.allclose(logprobs, exact)


def test_a_uniform_number_picks_the_token_whose_share_it_falls_into() -> None:
    p = torch.tensor([[0.2, 0.0, 0.5, 0.3]]).expand(6, 4)
    uniforms = torch.tensor([0.0, 0.19, 0.2, 0.69, 0.71, 0.999999], dtype=torch.float64)
    assert inverse_cdf_sample(p, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_drawn_tokens_have_their_probabilities() -> None:
    p = torch.softmax(torch.randn(7), -1)
    uniforms = torch.rand(100_000, dtype=torch.float64)
    drawn = inverse_cdf_sample(p.expand(100_000, 7), uniforms)
    shares = torch.bincount(drawn, minlength=7) / 100_000
    assert (shares - p).abs().max() < 4 * (0.25 / 100_000) ** 0.5
