"""What a language model's layers make of prompts: one vector a prompt and layer."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from toolkit.errors import InputError
from toolkit.maths.sequences import length_sorted_batches, pad
from toolkit.models.families import fit_inputs, trunk_of
from toolkit.models.peft_wrappers import filler

Read = Literal["mean", "last"]


@torch.no_grad()
def prompt_activations(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    layers: Sequence[int],
    read: Read = "mean",
    batch_size: int = 64,
    what: str = "prompts",
) -> Tensor:
    """Return the hidden states of prompts at some layers, one vector each: (L, N, d) fp32, CPU.

    Args:
        model: a causal language model, whose trunk is read.
        prompts: N lists of token ids, none of them empty.
        layers: 0 is the embeddings, i is what block i puts out; what the last one puts out has gone
            through the model's last norm.
        read: "mean" averages over a prompt's tokens, "last" takes its last token.
        batch_size: prompts in one pass.
        what: their name on the progress bar.

    Raises:
        InputError: a state is not finite, or the model does not give the states of its layers.
    """
    trunk = trunk_of(model)
    embeddings = trunk.get_input_embeddings()
    device = embeddings.weight.device
    found: Tensor | None = None
    batches = list(length_sorted_batches([len(ids) for ids in prompts], batch_size))
    for chosen in tqdm(batches, desc=f"Reading {what}", leave=False):
        ids, mask = (t.to(device) for t in pad([prompts[i] for i in chosen], filler(embeddings)))
        inputs = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
        states = trunk(**fit_inputs(trunk, inputs), output_hidden_states=True).hidden_states
        if states is None or len(states) <= max(layers):
            raise InputError(
                "model_name_or_path: this model does not give its layers' hidden states"
            )

        for place, layer in enumerate(layers):
            hidden = states[layer].float()
            if read == "mean":
                part = (hidden * mask.unsqueeze(2)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            else:
                part = hidden[torch.arange(len(ids), device=device), mask.sum(dim=1) - 1]
            if found is None:
                found = torch.empty(len(layers), len(prompts), part.shape[1])
            found[place, chosen] = part.cpu()
    assert found is not None
    if not bool(found.isfinite().all()):
        raise InputError(
            "model_name_or_path: the model's hidden states are NaN or infinite. Its weights are "
            "broken or the precision is too low (try --precision fp32)"
        )
    return found
