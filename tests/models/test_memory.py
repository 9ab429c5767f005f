"""The memory plan: counted, not guessed."""

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    Ministral3Config,
    Mistral3Config,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    PixtralVisionConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from toolkit.errors import InputError
from toolkit.models import memory
from toolkit.models.adapters import lora_config
from toolkit.models.families import family_of
from toolkit.models.generation import new_cache
from toolkit.models.library_checks import LIBRARY_CHECKS
from toolkit.models.loading import load_base
from toolkit.models.memory import MIB, MemoryPlan, check_memory, plan_memory, what_fits
from toolkit.models.memory_estimate import estimate_cache
from toolkit.models.roles import Roles

LORA = lora_config(8, 16, "all-linear", "CAUSAL_LM")


def plan_of(config: object, micro: int = 8, checkpointing: bool = False, **kwargs) -> MemoryPlan:  # noqa: ANN003
    options = {
        "precision": "fp32",
        "lora": LORA,
        "value": "trunk",
        "prompt_length": 16,
        "response_length": 8,
        "rollout_batch": 8,
    }
    return plan_memory(config, micro_batch=micro, checkpointing=checkpointing, **(options | kwargs))


def really_kept(roles: Roles, batch: int, prompt: int, response: int) -> int:
    """Bytes that autograd keeps of the policy's pass on real weights, parameters left out."""
    held = {p.untyped_storage().data_ptr() for p in roles.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in held:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.ones((batch, prompt + response), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = roles.policy_outputs(ids, torch.ones_like(ids).bool(), ids[:, -response:], 1.0)
    kept = sum(t.untyped_storage().nbytes() for t in seen.values())
    del outputs
    return kept


def kept(plan: MemoryPlan) -> int:
    return plan.phases["optimizing"]["activations kept for the backward pass"]


@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_activations_are_what_autograd_really_keeps(family_model: str, value: str) -> None:
    """Counted on a model without storage, and on the same one with its weights, in each family."""
    plan = plan_of(AutoConfig.from_pretrained(family_model), value=value, reward=False)
    roles = Roles(load_base(family_model, "fp32"), copy.deepcopy(LORA), value=value)
    assert plan.counted
    assert kept(plan) == pytest.approx(really_kept(roles, 8, 16, 8), rel=0.05)
    trained = sum(p.numel() for _, p in roles.trainable()) * 4
    assert plan.held["optimizer (two moments)"] == 2 * trained
    weights = sum(p.numel() for p in roles.parameters() if not p.requires_grad) * 4
    assert plan.held["base (fp32)"] == weights


# What could not be counted, or was counted wrongly, until it was stood in for: eager attention,
# experts' grouped products, head sizes that differ, masks of hybrids, windows, whole other parts.
SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
       "v_head_dim": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
       "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 16}  # fmt: skip
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
def test_unusual_families_are_counted_exactly(name: str, bf16: bool) -> None:
    config = UNUSUAL[name]()
    plan = plan_of(config, 2, bf16=bf16, reward=False, rollout_batch=2)
    auto: Any = family_of(config).auto
    base = auto.from_config(config, dtype=torch.float32).requires_grad_(False).eval()
    roles = Roles(
        base,
        copy.deepcopy(LORA),
        value="trunk",
        checked=False,
        autocast_dtype=torch.bfloat16 if bf16 else None,
    )
    assert plan.counted, plan.facts
    assert kept(plan) == pytest.approx(really_kept(roles, 2, 16, 8), rel=0.02)

    # And so is what sampling keeps: keys and values, windows of them, states.
    cache, ids = new_cache(base.config, 24), torch.ones((2, 24), dtype=torch.long)
    with torch.no_grad(), roles.precision():
        roles.trunk(
            "policy",
            1,
            input_ids=ids,
            attention_mask=ids,
            past_key_values=cache,
            position_ids=torch.arange(24).expand(2, 24),
            use_cache=True,
        )
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


WIDE = SMALL | {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8}
WIDE_CONFIGS = {
    "llama": LlamaConfig(**WIDE),
    "qwen3": Qwen3Config(**WIDE, head_dim=64),
    "gemma2": Gemma2Config(**WIDE, head_dim=64, sliding_window=64),
    "gpt2": GPT2Config(vocab_size=128, n_embd=256, n_layer=8, n_head=4, n_positions=64),
    "phi": PhiConfig(**WIDE),
    "mixtral": MixtralConfig(**WIDE, num_local_experts=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["trunk", "adapter"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", WIDE_CONFIGS)
def test_an_estimate_is_near_what_is_counted(
    name: str, checkpointing: bool, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = plan_of(WIDE_CONFIGS[name], 4, checkpointing, value=value)
    monkeypatch.setattr(memory, "count_kept", no_count)
    monkeypatch.setattr(memory, "count_cache", no_count)
    estimated = plan_of(WIDE_CONFIGS[name], 4, checkpointing, value=value)
    assert counted.counted and not estimated.counted
    assert estimated.lines()[0] == "estimated from sizes (needs real numbers)"
    assert estimated.held == counted.held
    assert 0.75 < kept(estimated) / kept(counted) < 1.4
    assert 0.75 < estimated.peak / counted.peak < 1.3
    caches = [plan.phases["sampling"]["KV cache"] for plan in (estimated, counted)]
    assert caches[0] == pytest.approx(caches[1], rel=0.01)


def no_count(*args: Any) -> int:
    raise ValueError("needs real numbers")


def test_cache_is_estimated_by_the_kinds_of_layers() -> None:
    """Windows do not grow beyond their size, states not at all."""
    full, slides = LlamaConfig(**SMALL), MistralConfig(**SMALL, sliding_window=6)
    hybrid = Qwen3_5TextConfig(**SMALL, **LINEAR, head_dim=8)
    assert estimate_cache(full, 2, 40, 4) == 2 * estimate_cache(full, 2, 20, 4)
    assert estimate_cache(slides, 2, 40, 4) == estimate_cache(full, 2, 6, 4)
    grown = estimate_cache(hybrid, 2, 40, 4) - estimate_cache(hybrid, 2, 20, 4)
    assert grown == estimate_cache(full, 2, 20, 4) // 2  # one of its two layers has keys


def test_a_model_that_cannot_be_made_is_planned_by_its_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ImportError("needs a package")

    whole = plan_of(MixtralConfig(**SMALL, num_local_experts=4), 4)
    config = Qwen3MoeConfig(**SMALL, num_experts=4, moe_intermediate_size=48, head_dim=8)
    monkeypatch.setattr(transformers.Qwen3MoeForCausalLM, "__init__", broken)
    plan = plan_of(config, 4)
    assert not plan.counted and "needs a package" in plan.facts["kind"]
    assert plan.held["base (fp32)"] == whole.held["base (fp32)"]


def test_experts_are_in_four_bits_and_a_layer_of_them_is_unpacked() -> None:
    config = MixtralConfig(**(WIDE | {"num_hidden_layers": 2}), num_local_experts=8)
    plan, wide = plan_of(config, precision="4bit"), plan_of(config)
    experts = 8 * 3 * 256 * 704  # of a layer
    saved = wide.held["base (fp32)"] - plan.held["base (4bit)"]
    assert saved > 2 * experts * (4 - 0.53)
    assert plan.phases["optimizing"]["the widest layer, dequantized"] == experts * 4
    assert plan.facts["in 4 bits"] == "99 % of the weights" and "in 4 bits" not in wide.facts


def test_a_layer_that_is_recomputed_is_held_whole() -> None:
    config = WIDE_CONFIGS["gpt2"]
    whole, again = plan_of(config), plan_of(config, checkpointing=True)
    at_work = again.phases["optimizing"]["one layer at work"]
    assert at_work == pytest.approx(kept(whole) / 8, rel=0.05)


@pytest.mark.slow
def test_eight_billion_parameters_are_planned_in_a_moment_and_need_four_bits() -> None:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        max_position_embeddings=8192,
    )
    sizes = {
        "prompt_length": 512,
        "response_length": 128,
        "rollout_batch": 16,
        "bf16": True,
        "device": "cuda",
    }
    quantized = plan_of(config, 2, True, precision="4bit", **sizes)
    whole = plan_of(config, 2, True, precision="bf16", **sizes)
    assert 8.0e9 < float(quantized.facts["base"].split()[0].replace(",", "")) < 8.1e9
    assert 5.2e9 < quantized.held["base (4bit)"] < 6.0e9
    assert whole.held["base (bf16)"] == pytest.approx(2 * 8.03e9, rel=0.01)
    assert quantized.peak < 24 * 2**30


@pytest.mark.slow
def test_checkpointing_and_smaller_passes_need_less() -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=256,
    )
    whole, recomputed, half = plan_of(config), plan_of(config, 8, True), plan_of(config, 4)
    assert kept(recomputed) < kept(whole) / 3
    assert kept(half) == pytest.approx(kept(whole) / 2, rel=0.02)


@pytest.mark.slow
def test_what_would_fit_is_said() -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        vocab_size=256,
    )
    plan = partial(plan_of, config)
    room = plan(4, False).peak + 1
    assert "per_device_train_batch_size: 4" in what_fits(plan, 16, room)
    config.num_hidden_layers = 12
    tight = partial(plan_of, config, prompt_length=64, rollout_batch=1)
    assert "gradient_checkpointing" in what_fits(tight, 64, tight(1, False).peak - 1)
    assert "no micro-batch" in what_fits(plan, 4, 1000)


@pytest.mark.slow
def test_a_run_that_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=256,
    )
    monkeypatch.setattr("toolkit.models.memory.available_memory", lambda device: (MIB, "a toy"))
    with pytest.raises(InputError, match=re.escape("a toy has 1 free")):
        check_memory(lambda: partial(plan_of, config), 8, False, "cpu")


def test_a_family_that_cannot_be_planned_is_warned_of() -> None:
    def planner() -> None:
        raise ValueError("needs real numbers")

    with pytest.warns(UserWarning, match="no memory plan for this model: needs real numbers"):
        check_memory(planner, 8, False, "cpu")


def test_an_estimate_that_does_not_fit_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "count_kept", no_count)
    monkeypatch.setattr(memory, "available_memory", lambda device: (MIB, "a toy"))
    planner = partial(plan_of, LlamaConfig(**SMALL))
    with pytest.warns(UserWarning, match="a toy has 1 free.*estimated from sizes"):
        check_memory(lambda: planner, 8, False, "cpu")


def test_a_wrong_argument_is_no_want_of_a_plan() -> None:
    lora = lora_config(8, 16, "no_such_layer", "CAUSAL_LM")
    planner = partial(plan_of, LlamaConfig(**SMALL), lora=lora)
    with pytest.raises(InputError, match="no_such_layer"):
        check_memory(lambda: planner, 8, False, "cpu")


@pytest.mark.parametrize("name", LIBRARY_CHECKS)
def test_canaries_sing_here(name: str) -> None:
    assert LIBRARY_CHECKS[name]() is None


def test_a_canary_dies_of_what_it_watches_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.models import actors

    monkeypatch.setattr(
        actors, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand(mask.shape)
    )
    assert "left-padded" in (LIBRARY_CHECKS["padding on the left"]() or "")
    assert "captured" in (LIBRARY_CHECKS["captured log-probs"]() or "")
