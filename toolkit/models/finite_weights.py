"""Refusing weights with NaN or infinities, naming tensor and file."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.errors import InputError


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is finite; takes one pass over the memory."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # torch cannot compare 8-bit floats
        tensor = tensor.to(torch.float32)
    low, high = torch.aminmax(tensor.detach())  # NaN if any element is
    return bool(torch.isfinite(low) & torch.isfinite(high))


def check_tensors(tensors: Iterable[tuple[str, Tensor]], place: str) -> None:
    """Raise InputError for the first tensor with an element that is NaN or infinite."""
    for name, tensor in tensors:
        if not is_finite(tensor):
            odd = (~torch.isfinite(tensor.float())).sum().item()
            raise InputError(
                f"{place}: {name}: {odd} of {tensor.numel()} numbers are NaN or infinite (the file "
                "is broken, or its training diverged: use an earlier one)"
            )


def check_file(path: Path, what: str | None = None) -> None:
    """Raise InputError if a safetensors file has a tensor that is not finite, or is unreadable."""
    place = str(path) if what is None else f"{what}: {path}"
    try:
        _check(path, place)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{place} cannot be read: {error}") from None


def _check(path: Path, place: str) -> None:
    with safe_open(path, framework="pt") as weights:
        check_tensors(((k, weights.get_tensor(k)) for k in weights.keys()), place)  # noqa: SIM118


def check_weights_of(name: str, revision: str = "main") -> bool:
    """Raise InputError if a weight in the model's files is not finite.

    This checks files, not the loaded model, because quantization turns NaN into numbers.

    Returns:
        whether the files were there; those of a Hub id are there after a download.
    """
    folder = Path(name)
    if not folder.is_dir():
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(config, str):
            return False
        folder = Path(config).parent
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        with suppress(SafetensorError, OSError):  # loading a broken file reports what is wrong
            _check(path, str(path))
    return bool(files)
