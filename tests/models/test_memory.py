"""The memory plan: counted, not guessed."""

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MixtralConfig, Qwen3Config

from tests.models.conftest import (
    PLANNED,
    WIDE,
    WIDE_CONFIGS,
    kept,
    passage_of,
    plan_of,
    really_alive,
)
from toolkit.models import memory
from toolkit.models.adapters import lora_config
from toolkit.models.roles import Roles


def test_experts_are_in_four_bits_and_a_layer_of_them_is_unpacked() -> None:
    config = MixtralConfig(**(WIDE | {"num_hidden_layers": 2}), num_local_experts=8)
    plan, wide = plan_of(config, precision="4bit"), plan_of(config)
    experts = 8 * 3 * 256 * 704  # of a layer
    saved = wide.held["base (fp32)"] - plan.held["base (4bit)"]
    assert saved > 2 * experts * (4 - 0.53)
    assert plan.phases["optimizing"]["the widest layer, dequantized"] == experts * 4
    assert plan.facts["in 4 bits"] == "99 % of the weights" and "in 4 bits" not in wide.facts


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("bf16", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("layers", [4, 16])
def test_the_peak_of_a_pass_is_what_the_allocator_reports(
    layers: int, precision: str, bf16: bool, checkpointing: bool
) -> None:
    """Forward and backward pass, with padding and grouped heads, against torch's own allocator."""
    grouped = {"num_attention_heads": 8, "num_key_value_heads": 2}
    config = LlamaConfig(**WIDE | grouped | {"num_hidden_layers": layers, "vocab_size": 2048})
    plan = plan_of(
        config,
        checkpointing=checkpointing,
        precision=precision,
        bf16=bf16,
        value="adapter",
        prompt_length=48,
        response_length=16,
    )

    weights = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    base = LlamaForCausalLM(config).to(weights).requires_grad_(False).eval()
    autocast = torch.bfloat16 if bf16 else None
    roles = Roles(base, PLANNED, value="adapter", checked=False, autocast_dtype=autocast)
    if checkpointing:
        roles.use_checkpointing()
    for _, parameter in roles.trainable():
        parameter.grad = torch.zeros_like(parameter)  # planned by itself
    ids, mask = passage_of(8, 64)

    def step() -> None:
        with roles.optimizing():
            roles.policy_outputs(ids, mask, ids[:, -16:], 1.0).logprobs.sum().backward()

    planned = sum(plan.phases["optimizing"].values()) - plan.phases["optimizing"]["gradients"]
    assert planned == pytest.approx(really_alive(step), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_a_pass_over_text_is_planned_as_the_allocator_reports_it(checkpointing: bool) -> None:
    """It reads every token, in rows longer than an episode; PPO's gradients are held beside it."""
    config = LlamaConfig(**WIDE | {"num_hidden_layers": 3, "vocab_size": 2048})
    options: dict[str, Any] = {"prompt_length": 12, "response_length": 8, "value": "adapter"}
    assert "learning from text" not in plan_of(config, **options).phases
    plan = plan_of(config, checkpointing=checkpointing, text_length=64, **options)
    assert plan.hungriest == "learning from text"
    assert plan.needs("optimizing") < plan.needs("optimizing", "learning from text") == plan.peak

    base = LlamaForCausalLM(config).requires_grad_(False).eval()
    roles = Roles(base, PLANNED, value="adapter", checked=False)
    if checkpointing:
        roles.use_checkpointing()
    for _, parameter in roles.trainable():
        parameter.grad = torch.zeros_like(parameter)
    ids, mask = passage_of(8, 64)

    def step() -> None:
        with roles.optimizing():
            roles.logprobs("policy", ids, mask, ids[:, 1:], 1.0).sum().backward()

    phase = plan.phases["learning from text"]
    planned = sum(phase.values()) - phase["gradients"] - phase["PPO's gradients, set aside"]
    assert planned == pytest.approx(really_alive(step), rel=0.03)
    policy = sum(p.numel() for name, p in roles.trainable() if ".policy." in name)
    assert phase["PPO's gradients, set aside"] == 4 * policy


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDE_CONFIGS)
def test_a_plan_changes_nothing_of_what_it_is_given(name: str) -> None:
    config = copy.deepcopy(WIDE_CONFIGS[name])
    lora = lora_config(8, 16, "all-linear", "CAUSAL_LM")
    before = config.to_dict(), config._attn_implementation, lora.to_dict()
    plan_of(config, 2, True, lora=lora, precision="4bit")
    assert (config.to_dict(), config._attn_implementation, lora.to_dict()) == before


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
def test_scales_in_fp32_take_what_is_said() -> None:
    config = LlamaConfig(**WIDE)
    nested, plain = (
        plan_of(config, 2, precision="4bit", plain_scales=said) for said in (False, True)
    )
    weights = 8 * (256 * 704 * 3 + 256 * 256 * 2 + 256 * 128 * 2)  # of linear layers
    more = weights // 64 * 4 - (weights // 64 + weights // (64 * 256) * 4)
    assert nested.plain_scales == pytest.approx(more, rel=0.01) and plain.plain_scales == 0
    assert plain.peak - nested.peak == pytest.approx(nested.plain_scales, abs=2)


@pytest.mark.slow
def test_a_base_that_is_rounded_is_held_whole_while_it_is_loaded() -> None:
    config = LlamaConfig(**WIDE | {"vocab_size": 2048})
    plan = plan_of(config, 1, True, rollout_batch=1, bf16=True)
    weights = float(plan.facts["base"].split()[0].replace(",", ""))
    assert plan.hungriest == "loading" and plan.peak == 4 * weights
    assert "loading" not in plan_of(config, 1, True, rollout_batch=1).phases


def test_only_what_was_not_counted_before_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, ...]] = []
    count = memory.count_kept

    def count_kept(roles: Roles, *sizes: int) -> Any:
        counted.append((len(roles.language_models()), *sizes))
        return count(roles, *sizes)

    monkeypatch.setattr(memory, "count_kept", count_kept)
    config = LlamaConfig(**WIDE | {"num_hidden_layers": 2})
    first = plan_of(config, 2)
    assert plan_of(copy.deepcopy(config), 2) == first and len(counted) == 1
    for other in ({"precision": "bf16"}, {"value": "adapter"}, {"bf16": True}):
        assert plan_of(config, 2, **other) != first
    assert plan_of(LlamaConfig(**WIDE | {"num_hidden_layers": 3}), 2) != first
    assert plan_of(config, 3) != first and len(counted) == 6


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("precision", ["fp32", "4bit"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "sliding"])
def test_layers_that_are_alike_need_not_all_be_counted(
    name: str, precision: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = WIDE | {"num_hidden_layers": 11, "num_key_value_heads": 2}
    config = {
        "llama": LlamaConfig(**sizes),
        "qwen3": Qwen3Config(**sizes, head_dim=64),
        "sliding": MistralConfig(**sizes, sliding_window=6),
    }[name]
    options = {"precision": precision, "value": "adapter", "reward": True}
    few = plan_of(config, 8, checkpointing, **options)
    monkeypatch.setattr(memory, "ALIKE", ())
    all_layers = plan_of(config, 8, checkpointing, **options)
    assert few.facts == all_layers.facts and few.phases == all_layers.phases
    assert few.peak == pytest.approx(all_layers.peak, abs=20)  # bytes of scales are rounded
