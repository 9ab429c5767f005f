"""The exceptions that end a recipe in one line: a mistake, a run that was stopped, a signal."""

import dataclasses
import math
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path


class InputError(ValueError):
    """What is wrong, where, and how to mend it, in one line.

    Raised for anything that the person at the keyboard can put right: a misspelt key, a broken
    row, a missing file. Everything else is a bug and keeps its traceback.

    Args:
        message: the line.
        field: the argument that it is about, if one is; the command line adds where it was set.
        details: more of the same kind, printed a line each below the message.
    """

    code = 2

    def __init__(self, message: str, field: str | None = None, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.field = field
        self.details = list(details)


class RunStopped(RuntimeError):
    """Raised if a guard ends the run; the message says why, and where it can be resumed."""

    code = 1  # a run that diverged is nobody's typing mistake


class Interrupted(Exception):
    """Raised after a signal, when the update is finished and saved.

    Attributes:
        code: the exit code, 128 + the signal's number.
    """

    def __init__(self, signum: int, checkpoint: Path | None) -> None:
        where = "nothing had to be saved" if checkpoint is None else f"saved {checkpoint}"
        super().__init__(f"{signal.Signals(signum).name}: {where} (--resume auto continues)")
        self.code = 128 + signum


class BadRows:
    """Counts rows with problems and keeps the first twenty of these, to be shown.

    Attributes:
        count: rows.
        shown: problems, each with its place.
    """

    SHOWN = 20

    def __init__(self) -> None:
        self.count = 0
        self.shown: list[str] = []

    def add(self, *problems: str) -> None:
        """One more bad row."""
        self.count += 1
        self.shown += problems[: self.SHOWN - len(self.shown)]

    def refuse(self, hint: str = "") -> None:
        """Raise InputError with what was found, if anything was."""
        if self.count:
            more = f"; {self.count - 1} more bad rows" if self.count > 1 else ""
            raise InputError(f"{self.shown[0]}{more}{hint}", details=self.shown[1:])


def check_range(
    name: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> None:
    """Raise InputError unless finite, ``low <= value <= high``, ``value > above``; None passes."""
    if value is None:
        return
    wants = [] if math.isfinite(value) else ["finite"]
    if low is not None and not value >= low:
        wants.append(f"at least {_shown(low)}")
    if high is not None and not value <= high:
        wants.append(f"at most {_shown(high)}")
    if above is not None and not value > above:
        wants.append(f"above {_shown(above)}")
    if wants:
        raise InputError(
            f"{name} is {_shown(value)}, but must be {' and '.join(wants)}", field=name
        )


def _shown(number: float) -> str:
    """A float in six digits, an integer in all of its own: 4294967296 is one more than a seed."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def check_finite(*arguments: object) -> None:
    """Raise InputError for the first field of these dataclasses that holds NaN or an infinity.

    Lists and mappings are looked through, and fields that other libraries declare as well.
    """
    for instance in filter(dataclasses.is_dataclass, arguments):
        for f in dataclasses.fields(instance):
            check_numbers(f.name, getattr(instance, f.name, None))


def check_numbers(name: str, value: object) -> None:
    """Raise InputError if there is NaN or an infinity in the value, however deep."""
    for number in _floats(value):
        if not math.isfinite(number):
            raise InputError(f"{name} is {number:g}, but must be finite", field=name)


def _floats(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _floats(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _floats(inner)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise InputError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}, but must be one of {', '.join(choices)}", name)


def check_seed(seed: int) -> None:
    """Raise InputError unless numpy and torch take it: 0 to 2**32 - 1."""
    check_range("seed", seed, low=0, high=2**32 - 1)
