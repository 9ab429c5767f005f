"""The cheaper decoder layers against transformers' own."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import DynamicCache

from toolkit.models.fast import decoder
from toolkit.models.fast.decoder import change_layers, last_states

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96,
         "intermediate_size": 128, "max_position_embeddings": 64, "num_key_value_heads": 2,
         "initializer_range": 0.2}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "mistral, sliding": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
}
IDS = torch.randint(0, 96, (3, 12), generator=torch.Generator().manual_seed(1))
PADDED = torch.ones_like(IDS)
PADDED[1, :5] = 0
MASKS = {"padded": PADDED, "whole": torch.ones_like(IDS)}


def both(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    own = MODELS[name]().eval()
    fast = copy.deepcopy(own)
    assert change_layers(fast) == 2
    return own, fast


def inputs(mask: torch.Tensor) -> dict[str, Any]:
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": IDS, "attention_mask": mask, "position_ids": positions}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("last", [1, 5, 12])
def test_states_and_gradients_are_the_models_own(name: str, mask: str, last: int) -> None:
    own, fast = both(name)
    found = []
    for model in (own, fast):
        given = inputs(MASKS[mask]) | {"use_cache": False}
        if model is own:
            states = model.model(**given).last_hidden_state[:, -last:]
        else:
            states = last_states(model.model, last, **given)
        assert states.shape == (3, last, 64)
        (states * torch.arange(64)).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        found[-1]["states"] = states.detach()
    theirs, ours = found
    assert theirs.keys() == ours.keys()
    for key, tensor in theirs.items():
        worst = (ours[key] - tensor).abs().max()
        assert worst < 2e-5 * tensor.abs().max().clamp(min=1e-3), key


def test_fewer_positions_are_really_fewer() -> None:
    _, fast = both("llama")
    rows = []
    for layer in fast.model.layers:
        layer.mlp.register_forward_hook(lambda m, args, out: rows.append(out.shape[1]))
    last_states(fast.model, 5, **inputs(PADDED))
    assert rows == [12, 5]
    fast(**inputs(PADDED))  # whoever runs the model as a whole gets all positions
    assert rows[2:] == [12, 12]


@pytest.mark.parametrize("name", MODELS)
def test_with_a_cache_the_last_state_is_that_of_a_whole_pass(name: str) -> None:
    own, fast = both(name)
    given = inputs(PADDED)
    cache = DynamicCache(config=fast.config)
    with torch.no_grad():
        whole = own.model(**given, use_cache=False).last_hidden_state
        last_states(
            fast.model,
            1,
            input_ids=IDS[:, :8],
            attention_mask=PADDED[:, :8],
            position_ids=given["position_ids"][:, :8],
            past_key_values=cache,
            use_cache=True,
        )
        for t in range(8, 12):
            state = last_states(
                fast.model,
                1,
                input_ids=IDS[:, t : t + 1],
                attention_mask=PADDED[:, : t + 1],
                position_ids=given["position_ids"][:, t : t + 1],
                past_key_values=cache,
                use_cache=True,
            )
            assert torch.allclose(state[:, 0], whole[:, t], atol=2e-5, rtol=2e-5)


def test_eager_attention_works_on_every_position() -> None:
    own, fast = both("llama")
    for model in (own, fast):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        whole = own.model(**inputs(PADDED)).last_hidden_state
        assert torch.allclose(
            last_states(fast.model, 3, **inputs(PADDED)), whole[:, -3:], atol=2e-5, rtol=2e-5
        )


@pytest.mark.parametrize("last", [3, 12])
def test_recomputed_activations_give_the_same_gradients(last: int) -> None:
    _, fast = both("llama")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            fast.activation_checkpointing_enable({"use_reentrant": False})
            fast.train()
        passes: list[int] = []
        hook = fast.model.layers[-1].self_attn.o_proj.register_forward_hook(
            lambda m, args, out, passes=passes: passes.append(out.shape[1])
        )
        fast.zero_grad()
        last_states(fast.model, last, **inputs(PADDED), use_cache=False).square().sum().backward()
        hook.remove()
        assert passes == [last] * (1 + checkpointing)
        gradients.append([p.grad.clone() for p in fast.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_under_autocast_it_is_as_near_to_the_truth_as_transformers() -> None:
    own, fast = both("qwen3")
    with torch.no_grad():
        truth = own.model(**inputs(PADDED)).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            theirs = own.model(**inputs(PADDED)).last_hidden_state
            ours = last_states(fast.model, 12, **inputs(PADDED))
    assert 1e-4 < (ours - truth).norm() < 1.1 * (theirs - truth).norm()


def test_a_layer_that_computes_something_else_keeps_its_own_pass() -> None:
    """Another release may scale its residuals, say: the cheaper pass would be wrong in silence."""
    model = MODELS["llama"]()

    class LlamaDecoderLayer(type(model.model.layers[0])):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return 2 * super().forward(*args, **kwargs)

    for layer in model.model.layers:
        layer.__class__ = LlamaDecoderLayer
    with torch.no_grad():
        before = model(**inputs(PADDED)).logits
        assert change_layers(model) == 0
        assert torch.equal(model(**inputs(PADDED)).logits, before)
        assert last_states(model.model, 3, **inputs(PADDED)).shape == (3, 3, 64)
    for layer in model.model.layers:
        assert not {"forward", "last"} & vars(layer).keys()


def test_another_activation_keeps_its_mlp() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, hidden_act="gelu")).eval()
    with torch.no_grad():
        before = model(**inputs(PADDED)).logits
        assert change_layers(model) == 2
        assert torch.allclose(model(**inputs(PADDED)).logits, before, atol=2e-5)
    assert "forward" not in vars(model.model.layers[0].mlp)


def test_families_of_another_build_are_left_alone() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})
    assert change_layers(model) == 0


def test_large_numbers_in_bf16_are_no_reason_to_keep_the_slow_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounding grows with the numbers: two right passes of a wide layer differ by 0.06."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL | {"initializer_range": 0.8})).bfloat16().eval()
    assert change_layers(copy.deepcopy(model)) == 2

    # A wrong pass is still refused.
    forward = decoder._Rotary.forward
    monkeypatch.setattr(
        decoder._Rotary, "forward", lambda ctx, x, cos, sin: forward(ctx, x, cos, -sin)
    )
    assert change_layers(model) == 0
