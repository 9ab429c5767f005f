"""Faster decoder layers, for families whose layers are Llama's.

transformers' rotary embedding takes five passes over queries and keys, and as many backward; its
gated MLP keeps one tensor more than needed; and its last layer makes queries, outputs and MLP for
every position, although PPO reads only the completion's. Here the rotation takes three passes, the
MLP keeps two tensors, and the last layer works only on the positions that are read; the others
contribute keys and values. Parameters, modules and hooks stay transformers'.
"""

import sys
import types
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from toolkit.maths.precision import autocast_type
from toolkit.models.families import fit_inputs

Read = int | Tensor  # what is read of a pass: the last so many positions, or these (B, C)

# Families whose layer is norm, attention (perhaps with norms of query and key), norm, gated MLP, as
# in transformers 5.23. Each layer is compared with its own pass before it is changed.
DECODER_LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
)
# Attention implementations that accept fewer queries than keys under a mask.
SHORT_QUERIES = ("sdpa", "sdpa_fp32")


class _Rotary(torch.autograd.Function):
    """x cos + rotate_half(x) sin: x (B, H, T, D), cos and sin (B or 1, 1, T, D) -> (B, H, T, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        grad, half = grads[0], cos.shape[-1] // 2
        x = grad * cos
        x[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        x[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        return x.to(ctx.dtype), None, None


class _Gated(torch.autograd.Function):
    """silu(gate) * up, of one shape; gate and up are kept, silu(gate) is recomputed."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad = grads[0]
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, nn.functional.silu(gate).mul_(grad)


def _mlp_forward(mlp: Any, x: Tensor) -> Tensor:
    y: Tensor = mlp.down_proj(_Gated.apply(mlp.gate_proj(x), mlp.up_proj(x)))
    return y


def _attention_forward(
    attention: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    cache: Cache | None = None,
    read: Read | None = None,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Run the module's own pass, only for the positions that are read if some are given."""
    size = attention.head_dim
    asking = _at(hidden_states, read)
    query = attention.q_proj(asking).unflatten(-1, (-1, size))
    key = attention.k_proj(hidden_states).unflatten(-1, (-1, size))
    value = attention.v_proj(hidden_states).unflatten(-1, (-1, size)).transpose(1, 2)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)

    there = [_at(table, read).unsqueeze(1) for table in position_embeddings]
    query = _Rotary.apply(query.transpose(1, 2), *there)
    key = _Rotary.apply(key.transpose(1, 2), *(t.unsqueeze(1) for t in position_embeddings))

    kept = past_key_values if cache is None else cache  # its name in transformers 5.24
    if kept is not None:
        key, value = kept.update(key, value, attention.layer_idx)
    if isinstance(read, Tensor) or (read is not None and read < hidden_states.shape[1]):
        attention_mask = _rows(attention_mask, read, key)

    implementation = attention.config._attn_implementation
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    output, weights = attend(
        attention,
        query,
        key,
        value,
        attention_mask,
        scaling=attention.scaling,
        dropout=attention.attention_dropout if attention.training else 0.0,
        sliding_window=window,
        **kwargs,
    )
    return attention.o_proj(output.reshape(*asking.shape[:-1], -1)), weights


def _at(states: Tensor, read: Read | None) -> Tensor:
    """Return the states (B or 1, T, d) at the positions that are read."""
    if read is None or (isinstance(read, int) and read >= states.shape[1]):
        return states  # the tensor itself: layers that read the same one share a product of it
    if isinstance(read, int):
        return states[:, -read:]
    states = states.expand(read.shape[0], -1, -1)
    return states.gather(1, read.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def _rows(mask: Tensor | None, read: Read, key: Tensor) -> Tensor:
    """Return the mask (B or 1, 1, C, K) of the queries that are read; None means causal."""
    count = key.shape[2]
    if isinstance(read, int):
        if mask is not None:
            return mask[:, :, -read:]
        causal = torch.ones(read, count, dtype=torch.bool, device=key.device)
        return causal.tril_(count - read)[None, None]

    if mask is not None:
        index = read[:, None, :, None].expand(-1, mask.shape[1], -1, count)
        return mask.expand(read.shape[0], -1, -1, -1).gather(2, index)
    return (torch.arange(count, device=key.device) <= read.unsqueeze(-1)).unsqueeze(1)


def _layer_forward(layer: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    work: Any = partial(_work, layer, read=layer.read, **kwargs)
    if layer.gradient_checkpointing and layer.training:  # as in transformers' layer
        return layer._gradient_checkpointing_func(work, hidden_states)
    return work(hidden_states)


def _work(layer: Any, hidden_states: Tensor, read: Read | None, **kwargs: object) -> Tensor:
    attended, _ = layer.self_attn(layer.input_layernorm(hidden_states), read=read, **kwargs)
    hidden_states = _at(hidden_states, read) + attended
    return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))


def change_layers(model: nn.Module) -> int:
    """Give decoder layers of known families the fast pass; return how many got it.

    A layer whose own pass gives something else than the fast one (in another release of
    transformers, say) keeps its own.
    """
    count = 0
    for trunk in model.modules():
        layers = getattr(trunk, "layers", None)
        if not isinstance(layers, nn.ModuleList) or not hasattr(trunk, "rotary_emb"):
            continue
        known = [layer for layer in layers if type(layer).__name__ in DECODER_LAYERS]
        if len(known) < len(layers) or hasattr(layers[0], "read"):
            continue
        if _same(trunk, layers[0]):
            for layer in layers:
                _change(layer)
            count += len(layers)
    return count


def _change(layer: Any) -> None:
    layer.read = None
    layer.forward = types.MethodType(_layer_forward, layer)
    layer.self_attn.forward = types.MethodType(_attention_forward, layer.self_attn)
    if type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation"):
        layer.mlp.forward = types.MethodType(_mlp_forward, layer.mlp)


def _restore(layer: Any) -> None:
    for module in (layer, layer.self_attn, layer.mlp):
        vars(module).pop("forward", None)
    del layer.read


@torch.no_grad()
def _same(trunk: Any, layer: Any) -> bool:
    """Whether the fast pass of one layer agrees with its own on a few positions."""
    parameter = next(layer.input_layernorm.parameters())
    if parameter.device.type == "meta":
        return True

    device, dtype, training = parameter.device, parameter.dtype, layer.training
    noise = torch.randn(1, 6, parameter.shape[0], generator=torch.Generator().manual_seed(0))
    x = noise.to(device, dtype)
    positions = torch.arange(6, device=device).unsqueeze(0)
    mask = torch.full((6, 6), torch.finfo(dtype).min, device=device, dtype=dtype).triu_(1)
    inputs = {
        "attention_mask": mask[None, None],
        "position_ids": positions,
        "use_cache": False,
        "position_embeddings": trunk.rotary_emb(x, position_ids=positions),
    }

    layer.eval()
    try:
        own = layer(x, **inputs)
        _change(layer)
        short = trunk.config._attn_implementation in SHORT_QUERIES
        layer.read = 3 if short else None
        found = layer(x, **inputs)
    finally:
        layer.train(training)
        if hasattr(layer, "read"):
            _restore(layer)

    expected = (own[:, -3:] if short else own).float()
    if dtype == torch.float32 and autocast_type(x) is None:
        return torch.allclose(found.float(), expected, rtol=1e-4, atol=1e-4)

    # Rounding to bf16 grows with the numbers, so a single one says nothing in a wide layer: one of
    # 4,096 units makes numbers of 12, whose neighbors in bf16 are 0.06 away.
    return bool((found.float() - expected).norm() <= 2e-2 * expected.norm())


def last_states(trunk: Any, read: Read, **inputs: object) -> Tensor:
    """Return the trunk's final hidden states where they are read: (B, C, d).

    A changed last layer computes only these; for any other trunk they are cut from a whole pass.

    Args:
        trunk: a language model without its head.
        read: the number C of last positions, or int (B, C), the positions themselves.
        inputs: of the pass.
    """
    layer = getattr(trunk, "layers", [None])[-1]
    short = hasattr(layer, "read") and trunk.config._attn_implementation in SHORT_QUERIES
    if short:
        layer.read = read
    try:
        states: Tensor = trunk(**fit_inputs(trunk, inputs)).last_hidden_state
        return states if short else _at(states, read)
    finally:
        if short:
            layer.read = None
