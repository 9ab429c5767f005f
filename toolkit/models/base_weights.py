"""Check that putting adapters on the base does not change it."""

import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import InputError

SAMPLED = 1 << 16  # elements of each tensor; a base of 300 tensors takes a third of a second


class BaseWeights:
    """A checksum of each of the base's tensors, to detect changes.

    All elements of a tensor of up to ``SAMPLED`` count, and that many in equal steps of a larger
    one: whatever changes a base (an initialization by PiSSA, OLoRA, KaSA) changes every weight of a
    layer. For a weight in 4 bits, its packed bytes and scales count.

    Args:
        model: the base, before its first adapter. ``check`` finds its modules again wherever peft
            has put them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._marks = [
            (f"{path}.{name}".lstrip("."), module, name, _mark(tensor))
            for path, module in model.named_modules()
            for name, tensor in _own(module)
        ]

    @torch.no_grad()
    def check(self, adapter: object) -> None:
        """Raise InputError, naming tensor and adapter, if a tensor has changed."""
        for path, module, name, mark in self._marks:
            now = dict(_own(module)).get(name)
            if now is None or _mark(now) != mark:
                raise InputError(
                    f"{adapter}: putting it on changed {path} of the base, which all roles share "
                    "(initialize it otherwise, or merge it into the base first: preftune merge)"
                )


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's own parameters and buffers, without those of inner modules.

    Buffers that are recomputed (a rotary embedding's frequencies for longer texts) are left out.
    """
    passing = module._non_persistent_buffers_set
    for held in (module._parameters, module._buffers):
        yield from (
            (name, tensor)
            for name, tensor in held.items()
            if tensor is not None and name not in passing
        )


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    state: Any = getattr(tensor, "quant_state", None)
    scales = [] if state is None else [state.absmax, getattr(state.state2, "absmax", None)]
    parts = [tensor, *(scale for scale in scales if isinstance(scale, Tensor))]
    return tuple(tensor.shape), str(tensor.dtype), *map(_sum, parts)


def _sum(tensor: Tensor) -> int:
    """Return a checksum of the bits of a tensor's sampled elements."""
    if tensor.is_meta or tensor.numel() == 0:
        return 0
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    # The step is odd, so that the sample does not stay in a few columns.
    sample = flat[:: (flat.numel() // SAMPLED) | 1].contiguous().cpu()
    return zlib.crc32(sample.view(torch.uint8).numpy().tobytes())
