"""What peft wraps: layers that an adapter changes, all switched at once, and the head's weights.

An adapter may be more than LoRA matrices. Besides ``LoraLayer`` peft has a wrapper for modules that
were trained whole (``modules_to_save``: embedding, head, norms) and one for single rows of the
embedding (``trainable_token_indices``). Each holds a copy for each adapter, and uses the base's own
weights while no adapter is active. Trained biases, and base weights that peft saved with LoRA, have
no wrapper; ``Overrides`` holds them for each adapter, and puts them in place of the base's while
that adapter is active.
"""

import types
from collections.abc import Container, Sequence
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import (
    AuxiliaryTrainingWrapper,
    ModulesToSaveWrapper,
    TrainableTokensWrapper,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from toolkit.errors import InputError

Switchable = LoraLayer | TrainableTokensLayer | AuxiliaryTrainingWrapper


def switchable(model: nn.Module) -> list[Switchable]:
    """List the modules of the model that an adapter changes."""
    return [module for module in model.modules() if isinstance(module, Switchable)]


def switch(modules: Sequence[Switchable], adapter: str | None) -> None:
    """Activate ``adapter`` in all these modules; None for the bare base.

    peft's own ``set_adapter`` also flips ``requires_grad``, and a leaf that is frozen between
    forward and backward silently gets no gradient. So this sets only the two flags that peft's
    forward passes read. Seen in peft 0.21.2; a test compares this with ``set_adapter``.
    """
    for module in modules:
        absent = adapter is None or (
            not isinstance(module, LoraLayer) and adapter not in _adapters_of(module)
        )
        module._disable_adapters = absent  # a wrapper without this adapter would fail
        if not absent:
            module._active_adapter = [adapter]


def _adapters_of(module: TrainableTokensLayer | AuxiliaryTrainingWrapper) -> Container[str]:
    return module.token_indices if isinstance(module, TrainableTokensLayer) else module._adapters


def heed_whose_rows(model: nn.Module) -> None:
    """Let wrappers of single rows ignore adapters without rows in saving and loading.

    peft 0.21.2 asks every wrapper for every adapter's rows (peft/utils/other.py,
    ``TrainableTokensWrapper.adapter_state_dict``), which raises KeyError if it has none.
    """
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper):
            vars(module)["adapter_state_dict"] = types.MethodType(_rows_to_save, module)
            vars(module)["adapter_state_dict_load_map"] = types.MethodType(_rows_to_load, module)


def _rows_to_save(
    wrapper: TrainableTokensWrapper, adapter: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    if adapter not in wrapper._adapters:
        return {}
    return TrainableTokensWrapper.adapter_state_dict(wrapper, adapter, state_dict)


def _rows_to_load(wrapper: TrainableTokensWrapper, adapter: str) -> dict[str, str]:
    if adapter not in wrapper._adapters:
        return {}
    return TrainableTokensWrapper.adapter_state_dict_load_map(wrapper, adapter)


def tie_copies(base: PreTrainedModel, adapter: str) -> None:
    """Tie the adapter's copies of embedding and head if the base's are tied."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if not isinstance(embedding, ModulesToSaveWrapper) or not isinstance(
        head, ModulesToSaveWrapper
    ):
        return
    if adapter not in embedding._adapters or adapter not in head._adapters:
        return

    if embedding.original_module.weight is head.original_module.weight:
        head.modules_to_save[adapter].weight = embedding.modules_to_save[adapter].weight


class Overrides(nn.Module):
    """Weights of adapters that replace tensors of the base while the adapter is active.

    Python looks ``module.bias`` up in the instance before the parameters. So every forward pass
    reads a tensor that is put there, and the base's own stays where it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.ModuleDict()
        self.places: dict[str, list[tuple[nn.Module, str]]] = {}
        self.keys: dict[str, list[str]] = {}
        self._laid: list[tuple[nn.Module, str]] = []

    def add(
        self, adapter: str, places: dict[str, tuple[nn.Module, str]], state: dict[str, Tensor]
    ) -> None:
        """Hold these tensors for the adapter.

        Args:
            adapter: its name.
            places: key -> the base's module and the attribute's name.
            state: key -> the tensor.
        """
        names = list(state)
        parameters = nn.ParameterList(
            nn.Parameter(state[name], requires_grad=False) for name in names
        )
        self.held[adapter] = parameters
        self.places[adapter] = [places[name] for name in names]
        self.keys[adapter] = names

    def lay(self, adapter: str | None) -> None:
        """Put the adapter's tensors over the base's, and remove another adapter's."""
        if not self.places:
            return
        for module, name in self._laid:
            vars(module).pop(name, None)
        self._laid = self.places.get(adapter or "", [])
        for (module, name), tensor in zip(self._laid, self.tensors(adapter), strict=True):
            vars(module)[name] = tensor

    def tensors(self, adapter: str | None) -> list[Tensor]:
        """List the adapter's tensors, in the order of ``places``."""
        if adapter is None or adapter not in self.places:
            return []
        held: Any = self.held[adapter]
        return list(held)


def head_weights(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight (V, d) and bias (V,) or None of an output head with its active adapter.

    LoRA on the head is added to the weight, so that sampling, scoring and training read the same.
    Gradients flow to the parts that are trained.

    Raises:
        InputError: the head is not supported (DoRA on it, or another type of layer).
    """
    held: Any = head
    if isinstance(head, ModulesToSaveWrapper):
        if head.disable_adapters:
            return head_weights(head.original_module)
        inner: Any = head.modules_to_save[head.active_adapters[0]]
        return head_weights(inner)

    if isinstance(head, TrainableTokensWrapper):
        if head.disable_adapters:
            return head_weights(head.original_module)
        return held.token_adapter.get_merged_weights(held.token_adapter.active_adapters), None

    if isinstance(head, LoraLayer):
        weight, bias = head_weights(held.base_layer)
        name = held._active_adapter[0]
        if held._disable_adapters or name not in held.lora_A:
            return weight, bias
        if name in held.lora_variant or name in held.lora_embedding_A:
            raise InputError(
                "the adapter has DoRA or another variant of LoRA on the output head, which is not "
                "supported (merge it into the base first: preftune merge)"
            )

        scale, down, up = held.scaling[name], held.lora_A[name], held.lora_B[name]
        weight = weight + scale * (up.weight @ down.weight).to(weight.dtype)
        if up.bias is not None:
            bias = scale * up.bias if bias is None else bias + scale * up.bias
        return weight, bias

    if not isinstance(getattr(head, "weight", None), Tensor):
        raise InputError(f"the output head is a {type(head).__name__}, which is not supported")
    if isinstance(held.weight, bnb.nn.Params4bit | bnb.nn.Int8Params):
        raise InputError(
            "the output head is quantized, which is not supported (leave it unquantized)"
        )
    return held.weight, getattr(held, "bias", None)


def base_of(model: Any) -> Any:
    """Return the transformers model below peft's, if any; needs no active adapter."""
    return model.base_model.model if isinstance(model, PeftModel) else model


def filler(embedding: nn.Module) -> int:
    """Return a token id for padding positions whose embedding is not the padding token's.

    The padding token's row is often all zeros. Gemma 3n takes the root of its norm, whose gradient
    is then NaN for all weights, although nothing of it is read.
    """
    return int(getattr(_unwrapped(embedding), "padding_idx", None) == 0)


def base_module(model: nn.Module, path: str) -> nn.Module | None:
    """Return the base's own module at ``path``, below any wrapper; None if there is none."""
    module: Any = model
    for name in path.split("."):
        if name in ("base_layer", "original_module"):
            continue
        module = _unwrapped(module)
        module = module._modules.get(name) if isinstance(module, nn.Module) else None
        if module is None:
            return None
    return _unwrapped(module)


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        if isinstance(module, AuxiliaryTrainingWrapper):
            module = module.original_module
        elif isinstance(module, LoraLayer | TrainableTokensLayer):
            module = module.get_base_layer()
        else:
            return module


def of_adapter(name: str, adapter: str) -> bool:
    """Whether a parameter name of ``named_parameters`` belongs to this adapter."""
    return f".{adapter}." in name or name.endswith(f".{adapter}")


def equal_weights(saved: Tensor, own: Tensor) -> bool:
    """Whether a saved copy equals the base's weight, apart from the type it was saved in."""
    if saved.shape != own.shape:
        return False
    return torch.equal(saved.to(own.device, own.dtype), own.detach())
