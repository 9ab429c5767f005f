"""The random states of Python, numpy and torch, read and put back."""

import random
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor


class PythonState(TypedDict):
    """Python's and numpy's global generators, as JSON can hold them.

    Lists that come back from JSON stand for these tuples as well.
    """

    python: tuple[int, list[int], float | None]
    numpy: tuple[str, list[int], int, int, float]


class StoredState(PythonState):
    """Those of torch as well: by device ("cpu", "cuda0", ...), their bytes in hexadecimal."""

    torch: dict[str, str]


class RandomState(NamedTuple):
    """All of them, as their libraries give them: to be put back soon, without a way through JSON.

    Attributes:
        torch: ``torch_random_state``'s.
        python: ``random.getstate``'s.
        numpy: ``numpy.random.get_state``'s, as a mapping.
        seed: that torch's generators were seeded with.
    """

    torch: dict[str, Tensor]
    python: tuple[object, ...]
    numpy: dict[str, object]
    seed: int


def current() -> RandomState:
    """The states as they are now."""
    return RandomState(
        torch=torch_random_state(),
        python=random.getstate(),
        numpy=np.random.get_state(legacy=False),
        seed=torch.initial_seed(),
    )


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


def python_random_state() -> PythonState:
    """Return the states of Python's and numpy's global generators."""
    version, numbers, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    inner = state["state"]
    return {
        "python": (version, list(numbers), gauss),
        "numpy": (
            state["bit_generator"],
            inner["key"].tolist(),
            inner["pos"],
            state["has_gauss"],
            state["gauss"],
        ),
    }


def restore_python_random_state(state: PythonState) -> None:
    """Put them back."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, waiting, number = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, waiting, number))


def random_state() -> StoredState:
    """All of them, as JSON can hold them."""
    tensors = {name: state.numpy().tobytes().hex() for name, state in torch_random_state().items()}
    return {**python_random_state(), "torch": tensors}


def restore_random_state(state: StoredState) -> None:
    """Put back what ``random_state`` gave."""
    tensors = {
        name: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        for name, text in state["torch"].items()
    }
    restore_torch_random_state(tensors)
    restore_python_random_state(state)
