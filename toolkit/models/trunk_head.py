"""A reward model on a language model for which transformers has no sequence classifier.

The score head is put beside the output head, on the same trunk. Plain peft loads an adapter that
was trained in this way after the language model gets a linear layer called ``score``
(``load_plain``, and the lines of a published card).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from toolkit.maths.sequences import last_real_token
from toolkit.models.families import fit_inputs, trunk_of
from toolkit.models.peft_wrappers import filler, head_weights


class _ScoresByTrunk(PreTrainedModel):
    """Replaces the forward pass of a language model's class."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: object
    ) -> SequenceClassifierOutput:
        """Return scores (B, 1) as ``logits``: the head at each row's last real token."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids = input_ids.masked_fill(mask == 0, filler(self.get_input_embeddings()))
        inputs = {"input_ids": ids, "attention_mask": attention_mask, **kwargs}
        trunk = trunk_of(self)
        states = trunk(**fit_inputs(trunk, inputs)).last_hidden_state
        rows = torch.arange(len(input_ids), device=states.device)
        head: Any = self.score
        return SequenceClassifierOutput(logits=head(states[rows, last_real_token(mask)]))

    def get_output_embeddings(self) -> None:
        """Return None, because its outputs are scores."""
        return None


def with_score_head(model: Any, head: nn.Linear) -> Any:
    """Turn the model into one that scores; drop its output head if nothing else reads it.

    Args:
        model: a causal language model.
        head: one output, no bias.
    """
    output: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if head_weights(output)[0] is not embedding.weight:
        model.set_output_embeddings(nn.Identity())
    language_class = type(model)
    model.__class__ = type(
        f"{language_class.__name__}WithScore", (_ScoresByTrunk, language_class), {}
    )
    model.score, model.config.num_labels = head, 1
    return model
