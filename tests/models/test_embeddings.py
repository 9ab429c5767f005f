"""Embeddings by the base: against transformers' own states, row by row and without padding."""

import pytest
import torch

from toolkit.errors import InputError
from toolkit.models.embeddings import embeddings
from toolkit.models.loading import load_base

ROWS = [[5, 6, 7], [40, 41, 5, 6, 7, 300, 301, 302], [9], [8, 9, 10, 11]]


def test_each_row_has_the_mean_of_its_own_states_whatever_stands_beside_it(demo_model: str) -> None:
    base = load_base(demo_model, "fp32")
    found = embeddings(base, ROWS, 0, batch_size=3)
    with torch.no_grad():
        for row, embedding in zip(ROWS, found, strict=True):
            states = base(torch.tensor([row]), output_hidden_states=True).hidden_states[-1]
            torch.testing.assert_close(embedding, states[0].mean(dim=0), atol=1e-5, rtol=1e-5)


def test_a_pad_token_outside_the_embedding_does_no_harm(demo_model: str) -> None:
    base = load_base(demo_model, "fp32")
    torch.testing.assert_close(
        embeddings(base, ROWS, 10**6, batch_size=4), embeddings(base, ROWS, 0, batch_size=1),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


def test_a_broken_base_is_refused(demo_model: str) -> None:
    base = load_base(demo_model, "fp32")
    base.get_input_embeddings().weight.data[7] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        embeddings(base, ROWS, 0, batch_size=4)
