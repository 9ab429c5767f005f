"""Loading the base model in 4-bit, bf16 or fp32, from safetensors only."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse as unpacked_for_cpu
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from trl.trainer.reward_trainer import suppress_seqcls_warning

from toolkit.errors import InputError
from toolkit.maths.normalization import head_init_std
from toolkit.maths.precision import autocast_device
from toolkit.models.base_config import check_base, first_line, load_config
from toolkit.models.experts import (
    expert_parameters,
    experts_in_4bit,
    quantize_experts,
    share_in_4bit,
)
from toolkit.models.families import HEADS, AutoClass, check_precision, family_of
from toolkit.models.finite_weights import check_weights_of
from toolkit.models.peft_wrappers import head_weights
from toolkit.models.quantized import (
    DTYPES,
    Quantized,
    check_quantized,
    four_bit_config,
    hold_plain_scales,
)
from toolkit.models.tokenizer import load_tokenizer as load_tokenizer  # both by one import
from toolkit.models.trunk_head import with_score_head


class Fp32Head(nn.Linear):
    """A linear head that computes in fp32, whatever the trunk's type and autocast.

    On a quantized base, RewardTrainer casts its own head to bf16, which makes scores coarse. The
    state dict is that of ``nn.Linear``, so plain peft loads it.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(autocast_device(hidden.device), enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float(), self.bias)


class ValueHead(nn.Sequential):
    """A head with hidden layers that computes in fp32: linear, GELU, and so on, then one output.

    Args:
        size: d, of the hidden states.
        hidden: widths of the hidden layers.
    """

    def __init__(self, size: int, hidden: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(size, width), nn.GELU()]
            size = width
        super().__init__(*layers, nn.Linear(size, 1))

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(autocast_device(states.device), enabled=False):
            return super().forward(states.float())

    @property
    def last(self) -> nn.Linear:
        """The layer with one output."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    @staticmethod
    def widths_of(state: Mapping[str, Tensor]) -> list[int]:
        """Return the widths of the hidden layers in a saved head's state; none if it is linear."""
        biases = {name: len(tensor) for name, tensor in state.items() if name.endswith("bias")}
        return [biases[name] for name in sorted(biases, key=lambda name: (len(name), name))][:-1]


@dataclass
class Way:
    """How a model is loaded (``way_to_load``).

    Attributes:
        auto: the class of transformers that loads it.
        arguments: for its ``from_pretrained``.
        precision: "4bit", "bf16" or "fp32".
        compute: type of the arithmetic in 4 bits.
        held: how a quantized checkpoint is loaded; None for others.
        on_trunk: whether a score head is put on the language model, because it has no classifier.
        notes: a line for each difference from a plain language model.
    """

    auto: AutoClass
    arguments: dict[str, object]
    precision: str
    compute: torch.dtype
    held: Quantized | None = None
    on_trunk: bool = False
    notes: list[str] = field(default_factory=list)

    def load(self, name: str, **more: object) -> Any:
        """Call ``from_pretrained``."""
        packs = experts_in_4bit() if self._packs_experts else nullcontext()
        with packs:
            return self.auto.from_pretrained(name, **self.arguments, **more)

    def settle(self, model: PreTrainedModel) -> list[str]:
        """Finish what loading in this precision leaves undone; return lines to print."""
        cure_cpu_repacking(model)
        _keep_from_clipping(model)
        if self.held is not None:
            self.held.settle(model, self.compute)
        said = list(self.notes)
        packed = quantize_experts(model, self.compute) if self._packs_experts else 0
        if packed or (self.precision == "4bit" and expert_parameters(model)):
            said.append(share_in_4bit(model))
        return said

    @property
    def _packs_experts(self) -> bool:
        """Whether experts are quantized here; a checkpoint in 4 bits is not changed."""
        return self.precision == "4bit" and self.held is None


def way_to_load(
    name: str,
    precision: str,
    device: torch.device | str | int,
    revision: str = "main",
    trust_remote_code: bool = False,
    score_head: bool | str = False,
) -> Way:
    """Decide how to load a model, by its config alone.

    Args:
        name, precision, revision, trust_remote_code, score_head: as for ``load_base``.
        device: where to put it.

    Raises:
        InputError: the model cannot be used, or not in this precision (``family_of``,
            ``check_quantized``).
    """
    config = load_config(name, revision, trust_remote_code)
    compute = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16

    auto: AutoClass = AutoModelForCausalLM
    on_trunk = False
    notes: list[str] = []
    heads = list(HEADS)
    remote = trust_remote_code and getattr(config, "auto_map", None)  # its code is unknown here
    if not remote and score_head != "own":
        family = family_of(config, name)
        check_precision(family, precision, name)
        auto, notes, heads = family.auto, family.notes(), family.heads
        on_trunk = bool(score_head) and family.classifier == "trunk"
    if score_head and not on_trunk:
        auto, config.num_labels = AutoModelForSequenceClassification, 1

    held = check_quantized(config, precision)
    arguments: dict[str, object] = {"config": config, "dtype": DTYPES.get(precision, compute)}
    if held is not None:
        arguments = held.arguments(compute)
    elif precision == "4bit":
        arguments["quantization_config"] = four_bit_config(compute, heads)
    arguments |= {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "use_safetensors": True,
        "device_map": {"": device},
    }
    notes += [] if held is None else [held.note]
    return Way(auto, arguments, precision, compute, held, on_trunk, notes)


def load_base(
    name: str,
    precision: str,
    revision: str = "main",
    trust_remote_code: bool = False,
    score_head: bool | str = False,
    seed: int = 0,
    plain_scales: bool = False,
) -> PreTrainedModel:
    """Load the base model, frozen, in eval mode, on this process's device.

    4bit is NF4 with double quantization of linear layers and experts. The other weights, and the
    arithmetic, are fp32 on a CPU and bf16 on a GPU.

    Args:
        name: Hub id or folder.
        precision: "4bit", "bf16" or "fp32".
        revision: branch, tag or commit.
        trust_remote_code: run code that the repository ships.
        score_head: load a sequence classifier with one output instead of a language model. "new"
            (or True): draw its head from N(0, 1 / (d + 1)) by ``seed``, in fp32; "own": use the
            head that was saved with it.
        seed: seed of that head.
        plain_scales: hold the scales of 4-bit weights in fp32 (``hold_plain_scales``).

    Raises:
        InputError: there is no model at ``name``, it cannot be loaded in this way, or weights are
            NaN or infinite.
    """
    from accelerate import PartialState

    check_base(name)
    looked_at = check_weights_of(name, revision)
    device = PartialState().device
    way = way_to_load(name, precision, device, revision, trust_remote_code, score_head)

    # A new score head is intended here; otherwise transformers would report it as a fault.
    quiet = suppress_seqcls_warning() if score_head else nullcontext()
    try:
        with quiet:
            loaded = way.load(name, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{name}: the model cannot be loaded: {first_line(error)}") from None
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise InputError(f"{name}: config.json and the weights differ in shape") from None
    model, info = loaded

    made_new = score_head and score_head != "own"
    missing = sorted(
        key for key in info["missing_keys"] if not (made_new and key.startswith("score."))
    )
    if missing:  # transformers would fill them at random and go on
        raise InputError(f"{name}: {len(missing)} weights are missing, for example {missing[0]}")
    if not looked_at:  # the files were not on this machine before
        check_weights_of(name, revision)

    for line in way.settle(model):
        print(line)
    if plain_scales:
        hold_plain_scales(model)
    model.requires_grad_(False)

    if score_head == "own" and not hasattr(model, "score"):
        raise InputError(f"{name}: {type(model).__name__} has no head called score")
    if way.on_trunk:
        width = head_weights(model.get_output_embeddings())[0].shape[1]
        model = with_score_head(model, new_score_head(width, seed).to(device))
    elif made_new:
        model.score = new_score_head(model.score.in_features, seed).to(device)
    return model.eval()


def _keep_from_clipping(model: nn.Module) -> None:
    """Stop Gemma 3n from clipping weights of a frozen base, which it does in training mode.

    In 4 bits it would clip the packed bytes. The clipping modules get their own config, so that the
    model's is saved unchanged; this bypasses its setter, which would refuse None.
    """
    for module in model.modules():
        if hasattr(module, "prediction_coefs"):
            module.config = copy.copy(module.config)
            vars(module.config)["altup_coef_clip"] = None


def new_score_head(hidden_size: int, seed: int) -> Fp32Head:
    """Make a reward head (1, d) without bias, weights from N(0, 1 / (d + 1)). Source: spec O3."""
    head = Fp32Head(hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, head_init_std(hidden_size), generator=generator)
    return head


def cure_cpu_repacking(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights on CPUs with AVX512_BF16.

    There the first forward pass without gradients in eval mode repacks a ``Linear4bit`` and never
    unpacks it: after one ``generate`` the gradients are wrong (relative error up to 1) and saving
    changes the weights. Seen in bitsandbytes 0.50.2; ``library_checks`` detects it.

    A layer that was already repacked (a script tried its model, say) is unpacked, as bitsandbytes
    does for saving; its scales were rounded to bf16 by the repacking and stay so.
    """
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            weight: Any = module.weight
            state: Any = getattr(weight, "quant_state", None)
            if getattr(state, "packing_format_for_cpu", False):
                weight.data, state = unpacked_for_cpu(weight.data, state)
                if not state.nested:  # bitsandbytes leaves these in the packed order
                    state.absmax = state.absmax.T.reshape(-1).float()
                weight.quant_state = module.quant_state = state


def round_frozen_weights(model: nn.Module, dtype: torch.dtype) -> int:
    """Convert frozen linear weights to ``dtype``, to which autocast rounds them at every use.

    Under autocast this changes no result, halves their memory and saves the rounding. Weights that
    are also read elsewhere (an output head tied to the embedding) and other parameters stay.

    Returns:
        the number of weights that were converted.
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)] = holders.get(id(parameter), 0) + 1

    count = 0
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.requires_grad:
            continue
        if module.weight.dtype == torch.float32 and holders[id(module.weight)] == 1:
            module.weight.data = module.weight.data.to(dtype)
            count += 1

    return count
