"""Activations of prompts against plain transformers, one prompt at a time."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from toolkit.errors import InputError
from toolkit.models.activations import prompt_activations
from toolkit.models.loading import load_base

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14], [15]]


def test_states_are_those_of_each_prompt_alone_whatever_it_is_batched_with(
    demo_model: str,
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    model = load_base(demo_model, "fp32").eval()
    depth = model.config.num_hidden_layers
    mean = prompt_activations(model, PROMPTS, [0, 1, depth], batch_size=3)
    last = prompt_activations(model, PROMPTS, [0, 1, depth], "last", batch_size=3)
    assert mean.shape == (3, len(PROMPTS), model.config.hidden_size)

    for i, ids in enumerate(PROMPTS):
        with torch.no_grad():
            states = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for place, layer in enumerate((0, 1, depth)):
            torch.testing.assert_close(mean[place, i], states[layer][0].mean(dim=0))
            torch.testing.assert_close(last[place, i], states[layer][0, -1])


def test_a_layer_that_is_not_there_and_broken_weights_are_refused(demo_model: str) -> None:
    model = load_base(demo_model, "fp32").eval()
    with pytest.raises(InputError, match="does not give its layers"):
        prompt_activations(model, PROMPTS, [99])
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="NaN or infinite"):
        prompt_activations(model, PROMPTS, [1])
