"""Choosing the layers for LoRA: layers of the language model on which peft works correctly.

"all-linear" means every linear layer that a pass over text calls, except the heads. A named layer
is refused if its LoRA would have no effect, or not always.
"""

import copy
import re
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from toolkit.errors import InputError
from toolkit.models.experts import untrained_parts
from toolkit.models.families import FAILURES, heads_of, language_names

Targets = str | list[str] | set[str]  # of LoRA: a pattern, or names (full names or their ends)


def language_lora(model: PreTrainedModel, lora: LoraConfig) -> LoraConfig:
    """Restrict LoRA to layers of the language model on which peft works correctly.

    "all-linear" becomes ``linear_targets``. Given names are looked up in the language model only: a
    vision tower has layers with the same names, which text never reaches.

    Args:
        model: the base, before it has an adapter.
        lora: the requested configuration.

    Raises:
        InputError: no layer has one of the names.
    """
    made: Any = copy.deepcopy(lora)
    if lora.target_modules == "all-linear":
        made.target_modules = set(linear_targets(model))
    else:
        named = lora.target_modules or []
        _check_targets(model, named)
        inside = language_names(model)
        if inside is None:
            return lora
        made.target_modules = {name for name in inside if _matches(name, named)}

    if not made.target_modules:
        raise InputError(
            f"lora_target_modules: no layer of the language model has this name: "
            f"{lora.target_modules}",
            "lora_target_modules",
        )
    config: LoraConfig = made
    return config


def _check_targets(model: PreTrainedModel, targets: Targets) -> None:
    """Raise InputError for a name that no layer has, or of a layer on which peft goes wrong.

    peft ignores a wrong name as long as another is right.
    """
    names = [name for name, _ in model.named_modules()]
    for target in [targets] if isinstance(targets, str) else targets:
        wanted = target if isinstance(targets, str) else [target]
        if not any(_matches(name, wanted) for name in names):
            raise InputError(
                f"lora_target_modules: {type(model).__name__} has no layer called {target} (names "
                f"are joined by commas; some that it has: {_some_layers(model)})",
                "lora_target_modules",
            )

    refused = dict.fromkeys(out_of_reach(model), "reads its weight and bypasses the adapter")
    if getattr(model, "is_loaded_in_4bit", False):
        reason = "has experts in 4 bits, which peft silently leaves out if this is named"
        refused |= dict.fromkeys(untrained_parts(model), reason)

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and not _is_plain(module):
            refused[path] = (
                f"has a {type(module).__name__} there, which does more than a linear layer"
            )
        if path in refused and _matches(path, targets):
            raise InputError(
                f"lora_target_modules: {path}: {type(model).__name__} {refused[path]} (leave it "
                "out)",
                "lora_target_modules",
            )


def _some_layers(model: nn.Module) -> str:
    """Last names of the model's linear layers, joined by commas."""
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    ]
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer, quantized or not.

    Some families have linear layers with their own forward pass: Falcon's adds its bias
    differently, Llama 4's router returns two things, to which LoRA cannot be added.
    """
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if not type(module).__module__.startswith("transformers.models."):
        return True
    weight: Any = module.weight
    try:
        with torch.no_grad():
            output: object = module(torch.zeros_like(weight[:1]))
    except RuntimeError:  # it needs its input in another shape (DeepSeek V4's groups)
        return False
    return isinstance(output, Tensor)


def linear_targets(model: PreTrainedModel) -> list[str]:
    """List the full paths of "all-linear": the language model's linear layers without heads.

    Also left out are layers that do more than a linear layer (routers that return two things),
    layers that no text reaches, and those of ``out_of_reach`` and ``untrained_parts``.
    """
    inside, heads, named = language_names(model), heads_of(model), dict(model.named_modules())
    left_out = out_of_reach(model) | set(untrained_parts(model)) | _never_called(model)
    within = tuple(f"{path}." for path in left_out)
    return [
        name
        for name in (named if inside is None else inside)
        if _is_plain(named[name])
        and not any(named[name] is head for head in heads)
        and name not in left_out
        and not name.startswith(within)
    ]


@torch.no_grad()
def _never_called(model: PreTrainedModel) -> set[str]:
    """Find linear layers that a pass over a few tokens does not call: LoRA would never learn there.

    Some families have such layers (Zamba 2's shared blocks, layers for speculative decoding).
    Single experts may just not have been chosen. A model without storage cannot be checked.
    """
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and ".experts." not in name
    }

    device = next(model.parameters()).device
    if device.type == "meta":
        return set()

    silent, hooks = dict(linear), []
    for name, module in linear.items():
        hooks.append(module.register_forward_hook(partial(_note_call, silent, name)))

    try:
        with torch.random.fork_rng(devices=[]):
            model(input_ids=torch.arange(4, device=device).unsqueeze(0), use_cache=False)
    except FAILURES:  # the checks at load report what is wrong with this model
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return set(silent)


def _note_call(silent: dict[str, nn.Module], name: str, *_: object) -> None:
    silent.pop(name, None)


def _matches(name: str, targets: Targets) -> bool:
    """Whether peft would take the layer with this name for one of the targets."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def out_of_reach(model: nn.Module) -> set[str]:
    """Find linear layers whose LoRA would have no effect, or not always.

    Mamba's layers (which have parameters A_log and D) read the weights of ``x_proj``, ``dt_proj``
    and ``out_proj`` directly, in fused kernels or always, and bypass an adapter; peft refuses
    ``out_proj`` in five families. Layers that reuse the keys and values of an earlier layer have
    projections that are never called.
    """
    found = set()
    for name, module in model.named_modules():
        if hasattr(module, "A_log") and hasattr(module, "D"):
            found |= {f"{name}.{read}" for read in ("x_proj", "dt_proj", "out_proj")}
        if getattr(module, "is_kv_shared_layer", False):
            found |= {f"{name}.k_proj", f"{name}.v_proj"}
    return found
