"""Read and restore the random states of Python, numpy and torch."""

import random
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor


class PythonState(TypedDict):
    """The states of Python's and numpy's generators for JSON, where tuples become lists."""

    python: tuple[int, list[int], float | None]
    numpy: tuple[str, list[int], int, int, float]


class StoredState(PythonState):
    """The states with torch's, by device ("cpu", "cuda0", ...), as bytes in hexadecimal."""

    torch: dict[str, str]


class RandomState(NamedTuple):
    """All states in the libraries' own form, to be restored in the same process.

    Attributes:
        torch: result of ``torch_random_state``.
        python: result of ``random.getstate``.
        numpy: result of ``numpy.random.get_state``, as a mapping.
        seed: seed of torch's generators.
    """

    torch: dict[str, Tensor]
    python: tuple[object, ...]
    numpy: dict[str, object]
    seed: int


def current() -> RandomState:
    """Return the present states."""
    return RandomState(
        torch=torch_random_state(),
        python=random.getstate(),
        numpy=np.random.get_state(legacy=False),
        seed=torch.initial_seed(),
    )


def restore(state: RandomState) -> None:
    """Restore the states that ``current`` returned.

    The generators of GPUs that came into use since then start again from their seed.
    """
    restore_torch_random_state(state.torch)
    if torch.cuda.is_initialized() and "cuda0" not in state.torch:
        torch.cuda.manual_seed_all(state.seed)
    random.setstate(state.python)
    np.random.set_state(state.numpy)


def torch_random_state() -> dict[str, Tensor]:
    """Return the states of torch's global generators as tensors of bytes.

    GPUs are included only if this process uses them. Asking for their state would otherwise take
    memory on each, and break processes that a user's function forks.
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        for i in range(torch.cuda.device_count()):
            states[f"cuda{i}"] = torch.cuda.get_rng_state(i)
    return states


def restore_torch_random_state(states: dict[str, Tensor]) -> None:
    """Restore torch's states; a GPU that no longer exists is skipped."""
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
    """Restore Python's and numpy's states."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, waiting, number = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, waiting, number))


def random_state() -> StoredState:
    """Return all states in a form for JSON."""
    tensors = {name: state.numpy().tobytes().hex() for name, state in torch_random_state().items()}
    return {**python_random_state(), "torch": tensors}


def restore_random_state(state: StoredState) -> None:
    """Restore the states that ``random_state`` returned."""
    tensors = {
        name: torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
        for name, text in state["torch"].items()
    }
    restore_torch_random_state(tensors)
    restore_python_random_state(state)
