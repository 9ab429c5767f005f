"""Attention on a CPU without bf16 autocast, and without a mask where rows are padded right."""

from typing import Any

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, create_bidirectional_mask

from tests.models.fast.conftest import IDS, roles_with
from tests.models.fast.test_decoder import MODELS, both
from toolkit.maths.sequences import pad
from toolkit.models.actors import POLICY
from toolkit.models.fast.attention import NAME, attend_in_fp32, padding_on_the_right
from toolkit.models.fast.decoder import last_states
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


RIGHT = torch.ones(3, 12, dtype=torch.long)
RIGHT[1, 7:] = 0
READ = torch.tensor([[11, 9, 2], [6, 3, 0], [0, 1, 11]])  # real tokens, in any order
ROWS = torch.randint(0, 96, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The masks that scaled dot product attention gets, and what it does for grouped queries."""
    seen: list[Any] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        seen.append((attn_mask, kwargs["is_causal"], kwargs.get("enable_gqa", False)))
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    return seen


@pytest.mark.parametrize("name", MODELS)
def test_states_behind_right_padding_are_those_under_a_mask(name: str, masks: list[Any]) -> None:
    """Of all layers, and of a last layer that makes the positions that are read alone."""
    own, fast = both(name)
    given = {"input_ids": ROWS, "attention_mask": RIGHT, "use_cache": False}
    expected = own.model(**given).last_hidden_state[torch.arange(3).unsqueeze(1), READ]
    masks.clear()
    with padding_on_the_right():
        whole = last_states(own.model, READ, **given)
        found = last_states(fast.model, READ, **given)
    for states in (whole, found):
        assert (states - expected).abs().max() < 1e-6 * expected.abs().max()

    (first, causal, grouped), *_, (last, *_) = masks
    if "sliding" in name:  # its window is made, without the padding
        assert first.shape[0] == 1 or first.stride(0) == 0
    else:
        assert (first, causal, grouped) == (None, True, True)
    assert last.shape == (3, 1, 3, 12)  # the fast last layer's own


def test_a_mask_that_lets_all_see_all_keeps_its_padding_and_others_come_back() -> None:
    model = MODELS["llama"]()
    own = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    with padding_on_the_right():
        mask = create_bidirectional_mask(model.config, torch.zeros(3, 12, 64), RIGHT)
    assert mask.expand(3, 1, 12, 12)[:, 0, 0].tolist() == RIGHT.bool().tolist()
    assert ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is own


def test_rows_padded_on_the_left_give_the_same_without_a_mask(
    demo_model: str, monkeypatch: pytest.MonkeyPatch, masks: list[Any]
) -> None:
    """Log-probs, values and gradients of completions that end at different tokens."""
    roles = roles_with(monkeypatch, demo_model, None)
    torch.nn.init.normal_(roles.value_head.weight)
    ids, mask = pad([[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]], 0, "left")
    completions = torch.randint(3, 900, (3, 6), generator=torch.Generator().manual_seed(0))
    real = torch.arange(6) < torch.tensor([[6], [2], [4]])
    passage = torch.cat([ids, completions], 1), torch.cat([mask, real], 1)

    found = []
    for right in (False, True):
        roles.right_padded = right
        roles.zero_grad()
        masks.clear()
        outputs = roles.policy_outputs(*passage, completions, 0.7)
        values = roles.values(*passage, 6)
        ((outputs.logprobs + values) * real).sum().backward()
        assert (masks[0][0] is None) == right
        found.append([outputs.logprobs * real, values * real])
        found[-1] += [p.grad for _, p in roles.trainable() if p.grad is not None]
    for left, right in zip(*found, strict=True):
        assert (left - right).abs().max() < 2e-6 * left.abs().max().clamp(min=1)


def test_a_gpu_pads_right_where_flash_attention_can_take_the_pass(
    demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = roles_with(monkeypatch, demo_model, None)
    rounding = roles_with(monkeypatch, demo_model, None, autocast=torch.bfloat16)
    assert not (exact.pads_right or rounding.pads_right)
    monkeypatch.setattr(type(exact), "device", torch.device("cuda"))
    assert rounding.pads_right and not exact.pads_right
    monkeypatch.setenv("TOOLKIT_FAST_PASSES", "lora,norms")
    assert not rounding.pads_right
