"""Read from the environment how a launcher (accelerate, torchrun) started this process."""

import os

from toolkit.errors import InputError


def world_size() -> int:
    """Return the number of processes that work together.

    Raises:
        InputError: the environment variable is not a number.
    """
    return _number("WORLD_SIZE", 1)


def nodes() -> int:
    """Return the number of machines that work together, as torchrun says."""
    return _number("GROUP_WORLD_SIZE", 1) if world_size() > 1 else 1


def processes_here() -> int:
    """Return how many of the processes run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if world_size() > 1 else 1


def is_first() -> bool:
    """Whether this process writes files and holds locks for all that work together.

    In a single process, a RANK that another program left in the environment is ignored.
    """
    return world_size() <= 1 or _number("RANK", 0) == 0


def _number(name: str, otherwise: int) -> int:
    said = os.environ.get(name)
    if said is None:
        return otherwise
    if not said.strip().isdecimal():
        raise InputError(
            f"{name} is {said!r:.40} in the environment, but must be a number (unset it, or use "
            "accelerate launch)"
        )
    return int(said)
