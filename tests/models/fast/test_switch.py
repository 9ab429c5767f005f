"""The one switch: what it changes, where, and that all passes are as good without."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from toolkit.models.actors import POLICY
from toolkit.models.adapters import lora_config
from toolkit.models.fast import CHANGES, SWITCH
from toolkit.models.fast.attention import NAME, attend_in_fp32
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [12, 13, 14, 15, 16, 17]])
MASK = torch.ones_like(IDS, dtype=torch.bool)


def roles_with(
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    said: str | None,
    precision: str = "fp32",
    autocast: torch.dtype | None = None,
) -> Roles:
    monkeypatch.delenv(SWITCH, raising=False)
    if said is not None:
        monkeypatch.setenv(SWITCH, said)
    torch.manual_seed(0)
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    roles = Roles(load_base(model, precision), lora, value="adapter", autocast_dtype=autocast)
    for name, parameter in roles.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return roles


def changed(roles: Roles) -> set[str]:
    """Kinds of modules that have a pass of the toolkit's."""
    return {
        "lora" if isinstance(module, LoraLayer) else type(module).__name__
        for module in roles.modules()
        if "forward" in vars(module)
    }


@pytest.mark.slow
def test_each_change_can_be_had_alone_and_none_with_0(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {"LlamaDecoderLayer", "LlamaAttention", "LlamaMLP"}
    found = {
        said: changed(roles_with(monkeypatch, demo_model, said))
        for said in ("0", None, "lora", "norms", "decoder", "norms,decoder")
    }
    assert found == {
        "0": set(),
        None: {"lora", "LlamaRMSNorm"} | layers,
        "lora": {"lora"},
        "norms": {"LlamaRMSNorm"},
        "decoder": layers,
        "norms,decoder": {"LlamaRMSNorm"} | layers,
    }


@pytest.mark.parametrize("precision", ["fp32", "4bit"])
def test_without_them_numbers_and_gradients_are_the_same(
    demo_model: str, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    found = []
    for said in ("0", ",".join(CHANGES)):
        roles = roles_with(monkeypatch, demo_model, said, precision)
        outputs = roles.policy_outputs(IDS, MASK, IDS[:, 3:], 0.7)
        outputs.logprobs.sum().backward()
        roles.values(IDS, MASK, 3).sum().backward()
        grads = {name: p.grad for name, p in roles.trainable() if p.grad is not None}
        found.append({"logprobs": outputs.logprobs.detach()} | grads)
    plain, fast = found
    assert plain.keys() == fast.keys() and len(plain) > 20
    for name, tensor in plain.items():
        assert (fast[name] - tensor).abs().max() <= 1e-4 * tensor.abs().max() + 1e-7, name


def test_attention_leaves_autocast_on_a_cpu_and_only_there(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def implementation(said: str | None, autocast: torch.dtype | None) -> str:
        roles = roles_with(monkeypatch, demo_model, said, autocast=autocast)
        return roles.language_model(POLICY).config._attn_implementation

    assert implementation(None, torch.bfloat16) == NAME
    assert implementation(None, None) == "sdpa"
    assert implementation("0", torch.bfloat16) == "sdpa"


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
