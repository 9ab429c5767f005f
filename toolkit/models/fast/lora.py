"""Cheaper passes with the same results: LoRA layers, norms, frozen weights, attention.

peft 0.21.2 computes result + lora_B(lora_A(dropout(x))) * scaling: three further tensors of the
output's size, and as many in the backward pass. Here the update is added inside a matrix product.
Parameters, names and saved files stay peft's; a test holds values and gradients against its own.
"""

import types
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from toolkit.maths.precision import autocast_device, autocast_type


class _Rounded:
    """The last input that was rounded, and to what: query, key and value read the same one.

    The input is held, so that its memory cannot become another's before the next one comes.
    """

    def __init__(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.source = self.result = torch.empty(0)

    def of(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        place = x.untyped_storage()._cdata, x.storage_offset()  # on meta no data has an address
        key = (place, x._version, x.shape, x.stride(), x.dtype, dtype)
        if key != self.key:
            self.key, self.source, self.result = key, x.detach(), x.to(dtype)
        return self.result


_ROUNDED = _Rounded()


class _MergedLinear(torch.autograd.Function):
    """_LoRALinear in fp32 for many rows: W + scale B A is made for the pass, and again backward.

    That costs r / N of the product with x, and saves two thin products and a pass over the output.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(x, weight, a, b)
        return nn.functional.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, a, b = ctx.saved_tensors
        grad = grads[0]
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ torch.addmm(weight, b, a, alpha=ctx.scale)
        if ctx.needs_input_grad[3]:
            grad_a = ((grad @ b).t() @ x).mul_(ctx.scale)
        if ctx.needs_input_grad[4]:
            grad_b = (grad.t() @ (x @ a.t())).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


class _LoRALinear(torch.autograd.Function):
    """y = x W' + b + scale (x A') B', W and b frozen: x (N, i), W (o, i), A (r, i), B (o, r)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        dtype = autocast_type(x)
        if dtype is not None:
            x, weight = _ROUNDED.of(x, dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        ctx.scale = scale
        with torch.autocast(autocast_device(x.device), enabled=False):
            down = x @ a.to(x.dtype).t()
            y = nn.functional.linear(x, weight, bias)
            y.addmm_(down, b.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x, weight, a, b, down)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, a, b, down = ctx.saved_tensors
        grad = grads[0]
        grad_x = grad_a = grad_b = None
        with torch.autocast(autocast_device(grad.device), enabled=False):
            grad_down = (grad @ b.to(grad.dtype)).mul_(ctx.scale)
            if ctx.needs_input_grad[0]:
                grad_x = grad @ weight
                grad_x.addmm_(grad_down, a.to(grad.dtype))
            if ctx.needs_input_grad[3]:
                grad_a = (grad_down.t() @ x).to(a.dtype)
            if ctx.needs_input_grad[4]:
                grad_b = (grad.t() @ down).to(b.dtype).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight, the weight frozen: one tensor forward, one backward, instead of nine."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype | None
    ) -> Tensor:
        wide = x.float()
        square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y = (wide * scale).to(x.dtype)
        y = y.mul_(weight) if weight.dtype == y.dtype else weight * y
        return y if dtype is None else y.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight, scale = ctx.saved_tensors
        grad = grads[0].float() * weight
        wide = x.float()
        along = torch.linalg.vecdot(grad, wide).unsqueeze(-1) * scale**3 / x.shape[-1]
        gradient = grad.mul_(scale).addcmul_(wide, along, value=-1).to(x.dtype)
        return gradient, None, None, None


def _norm_forward(norm: Any, x: Tensor) -> Tensor:
    """A frozen RMSNorm's forward pass; without gradients the module's own, to the last bit.

    Under autocast, what only linear layers read is rounded here once instead of by each of them.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        dtype = autocast_type(x) if norm.feeds_linears else None
        return _RMSNorm.apply(x, norm.weight, norm.variance_epsilon, dtype)
    return type(norm).forward(norm, x)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``LoraLayer.forward`` for one active adapter without dropout, bias or variant."""
    name = layer._active_adapter[0]
    if layer._disable_adapters or name not in layer.lora_A:
        return layer.base_layer(x, *args, **kwargs)
    a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    base = layer.base_layer
    autocast = autocast_type(x) is not None
    same_type = autocast or base.weight.dtype == x.dtype == a.dtype
    trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
    if type(base) in (nn.Linear, Conv1D) and same_type and not trained:
        weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
        flat = x.reshape(-1, x.shape[-1])
        many = 2 * weight.numel() < flat.shape[0] * sum(weight.shape)
        merge = many and not autocast and weight.dtype == torch.float32
        linear: Any = _MergedLinear if merge else _LoRALinear
        y = linear.apply(flat, weight, base.bias, a, b, scale)
        return y.view(*x.shape[:-1], y.shape[-1])
    result = base(x, *args, **kwargs)
    flat = x if autocast else x.to(a.dtype)
    down = nn.functional.linear(flat, a).flatten(0, -2)
    if result.dtype != down.dtype:
        return result + (down @ b.t() * scale).view(result.shape).to(result.dtype)
    up = b.t().to(down.dtype)
    return torch.addmm(result.flatten(0, -2), down, up, alpha=scale).view(result.shape)


# Those whose forward pass is weight * (x / rms(x)), as transformers 5.23 has them.
RMS_NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


def make_lean(model: nn.Module) -> list[Any]:
    """Give plain LoRA layers and frozen RMS norms the leaner pass; returns all LoRA layers.

    Layers whose adapters have dropout, a bias, or a variant such as DoRA keep peft's own.
    """
    for name, module in model.named_modules():
        frozen = all(not p.requires_grad for p in module.parameters(recurse=False))
        if type(module).__name__ in RMS_NORMS and frozen:
            layer_norm: Any = module
            layer_norm.feeds_linears = name.endswith(
                ("input_layernorm", "post_attention_layernorm")
            )
            layer_norm.forward = types.MethodType(_norm_forward, module)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        if _is_plain(layer):
            layer.forward = types.MethodType(_forward, layer)
        else:  # an adapter that came later may need peft's
            layer.__dict__.pop("forward", None)
    return layers


def _is_plain(layer: Any) -> bool:
    if not isinstance(layer.base_layer, nn.Linear | Conv1D):  # a router, say, which gives a tuple
        return False
    dropout = any(isinstance(module, nn.Dropout) for module in layer.lora_dropout.values())
    return not (
        dropout or layer.lora_variant or any(layer.lora_bias.values()) or layer.lora_embedding_A
    )


def _fp32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> Any:
    with torch.autocast("cpu", enabled=False):
        q, k, v = query.float(), key.float(), value.float()
        return sdpa_attention_forward(module, q, k, v, mask, **kwargs)


def attend_in_fp32(model: PreTrainedModel) -> None:
    """On a CPU, leave attention out of bf16 autocast, which makes its backward pass far slower.

    Measured with torch 2.13 and AVX512_BF16, 64 sequences of 88 tokens, 6 heads of 48: 1.7 s
    against 0.7 in an update. Other devices and attention implementations stay as they are.
    """
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register("sdpa_fp32", _fp32_attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa_fp32", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation("sdpa_fp32")


def round_frozen_weights(model: nn.Module, dtype: torch.dtype) -> int:
    """Hold frozen linear weights in ``dtype``, to which autocast would round them at every use.

    Changes no result under autocast, halves their memory and saves the rounding. Weights that
    anything else reads too (an output head tied to the embedding) and other parameters stay.

    Returns:
        How many were rounded.
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    count = 0
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.requires_grad:
            continue
        if module.weight.dtype == torch.float32 and holders[id(module.weight)] == 1:
            module.weight.data = module.weight.data.to(dtype)
            count += 1
    return count
