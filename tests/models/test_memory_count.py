"""What is counted without storage is what autograd and the cache really hold."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    DeepseekV3Config,
    Gemma2Config,
    GPTJConfig,
    MambaConfig,
    Ministral3Config,
    Mistral3Config,
    MistralConfig,
    MixtralConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
)

from tests.models.conftest import LINEAR, MLA, PLANNED, SMALL, kept, plan_of, really_kept
from toolkit.models import generation
from toolkit.models.families import family_of
from toolkit.models.loading import load_base
from toolkit.models.memory_count import kept_of
from toolkit.models.roles import Roles


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_activations_are_what_autograd_really_keeps(family_model: str, value: str) -> None:
    """Counted on a model without storage, and on the same one with its weights, in each family."""
    plan = plan_of(AutoConfig.from_pretrained(family_model), value=value, reward=False)
    roles = Roles(load_base(family_model, "fp32"), copy.deepcopy(PLANNED), value=value)
    assert plan.counted
    assert kept(plan) == pytest.approx(really_kept(roles, 8, 16, 8), rel=0.05)
    trained = sum(p.numel() for _, p in roles.trainable()) * 4
    assert plan.held["optimizer (two moments)"] == 2 * trained
    weights = sum(p.numel() for p in roles.parameters() if not p.requires_grad) * 4
    assert plan.held["base (fp32)"] == weights


# What could not be counted, or was counted wrongly, until it was stood in for: eager attention,
# experts' grouped products, head sizes that differ, masks of hybrids, windows, whole other parts.
UNUSUAL: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma2": lambda: Gemma2Config(**SMALL, head_dim=8, sliding_window=6),
    "gptj": lambda: GPTJConfig(
        vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4
    ),
    "mixtral": lambda: MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "deepseek_v3": lambda: DeepseekV3Config(
        **(SMALL | MLA | {"num_key_value_heads": 4}), num_experts_per_tok=2
    ),
    "qwen3_5": lambda: Qwen3_5TextConfig(**SMALL, **LINEAR, head_dim=8),
    "mamba": lambda: MambaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=8),
    "mistral": lambda: MistralConfig(**SMALL, sliding_window=6),
    "mistral3": lambda: Mistral3Config(
        text_config=Ministral3Config(**SMALL, head_dim=8),
        vision_config=PixtralVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
    ),
}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_families_are_counted_exactly(
    name: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = UNUSUAL[name]()
    plan = plan_of(config, 2, bf16=bf16, reward=False, rollout_batch=2)
    auto: Any = family_of(config).auto
    base = auto.from_config(config, dtype=torch.float32).requires_grad_(False).eval()
    roles = Roles(
        base,
        copy.deepcopy(PLANNED),
        value="trunk",
        checked=False,
        autocast_dtype=torch.bfloat16 if bf16 else None,
    )
    assert plan.counted, plan.facts
    assert kept(plan) == pytest.approx(really_kept(roles, 2, 16, 8), rel=0.02)

    # And so is what sampling keeps: keys and values, windows of them, states.
    made: list[Any] = []
    for name in ("new_cache", "static_cache"):
        make = vars(generation)[name]
        monkeypatch.setattr(
            generation, name, lambda *args, make=make: made.append(make(*args)) or made[-1]
        )
    ids = torch.arange(3, 35).view(2, 16)
    noise = generation.draw_uniforms(2, 8, torch.Generator().manual_seed(0))
    generation.sample(roles.step(), ids, torch.ones_like(ids, dtype=torch.bool), noise, 1.0, 0)
    cache = made[-1]
    buffers = {t.untyped_storage().data_ptr(): t for t in tensors_of(cache)}
    assert plan.phases["sampling"]["KV cache"] == pytest.approx(
        sum(t.nbytes for t in buffers.values()), rel=0.01
    )


def tensors_of(cache: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for layer in cache.layers:
        held = list(vars(layer).values())
        held += [t for v in held if isinstance(v, dict) for t in v.values()]
        held += [t for v in held if isinstance(v, list) for t in v]
        found += [t for t in held if isinstance(t, torch.Tensor)]
    return found


def test_a_linear_layer_keeps_its_input_for_its_weights_gradient() -> None:
    layer = torch.nn.Linear(8, 4)
    x = torch.zeros(3, 8)
    assert kept_of(lambda: layer(x), layer) == 3 * 8 * 4  # bytes of fp32
    assert kept_of(lambda: layer.requires_grad_(False)(x), layer) == 0


def test_the_layer_that_keeps_the_most_is_told_and_each_storage_counts_once() -> None:
    narrow, wide = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([narrow, wide])
    x = torch.zeros(3, 8)
    found = kept_of(lambda: wide(narrow(x)) + narrow(x).sum(), model)
    assert (found, found.layer) == (3 * (8 + 32) * 4, 3 * 32 * 4)
