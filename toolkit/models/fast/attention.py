"""Keeping attention on a CPU out of bf16 autocast."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa_fp32"


def _fp32_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    attend = sdpa_attention_forward
    with torch.autocast("cpu", enabled=False):
        return attend(module, query.float(), key.float(), value.float(), mask, **kwargs)


def attend_in_fp32(model: PreTrainedModel) -> None:
    """On a CPU, keep attention out of bf16 autocast, which makes its backward pass far slower.

    Measured with torch 2.13 and AVX512_BF16, 64 sequences of 88 tokens, 6 heads of 48: an update
    took 0.7 s instead of 1.7. Implementations other than sdpa are not changed.
    """
    if model.config._attn_implementation == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(NAME, _fp32_attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(NAME)
