"""Counting what a run's passes hold, on a model without storage (the meta device).

There is no formula for each family: the roles' own passes run, forward and backward. What autograd
keeps for the backward pass, what the cache keeps for the next token, and the most that is alive at
one moment are added up. Four things need storage and are replaced by stand-ins that keep the same:
fused attention, layers in 4 bits, the product of tokens with their experts, and questions about
values ("are all tokens real?", answered no, because prompts differ in length). Families are counted
as transformers runs them without extra kernels.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from toolkit.maths.distributions import CHUNK_BYTES
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
        beside: what else is alive at the peak of forward and backward pass: a layer that is
            recomputed, gradients on their way, a chunk of logits. None if it was not counted.
    """

    layer: int = 0
    beside: int | None = None


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
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


class _ShapeGrouped(torch.autograd.Function):
    """Stands for a grouped product, which keeps its frozen weights (E, i, o): (S, i) -> (S, o)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x.new_empty((x.shape[0], weight.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return grads[0].new_empty((grads[0].shape[0], weight.shape[-2])), None


class _ShapeProduct(torch.autograd.Function):
    """Stands for a product with a frozen weight in 4 bits: (N, i) -> (N, o). It keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int) -> Tensor:
        ctx.read = x.shape[-1]
        return x.new_empty((*x.shape[:-1], width))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].new_empty((*grads[0].shape[:-1], ctx.read)), None


class ShapePacked(nn.Linear):
    """Stands for bitsandbytes' ``Linear4bit``, without the weight that it dequantizes.

    Attributes:
        compute: type of the arithmetic.
    """

    compute: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _ShapeProduct.apply(x.to(self.compute), self.out_features)
        if self.bias is not None:
            y = y + self.bias.to(self.compute)
        return y.to(x.dtype)


def recompute_shapes(roles: Roles, device: str) -> None:
    """Turn on gradient checkpointing, with stand-ins for ``device`` in the backward pass, too.

    torch leaves modes such as ``ShapesOnly`` off in a backward pass.
    """
    roles.use_checkpointing({"context_fn": lambda: (nullcontext(), ShapesOnly(device))})


def stand_for_packed(module: nn.Linear | Conv1D, compute: torch.dtype) -> None:
    """Make a linear layer without storage pass as one in 4 bits; its parameters stay."""
    packed: Any = module
    width = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
    packed.__class__ = ShapePacked
    packed.compute, packed.out_features = compute, width
    packed.in_features = module.weight.numel() // width


class ShapesOnly(TorchFunctionMode):
    """Let passes run on the meta device, with stand-ins that keep the same.

    Args:
        device: the device to count for, "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __enter__(self) -> "ShapesOnly":
        CHUNK_BYTES["meta"] = CHUNK_BYTES[self.device]
        super().__enter__()
        return self

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
            return False
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


class LiveBytes(TorchDispatchMode):
    """Follow the bytes of all storages that are made, until they are freed.

    Args:
        model: its parameters and their gradients are not counted.

    Attributes:
        now, peak: bytes that are alive, and the most that were alive at one moment.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        tensors = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
        self._held = {t.untyped_storage()._cdata for t in tensors}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held or key in self._alive:
            return

        def freed(_: object) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


def peak_of(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Count the most bytes that are alive in a forward pass and its backward pass, if it has one.

    Parameters, and gradients that earlier passes made, are not counted.

    Args:
        forward: returns the pass's result, a tensor.
        model: what is trained.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    try:
        with LiveBytes(model) as live:
            result = forward()
            if result.requires_grad:
                torch.autograd.backward(result.sum())
        return live.peak
    finally:
        for parameter in trained:
            parameter.grad = None


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
    ids, mask = _passage(batch, prompt_length + response_length)
    completion = ids[:, -response_length:]

    def policy() -> Tensor:
        found = roles.policy_outputs(ids, mask, completion, 1.0)
        return found.logprobs if found.values is None else found.logprobs + found.values

    def values() -> Tensor:
        return roles.values(ids, mask, response_length)

    with roles.optimizing():
        kept = kept_of(policy, roles)
        beside = max(0, peak_of(policy, roles) - kept)  # the value's is less: it makes no logits
        if roles.has_value and not roles.shares_trunk:
            kept = max(kept, kept_of(values, roles))
    kept.beside = beside
    return kept


def count_text(roles: Roles, batch: int, length: int) -> Kept:
    """Count what the policy's pass over ``batch`` rows of text keeps, read at every token."""
    _check_scans(roles, length)
    ids, mask = _passage(batch, length)

    def policy() -> Tensor:
        return roles.logprobs(POLICY, ids, mask, ids[:, 1:], 1.0)

    with roles.optimizing():
        kept = kept_of(policy, roles)
        kept.beside = max(0, peak_of(policy, roles) - kept)
    return kept


def count_reading(roles: Roles, batch: int, prompt_length: int, response_length: int) -> int:
    """Count the most bytes that are alive in the policy's pass without gradients."""
    _check_scans(roles, prompt_length + response_length)
    ids, mask = _passage(batch, prompt_length + response_length)

    def policy() -> Tensor:
        return roles.policy_outputs(ids, mask, ids[:, -response_length:], 1.0).logprobs

    with torch.no_grad():
        return peak_of(policy, roles)


def _passage(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return token ids and mask (B, T) without storage."""
    ids = torch.zeros((batch, tokens), dtype=torch.long, device="meta")
    return ids, torch.ones_like(ids, dtype=torch.bool)


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
