"""Attention on a CPU: left out of bf16 autocast there, and nearer to the truth."""

import pytest
import torch

from tests.models.fast.conftest import IDS, roles_with
from toolkit.models.actors import POLICY
from toolkit.models.fast.attention import NAME, attend_in_fp32
from toolkit.models.loading import load_base


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
