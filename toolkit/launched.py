"""What a launcher (accelerate, torchrun) says of the processes that it started."""

import os

from toolkit.errors import InputError


def world_size() -> int:
    """How many processes were started to work together.

    Raises:
        InputError: the environment says something that is no number.
    """
    return _number("WORLD_SIZE", 1)


def is_first() -> bool:
    """Whether this process is the one that writes, and holds locks, for all that work together.

    A RANK that some other program left in the environment of a process that is alone means nothing.

    Raises:
        InputError: as ``world_size``.
    """
    return world_size() <= 1 or _number("RANK", 0) == 0


def _number(name: str, otherwise: int) -> int:
    said = os.environ.get(name)
    if said is None:
        return otherwise
    if not said.strip().isdecimal():
        raise InputError(
            f"{name} is {said!r:.40} in the environment, which is no number (unset it, or launch "
            "by accelerate launch)"
        )
    return int(said)
