"""Quantized checkpoints: what loads is what the file says, held against it dequantized by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaPreTrainedModel,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from toolkit.errors import InputError
from toolkit.maths.sequences import pad
from toolkit.models.adapters import lora_config
from toolkit.models.generation import draw_uniforms, sample
from toolkit.models.loading import cure_cpu_repacking, load_base
from toolkit.models.quantized import check_quantized, hold_plain_scales, unpacked
from toolkit.models.roles import Roles

IDS = torch.arange(2, 22).reshape(2, 10)
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FP4 = torch.cat([FP4, -FP4])
TINY = {
    "vocab_size": 64,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "head_dim": 32,
}
LOADED = {"bitsandbytes_4bit", "bitsandbytes_8bit", "fp8", "mxfp8", "mxfp4"}


def load(folder: Path, precision: str, auto: Any = AutoModelForCausalLM, **kwargs: Any) -> Any:
    """A model as ``load_base`` loads it on a CPU."""
    held = check_quantized(AutoConfig.from_pretrained(folder, **kwargs), precision)
    assert held is not None
    model = auto.from_pretrained(folder, device_map={"": "cpu"}, **held.arguments(torch.float32))
    cure_cpu_repacking(model)
    held.settle(model, torch.float32)
    return model.eval()


def logits_and_gradient(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    inputs = model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=inputs).logits
    logits.logsumexp(-1).sum().backward()
    return logits.detach(), inputs.grad


def save_bitsandbytes(demo_model: str, folder: Path, dtype: torch.dtype, **settings: Any) -> None:
    quantization = BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.bfloat16, **settings)
    model = AutoModelForCausalLM.from_pretrained(
        demo_model, dtype=dtype, quantization_config=quantization, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)


def by_hand(folder: Path) -> dict[str, Tensor]:
    """The weights of a bitsandbytes checkpoint, from its tensors alone."""
    saved, weights = load_file(folder / "model.safetensors"), {}
    for name in [n for n in saved if n.endswith(".weight")]:
        scales = saved.get(f"{name}.absmax")
        if f"{name.removesuffix('weight')}SCB" in saved:
            rows = saved[f"{name.removesuffix('weight')}SCB"][:, None]
            weights[name] = saved[name].float() * rows / 127
        elif scales is None:
            weights[name] = saved[name].float()
        else:
            (state,) = [saved[n] for n in saved if n.startswith(f"{name}.quant_state")]
            facts = json.loads(bytes(state.tolist()))
            if f"{name}.nested_absmax" in saved:
                outer = saved[f"{name}.nested_absmax"].repeat_interleave(facts["nested_blocksize"])
                codes = saved[f"{name}.nested_quant_map"][scales.long()]
                scales = codes * outer[: len(codes)] + facts["nested_offset"]
            packed = saved[name].view(torch.uint8).flatten()
            places = torch.stack([packed >> 4, packed & 15], -1).flatten().long()
            values = saved[f"{name}.quant_map"][places]
            wide = scales.repeat_interleave(facts["blocksize"])
            weights[name] = (values * wide).reshape(facts["shape"])
    return weights


def reference(folder: Path, weights: dict[str, Tensor]) -> PreTrainedModel:
    """The model of these weights in fp32."""
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    return model.eval()


BITS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_quant_storage": torch.bfloat16,
    },
}


@pytest.mark.parametrize("kind", BITS)
def test_four_bits_are_taken_as_saved(demo_model: str, tmp_path: Path, kind: str) -> None:
    save_bitsandbytes(demo_model, tmp_path, torch.bfloat16, **BITS[kind])
    expected = logits_and_gradient(reference(tmp_path, by_hand(tmp_path)))
    model = load(tmp_path, "4bit")
    assert model.is_loaded_in_4bit
    for got, want in zip(logits_and_gradient(model), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(load(tmp_path / "again", "4bit")(IDS).logits, model(IDS).logits)
    held = check_quantized(AutoConfig.from_pretrained(tmp_path), "4bit")
    assert held and held.note == (
        f"the checkpoint is in {kind.upper()} (bitsandbytes): kept as it is"
    )


def save_with(folder: Path, weights: dict[str, Tensor], **settings: Any) -> None:
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))


def save_fp8(folder: Path, method: str = "fp8", block: tuple[int, int] = (32, 32)) -> Path:
    """Turn a saved model's matrices to FP8 in these blocks; the folder of what they now mean."""
    saved, weights = load_file(folder / "model.safetensors"), {}
    plain = shutil.copytree(folder, folder.with_name(f"{folder.name}-plain"))
    for name, weight in list(saved.items()):
        if "_proj" not in name:
            weights[name] = weight
            continue
        (rows, columns), (tall, wide) = weight.shape, block
        blocks = weight.reshape(rows // tall, tall, columns // wide, wide)
        scales = blocks.abs().amax((1, 3)) / 448
        if method == "mxfp8":  # a byte for each: the exponent of 2
            scales = scales.log2().ceil()
            weights[f"{name}_scale_inv"] = (scales + 127).to(torch.uint8)
            scales = scales.exp2()
        else:
            weights[f"{name}_scale_inv"] = scales
        narrow = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        weights[name] = narrow.reshape(rows, columns)
        saved[name] = (narrow.float() * scales[:, None, :, None]).reshape(rows, columns)
    save_file(saved, plain / "model.safetensors", {"format": "pt"})
    save_with(
        folder,
        weights,
        quant_method=method,
        weight_block_size=list(block),
        modules_to_not_convert=["lm_head"],
    )
    return plain


def save_mxfp4(folder: Path) -> Path:
    """Turn a gpt-oss model's experts to MXFP4; the folder of what they now mean."""
    saved, weights = load_file(folder / "model.safetensors"), {}
    plain = shutil.copytree(folder, folder.with_name(f"{folder.name}-plain"))
    for name, weight in list(saved.items()):
        if not name.endswith(("gate_up_proj", "down_proj")):
            weights[name] = weight
            continue
        experts, inner, outer = weight.shape  # the file has blocks of 32 along the inner dimension
        blocks = weight.transpose(1, 2).reshape(experts, outer, inner // 32, 32)
        powers = blocks.abs().amax(-1, keepdim=True).log2().floor() - 2
        codes = (blocks / powers.exp2())[..., None].sub(FP4).abs().argmin(-1)
        weights[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        weights[f"{name}_scales"] = (powers[..., 0] + 127).to(torch.uint8)
        values = (FP4[codes] * powers.exp2()).reshape(experts, outer, inner)
        saved[name] = values.transpose(1, 2).contiguous()
    save_file(saved, plain / "model.safetensors", {"format": "pt"})
    save_with(folder, weights, quant_method="mxfp4")
    return plain


def save_moe(folder: Path) -> None:
    config = Qwen3MoeConfig(**TINY, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=32)
    Qwen3MoeForCausalLM(config).save_pretrained(folder)


def save_gpt_oss(folder: Path) -> None:
    config = GptOssConfig(**TINY, num_local_experts=2, num_experts_per_tok=1)
    GptOssForCausalLM(config).save_pretrained(folder)


@pytest.fixture
def checkpoint(demo_model: str, tmp_path: Path) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """Writes a checkpoint of a kind; its folder, and the model that it stands for."""

    def make(kind: str) -> tuple[Path, PreTrainedModel]:
        folder = tmp_path / kind
        if kind in ("nf4", "8bit"):
            settings = BITS.get(kind, {"load_in_8bit": True})
            save_bitsandbytes(demo_model, folder, torch.bfloat16, **settings)
            return folder, reference(folder, by_hand(folder))
        if kind == "mxfp4":
            save_gpt_oss(folder)
            plain = save_mxfp4(folder)
        else:
            save_moe(folder) if kind == "moe" else shutil.copytree(demo_model, folder)
            plain = save_fp8(folder, "mxfp8", (1, 32)) if kind == "mxfp8" else save_fp8(folder)
        return folder, AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()

    return make


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "8bit", "fp8", "moe", "mxfp8", "mxfp4"])
def test_dequantized_is_what_the_file_says_and_saves_so(
    checkpoint: Callable[..., Any], kind: str
) -> None:
    folder, wanted = checkpoint(kind)
    model, expected = load(folder, "fp32"), wanted(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert not getattr(model, "is_loaded_in_4bit", False)
    assert not hasattr(model.config, "_is_quantized")
    model.save_pretrained(folder.with_name("saved"))
    again = AutoModelForCausalLM.from_pretrained(folder.with_name("saved"), dtype=torch.float32)
    torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    narrow = load(folder, "bf16")
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}


def test_what_a_family_keeps_in_fp32_stays_so(
    checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaPreTrainedModel, "_keep_in_fp32_modules_strict", {"layernorm"})
    layer = load(checkpoint("fp8")[0], "bf16").model.layers[0]
    assert layer.input_layernorm.weight.dtype == torch.float32
    assert layer.mlp.up_proj.weight.dtype == torch.bfloat16


def test_a_new_score_head_is_not_quantized_with_the_blocks(demo_model: str, tmp_path: Path) -> None:
    skipped = ["lm_head", "multi_modal_projector"]
    save_bitsandbytes(
        demo_model, tmp_path, torch.float32, load_in_4bit=True, llm_int8_skip_modules=skipped
    )
    model = load(tmp_path, "4bit", AutoModelForSequenceClassification, num_labels=1)
    assert type(model.score) is nn.Linear


@pytest.mark.parametrize(
    ("architecture", "skipped", "head"),
    [
        ("LlamaForCausalLM", ["score"], "lm_head"),
        ("LlamaForSequenceClassification", ["lm_head"], "score"),
    ],
)
def test_a_quantized_head_is_refused(architecture: str, skipped: list[str], head: str) -> None:
    settings = {"load_in_4bit": True, "llm_int8_skip_modules": skipped}
    config = AutoConfig.for_model(
        "llama", architectures=[architecture], quantization_config=settings
    )
    with pytest.raises(InputError, match=f"its output head too: .* lacks {head}"):
        check_quantized(config, "4bit")


@pytest.mark.parametrize(
    "method", [*sorted({*AUTO_QUANTIZER_MAPPING} - LOADED), "modelopt", "bitsandbytes", None]
)
def test_other_methods_are_refused_by_name(method: str | None) -> None:
    config = AutoConfig.for_model("llama", quantization_config={"quant_method": method, "bits": 4})
    for precision in ("4bit", "bf16"):
        with pytest.raises(InputError, match=rf"\({method or 'no quant_method'}\).*unquantized"):
            check_quantized(config, precision)


QUANTISED_AGAIN = [
    ({"quant_method": "fp8"}, "in FP8, which 4bit would .* --precision bf16"),
    ({"quant_method": "mxfp4"}, "in MXFP4, which 4bit would .* --precision bf16"),
    ({"load_in_8bit": True}, "in 8 bits .* which 4bit would .* --precision bf16"),
]


@pytest.mark.parametrize(("settings", "message"), QUANTISED_AGAIN)
def test_nothing_is_quantized_twice(settings: dict, message: str) -> None:
    inner = {"quantization_config": settings}
    for config in ({"model_type": "llama"} | inner, {"model_type": "gemma3", "text_config": inner}):
        with pytest.raises(InputError, match=message) as caught:
            check_quantized(config, "4bit")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [192, 160])  # 96 and 96 for 128 and 64; 80 and 80 for 128 and 32
def test_fp8_blocks_that_do_not_divide_a_weight_are_refused(size: int) -> None:
    config = AutoConfig.for_model(
        "llama", **TINY | {"intermediate_size": size}, quantization_config={"quant_method": "fp8"}
    )
    with pytest.raises(InputError, match=r"do not divide model.layers.0.mlp.gate_proj"):
        check_quantized(config, "bf16")
    config.quantization_config["modules_to_not_convert"] = ["lm_head", "model.layers.0.mlp"]
    assert check_quantized(config, "bf16")


def test_settings_of_the_text_model_are_found_and_moved() -> None:
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    config = AutoConfig.for_model("gemma3", text_config={"quantization_config": settings})
    held = check_quantized(config, "4bit")
    assert held is not None
    used = held.arguments(torch.bfloat16)["config"]
    held.arguments(torch.float32)
    assert used.quantization_config["bnb_4bit_compute_dtype"] == "bfloat16"
    assert not hasattr(used.text_config, "quantization_config")
    assert config.text_config.quantization_config == settings  # of the caller


def test_others_load_as_ever(demo_model: str) -> None:
    config = AutoConfig.from_pretrained(demo_model)
    assert check_quantized(config, "4bit") is None
    assert check_quantized(config.to_dict(), "4bit") is None


def test_fp8_of_a_model_with_several_parts_is_judged_by_its_own_class() -> None:
    """AutoModelForCausalLM does not know Qwen3-VL, whose checkpoints come in FP8 too."""
    text = {
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "vocab_size": 64,
    }
    vision = {
        "depth": 1,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_heads": 1,
        "out_hidden_size": 128,
        "deepstack_visual_indexes": [0],
    }
    fp8 = {"quant_method": "fp8", "modules_to_not_convert": ["visual"]}
    config = AutoConfig.for_model(
        "qwen3_vl", text_config=text, vision_config=vision, quantization_config=fp8
    )
    held = check_quantized(config, "bf16")
    assert held is not None and held.note == "the checkpoint is in FP8: dequantized to bf16"


def test_scales_in_fp32_leave_the_weights_as_they_are(demo_model: str) -> None:
    """Bit for bit, and so logits and gradients; without double quantization they would differ."""
    nested, plain = (load_base(demo_model, "4bit", plain_scales=said) for said in (False, True))
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(nested(ids).logits, plain(ids).logits)

    pairs = [
        (a, b)
        for a, b in zip(nested.parameters(), plain.parameters(), strict=True)
        if isinstance(a, bnb.nn.Params4bit)
    ]
    assert len(pairs) > 10
    for a, b in pairs:
        assert a.quant_state.nested and not b.quant_state.nested
        whole = dequantize_4bit(a.data, a.quant_state)
        assert torch.equal(whole, dequantize_4bit(b.data, b.quant_state))
        single, state = quantize_4bit(whole, quant_type="nf4", compress_statistics=False)
        assert state.absmax.dtype == b.quant_state.absmax.dtype == torch.float32
        assert b.quant_state.absmax.shape == state.absmax.shape
    assert hold_plain_scales(plain) == 0 and hold_plain_scales(nested) == len(pairs)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_unpacked_base_multiplies_with_the_same_weights(
    demo_model: str, compute: torch.dtype
) -> None:
    base = load_base(demo_model, "4bit")
    layers = [module for module in base.modules() if isinstance(module, bnb.nn.Linear4bit)]
    for layer in layers:
        layer.compute_dtype = compute
    ids = torch.arange(5, 29).view(2, 12)

    def logits() -> Tensor:
        with torch.no_grad():
            return base(input_ids=ids).logits

    packed = logits()
    with unpacked(base):
        inside = logits()
        assert all("forward" in vars(layer) for layer in layers) and layers
    tolerance = 1e-4 if compute == torch.float32 else 5e-2
    assert torch.allclose(inside, packed, rtol=0, atol=tolerance)
    assert not any("forward" in vars(layer) for layer in layers)
    assert torch.equal(logits(), packed)


def test_completions_of_an_unpacked_base_are_the_same(demo_model: str) -> None:
    roles = Roles(load_base(demo_model, "4bit"), lora_config(4, 8, "all-linear", "CAUSAL_LM"))
    ids, mask = pad([[5, 6, 7, 8], [9, 10]], 0, "left")
    noise = draw_uniforms(2, 12, torch.Generator().manual_seed(0))
    drawn = []
    for roles.unpacks in (False, True):
        drawn.append(sample(roles.step(), ids, mask, noise, 0.7, 0))
    assert torch.equal(drawn[0].completion_ids, drawn[1].completion_ids)
    assert (drawn[0].logprobs - drawn[1].logprobs).abs().max() < 1e-4
