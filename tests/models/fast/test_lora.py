"""The leaner passes against peft's and autocast's own."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from toolkit.models.fast.lora import attend_in_fp32, make_lean, round_frozen_weights
from toolkit.models.loading import load_base

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [12, 13, 14, 15, 16, 17]])


def with_adapter(model: str, precision: str, **lora: object) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM",
                        **lora)  # fmt: skip
    peft_model = get_peft_model(load_base(model, precision), config)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return peft_model


def results(model: nn.Module, autocast: bool) -> dict[str, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=IDS).logits
    logits.float().logsumexp(-1).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found | {"logits": logits.detach().float()}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "4bit"])
def test_values_and_gradients_are_pefts(family_model: str, precision: str) -> None:
    own = with_adapter(family_model, precision)
    lean = copy.deepcopy(own)
    assert make_lean(lean)
    theirs, ours = results(own, False), results(lean, False)
    assert theirs.keys() == ours.keys() and len(ours) > 8
    tolerance = 1e-5 if precision != "bf16" else 3e-2
    for name, tensor in theirs.items():
        scale = max(tensor.abs().max().item(), 1e-3)
        assert (ours[name] - tensor).abs().max().item() < tolerance * scale, name


def test_under_autocast_it_is_as_near_to_the_truth_as_pefts(demo_model: str) -> None:
    own = with_adapter(demo_model, "fp32")
    lean = copy.deepcopy(own)
    make_lean(lean)
    truth = results(copy.deepcopy(own), False)
    theirs, ours = results(own, True), results(lean, True)
    assert ours.keys() == theirs.keys()

    def error(found: dict[str, torch.Tensor]) -> float:
        errors = [(found[n] - t).norm() / t.norm().clamp(min=1e-6) for n, t in truth.items()]
        return torch.stack(errors).mean().item()

    assert 1e-4 < error(ours) < 1.1 * error(theirs)


def test_what_is_more_than_plain_lora_keeps_pefts_own_pass(demo_model: str) -> None:
    for more in ({"lora_dropout": 0.1}, {"use_dora": True}):
        model = with_adapter(demo_model, "fp32", **more)
        make_lean(model)
        layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
        assert "forward" not in vars(layer), more


def test_rounding_frozen_weights_changes_nothing_under_autocast(demo_model: str) -> None:
    plain = load_base(demo_model, "fp32")
    rounded = copy.deepcopy(plain)
    assert round_frozen_weights(rounded, torch.bfloat16) > 10
    tied = rounded.get_output_embeddings().weight is rounded.get_input_embeddings().weight
    assert rounded.get_input_embeddings().weight.dtype == torch.float32 or not tied
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain(input_ids=IDS).logits, rounded(input_ids=IDS).logits)
    trained = copy.deepcopy(plain).requires_grad_(True)
    assert round_frozen_weights(trained, torch.bfloat16) == 0


def test_attention_in_fp32_is_nearer_to_the_truth_than_in_bf16(demo_model: str) -> None:
    model = load_base(demo_model, "fp32")
    with torch.no_grad():
        truth = model(input_ids=IDS).logits
        with torch.autocast("cpu", torch.bfloat16):
            before = model(input_ids=IDS).logits
            attend_in_fp32(model)
            after = model(input_ids=IDS).logits
        alone = model(input_ids=IDS).logits
    assert torch.equal(alone, truth)
    assert (after - truth).abs().mean() <= 1.05 * (before - truth).abs().mean()
    assert not torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_norm_gives_the_modules_values_and_gradients(dtype: torch.dtype) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(48, eps=1e-5).requires_grad_(False)
    nn.init.normal_(norm.weight)
    x = (3 * torch.randn(5, 7, 48)).to(dtype).requires_grad_()
    lean = copy.deepcopy(norm)
    make_lean(lean)
    factors = torch.randn(5, 7, 48)
    results = []
    for module in (norm, lean):
        x.grad = None
        y = module(x)
        (y * factors).sum().backward()
        results.append((y.detach(), x.grad.clone()))
    (y, grad), (lean_y, lean_grad) = results
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    assert lean_y.dtype == y.dtype and torch.allclose(lean_y, y, atol=tolerance, rtol=tolerance)
    assert torch.allclose(lean_grad, grad, atol=tolerance, rtol=tolerance)
    with torch.no_grad():
        assert torch.equal(lean(x), norm(x))


def test_a_rounded_input_is_never_taken_for_another(demo_model: str) -> None:
    """Inputs that come to lie where an earlier one lay, or that are changed in place."""
    from toolkit.models.fast.lora import _Rounded

    rounded = _Rounded()
    for _ in range(50):
        x = torch.randn(64, 64)
        assert torch.equal(rounded.of(x, torch.bfloat16), x.bfloat16())
        assert rounded.of(x, torch.bfloat16) is rounded.of(x.view(64, 64), torch.bfloat16)
        x.add_(1)
        assert torch.equal(rounded.of(x, torch.bfloat16), x.bfloat16())
        del x
