"""The random states of Python, numpy and torch, read and put back."""

import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class RandomState(NamedTuple):
    """All of them, as their libraries give them: to be put back soon, without a way through JSON.

    Attributes:
        torch: ``torch_random_state``'s.
        python: ``random.getstate``'s.
        numpy: ``numpy.random.get_state``'s.
        seed: that torch's generators were seeded with.
    """

    torch: dict[str, Tensor]
    python: Any
    numpy: Any
    seed: int


def current() -> RandomState:
    """The states as they are now."""
    seed = torch.initial_seed()
    return RandomState(torch_random_state(), random.getstate(), np.random.get_state(), seed)


def restore(state: RandomState) -> None:
    """Put back what ``current`` gave.

    The generators of GPUs that were not in use then, and are now, begin anew, as if they had been
    taken into use only now.
    """
    restore_torch_random_state(state.torch)
    if torch.cuda.is_initialized() and "cuda0" not in state.torch:
        torch.cuda.manual_seed_all(state.seed)
    random.setstate(state.python)
    np.random.set_state(state.numpy)


def torch_random_state() -> dict[str, Tensor]:
    """torch's global generators, as tensors of bytes.

    Those of GPUs only where this process uses them: to ask for one would take memory on each, and
    would break the processes that a user's function forks.
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            states[f"cuda{i}"] = torch.cuda.get_rng_state(i)
    return states


def restore_torch_random_state(states: dict[str, Tensor]) -> None:
    """Put them back; a GPU that is not there any more is passed over."""
    torch.set_rng_state(states["cpu"])
    if len(states) > 1:
        for i in range(torch.cuda.device_count()):
            if f"cuda{i}" in states:
                torch.cuda.set_rng_state(states[f"cuda{i}"], i)


def python_random_state() -> dict[str, Any]:
    """Python's and numpy's global generators, as JSON can hold them."""
    version, numbers, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=True)
    kind, keys, *rest = state
    return {"python": [version, list(numbers), gauss], "numpy": [kind, keys.tolist(), *rest]}


def restore_python_random_state(state: dict[str, Any]) -> None:
    """Put them back."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


def random_state() -> dict[str, Any]:
    """All of them, as JSON can hold them."""
    tensors = {name: state.numpy().tobytes().hex() for name, state in torch_random_state().items()}
    return {"torch": tensors} | python_random_state()


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what ``random_state`` gave."""
    tensors = {
        name: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        for name, text in state["torch"].items()
    }
    restore_torch_random_state(tensors)
    restore_python_random_state(state)
