"""End a recipe cleanly after a signal, and let it finish if nobody reads its output any more.

Signals: Ctrl-C, SIGTERM, and SIGHUP, which is sent when a terminal closes. While a recipe imports
(seconds, for torch), the first signal ends it. While it works, the first signal is raised as
``Stopped``, so that unfinished work is cleaned up, and the second one ends it at once. Both print
one line, and the exit code is 128 + the signal's number. Signals that the process was started to
ignore (``nohup``, or ``&`` in a script) stay ignored.

Output: if a pipe's reader or the terminal is gone (``| head``), printed text is dropped and the
recipe runs to its end with its own exit code, so that hours of training do not depend on a log. To
end it, send it a signal.

This applies only to recipes: the package calls ``prepare`` if Python runs a recipe, and ``cli.run``
calls ``heard``. As a library, the toolkit leaves handlers and streams alone. This module imports
only the standard library, because it runs before everything else.
"""

import contextlib
import errno
import gc
import io
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, TextIO

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PUT_OFF = 50  # how often a signal waits 0.02 s for a line that is being printed
_said = False  # whether the process has printed its last line


class Stopped(KeyboardInterrupt):
    """A signal came while a recipe was working; a note (``add_note``) says what is kept.

    Attributes:
        signum: the signal's number.
        code: the exit code, 128 + signum.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.code = signum, 128 + signum


class _Handler:
    """A handler that calls ``act`` in this process, and keeps the default in forked ones."""

    def __init__(self, act: Callable[[int], NoReturn]) -> None:
        self.act, self.owner, self.put_off = act, os.getpid(), 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self.owner:
            printing = frame is not None and frame.f_code is _Stream.write.__code__
            if printing and self.put_off < PUT_OFF:
                # Otherwise text that was written, but not counted yet, would be written twice.
                self.put_off += 1
                threading.Timer(0.02, os.kill, (self.owner, signum)).start()
                return
            self.put_off = 0
            self.act(signum)
        else:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


def prepare() -> None:
    """Make signals end this process with one line from now on, and make printing never fail."""
    for signum in _free():
        signal.signal(signum, _Handler(end))
    keep_printing()


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Raise the first signal in this block as ``Stopped``; the second one ends the process.

    Outside the main thread, where Python allows no signal handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = {signum: signal.getsignal(signum) for signum in _free()}
    hook = sys.unraisablehook

    def listen(act: Callable[[int], NoReturn]) -> None:
        for signum in before:
            signal.signal(signum, _Handler(act))

    def first(signum: int) -> NoReturn:
        listen(end)
        raise Stopped(signum)

    def dropped(unraisable: "sys.UnraisableHookArgs") -> None:
        # The signal came inside a finalizer, where Python drops exceptions, so send it again.
        stopped = unraisable.exc_value
        if not isinstance(stopped, Stopped):
            hook(unraisable)
            return
        listen(first)
        threading.Timer(0.05, os.kill, (os.getpid(), stopped.signum)).start()

    listen(first)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        sys.unraisablehook = hook


@contextlib.contextmanager
def goes_on() -> Iterator[None]:
    """Say after an interruption in this block that the same command continues."""
    try:
        yield
    except BaseException as error:
        error.add_note("finished work is kept, and the same command continues")
        raise


def _free() -> list[int]:
    """Return the signals with Python's own handlers or with those of this module."""
    found = {signum: signal.getsignal(signum) for signum in SIGNALS}
    own = signal.SIG_DFL, signal.default_int_handler
    return [s for s, handler in found.items() if handler in own or isinstance(handler, _Handler)]


def end(signum: int) -> NoReturn:
    """Print one line if none was printed yet, and exit at once with 128 + the signal's number."""
    if not _said:
        call_out("interrupted")
    os._exit(128 + signum)


def let_go(error: BaseException) -> None:
    """Release everything that the frames of ``error`` hold.

    This closes progress bars, which end their lines, and removes temporary folders.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__
    gc.collect()  # a trainer that holds a bar is part of reference cycles


def call_out(line: str) -> None:
    """Write a line to standard error within a handler, where ``print`` may be in use already."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def say(line: str) -> None:
    """Print a line on standard error, below a progress bar that did not end its line."""
    global _said
    _said = True
    if sys.stderr is not None:
        sys.stderr.flush()
    buffer = getattr(sys.stderr, "buffer", None)
    stream = getattr(buffer, "raw", buffer)  # an unbuffered stream has no raw one
    print(f"\n{line}" if getattr(stream, "in_a_line", False) else line, file=sys.stderr)


def keep_printing() -> None:
    """Make printing never fail: text that cannot be printed is dropped.

    A character that the terminal's encoding lacks is printed as its escape.
    """
    # Occupy the number of a stream that was closed (>&-); a file would get it, and the output.
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        old: TextIO | None = getattr(sys, name)
        if old is None:
            nowhere = io.BufferedWriter(io.FileIO(os.devnull, "wb"))
            setattr(sys, name, io.TextIOWrapper(nowhere, encoding="utf-8"))
        elif isinstance(old, io.TextIOWrapper) and old is getattr(sys, f"__{name}__"):
            setattr(sys, name, _unfailing(old, descriptor))


def _unfailing(old: io.TextIOWrapper, descriptor: int) -> io.TextIOWrapper:
    with contextlib.suppress(OSError):
        old.flush()
    raw = _Stream(descriptor, "wb", closefd=False)
    errors = "backslashreplace" if old.errors == "strict" else old.errors
    return io.TextIOWrapper(
        raw if old.write_through else io.BufferedWriter(raw),
        encoding=old.encoding,
        errors=errors,
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


class _Stream(io.FileIO):
    """Standard output or error, which drops text once it cannot be written any more.

    Attributes:
        in_a_line: whether the last text did not end its line.
    """

    in_a_line = False

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        if size:
            self.in_a_line = left[-1] != ord("\n")
        while left:
            try:
                written = super().write(left)
            except OSError as error:
                self._give_up(error)
                return size
            if written is None:  # another program made the terminal non-blocking
                select.select([], [self], [])
            else:
                left = left[written:]
        return size

    def _give_up(self, error: OSError) -> None:
        """Point the descriptor to nowhere; warn of a full disk, but not of a reader that left."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        if error.errno not in (errno.EPIPE, errno.EIO) and self.fileno() == 1:
            call_out(f"warning: standard output: {error.strerror} (printed text is lost)")
