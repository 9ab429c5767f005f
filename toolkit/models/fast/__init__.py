"""Faster passes with the same results, behind one switch: ``use_fast_passes``.

They replace passes of transformers and peft, if each saves at least 5 % of the time of a training
pass or of the memory that it keeps (``benchmarks/ablation.py`` measures each by itself). Without
them the toolkit uses plain transformers and gives the same numbers, apart from rounding: set
TOOLKIT_FAST_PASSES=0.

    lora        the update of a plain LoRA layer is added inside a matrix product; on a GPU, passes
                under autocast between two steps share one rounding of the weights
    norms       a frozen RMS norm makes one tensor forward and one backward, instead of nine
    decoder     Llama's layers rotate queries and keys in three passes instead of five, keep two
                tensors of their MLP instead of three, and the last works on the positions that are
                read instead of all
    attention   on a CPU, attention is left out of bf16 autocast; on a GPU, rows of whole passes
                are padded on the right, so that flash attention can take them without a mask
"""

import os

import torch
from torch import nn

from toolkit.maths.precision import autocast_device, autocast_type
from toolkit.models.fast.attention import attend_in_fp32
from toolkit.models.fast.attention import padding_on_the_right as padding_on_the_right
from toolkit.models.fast.decoder import Read as Read
from toolkit.models.fast.decoder import change_layers
from toolkit.models.fast.decoder import last_states as last_states
from toolkit.models.fast.lora import adapter_held as adapter_held
from toolkit.models.fast.lora import change_lora
from toolkit.models.fast.lora import rounded_once as rounded_once
from toolkit.models.fast.norms import change_norms
from toolkit.models.peft_wrappers import base_of

SWITCH = "TOOLKIT_FAST_PASSES"  # 0 for no changes, or the names of some, joined by commas
CHANGES = ("lora", "norms", "decoder", "attention")


def changes_wanted() -> tuple[str, ...]:
    """The changes that the environment asks for: all, unless SWITCH says which."""
    said = os.environ.get(SWITCH)
    return CHANGES if said is None else tuple(said.split(","))


def flash_attends(device: torch.device, in_fp32: bool) -> bool:
    """Whether flash attention could take whole passes, if their rows were padded on the right."""
    return device.type == "cuda" and not in_fp32 and "attention" in changes_wanted()


def use_fast_passes(model: nn.Module) -> None:
    """Give a model the fast passes that fit it and its device.

    Call it when the adapters are on and what is trained is settled, and again when that changes;
    and under the autocast that the model will run under.
    """
    wanted = changes_wanted()
    weight = next(model.parameters())
    on_cpu = autocast_device(weight.device) == "cpu"

    if "decoder" in wanted:
        change_layers(model)
    if "norms" in wanted:
        change_norms(model)
    if "lora" in wanted:
        change_lora(model, on_cpu)
    if "attention" in wanted and weight.device.type == "cpu" and autocast_type(weight) is not None:
        attend_in_fp32(base_of(model))
