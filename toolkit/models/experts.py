"""Mixture-of-experts weights in 4 bits, which quantized loading leaves in 16.

transformers 5 holds all experts of a layer in one 3-D parameter (E, out, in), but 4-bit loading by
bitsandbytes quantizes only ``nn.Linear``: 58 GB of Qwen3-30B-A3B would stay in 16 bits. Here these
parameters are NF4 with double quantization, like the linear layers, by bitsandbytes' own
parametrization: code that reads ``experts.gate_up_proj`` gets the unpacked weight.

Two things are added. A layer's weights are unpacked once a pass, not at each of a hundred reads.
And autograd does not keep the unpacked weights of every layer for the backward pass, which would
lose the memory again. It records only the place of a view of such a weight, and the backward pass
unpacks that place again. Measured on a CPU with 103 million weights in 8 layers, fp32: a forward
pass left 77 MB, as with unquantized weights; bitsandbytes' parametrization alone left 461. One
layer at a time is unpacked.

Do not save a base in this form: transformers cannot load it again (5.23).
"""

import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from bitsandbytes.nn.parametrize import (
    Bnb4bitParametrization,
    replace_parameter_4bit_prequantized,
)
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from toolkit.maths.precision import autocast_type

BLOCK = 64  # weights with one 8-bit scale
BLOCKS = 256  # scales with one scale of their own
KERNEL_LIMIT = 1 << 31  # bitsandbytes counts weights in an int
ROUTERS = ("gate", "router")  # next to the experts, in all families of transformers 5.23


class _Packed(Bnb4bitParametrization):
    """A weight in NF4, which is unpacked when it is read.

    Attributes:
        quant_state: its scales and its shape.
        whole: the unpacked weight while its module's forward pass runs, else None.
    """

    whole: Tensor | None = None

    def forward(self, packed: Tensor) -> Tensor:
        return self.unpacked(packed) if self.whole is None else self.whole

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return the whole weight in its own shape."""
        shape = self.quant_state.shape
        return self.piece(packed, 0, shape.numel()).view(shape)

    @torch.no_grad()
    def piece(self, packed: Tensor, start: int, stop: int) -> Tensor:
        """Return weights ``start`` to ``stop`` (N,) of the flattened weight, bit for bit.

        ``start`` is a multiple of BLOCK * BLOCKS, where a scale of scales begins.
        """
        state = self.quant_state
        assert start % (BLOCK * BLOCKS) == 0 and state.state2 is not None
        wide = QuantState(
            absmax=state.state2.absmax[start // BLOCK // BLOCKS : -(-stop // BLOCK // BLOCKS)],
            blocksize=BLOCKS,
            code=state.state2.code,
            dtype=state.state2.dtype,
        )

        part = QuantState(
            absmax=state.absmax[start // BLOCK : -(-stop // BLOCK)],
            shape=(stop - start,),
            code=state.code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=state.dtype,
            offset=state.offset,
            state2=wide,
        )
        return dequantize_4bit(packed.view(-1)[start // 2 : -(-stop // 2)], part)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move bitsandbytes' scales with ``Module.to``, because they are not buffers."""
        self.quant_state.to(fn(self.quant_state.absmax).device)
        return super()._apply(fn, recurse)


@dataclass
class _Place:
    """The place of a saved tensor in a packed weight."""

    of: _Packed
    packed: Tensor
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def unpacked(self) -> Tensor:
        """Unpack the tensor from the blocks that it touches (of one expert, only that one's)."""
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        aligned = BLOCK * BLOCKS
        start = self.offset // aligned * aligned
        stop = -(-(self.offset + reach + 1) // aligned) * aligned
        stop = min(stop, self.of.quant_state.shape.numel())
        values = self.of.piece(self.packed, start, stop).to(self.dtype)
        return values.as_strided(self.shape, self.stride, self.offset - start)


def _forward(module: Any, *args: object, **kwargs: object) -> Any:
    """Run the experts' own forward pass, with their weights unpacked meanwhile."""
    with ExitStack() as stack:
        storages: dict[int, tuple[_Packed, Tensor]] = {}
        for held, packed in _packed_in(module):
            held.whole = held.unpacked(packed)
            stack.callback(setattr, held, "whole", None)
            dtype = autocast_type(held.whole)
            if dtype is not None and _autocast_rounds(module):
                held.whole = held.whole.to(dtype)
            storages[held.whole.untyped_storage()._cdata] = held, packed
        if torch.is_grad_enabled():
            stack.enter_context(_kept_as_places(storages))
        return type(module).forward(module, *args, **kwargs)


def _autocast_rounds(module: nn.Module) -> bool:
    """Whether autocast would round the weights at each use and autograd keep rounded copies.

    It does not touch transformers' grouped products.
    """
    own_forward = not hasattr(module, "has_gate")
    implementation = getattr(getattr(module, "config", None), "_experts_implementation", None)
    return own_forward or implementation in (None, "eager", "batched_mm")


@contextmanager
def _kept_as_places(storages: dict[int, tuple[_Packed, Tensor]]) -> Iterator[None]:
    """Let autograd record views of these storages by place; other tensors are kept as usual.

    Only the innermost hooks are called, so outer hooks (gradient checkpointing's, which keep
    nothing) are called from here.
    """
    outer: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)

    def pack(tensor: Tensor) -> Any:
        found = storages.get(tensor.untyped_storage()._cdata)
        if found is not None and found[0].whole is not None:
            held, packed = found
            return _Place(
                held,
                packed,
                tensor.dtype,
                tensor.shape,
                tensor.stride(),
                int(tensor.storage_offset()),
            )
        return outer[0](tensor) if outer else tensor

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, _Place):
            return kept.unpacked()
        return outer[1](kept) if outer else kept

    with saved_tensors_hooks(pack, unpack):
        yield


def _packed_in(module: nn.Module) -> list[tuple[_Packed, Tensor]]:
    """List the module's weights in 4 bits."""
    lists = getattr(module, "parametrizations", {})
    return [(p[0], p.original) for p in lists.values() if isinstance(p[0], _Packed)]


def holds_experts(module: nn.Module) -> bool:
    """Whether a module holds experts.

    transformers' ``use_experts_implementation`` sets ``has_gate`` and ``is_transposed``; families
    with their own forward pass (Llama 4) are recognized by the class name.
    """
    marked = hasattr(module, "has_gate") and hasattr(module, "is_transposed")
    return marked or "Experts" in type(module).__name__


def expert_parameters(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """List module and name of each frozen expert weight that is not in 4 bits (3-D or more).

    Biases have two dimensions and stay unquantized; so do weights of more than 2**31 numbers, which
    bitsandbytes cannot count.
    """
    return [
        (module, name)
        for module in model.modules()
        if holds_experts(module)
        for name, parameter in module._parameters.items()
        if parameter is not None and not parameter.requires_grad and _fits(parameter)
    ]


def _fits(parameter: Tensor) -> bool:
    known = parameter.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return known and parameter.dim() >= 3 and parameter.numel() < KERNEL_LIMIT


def quantize_experts(model: nn.Module, compute_dtype: torch.dtype) -> int:
    """Quantize all frozen expert weights to NF4 with double quantization, one by one.

    Weights that were quantized while loading (``experts_in_4bit``) stay as they are.

    Returns:
        the number of parameters that were quantized here.
    """
    loaded = [
        (module, name)
        for module in model.modules()
        if holds_experts(module)
        for name, parameter in module._parameters.items()
        if isinstance(parameter, bnb.nn.Params4bit)
    ]

    wide = expert_parameters(model)
    for module, name in loaded + wide:
        weight: Any = getattr(module, name)
        if isinstance(weight, bnb.nn.Params4bit):
            packed, state = weight.data, weight.quant_state
        else:
            # Flatten: on a CPU bitsandbytes errs by a quarter if rows are not multiples of a block.
            packed, state = quantize_4bit(
                weight.data.reshape(-1),
                blocksize=BLOCK,
                compress_statistics=True,
                quant_type="nf4",
            )
            state.shape = weight.shape

        del weight
        state.dtype = compute_dtype
        setattr(module, name, nn.Parameter(packed, requires_grad=False))
        replace_parameter_4bit_prequantized(module, name, state.as_dict(packed=True), packed.device)

        lists: Any = module.parametrizations
        lists[name][0] = _Packed(state)
        # A bound method, not a closure, so that a deep copy's is bound to the copy.
        module.forward = types.MethodType(_forward, module)

    return len(loaded) + len(wide)


class _Quantize(ConversionOps):
    """transformers' quantization of loaded weights, including experts."""

    def __init__(self, quantizer: "_Quantizer") -> None:
        self.quantizer = quantizer
        self.of_linear = Bnb4bitQuantize(quantizer)

    def convert(self, input_dict: dict[str, Any], *args: object, **kwargs: Any) -> dict[str, Any]:
        model, result = kwargs["model"], {}

        for name, value in input_dict.items():
            module, _ = get_module_from_name(model, name)
            if isinstance(module, bnb.nn.Linear4bit):
                result[name] = self.of_linear.convert({name: value}, model=model)[name]
            elif self.quantizer.param_needs_quantization(model, name):
                tensor = value[0] if isinstance(value, list) else value
                weight: Any = bnb.nn.Params4bit(
                    tensor.contiguous(), quant_type="nf4", compress_statistics=True, blocksize=BLOCK
                )
                result[name] = weight.to(tensor.device)  # it is packed there
            else:
                result[name] = value
        return result


class _Quantizer(Bnb4BitHfQuantizer):
    """transformers' 4-bit loading, including experts."""

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: object) -> bool:
        module, name = get_module_from_name(model, param_name)
        if holds_experts(module):
            parameter = module._parameters.get(name)
            return isinstance(parameter, bnb.nn.Params4bit) or (
                parameter is not None and _fits(parameter)
            )
        return super().param_needs_quantization(model, param_name, **kwargs)

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)


@contextmanager
def experts_in_4bit() -> Iterator[None]:
    """Quantize experts while ``from_pretrained`` of a 4-bit model loads them.

    At most one layer's experts are then unquantized at a time. ``quantize_experts`` must follow:
    the model cannot run before.
    """
    usual = AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"]
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = _Quantizer
    try:
        yield
    finally:
        AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = usual


def share_in_4bit(model: nn.Module) -> str:
    """Return a line: "experts: 93 % of the weights are in 4 bits, the others take 1.3 GB"."""
    in_four = sum(
        held.quant_state.shape.numel() for m in model.modules() for held, _ in _packed_in(m)
    )
    wide = size = 0
    for parameter in model.parameters():
        if isinstance(parameter, bnb.nn.Params4bit):
            in_four += parameter.quant_state.shape.numel()
        elif parameter.is_floating_point():
            wide += parameter.numel()
            size += parameter.nbytes

    share = 100 * in_four / (in_four + wide)
    return (
        f"experts: {share:.0f} % of the weights are in 4 bits, the others take {size / 1e9:.1f} GB"
    )


def untrained_parts(model: PreTrainedModel) -> list[str]:
    """List the modules that LoRA must leave alone in a model with experts, by full path.

    Call this before peft has wrapped anything. Found by experiment with peft 0.21.2 on Qwen3-MoE,
    Qwen3-Next, Mixtral, DeepSeek-V2 and V3, GPT-OSS, Qwen3.5-MoE and Llama 4. The modules are:

    Experts. In families whose experts were linear layers in transformers 4 (the first five), peft
    takes "all-linear" to include experts and routers (``target_parameters``); in the others not. On
    unquantized weights that is exact. In 4 bits peft silently finds no such parameter by its short
    name: the same configuration means other layers on a 4-bit base than on an unquantized one, and
    adapters of one do not fit the other. Named by full paths they are wrapped in another order, and
    do not fit either. And for every layer autograd keeps the unpacked W + B A of trained experts.

    Routers. peft adapts them only in the same five families. A router that is a linear layer with
    its own forward pass (Llama 4; Phi-MoE, by its source) returns a tuple, on which peft fails.

    Linear layers whose last name was an expert's. In the same families peft takes ``gate_proj``,
    ``up_proj`` and ``down_proj`` for the experts' parameters, wherever they are and however they
    are named: dense layers and shared experts (DeepSeek, Qwen3-Next) get no LoRA of their own, and
    naming them includes the experts.
    """
    parts = []
    mapped: dict[str, bool] = {}

    siblings = {
        path.rpartition(".")[0] for path, module in model.named_modules() if holds_experts(module)
    }
    if not siblings:
        return []

    for path, module in model.named_modules():
        parent, _, name = path.rpartition(".")
        if holds_experts(module) or (parent in siblings and name in ROUTERS):
            parts.append(path)
        elif isinstance(module, nn.Linear):
            if name not in mapped:
                mapped[name] = _taken_for_experts(model, name)
            own_forward = type(module).forward not in (nn.Linear.forward, bnb.nn.Linear4bit.forward)
            if mapped[name] or own_forward:
                parts.append(path)
    return parts


def _taken_for_experts(model: PreTrainedModel, name: str) -> bool:
    """Whether peft takes a target with this name for a part of the experts."""
    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of two names that share one parameter in the experts
        return True
    return name not in (config.target_modules or ())
