"""Counting what a run's passes keep, on a model without storage (the meta device).

There is no formula for each family: the roles' own passes run, and what autograd keeps for the
backward pass, or the cache for the next token, is added up. Three things need storage and are
replaced by stand-ins that keep the same: fused attention, the product of tokens with their experts,
and questions about values ("are all tokens real?", answered yes). Families are counted as
transformers runs them without extra kernels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from toolkit.maths.precision import autocast_type
from toolkit.maths.sequences import position_ids
from toolkit.models.actors import POLICY
from toolkit.models.fast import changes_wanted
from toolkit.models.generation import new_cache
from toolkit.models.roles import Roles
from toolkit.models.static_decoding import room_for, static_cache

GROUPED = (getattr(nn.functional, "grouped_mm", None), getattr(torch, "_grouped_mm", None))

MOST_STEPS = 4000  # most steps of layers that go token by token: a few seconds

# What autocast computes in its own type, but not on meta.
AUTOCAST = (
    nn.functional.linear,
    nn.functional.conv1d,
    torch.conv1d,
    torch.matmul,
    torch.bmm,
    torch.mm,
    torch.baddbmm,
    torch.addmm,
    torch.addbmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.mm,
    Tensor.baddbmm,
    Tensor.addmm,
)


class Kept(int):
    """Bytes that autograd keeps of a pass.

    Attributes:
        layer: of these, the bytes of the layer that keeps most.
    """

    layer: int = 0


class _ShapeAttention(torch.autograd.Function):
    """Stands for a fused attention kernel, which keeps q, k, v, output and a number a row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if q.shape[-1] == v.shape[-1]:
            out = torch.empty_like(q)  # q's layout, which decides whether reshaping copies
        else:
            batch, heads, tokens, _ = q.shape
            out = q.new_empty((batch, tokens, heads, v.shape[-1])).transpose(1, 2)
        rows = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, rows, mask)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("only shapes are counted; there is no backward pass")


class _ShapeGrouped(torch.autograd.Function):
    """Stands for a grouped product, which keeps its frozen weights (E, i, o): (S, i) -> (S, o)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x.new_empty((x.shape[0], weight.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("only shapes are counted; there is no backward pass")


class ShapesOnly(TorchFunctionMode):
    """Let passes run on the meta device, with stand-ins that keep the same.

    Args:
        device: the device to count for, "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func in GROUPED:
            return _ShapeGrouped.apply(args[0], args[1])
        if func in AUTOCAST:
            tensor = next(value for value in args if isinstance(value, Tensor))
            if (dtype := autocast_type(tensor)) is not None:
                args = tuple(map(partial(_cast, dtype=dtype), args))
                kwargs = {name: _cast(value, dtype) for name, value in kwargs.items()}
        if func is Tensor.__bool__ and args[0].device.type == "meta":
            return True
        return func(*args, **kwargs)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        dtype = autocast_type(q)
        if dtype is not None:
            left_out = self.device == "cpu" and "attention" in changes_wanted()  # of autocast
            dtype = torch.float32 if left_out else dtype
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)

        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = attn_mask.to(q.dtype)  # each call makes its own mask

        if self.device == "cpu" and q.shape[-1] != v.shape[-1]:
            # There is no fused kernel for this: whole matrices of scores are kept.
            return torch.ops.aten._scaled_dot_product_attention_math(
                q, k, v, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
            )[0]

        out: Tensor = _ShapeAttention.apply(q, k, v, attn_mask)
        return out


def _cast(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, Tensor) and value.device.type == "meta" and value.is_floating_point():
        return value.to(dtype)
    return value


def kept_of(forward: Callable[[], object], model: nn.Module) -> Kept:
    """Count the bytes that autograd keeps of a pass: each storage once, without parameters."""
    held = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, Tensor] = {}
    sizes: dict[int, int] = {}  # by layer; 0 for what is outside all layers
    at = [0]

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in held and key not in seen:
            seen[key] = tensor
            sizes[at[-1]] = sizes.get(at[-1], 0) + tensor.untyped_storage().nbytes()
        return tensor

    def enter(layer: nn.Module, args: object) -> None:
        at.append(id(layer))

    def leave(layer: nn.Module, args: object, output: object) -> None:
        at.pop()

    hooks = []
    for layer in layers_of(model):
        hooks += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    for hook in hooks:
        hook.remove()

    kept = Kept(sum(sizes.values()))
    kept.layer = max((size for layer, size in sizes.items() if layer), default=0)
    return kept


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the decoder's layers: the list of modules with the most parameters."""

    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    sizes = [sum(p.numel() for p in modules.parameters()) for modules in lists]
    return list(lists[sizes.index(max(sizes))]) if lists else []


def _check_scans(model: nn.Module, tokens: int) -> None:
    """Raise ValueError if Mamba's layers, which go token by token, would take too long."""
    scans = sum(hasattr(m, "A_log") and hasattr(m, "x_proj") for m in model.modules())
    if scans * tokens > MOST_STEPS:
        raise ValueError("its layers scan token by token, which takes too long to count")


def count_kept(roles: Roles, batch: int, prompt_length: int, response_length: int) -> Kept:
    """Count what one micro-batch keeps, for the larger role, as roles run one after the other."""
    _check_scans(roles, prompt_length + response_length)
    ids = torch.zeros((batch, prompt_length + response_length), dtype=torch.long, device="meta")
    mask = torch.ones_like(ids, dtype=torch.bool)
    completion = ids[:, -response_length:]
    with roles.optimizing():
        kept = kept_of(lambda: roles.policy_outputs(ids, mask, completion, 1.0), roles)
        if roles.has_value and not roles.shares_trunk:
            kept = max(kept, kept_of(lambda: roles.values(ids, mask, response_length), roles))
    return kept


def count_cache(roles: Roles, batch: int, tokens: int) -> int:
    """Count the bytes of keys, values and states that sampling holds for ``tokens`` of each row."""
    _check_scans(roles, tokens)
    config = roles.language_model(POLICY).config
    cache = static_cache(config, room_for(tokens)) or new_cache(config, tokens)
    ids = torch.zeros((batch, tokens), dtype=torch.long, device="meta")
    mask = torch.ones_like(ids)
    with torch.no_grad(), roles.precision():
        roles.trunk(
            POLICY,
            1,
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids(mask),
            past_key_values=cache,
            use_cache=True,
        )

    sizes: dict[int, int] = {}
    for tensor in _tensors([vars(layer) for layer in cache.layers]):
        key = tensor.untyped_storage()._cdata
        # A window is a view of all that was read until the next token copies it.
        sizes[key] = max(sizes.get(key, 0), tensor.nbytes)
    return sum(sizes.values())


def _tensors(held: object) -> list[Tensor]:
    """List all tensors in nested lists and dictionaries."""
    if isinstance(held, Tensor):
        return [held]
    inside = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
    return [tensor for item in inside for tensor in _tensors(item)]
