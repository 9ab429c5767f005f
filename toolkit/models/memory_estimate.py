"""Estimating what a run's passes keep from the sizes of layers, if it cannot be counted.

For decoders with attention the estimate is 0.75 to 1.4 of the counted figure (a test checks this);
for state-space layers it may be half of it. Weights, adapters and optimizer are always counted.
"""

from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaConfig, MixtralConfig, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from toolkit.models.experts import expert_parameters
from toolkit.models.memory_count import Kept, layers_of
from toolkit.models.static_decoding import room_for, static_cache

# Names of config fields, in the order in which they are looked up.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
EXPERT_WIDTHS = ("moe_intermediate_size", "intermediate_size")
WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "d_inner", "block_ff_dim")
CONVOLUTIONS = ("linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel", "conv_L_cache")
# Kinds of layers (layer_types) that hold a state of constant size instead of keys and values.
STATES = ("linear_attention", "mamba", "mamba2", "conv", "recurrent")


def number_in(config: PreTrainedConfig, *names: str) -> int | None:
    """Return the first of these fields that is set; its largest value if layers differ."""
    for name in names:
        try:
            found = getattr(config, name, None)
        except Exception:  # transformers refuses if layers differ
            layers: Any = getattr(config, "per_layer_config", None) or ()
            found = [getattr(layer, name, None) for layer in layers]
        if isinstance(found, list | tuple):
            found = max((n for n in found if isinstance(n, int)), default=None)
        if isinstance(found, int) and found:
            return found
    return None


def width_of(config: PreTrainedConfig) -> int:
    """Return the most numbers a token that one layer works on, between its projections."""
    text = config.get_text_config()
    hidden = text.hidden_size
    width = number_in(text, *WIDTHS) or 4 * hidden
    if number_in(text, *EXPERTS):
        chosen = number_in(text, "num_experts_per_tok") or 1
        width = max(width, chosen * ((number_in(text, *EXPERT_WIDTHS) or hidden) + hidden))
    return max(hidden, width)


def heads_of(config: PreTrainedConfig) -> int:
    """Return the number of attention heads; 0 if there are none."""
    return number_in(config.get_text_config(), "num_attention_heads") or 0


def estimate_cache(config: PreTrainedConfig, batch: int, tokens: int, number: int) -> int:
    """Estimate the bytes of keys, values and states in sampling, by the config's layers.

    Args:
        config: of the model.
        batch, tokens: number of rows, and of tokens in each.
        number: bytes of a number.
    """
    text = config.get_text_config()
    hidden, heads = text.hidden_size, heads_of(config)
    count = number_in(text, "num_hidden_layers") or 0
    slides = number_in(text, "sliding_window")

    one_kind = "mamba" if not heads else "sliding_attention" if slides else "full_attention"
    kinds = list(getattr(text, "layer_types", None) or [one_kind] * count)
    kinds = kinds[: len(kinds) - (number_in(text, "num_kv_shared_layers") or 0)]

    keys = number_in(text, "num_key_value_heads") or heads
    size = number_in(text, "head_dim", "global_head_dim") or hidden // max(1, heads)
    numbers = 2 * keys * size
    if (folded := number_in(text, "kv_lora_rank")) is not None:
        numbers = folded + (number_in(text, "qk_rope_head_dim") or 0)

    windows = {
        "sliding_attention": slides,
        "chunked_attention": number_in(text, "attention_chunk_size"),
    }
    if static_cache(config, 1) is not None:  # its buffers have full length
        tokens, windows = room_for(tokens), {}

    total = 0
    for kind in kinds:
        if kind in STATES:
            total += batch * _state(text, kind)
        else:
            total += batch * numbers * min(tokens, windows.get(kind) or tokens) * number
    return total


def _state(text: Any, kind: str) -> int:
    """Return the bytes of one layer's state for one row, in fp32."""
    hidden = text.hidden_size
    inner = number_in(text, "mamba_d_ssm", "intermediate_size") or 2 * hidden
    states = inner * (number_in(text, "state_size", "ssm_state_size", "mamba_d_state") or 16)
    if (value_heads := number_in(text, "linear_num_value_heads")) is not None:
        key_size = number_in(text, "linear_key_head_dim") or 128
        value_size = number_in(text, "linear_value_head_dim") or 128
        key_heads = number_in(text, "linear_num_key_heads") or value_heads
        states = value_heads * key_size * value_size
        inner = 2 * key_heads * key_size + value_heads * value_size
    kernel = number_in(text, *CONVOLUTIONS) or 4
    return 4 * (inner * kernel + (0 if kind == "conv" else states))


def estimate_kept(
    model: nn.Module,
    config: PreTrainedConfig,
    batch: int,
    tokens: int,
    number: int,
    checkpointing: bool,
    eager: bool,
) -> Kept:
    """Estimate the bytes that autograd keeps of a pass, layer by layer.

    A linear layer keeps its input and output; parallel projections share one input. Attention also
    keeps its scores if it is not fused, experts the rows that are sent to the chosen ones, a
    state-space layer (or linear attention) its states, norms their input and, in transformers' own
    norms, what they compute in fp32.

    Args:
        model: the base, on any device, with adapters or without.
        config: its config.
        batch, tokens: rows of a pass, and tokens in each.
        number: bytes of a number; between layers, the embedding's type is used.
        checkpointing: whether only each layer's input is kept.
        eager: whether attention is not fused.
    """
    text = config.get_text_config()
    rows = batch * tokens
    stream = text.hidden_size * next(model.parameters()).element_size()
    scores = 3 * heads_of(config) * tokens * number if eager else 0

    chosen = number_in(text, "num_experts_per_tok") or 1
    experts: dict[int, int] = {}
    for module, name in expert_parameters(model):
        weight = module._parameters[name]
        assert weight is not None
        experts[id(module)] = experts.get(id(module), 0) + chosen * sum(weight.shape[-2:])

    sizes = []
    for layer in layers_of(model):
        numbers, states, attends = 0, 0, False

        for path, module in layer.named_modules():
            numbers += experts.get(id(module), 0) + _of_linears(module)
            if hasattr(module, "A_log") and hasattr(module, "D"):
                states = 3 * _state(text, "mamba")  # of each token, about three times
            elif hasattr(module, "A_log"):
                numbers += 4 * _of_linears(module)
            attends = attends or "att" in path.rpartition(".")[2]

        norms = (
            0 if hasattr(layer, "last") else 4 * 4 * text.hidden_size
        )  # fp32; fast norms keep none
        scored = scores if attends else 0
        sizes.append(rows * (2 * stream + norms + numbers * number + states + scored))

    kept = Kept(rows * stream + (len(sizes) * rows * stream if checkpointing else sum(sizes)))
    kept.layer = max(sizes, default=0)
    return kept


def _of_linears(parent: nn.Module) -> int:
    """Return the numbers a token that the linear layers directly below a module keep."""
    if isinstance(parent, LoraLayer | nn.ModuleDict):
        return 0
    inputs, outputs = set(), 0
    for child in parent.children():
        base = getattr(child, "base_layer", child)
        if isinstance(base, nn.Linear | Conv1D):
            weight: Any = base.weight
            read, made = weight.shape if isinstance(base, Conv1D) else reversed(weight.shape)
            inputs.add(read)
            outputs += made
    return sum(inputs) + outputs


def stand_in(config: PreTrainedConfig) -> PreTrainedConfig:
    """Make a Llama or Mixtral config of the same sizes, for a model that cannot be made."""
    text = config.get_text_config()
    heads = heads_of(config) or max(1, text.hidden_size // 64)
    sizes = {
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": width_of(config),
        "num_attention_heads": heads,
        "num_hidden_layers": number_in(text, "num_hidden_layers") or 1,
        "num_key_value_heads": number_in(text, "num_key_value_heads") or heads,
        "head_dim": number_in(text, "head_dim") or text.hidden_size // heads,
        "tie_word_embeddings": bool(getattr(text, "tie_word_embeddings", False)),
    }

    experts = number_in(text, *EXPERTS)
    if not experts:
        return LlamaConfig(**sizes)

    chosen = number_in(text, "num_experts_per_tok") or 1
    sizes["intermediate_size"] = number_in(text, *EXPERT_WIDTHS) or text.hidden_size
    return MixtralConfig(**sizes, num_local_experts=experts, num_experts_per_tok=chosen)
