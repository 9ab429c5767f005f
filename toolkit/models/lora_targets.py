"""Which layers LoRA goes on: of the language model, and of these where peft does what it says.

"all-linear" is taken to mean every linear layer that a pass over text calls, but for the heads. A
layer that was named is refused where its LoRA would do nothing, or not always.
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

Targets = str | list[str] | set[str]  # of LoRA: a pattern, or names as they end or in full


def language_lora(model: PreTrainedModel, lora: LoraConfig) -> LoraConfig:
    """The same LoRA, on layers of the language model alone, and of these on what peft does right.

    "all-linear" becomes ``linear_targets``. Names that were given are looked up in the language
    model only: a vision tower has layers of the same names, which text never reaches.

    Args:
        model: the base, before any adapter is on it.
        lora: as it was asked for.

    Raises:
        InputError: none of the names is a layer's.
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
            f"lora_target_modules: no layer of the language model is called so: "
            f"{lora.target_modules}",
            "lora_target_modules",
        )
    config: LoraConfig = made
    return config


def _check_targets(model: PreTrainedModel, targets: Targets) -> None:
    """Raise InputError for a name of no layer, or of one whose LoRA would not be what it seems.

    peft passes by a name that is wrong as long as another is right.
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

    refused = dict.fromkeys(out_of_reach(model), "reads its weight past an adapter")
    if getattr(model, "is_loaded_in_4bit", False):
        reason = "has experts in 4 bits, which peft leaves out in silence where this is named"
        refused |= dict.fromkeys(untrained_parts(model), reason)

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and not _is_plain(module):
            refused[path] = f"has a {type(module).__name__} there, which is more than linear"
        if path in refused and _matches(path, targets):
            raise InputError(
                f"lora_target_modules: {path}: {type(model).__name__} {refused[path]} (leave it "
                "out)",
                "lora_target_modules",
            )


def _some_layers(model: nn.Module) -> str:
    """Last names of its linear layers, joined by commas."""
    names = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    ]
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a linear layer and nothing more, quantized or not.

    Families have such layers with a forward pass of their own: Falcon's adds its bias otherwise,
    while Llama 4's router returns two things, which LoRA cannot be added to.
    """
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if not type(module).__module__.startswith("transformers.models."):
        return True
    weight: Any = module.weight
    try:
        with torch.no_grad():
            output: object = module(torch.zeros_like(weight[:1]))
    except RuntimeError:  # it wants its input in another shape (DeepSeek V4's groups)
        return False
    return isinstance(output, Tensor)


def linear_targets(model: PreTrainedModel) -> list[str]:
    """What "all-linear" means: full paths of the language model's linear layers, heads left out.

    Left out are also layers that are more than linear (routers that return two things), those that
    no text reaches, and what ``out_of_reach`` and ``untrained_parts`` name.

    Args:
        model: the base, before any adapter is on it.
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
    """Linear layers that a pass over a few tokens does not call: LoRA there would never learn.

    Some families have such layers (Zamba 2's shared blocks, layers for speculative decoding).
    Single experts may just not have been chosen. Of a model without storage nothing is said.
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
    except FAILURES:  # the checks at load will say what is wrong with this model
        return set()
    finally:
        for hook in hooks:
            hook.remove()
    return set(silent)


def _note_call(silent: dict[str, nn.Module], name: str, *_: object) -> None:
    silent.pop(name, None)


def _matches(name: str, targets: Targets) -> bool:
    """Whether peft would take the layer of this name for one of the targets."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def out_of_reach(model: nn.Module) -> set[str]:
    """Linear layers whose LoRA would do nothing, or not always.

    Mamba's layers (which have parameters A_log and D) read the weights of ``x_proj``, ``dt_proj``
    and ``out_proj`` past an adapter, in their fused kernels or always; peft refuses the last of
    five families. Layers that take over the keys and values of an earlier one have projections of
    their own that are never called.
    """
    found = set()
    for name, module in model.named_modules():
        if hasattr(module, "A_log") and hasattr(module, "D"):
            found |= {f"{name}.{read}" for read in ("x_proj", "dt_proj", "out_proj")}
        if getattr(module, "is_kv_shared_layer", False):
            found |= {f"{name}.k_proj", f"{name}.v_proj"}
    return found
