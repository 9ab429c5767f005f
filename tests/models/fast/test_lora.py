"""LoRA layers with the cheaper pass against peft's own."""

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from toolkit.models.fast import lora
from toolkit.models.fast.lora import adapter_held, change_lora, rounded_once
from toolkit.models.loading import load_base

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [12, 13, 14, 15, 16, 17]])


def with_adapter(model: str, precision: str, **lora: object) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", **lora
    )
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


@pytest.mark.slow
@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "4bit"])
def test_values_and_gradients_are_pefts(family_model: str, precision: str, on_cpu: bool) -> None:
    own = with_adapter(family_model, precision)
    fast = copy.deepcopy(own)
    change_lora(fast, on_cpu)
    theirs, ours = results(own, False), results(fast, False)
    assert theirs.keys() == ours.keys() and len(ours) > 8
    tolerance = 1e-5 if precision != "bf16" else 3e-2
    for name, tensor in theirs.items():
        scale = max(tensor.abs().max().item(), 1e-3)
        assert (ours[name] - tensor).abs().max().item() < tolerance * scale, name


@pytest.mark.parametrize("on_cpu", [True, False])
def test_under_autocast_it_is_as_near_to_the_truth_as_pefts(demo_model: str, on_cpu: bool) -> None:
    own = with_adapter(demo_model, "fp32")
    fast = copy.deepcopy(own)
    change_lora(fast, on_cpu)
    truth = results(copy.deepcopy(own), False)
    theirs, ours = results(own, True), results(fast, True)
    assert ours.keys() == theirs.keys()

    def error(found: dict[str, torch.Tensor]) -> float:
        errors = [(found[n] - t).norm() / t.norm().clamp(min=1e-6) for n, t in truth.items()]
        return torch.stack(errors).mean().item()

    assert 1e-4 < error(ours) < 1.1 * error(theirs)


def test_what_is_more_than_plain_lora_keeps_pefts_own_pass(demo_model: str) -> None:
    for more in ({"lora_dropout": 0.1}, {"use_dora": True}):
        model = with_adapter(demo_model, "fp32", **more)
        change_lora(model, True)
        layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
        assert "forward" not in vars(layer), more


@pytest.mark.slow
def test_only_on_a_cpu_updates_are_merged_into_weights(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = []
    own = lora._MergedLinear.apply
    monkeypatch.setattr(lora._MergedLinear, "apply", lambda *args: merged.append(1) or own(*args))
    model = with_adapter(demo_model, "fp32")
    long = IDS.repeat(40, 10)
    for on_cpu, expected in ((True, True), (False, False)):
        merged.clear()
        change_lora(model, on_cpu)
        model(input_ids=long)
        assert bool(merged) == expected
        merged.clear()
        model(input_ids=IDS[:1, :2])  # of few rows the product costs less than the merging
        assert not merged


def test_passes_share_one_rounding_until_the_weights_may_change(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And their numbers and gradients are to the last bit those of passes that share none."""
    model = with_adapter(demo_model, "fp32")
    change_lora(model, on_cpu=False)
    rounded: list[int] = []
    copy_all = torch._foreach_copy_
    monkeypatch.setattr(
        torch, "_foreach_copy_", lambda to, of: rounded.append(len(of)) or copy_all(to, of)
    )

    def two_passes(shared: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        with rounded_once() if shared else nullcontext():
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                silent = model(input_ids=IDS).logits
            found = [results(model, True) for _ in range(2)][1]  # the gradients add up
        return {name: tensor.clone() for name, tensor in found.items()} | {"silent": silent}

    alone = two_passes(False)
    assert not rounded
    together = two_passes(True)
    adapted = sum("lora_" in name for name, _ in model.named_parameters())
    assert rounded == [adapted]  # once, all layers' at a time
    assert together.keys() == alone.keys()
    assert all(torch.equal(together[name], alone[name]) for name in alone)

    trained = [p for p in model.parameters() if p.requires_grad]
    torch.optim.Adam(trained, lr=0.01, fused=True).step()  # which counts up no version
    after, checked = two_passes(True), two_passes(False)
    assert torch.equal(after["silent"], checked["silent"])
    assert not torch.equal(after["silent"], together["silent"])


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_a_held_adapter_gives_what_the_adapter_gives_and_lets_go_of_it(
    demo_model: str, autocast: bool
) -> None:
    model = with_adapter(demo_model, "fp32")
    change_lora(model, False)

    def logits() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(input_ids=IDS).logits.float()

    expected = logits()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), adapter_held(model, "default"):
        assert torch.allclose(logits(), expected, atol=2e-2 if autocast else 1e-5)
        layers = [layer for layer in model.modules() if "held" in vars(layer)]
        assert all(layer.held.shared.kept is None for layer in layers)

        # It is a copy: what changes inside shows only afterwards.
        with torch.no_grad():
            for layer in layers:
                layer.lora_A["default"].weight.zero_()
        assert torch.allclose(logits(), expected, atol=2e-2 if autocast else 1e-5)

    assert len(layers) == 7 * 3  # seven linear layers in each of three
    assert not any("held" in vars(layer) for layer in model.modules())
    assert not torch.allclose(logits(), expected, atol=2e-2)


def test_an_adapter_that_cannot_be_held_whole_is_not_held_at_all(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies that stayed would hide the layers from training."""
    model = with_adapter(demo_model, "fp32")
    change_lora(model, False)
    make, made = lora._Shared, []

    def full(a: list[torch.Tensor], dtype: torch.dtype) -> lora._Shared:
        made.append(a)
        if len(made) == 3:
            raise torch.OutOfMemoryError("a toy is full")
        return make(a, dtype)

    monkeypatch.setattr(lora, "_Shared", full)
    with pytest.raises(torch.OutOfMemoryError), adapter_held(model, "default"):
        pass
    assert not any("held" in vars(layer) for layer in model.modules())


def test_layers_that_read_the_same_input_share_a_product_of_it_and_of_nothing_else() -> None:
    a = [torch.randn(2, 5), torch.randn(3, 5)]
    shared = lora._Shared(a, torch.float32)
    x, other = torch.randn(4, 5), torch.randn(4, 5)
    first = shared.of(x)
    assert torch.allclose(first, torch.cat([x @ a[0].t(), x @ a[1].t()], dim=1))
    assert shared.of(x) is first and shared.kept is None

    assert not torch.equal(shared.of(other), first)  # one of two has asked; then comes another x
    assert torch.allclose(shared.of(x), first)
    x.add_(1.0)  # the same tensor, but no longer the same numbers
    assert torch.allclose(shared.of(x)[:, :2], x @ a[0].t())
