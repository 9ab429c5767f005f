"""Experts in 4 bits: exact values and gradients, little kept, and LoRA beside them."""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from toolkit.models.experts import (
    _Packed,
    expert_parameters,
    experts_in_4bit,
    quantize_experts,
    share_in_4bit,
    untrained_parts,
)
from toolkit.models.families import HEADS
from toolkit.models.loading import cure_cpu_repacking
from toolkit.models.lora_targets import linear_targets
from toolkit.models.quantized import four_bit_config
from toolkit.models.roles import Roles

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64,
    "initializer_range": 0.2, "num_experts_per_tok": 2, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": 1,
}  # fmt: skip
MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
       "v_head_dim": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
# Of 8 experts' weights, 18432 and more, no expert's begin where a block of scales does.
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SMALL, head_dim=16, num_experts=8, moe_intermediate_size=36)
    ),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=8)),
    "gpt_oss": lambda: GptOssForCausalLM(
        GptOssConfig(**SMALL, head_dim=16, num_local_experts=8, rope_parameters=None)
    ),
    "deepseek_v3": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL, **MLA, n_routed_experts=8, n_shared_experts=1, moe_intermediate_size=36
        )
    ),
    "llama4": lambda: Llama4ForCausalLM(
        Llama4TextConfig(
            **(SMALL | {"num_experts_per_tok": 1}),
            intermediate_size_mlp=48,
            head_dim=16,
            num_local_experts=8,
            attention_chunk_size=8,
            moe_layers=[1],
        )
    ),
}
IDS = torch.arange(2, 26).reshape(2, 12)


def new(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for parameter in model.parameters():  # some families begin with experts or routers at zero
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False).eval()


def pair(family: str, implementation: str | None = None) -> tuple[Any, Any]:
    """A model whose experts are in 4 bits, and one with their unpacked values in fp32."""
    wide = new(family)
    if implementation:
        wide.set_experts_implementation(implementation)
    four = copy.deepcopy(wide)
    places = expert_parameters(wide)
    packed = expert_parameters(four)
    assert quantize_experts(four, torch.float32) == len(places) > 0
    for (module, name), (twin, _) in zip(places, packed, strict=True):
        weight = getattr(module, name)
        values = getattr(twin, name)
        assert values.shape == weight.shape and not torch.equal(values, weight)
        weight.data = values.clone()
    return wide, four


def with_lora(model: Any, targets: Any = None) -> Any:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=targets or linear_targets(model))
    model = get_peft_model(model, config).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def gradients(model: Any, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = logits(model)
    out.float().logsumexp(-1).mean().backward()
    return out.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def bytes_kept(model: Any, autocast: bool = False) -> int:
    """What autograd keeps of a pass beside the parameters, each storage once."""
    held = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # else a storage that ends makes room for one of the same address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with (
        saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        logits(model)
    return sum(sizes.values())


WAYS = [
    ("qwen3_moe", "grouped_mm"), ("qwen3_moe", "eager"), ("qwen3_moe", "batched_mm"),
    ("gpt_oss", "grouped_mm"), ("gpt_oss", "eager"), ("llama4", None),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fp32", "autocast", "checkpointing", "reentrant"])
@pytest.mark.parametrize(("family", "implementation"), WAYS)
def test_values_and_gradients_are_those_of_the_unpacked_weights(
    family: str, implementation: str | None, mode: str
) -> None:
    found = []
    for base in pair(family, implementation):
        model = with_lora(base)
        with torch.no_grad():  # as sampling does
            logits(model)
        if mode in ("checkpointing", "reentrant"):
            base.activation_checkpointing_enable({"use_reentrant": mode == "reentrant"})
            base.enable_input_require_grads()
            model.train()
        found.append(gradients(model, mode == "autocast"))
    (wide_out, wide), (four_out, four) = found
    assert torch.equal(wide_out, four_out)
    assert wide and wide.keys() == four.keys()
    for name in wide:
        assert wide[name].abs().max() > 0
        assert torch.allclose(wide[name], four[name], rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("family", "implementation"), WAYS)
def test_autograd_keeps_no_unpacked_weight(
    family: str, implementation: str | None, autocast: bool
) -> None:
    wide, four = pair(family, implementation)
    plain = copy.deepcopy(wide)
    # A wide model's weights are parameters, which are held anyway; only autocast copies them.
    wide_kept, four_kept = (bytes_kept(with_lora(m), autocast) for m in (wide, four))
    assert four_kept <= wide_kept
    if implementation == "batched_mm":
        return  # keeps a copy of the experts of each token, packed or not
    unpacked = 0
    for module, name in expert_parameters(plain):
        unpacked += getattr(module, name).nbytes
        replace_parameter_4bit(module, name, compress_statistics=True, quant_type="nf4")
    floor = unpacked // 4 if autocast else unpacked  # rounded, and of some experts no token came
    assert bytes_kept(with_lora(plain), autocast) >= four_kept + floor


def test_under_checkpointing_nothing_of_a_layer_is_kept() -> None:
    sizes = []
    for base in pair("qwen3_moe"):
        model = with_lora(base)
        base.activation_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
        model.train()
        packed: list[Tensor] = []

        def pack(tensor: Tensor, packed: list[Tensor] = packed) -> Tensor:
            packed.append(tensor)
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            logits(model)
        sizes.append(sum(t.nbytes for t in packed))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("shape", [(8, 72, 32), (3, 10, 7), (3, 5, 7), (5, 130, 131)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_piece_is_the_whole_weights_to_the_last_bit(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TinyExperts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(shape), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x @ self.weight[e].t() for e in range(shape[0])])

    experts = TinyExperts()
    assert quantize_experts(experts, dtype) == 1
    weight = experts.weight
    assert weight.dtype == dtype and torch.equal(weight, experts.weight)
    x = torch.randn(2, shape[2], dtype=dtype, requires_grad=True)
    gradient = torch.randn(shape[0], 2, shape[1], dtype=dtype)
    out = experts(x)
    sizes = []

    def counted(held: _Packed, packed: Tensor, start: int, stop: int) -> Tensor:
        sizes.append(stop - start)
        return piece(held, packed, start, stop)

    piece = _Packed.piece
    monkeypatch.setattr(_Packed, "piece", counted)
    (ours,) = torch.autograd.grad(out, x, gradient)
    assert len(sizes) == shape[0]  # no more of each expert than it takes, in blocks of 16384
    assert max(sizes) <= min(shape[1] * shape[2] + 2 * 16384, math.prod(shape))
    every = torch.stack([x @ weight[e].t() for e in range(shape[0])])
    (theirs,) = torch.autograd.grad(every, x, gradient)
    assert torch.equal(ours, theirs)


def load_in_4bit(folder: Path, around: AbstractContextManager[None]) -> Any:
    quantization = four_bit_config(torch.float32, list(HEADS))
    with around:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            quantization_config=quantization,
            device_map={"": "cpu"},
            output_loading_info=True,
        )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    cure_cpu_repacking(model)
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4"])
def test_experts_quantized_while_loaded_are_those_quantized_after(
    family: str, tmp_path: Path
) -> None:
    new(family).save_pretrained(tmp_path)
    during = load_in_4bit(tmp_path, experts_in_4bit())
    after = load_in_4bit(tmp_path, nullcontext())
    assert not expert_parameters(during) and expert_parameters(after)
    before = share_in_4bit(after)
    assert quantize_experts(during, torch.float32) == quantize_experts(after, torch.float32) > 0
    assert quantize_experts(after, torch.float32) == 0
    assert torch.equal(logits(during), logits(after))
    assert share_in_4bit(during) == share_in_4bit(after) != before


def test_the_share_is_counted() -> None:
    model = new("mixtral")
    assert share_in_4bit(model).startswith("experts: 0 % of the weights are in 4 bits")
    experts = sum(getattr(module, name).numel() for module, name in expert_parameters(model))
    share = 100 * experts / sum(p.numel() for p in model.parameters())
    quantize_experts(model, torch.float32)
    assert share_in_4bit(model).startswith(f"experts: {share:.0f} % of the weights are in 4 bits")


def test_a_copy_is_its_own_and_scales_move_with_the_weights() -> None:
    _, four = pair("qwen3_moe")
    before = logits(four)
    twin = copy.deepcopy(four)
    experts = twin.model.layers[0].mlp.experts
    assert experts.forward.__self__ is experts
    experts.parametrizations.down_proj.original.zero_()
    assert torch.equal(logits(four), before) and not torch.equal(logits(twin), before)
    assert four.dtype == torch.float32 and isinstance(
        four.model.layers[0].mlp.experts, type(new("qwen3_moe").model.layers[0].mlp.experts)
    )
    experts.to("meta")
    state = experts.parametrizations.down_proj[0].quant_state
    assert {state.absmax.device.type, state.state2.absmax.device.type} == {"meta"}
    assert experts.down_proj.device.type == "meta"


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_the_same_on_wide_and_packed_experts(family: str, tmp_path: Path) -> None:
    wide, four = pair(family)
    targets = linear_targets(wide)
    assert targets == linear_targets(four) and untrained_parts(wide) == untrained_parts(four)
    outs = []
    for folder, base in (("wide", wide), ("four", four)):
        model = with_lora(copy.deepcopy(base))
        assert not any(isinstance(module, ParamWrapper) for module in model.modules())
        model.save_pretrained(tmp_path / folder)
        outs.append(logits(model).detach())
    files = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("wide", "four")]
    assert files[0].keys() == files[1].keys() and len(files[0]) == 2 * len(targets)
    assert all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    reloaded = PeftModel.from_pretrained(wide, tmp_path / "four")
    assert torch.equal(outs[0], outs[1]) and torch.equal(logits(reloaded), outs[0])


def test_linear_targets_are_all_but_experts_routers_and_what_peft_takes_for_them() -> None:
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    dense = {"gate_proj", "up_proj", "down_proj"}
    names = {
        "qwen3_moe": attention,
        "mixtral": attention,
        "gpt_oss": attention,
        "deepseek_v3": {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
        "llama4": attention | dense,
    }
    for family, expected in names.items():
        model = new(family)
        assert {path.rpartition(".")[2] for path in linear_targets(model)} == expected
        assert not set(linear_targets(model)) & set(untrained_parts(model))
    model = new("llama4")
    assert "model.layers.1.feed_forward.router" in untrained_parts(model)
    dense_model = LlamaForCausalLM(LlamaConfig(**SMALL))
    assert untrained_parts(dense_model) == [] and len(linear_targets(dense_model)) == 14


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_canary_all_linear_means_experts_on_wide_weights_alone() -> None:
    wrapped = []
    for base in pair("qwen3_moe"):
        model = with_lora(base, "all-linear")
        layers = [path for path, m in model.named_modules() if isinstance(m, ParamWrapper)]
        wrapped.append({path.rpartition(".")[2] for path in layers})
    assert wrapped == [{"gate", "experts", "base_layer"}, {"gate"}]


def test_roles_take_turns_on_packed_experts() -> None:
    outs = []
    for base in pair("qwen3_moe"):
        torch.manual_seed(1)
        lora = LoraConfig(r=2, target_modules=linear_targets(base))
        roles = Roles(base, lora, value="adapter")
        for name, parameter in roles.named_parameters():
            if ".lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
        mask = torch.ones_like(IDS, dtype=torch.bool)
        policy = roles.policy_outputs(IDS, mask, IDS[:, -4:], 0.7)
        policy.logprobs.sum().backward()
        with torch.no_grad():
            reference = roles.reference_logprobs(IDS, mask, IDS[:, -4:], 0.7)
        assert not torch.equal(reference, policy.logprobs)
        found = {n: p.grad for n, p in roles.trainable() if p.grad is not None}
        outs.append((policy.logprobs.detach(), reference, found))
    (wide, wide_reference, wide_grads), (four, four_reference, four_grads) = outs
    assert torch.equal(wide, four) and torch.equal(wide_reference, four_reference)
    assert wide_grads and all(".policy." in name for name in wide_grads)
    for name in wide_grads:
        assert torch.allclose(wide_grads[name], four_grads[name], rtol=1e-6, atol=1e-7), name
