"""Running a user's code inside this process, which is afterwards as it was before.

    with as_guest("reward function score"):
        scores = function(...)

The working folder, torch's defaults, signal handlers and more are restored; the first time, a line
says so. A guest has its own random states, so seeding them changes no other numbers. An exception
becomes one line without secrets; ``sys.exit`` and a fork that returns are mistakes, too.
"""

import mmap
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import numpy as np
import torch

from toolkit.data.secrets import scrub
from toolkit.errors import InputError
from toolkit.random_state import (
    StoredState,
    current,
    random_state,
    restore,
    restore_random_state,
)
from toolkit.scoring import guest_state


def _set_device(device: torch.device) -> None:
    # A default of "cpu" would install a mode that slows every call; no default means the same.
    torch.set_default_device(None if device.type == "cpu" else device)


# What a guest might change: its name, and how to read and set it.
SETTINGS: list[tuple[str, Callable[[], object], Callable[..., object]]] = [
    ("the working folder", os.getcwd, os.chdir),
    ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("torch's default device", torch.get_default_device, _set_device),
    ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    ("whether torch keeps gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    (
        "torch's precision of matrix products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    (
        "whether torch is deterministic",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    ("numpy's handling of errors", np.geterr, lambda kept: np.seterr(**kept)),
    ("standard output", lambda: sys.stdout, lambda kept: setattr(sys, "stdout", kept)),
    ("standard error", lambda: sys.stderr, lambda kept: setattr(sys, "stderr", kept)),
]
_Handler = Callable[[int, FrameType | None], object] | int | None
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 1.0  # seconds to wait for a fork to return before the guest's answer is accepted

_told: set[tuple[str, str]] = set()
_forks = 0
_flag: tuple[int, mmap.mmap] | None = None


def guests_state() -> StoredState | None:
    """Return the guests' random states for JSON; None before the first guest."""
    if guest_state.own is None:
        return None
    ours = current()
    restore(guest_state.own)
    try:
        return random_state()
    finally:
        restore(ours)


def set_guests_state(state: StoredState | None) -> None:
    """Restore the states of ``guests_state``; with None, guests begin with ours of that time."""
    if state is None:
        guest_state.own = None
        return
    ours = current()
    restore_random_state(state)
    guest_state.own = current()
    restore(ours)


@contextmanager
def as_guest(name: str, field: str | None = None) -> Iterator[None]:
    """Run a user's code inside.

    Raises:
        InputError: it raised, called ``sys.exit``, or forked and returned in both processes. Its
            own InputErrors pass through.
    """
    pid, forks, came_back = os.getpid(), _forks, _shared_flag()
    before = _settings()
    try:
        with _own_randomness():
            yield
    except (InputError, KeyboardInterrupt, GeneratorExit):
        _end_a_fork(pid, name, came_back)
        raise
    except BaseException as error:
        if os.getpid() != pid and isinstance(error, SystemExit):
            os._exit(error.code if isinstance(error.code, int) else int(error.code is not None))
        _end_a_fork(pid, name, came_back)
        raise InputError(f"{name}: {_said(error)}", field) from error
    else:
        _end_a_fork(pid, name, came_back)
    finally:
        _put_back(name, before)

    if forks != _forks:
        _wait_for_a_fork(came_back)
    if came_back[0]:
        raise InputError(
            f"{name} forked, and both processes returned from it (end the child with os._exit, or "
            "use subprocess)",
            field,
        )


def _said(error: BaseException) -> str:
    """Return an exception in one line: where and what, without secrets."""
    frames = traceback.extract_tb(error.__traceback__)
    place = [f for f in frames if not f.filename.startswith("<frozen ")][
        -1
    ]  # not the frame of exit()
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    if isinstance(error, SystemExit):
        what = f"it called sys.exit({error.code!r}) (raise an error to stop)"
    return scrub(f"{place.filename}:{place.lineno}: {what}")


def _settings() -> tuple[list[object], list[_Handler]]:
    kept: list[object] = []
    for _, read, _ in SETTINGS:
        try:
            kept.append(read())
        except OSError:  # the working folder was deleted
            kept.append(None)
    return kept, [signal.getsignal(number) for number in SIGNALS]


def _put_back(name: str, before: tuple[list[object], list[_Handler]]) -> None:
    kept, handlers = before
    for (what, read, put), value in zip(SETTINGS, kept, strict=True):
        try:
            changed = read() != value
        except OSError:  # it deleted the folder that it changed to
            changed = True
        if changed and value is not None:
            put(value)
            _tell(name, what)
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in zip(SIGNALS, handlers, strict=True):
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
            _tell(name, f"what {number.name} does")


def _tell(name: str, what: str) -> None:
    if (name, what) not in _told:
        _told.add((name, what))
        print(f"note: {name} changed {what}; this was restored", file=sys.stderr)


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Use random states that continue from guest to guest; ours do not change."""
    ours = current()
    if guest_state.own is not None:
        restore(guest_state.own)
    try:
        yield
    finally:
        guest_state.own = current()
        restore(ours)


# Forks

# Modules whose forks end by themselves, or become another program, and never return.
NEVER_BACK = {
    "multiprocessing.popen_fork",
    "multiprocess.popen_fork",
    "billiard.popen_fork",
    "subprocess",
}


def _count() -> None:
    global _forks
    if sys._getframe(1).f_globals.get("__name__") not in NEVER_BACK:
        _forks += 1


os.register_at_fork(after_in_parent=_count)


def _shared_flag() -> mmap.mmap:
    """Make a byte that this process and its forks share."""
    global _flag
    if _flag is None or _flag[0] != os.getpid():
        _flag = os.getpid(), mmap.mmap(-1, 1)
    return _flag[1]


def _end_a_fork(pid: int, name: str, came_back: mmap.mmap) -> None:
    """End this process if it is a fork of the one that called the guest.

    It ends at once, because its ``finally`` blocks would delete the parent's files.
    """
    if os.getpid() != pid:
        came_back[0] = 1
        print(f"error: {name}: a fork of it returned, and was ended", file=sys.stderr, flush=True)
        os._exit(2)


def _wait_for_a_fork(came_back: mmap.mmap) -> None:
    end = time.monotonic() + PATIENCE
    while not came_back[0] and _has_children() and time.monotonic() < end:
        time.sleep(0.01)


def _has_children() -> bool:
    """Whether this process has a child that is running, or was not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
