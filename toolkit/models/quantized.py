"""Checkpoints that are saved quantized: which of them load exactly, and how, by the config alone.

transformers puts config.json above its arguments. What it then does was measured, with 5.23 on a
CPU, against the files' tensors dequantized by hand:

    bitsandbytes, 4 bits    exact, after ``Quantized.settle``
    bitsandbytes, 8 bits    also rounds activations (logits off by 1%, gradients by 2%); exact if
                            dequantized
    fp8, mxfp8, mxfp4       dequantized exactly (Llama, Qwen3-MoE, DeepSeek-V3, Mixtral; gpt-oss);
                            FP8 only if its blocks divide the weights, else silently wrong

All others need a package, a GPU or a kernel that this toolkit is not tested with. transformers
ignores a method that it does not know (NVIDIA's modelopt): the weights come without scales.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_blockwise
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    FineGrainedFP8Config,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from toolkit.errors import InputError
from toolkit.models.families import HEADS, LANGUAGE_HEADS, SCORE_HEAD, empty_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FOUR_BIT_TYPES = ("nf4", "fp4")


Settings = dict[str, Any]  # a config, or its quantization_config, as JSON holds it


@dataclass(frozen=True)
class Quantized:
    """A quantized checkpoint that loads exactly, and how.

    Attributes:
        config: the model's config, with the quantization to load it with.
        kind: the kind of quantization, for messages.
        precision: "4bit" to keep it as saved; "bf16" or "fp32" to dequantize it.
    """

    config: PreTrainedConfig
    kind: str
    precision: str

    @property
    def note(self) -> str:
        """A line on what is loaded."""
        how = "kept as it is" if self.precision == "4bit" else f"dequantized to {self.precision}"
        return f"the checkpoint is in {self.kind}: {how}"

    def arguments(self, compute: torch.dtype) -> Settings:
        """Return config and dtype for ``from_pretrained``.

        ``quantization_config`` is not among them: for bitsandbytes transformers would ignore it,
        and None would remove the checkpoint's own (the bytes would then be read as weights).
        """
        config, dtype = copy.deepcopy(self.config), DTYPES.get(self.precision, compute)
        settings: Any = config.quantization_config
        if settings["quant_method"] == "bitsandbytes":
            settings["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
        return {"config": config, "dtype": dtype}

    def settle(self, model: PreTrainedModel, compute: torch.dtype) -> None:
        """Make a loaded model as close as possible to what it would be without quantization.

        transformers leaves the weights beside quantized ones (embedding, norms) in the file's type.
        bitsandbytes dequantizes to the type of quantization time in the backward pass, but not in
        the forward pass (gradients are off by 0.2% if that type is bf16). And what was dequantized
        would be saved under the file's names, partly quantized again, and reload as nonsense.
        """
        dtype = DTYPES.get(self.precision, compute)
        kept: Any = model._keep_in_fp32_modules_strict or ()
        for name, parameter in model.named_parameters():
            packed = isinstance(parameter, (bnb.nn.Params4bit, bnb.nn.Int8Params))
            if parameter.is_floating_point() and not packed:
                wide = any(re.search(pattern, name) for pattern in kept)
                parameter.data = parameter.data.to(torch.float32 if wide else dtype)

        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                weight: Any = module.weight
                weight.quant_state.dtype = dtype

        held: Any = model
        held._weight_conversions = (
            None  # these are the file's; for saving, the family's are found again
        )

        if self.precision == "4bit":
            return
        if getattr(model, "hf_quantizer", None) is not None:  # bitsandbytes, only after loading
            held.dequantize(dtype)
            held.is_loaded_in_4bit = held.is_loaded_in_8bit = False
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_is_quantized", None)


def four_bit_config(compute: torch.dtype, left_out: list[str] | None = None) -> BitsAndBytesConfig:
    """Make the one quantization config: NF4 with double quantization."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=left_out,
    )


def hold_plain_scales(model: nn.Module) -> int:
    """Hold the scales of linear layers in 4 bits in fp32; return how many layers had others.

    Double quantization keeps the scales in 8 bits, with scales of their own. Each use then takes
    two launches more on a GPU: one unpacks the scales, one adds their mean. Here that is done once.
    The weights stay those of double quantization, bit for bit: with single quantization they would
    be slightly different ones, to which an adapter of another stage does not belong.
    """
    count = 0
    for parameter in model.parameters():
        state = parameter.quant_state if isinstance(parameter, bnb.nn.Params4bit) else None
        if state is None or not state.nested:
            continue
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
        state.absmax, state.nested = scales.float(), False
        state.state2 = state.offset = None
        count += 1
    return count


def check_quantized(config: PreTrainedConfig | Settings, precision: str) -> Quantized | None:
    """Decide how a quantized checkpoint loads with ``precision``; None for an unquantized one.

    No weights are read. FP8 takes a moment: the model is made without storage, for its shapes.

    Args:
        config: of the model, or its dictionary. ``quantization_config`` may be in its text_config.
        precision: "4bit", "bf16" or "fp32".

    Raises:
        InputError: it does not load exactly, or not with ``precision``.
    """
    if isinstance(config, dict):
        if not (config.get("quantization_config") or _nested(config)):
            return None
        name = str(config.get("_name_or_path") or "the checkpoint")
        try:
            config = AutoConfig.for_model(**config)
        except (TypeError, ValueError):
            raise InputError(f"{name}: transformers does not know the model_type") from None

    found = _settings(config)
    if found is None:
        return None

    name = config.name_or_path or "the checkpoint"
    settings, method = found, str(found.get("quant_method"))
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        settings = found = {**found, "quant_method": "bitsandbytes"}
        kind = _check_bitsandbytes(name, config, found, precision)
        if found.get("llm_int8_skip_modules") is not None:
            # Otherwise a new score head would be made in 4 bits, too.
            listed = found["llm_int8_skip_modules"]
            settings = {**found, "llm_int8_skip_modules": [*listed, *HEADS]}
    elif method in ("fp8", "mxfp8", "mxfp4"):
        kind = method.upper()
        if precision == "4bit":
            _refuse(name, f"{kind}, which 4bit would quantize a second time", "--precision bf16")
        if method == "mxfp4" and config.model_type != "gpt_oss":
            _refuse(name, f"MXFP4, but {config.model_type} is not gpt_oss")
        if method != "mxfp4":
            _check_fp8(name, config, found)
        settings = {**found, "dequantize": True}
    else:
        method = "no quant_method" if found.get("quant_method") is None else method
        _refuse(name, f"a quantization that is not supported ({method})")

    config = copy.deepcopy(config)
    if hasattr(text := config.get_text_config(decoder=True), "quantization_config"):
        del text.quantization_config  # otherwise it would be saved with dequantized weights
    config.quantization_config = settings
    return Quantized(config, kind, precision)


def _nested(config: Settings) -> Any:
    return (config.get("text_config") or {}).get("quantization_config")


def _settings(config: PreTrainedConfig) -> Settings | None:
    """Find the checkpoint's ``quantization_config`` where transformers looks for it."""
    text = config.get_text_config(decoder=True)
    found = getattr(config, "quantization_config", None)
    found = found or getattr(text, "quantization_config", None)
    if found is None or isinstance(found, dict):
        return found
    return dict(found.to_dict())


def _refuse(name: str, what: str, instead: str | None = None) -> NoReturn:
    how = "use the unquantized checkpoint that its card names"
    give = f"pass {instead}, or {how}" if instead else how
    raise InputError(f"{name} is saved in {what} ({give})")


def _check_bitsandbytes(
    name: str, config: PreTrainedConfig, settings: Settings, precision: str
) -> str:
    """Return the kind in words; raise InputError if it does not load with ``precision``."""
    if settings.get("load_in_8bit"):
        kind = "8 bits (bitsandbytes)"
        if precision == "4bit":
            _refuse(name, f"{kind}, which 4bit would quantize again", "--precision bf16")
    else:
        saved_as = settings.get("bnb_4bit_quant_type", "fp4")  # transformers' own default
        if saved_as not in FOUR_BIT_TYPES:
            _refuse(name, f"{saved_as} (bitsandbytes), not one of {', '.join(FOUR_BIT_TYPES)}")
        kind = f"{saved_as.upper()} (bitsandbytes)"

    listed = settings.get("llm_int8_skip_modules")
    scores = any("ForSequenceClassification" in a for a in config.architectures or [])
    heads = (SCORE_HEAD,) if scores else LANGUAGE_HEADS
    if listed is not None and not any(skipped.endswith(heads) for skipped in listed):
        _refuse(name, f"{kind}, and its output head too: llm_int8_skip_modules lacks {heads[0]}")
    return kind


def _check_fp8(name: str, config: PreTrainedConfig, settings: Settings) -> None:
    """Raise InputError unless transformers assumes the blocks that the file was quantized in.

    transformers divides a weight evenly by its number of scales (``Fp8Dequantize``): 192 rows in
    blocks of 128 are 128 and 64, but would be dequantized as 96 and 96.
    """
    if settings.get("expert_dtype", "fp8") != "fp8":
        _refuse(name, f"FP8 with experts in {settings['expert_dtype']}")
    try:
        quantization = FineGrainedFP8Config(**{**settings, "dequantize": False})
    except ValueError as error:
        _refuse(name, f"FP8 with unknown settings: {error}")

    if quantization.weight_block_size is None:
        return  # one scale for all of a weight

    plain = copy.deepcopy(config)
    vars(plain).pop("quantization_config", None)
    try:
        model = empty_model(plain)
    except ValueError:
        _refuse(name, f"FP8, and the shapes of {config.model_type} are not known")

    FineGrainedFP8HfQuantizer(quantization, pre_quantized=True).preprocess_model(model)
    for module_name, module in model.named_modules():
        if isinstance(module, FP8Linear):
            shape = tuple(module.weight.shape)
        elif isinstance(
            module, FP8Experts
        ):  # gate and up are separate in the file, and also have this shape
            shape = tuple(module.down_proj.shape[-2:])
        else:
            continue

        blocks = quantization.weight_block_size
        if any(size > block and size % block for size, block in zip(shape, blocks, strict=True)):
            _refuse(name, f"FP8 whose blocks of {blocks} do not divide {module_name}, {shape}")


@contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """Inside, 4-bit linear layers hold their weights unpacked, in the type that they compute in.

    For many rows bitsandbytes unpacks a weight in each pass, to the same numbers. Where a GPU makes
    one token after the other, reading the packed bytes and writing the unpacked ones costs more
    than reading the unpacked ones. They take two bytes a weight in bf16. There are no gradients
    inside.
    """
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    try:
        for layer in layers:
            packed: Any = layer.weight
            state = packed.quant_state
            dtype = layer.compute_dtype or state.dtype
            weight = bnb.functional.dequantize_4bit(packed.data, state).to(dtype)
            vars(layer)["forward"] = partial(_multiply, weight, layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _multiply(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    own = None if bias is None else bias.to(weight.dtype)
    return nn.functional.linear(x.to(weight.dtype), weight, own).to(x.dtype)
