"""The one switch: what it changes, where, and that all passes are as good without."""

import pytest
from peft.tuners.lora import LoraLayer

from tests.models.fast.conftest import IDS, MASK, roles_with
from toolkit.models.fast import CHANGES
from toolkit.models.roles import Roles


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
