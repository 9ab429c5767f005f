"""The base's weights are marked, and nothing that only passing through it changes."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.errors import InputError
from toolkit.models.base_weights import BaseWeights

ROPES: list[dict[str, Any]] = [
    {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    {
        "rope_type": "longrope",
        "factor": 2.0,
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 16,
    },
]


@torch.no_grad()
@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_a_long_text_between_two_adapters_is_no_change_of_the_base(rope: dict[str, Any]) -> None:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        rope_parameters=rope,
    )
    model = LlamaForCausalLM(config).eval()
    marks = BaseWeights(model)
    model(torch.zeros((1, 60), dtype=torch.long))
    marks.check("an adapter")

    model.model.norm.weight[3] += 1e-3
    with pytest.raises(InputError, match=r"an adapter: putting it on changed model\.norm\.weight"):
        marks.check("an adapter")
