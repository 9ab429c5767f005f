"""Faster plain LoRA layers: the update is added inside a matrix product.

peft 0.21.2 computes result + lora_B(lora_A(dropout(x))) * scaling, which makes three more tensors
of the output's size, and as many in the backward pass. Under autocast, it and torch round every
weight anew in every pass; here ``rounded_once`` lets several passes share one rounding. Parameters,
names and saved files stay peft's; a test compares values and gradients with peft's.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from toolkit.maths.precision import autocast_type


class _MergedLinear(torch.autograd.Function):
    """y = x (W + scale B A)' + bias; W and bias frozen: x (N, i), W (o, i), A (r, i), B (o, r).

    W + scale B A is computed for the pass, and again in the backward pass. That costs r / N of the
    product with x, and saves two thin products and a pass over the output.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(x, weight, a, b)
        return nn.functional.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
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


class _Update(torch.autograd.Function):
    """y = base + scale x A' B', in the type of x (N, i); base (N, o), A (r, i), B (o, r).

    The products are with ``a`` and ``b``, which are A and B rounded to that type. The scale is a
    factor inside the products, forward and backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor,
        x: Tensor,
        wide_a: Tensor,
        wide_b: Tensor,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        down = x @ a.t()
        ctx.scale, ctx.wide = scale, (wide_a.dtype, wide_b.dtype)
        ctx.save_for_backward(x, down, a, b)
        return torch.addmm(base, down, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, down, a, b = ctx.saved_tensors
        grad, scale = grads[0], ctx.scale
        nothing = grad.new_empty(1)  # times 0
        thin = torch.addmm(nothing, grad, b, beta=0, alpha=scale)

        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[1]:
            grad_x = thin @ a
        if ctx.needs_input_grad[2]:
            grad_a = (thin.t() @ x).to(ctx.wide[0])
        if ctx.needs_input_grad[3]:
            product = torch.addmm(nothing, grad.t(), down, beta=0, alpha=scale)
            grad_b = product.to(ctx.wide[1])
        return grad, grad_x, grad_a, grad_b, None, None, None


# Inside ``rounded_once``: adapters' weights by their id, rounded to a type. The weight itself is
# kept with its copy, so that no other gets its id.
_kept: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] | None = None


@contextmanager
def rounded_once() -> Iterator[None]:
    """Inside, each weight of LoRA is rounded to autocast's type once, so no weight may change.

    A change would not be seen: a fused optimizer, for one, does not count up the version of what it
    changes. The copies take half the adapters' memory, and are dropped at the end.
    """
    global _kept
    outer, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = outer


def _rounded(layer: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return A and B of an adapter in this layer, rounded."""
    weights = layer.lora_A[name].weight, layer.lora_B[name].weight
    if _kept is None:
        a, b = (weight.detach().to(dtype) for weight in weights)
        return a, b

    if not all((id(weight), dtype) in _kept for weight in weights):  # all layers' at once
        of_adapter = [
            weight
            for peer in layer.plain_layers
            if name in peer.lora_A
            for weight in (peer.lora_A[name].weight, peer.lora_B[name].weight)
        ]
        copies = [torch.empty_like(weight, dtype=dtype) for weight in of_adapter]
        torch._foreach_copy_(copies, [weight.detach() for weight in of_adapter])
        for weight, copy in zip(of_adapter, copies, strict=True):
            _kept[id(weight), dtype] = weight, copy
    a, b = (_kept[id(weight), dtype][1] for weight in weights)
    return a, b


# Layers of one module that read the same x.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Shared:
    """x A' of all siblings in one product, made when the first of them asks: A' is (i, ranks).

    It is kept until the last of them has asked: all layers' products together would be large.
    """

    def __init__(self, a: list[Tensor], dtype: torch.dtype) -> None:
        self.a = torch.cat([matrix.detach().to(dtype) for matrix in a]).t()
        self.layers = len(a)
        self.kept: tuple[Tensor, int, Tensor] | None = None
        self.waiting = 0

    def of(self, x: Tensor) -> Tensor:
        """Return x A' (..., ranks) of x (..., i)."""
        if self.kept is not None and self.kept[0] is x and self.kept[1] == x._version:
            product = self.kept[2]
            self.waiting -= 1
        else:
            read = x if autocast_type(x) is not None else x.to(self.a.dtype)
            product, self.waiting = read @ self.a, self.layers - 1
            self.kept = x, x._version, product
        if self.waiting == 0:
            self.kept = None
        return product


class _Held(NamedTuple):
    """One layer's matrices as a pass without gradients uses them; B' is (r, o)."""

    adapter: str
    shared: _Shared
    first: int
    up: Tensor

    def down(self, x: Tensor) -> Tensor:
        return self.shared.of(x).narrow(-1, self.first, self.up.shape[0])


@contextmanager
def adapter_held(model: nn.Module, adapter: str) -> Iterator[None]:
    """Inside, plain LoRA layers read copies of this adapter that are made once.

    Autocast rounds both matrices of each layer anew in every pass without gradients; here they are
    rounded when the context begins. Layers that read the same input share one product with it.
    Do not train inside.
    """
    groups: list[list[Any]] = []
    for module in model.modules():
        plain = {n: layer for n, layer in module.named_children() if _is_held(layer, adapter)}
        for names in SIBLINGS:
            groups.append([plain.pop(name) for name in names if name in plain])
        groups += [[layer] for layer in plain.values()]

    try:
        for layers in filter(None, groups):
            matrices = [layer.lora_A[adapter].weight for layer in layers]
            shared = _Shared(matrices, autocast_type(matrices[0]) or matrices[0].dtype)
            first = 0
            for layer in layers:
                up = layer.lora_B[adapter].weight.detach().to(shared.a.dtype).t()
                layer.held = _Held(adapter, shared, first, up)
                first += up.shape[0]
        yield
    finally:  # also of those made before the memory was full
        for layer in (layer for layers in groups for layer in layers):
            vars(layer).pop("held", None)


def _is_held(layer: Any, adapter: str) -> bool:
    changed = isinstance(layer, LoraLayer) and "forward" in vars(layer)
    return changed and adapter in layer.lora_A


def _add_update(layer: Any, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Replace ``LoraLayer.forward`` for one active adapter without dropout, bias or variant."""
    name = layer._active_adapter[0]
    result: Tensor = layer.base_layer(x, *args, **kwargs)
    if layer._disable_adapters or name not in layer.lora_A:
        return result
    return _added(layer, name, result, x)


def _added(layer: Any, name: str, result: Tensor, x: Tensor) -> Tensor:
    """Return the base layer's result with an adapter's update."""
    scale = layer.scaling[name]
    held: _Held | None = vars(layer).get("held")
    if held is not None and held.adapter == name:
        down, up = held.down(x).flatten(0, -2), held.up
    else:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        read = x if autocast_type(x) is not None else x.to(a.dtype)
        down, up = nn.functional.linear(read, a).flatten(0, -2), b.t()

    if result.dtype != down.dtype:
        return result + (down @ up * scale).view(result.shape).to(result.dtype)
    up = up.to(down.dtype)
    return torch.addmm(result.flatten(0, -2), down, up, alpha=scale).view(result.shape)


def _round_update(layer: Any, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """The same on a GPU: under autocast, with weights that are rounded once."""
    name, dtype = layer._active_adapter[0], autocast_type(x)
    base: Tensor = layer.base_layer(x, *args, **kwargs)
    if layer._disable_adapters or name not in layer.lora_A:
        return base
    if dtype is None or base.dtype != dtype or "held" in vars(layer):
        return _added(layer, name, base, x)

    wide_a, wide_b = layer.lora_A[name].weight, layer.lora_B[name].weight
    a, b = _rounded(layer, name, dtype)
    update: Any = _Update.apply
    flat = x.to(dtype).flatten(0, -2)
    y: Tensor = update(base.flatten(0, -2), flat, wide_a, wide_b, a, b, layer.scaling[name])
    return y.view(base.shape)


def _merge_update(layer: Any, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """The same on a CPU: in fp32 and for many rows, merge the update into the weight."""
    name, base = layer._active_adapter[0], layer.base_layer
    if layer._disable_adapters or name not in layer.lora_A or not _is_frozen_fp32(base):
        return _add_update(layer, x, *args, **kwargs)

    a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    rows = x.numel() // x.shape[-1]
    many = 2 * base.weight.numel() < rows * sum(base.weight.shape)
    if not many or autocast_type(x) is not None or not x.dtype == a.dtype == torch.float32:
        return _add_update(layer, x, *args, **kwargs)

    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
    linear: Any = _MergedLinear
    y: Tensor = linear.apply(x.reshape(rows, -1), weight, base.bias, a, b, scale)
    return y.view(*x.shape[:-1], -1)


def _is_frozen_fp32(base: nn.Module) -> bool:
    parameters = base._parameters.values()
    return type(base) in (nn.Linear, Conv1D) and all(
        p is None or (p.dtype == torch.float32 and not p.requires_grad) for p in parameters
    )


def change_lora(model: nn.Module, on_cpu: bool) -> None:
    """Give plain LoRA layers the fast pass; others (with dropout or DoRA, say) keep peft's.

    Args:
        model: a model with adapters.
        on_cpu: whether its weights are on a CPU, where fp32 products dominate the time.
    """
    forward = _merge_update if on_cpu else _round_update
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    plain = [layer for layer in layers if _is_plain(layer)]
    for layer in layers:  # an adapter that was added later may need peft's pass
        for name in ("forward", "plain_layers"):
            vars(layer).pop(name, None)
    for layer in plain:
        vars(layer)["forward"] = types.MethodType(forward, layer)
        vars(layer)["plain_layers"] = plain


def _is_plain(layer: Any) -> bool:
    if not isinstance(layer.base_layer, nn.Linear | Conv1D):  # a router, say, which returns a tuple
        return False
    dropout = any(isinstance(module, nn.Dropout) for module in layer.lora_dropout.values())
    return not (
        dropout or layer.lora_variant or any(layer.lora_bias.values()) or layer.lora_embedding_A
    )
