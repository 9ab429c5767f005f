"""A score head beside the output head: it reads the state of each row's last real token."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.models.trunk_head import with_score_head

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def scoring(**kwargs: Any) -> tuple[Any, nn.Linear]:
    head = nn.Linear(16, 1, bias=False)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, **kwargs)).eval()
    return with_score_head(model, head), head


@torch.no_grad()
def test_a_score_is_the_heads_output_on_the_last_tokens_state() -> None:
    model, head = scoring()
    ids = torch.tensor([[5, 6, 7, 8]])
    state = model.model(input_ids=ids).last_hidden_state[:, -1]
    torch.testing.assert_close(model(ids).logits, state @ head.weight.T)
    assert model.config.num_labels == 1


@torch.no_grad()
def test_padding_on_the_right_changes_no_score_whatever_its_id() -> None:
    model, _ = scoring()
    ids = torch.tensor([[5, 6, 7, 63, 62], [5, 6, 7, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    alone = torch.cat([model(ids[:1, :3]).logits, model(ids[1:]).logits])
    torch.testing.assert_close(model(ids, mask).logits, alone)


def test_the_output_head_goes_unless_it_is_the_embedding() -> None:
    untied, _ = scoring(tie_word_embeddings=False)
    tied, _ = scoring(tie_word_embeddings=True)
    assert isinstance(untied.lm_head, nn.Identity)
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    assert untied.get_output_embeddings() is None and tied.get_output_embeddings() is None
