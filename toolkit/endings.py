"""How a recipe ends when it is told to, or when nobody reads any more what it prints.

Signals: Ctrl-C, SIGTERM, and SIGHUP, which comes when a terminal is closed. While a recipe imports
(seconds, for torch) the first one ends it. While it works, the first one is raised as ``Stopped``,
so that what is half done is put away, and the next one ends it. Either way there is one line, and
the exit code is 128 + the signal's number. What a process was started to ignore (``nohup``, or
``&`` in a script) it goes on ignoring.

Output: when a pipe's reader or the terminal is gone (``| head``), what is printed is dropped, and
the recipe goes on to its own end and exit code: hours of training do not hang on a log that nobody
reads. To end it, send it a signal.

All this is for recipes alone: ``prepare`` is called by the package where one of them is the script
that Python was told to run, and ``heard`` by ``cli.run``. Who imports the toolkit as a library
keeps the handlers and the streams that he has. Nothing but the standard library is imported here,
since this comes before all else.
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
PUT_OFF = 50  # times, of 0.02 s, for which a signal waits until what is being printed is printed
_said = False  # the line that a process may end with


class Stopped(KeyboardInterrupt):
    """A signal came while a recipe was at work.

    A note (``add_note``) tells what is kept.

    Attributes:
        signum: the signal's number.
        code: the exit code that goes with it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.code = signum, 128 + signum


class _Handler:
    """Does ``act`` in this process; in those forked from it a signal does what it did at first."""

    def __init__(self, act: Callable[[int], NoReturn]) -> None:
        self.act, self.owner, self.put_off = act, os.getpid(), 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() == self.owner:
            printing = frame is not None and frame.f_code is _Stream.write.__code__
            if printing and self.put_off < PUT_OFF:
                # What was written, but not yet counted as written, would be written once more.
                self.put_off += 1
                threading.Timer(0.02, os.kill, (self.owner, signum)).start()
                return
            self.put_off = 0
            self.act(signum)
        else:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


def prepare() -> None:
    """From here on a signal ends this process with one line, and printing cannot fail."""
    for signum in _free():
        signal.signal(signum, _Handler(end))
    keep_printing()


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """In this block the first signal is raised as ``Stopped``, and the next one ends the process.

    Elsewhere than in the main thread, where Python lets nobody handle signals, nothing is done.
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
        # The signal came inside a finalizer, where Python drops exceptions: have it come again.
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
    """Who is interrupted in this block is told that the same command goes on."""
    try:
        yield
    except BaseException as error:
        error.add_note("what is done is kept, and the same command goes on")
        raise


def _free() -> list[int]:
    """The signals that are handled by Python's own handlers, or by those of this module."""
    found = {signum: signal.getsignal(signum) for signum in SIGNALS}
    own = signal.SIG_DFL, signal.default_int_handler
    return [s for s, handler in found.items() if handler in own or isinstance(handler, _Handler)]


def end(signum: int) -> NoReturn:
    """End the process at once: one line, if none was said yet, and 128 + the signal's number."""
    if not _said:
        call_out("interrupted")
    os._exit(128 + signum)


def let_go(error: BaseException) -> None:
    """Let go of all that the frames of ``error`` hold.

    So progress bars are closed, which end their lines, and temporary folders are removed.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__context__
    gc.collect()  # a trainer, which may hold a bar, is part of cycles


def call_out(line: str) -> None:
    """A line on standard error from within a handler, where ``print`` may be in use already."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def say(line: str) -> None:
    """Print a line on standard error, below a progress bar that was left in the middle of one."""
    global _said
    _said = True
    if sys.stderr is not None:
        sys.stderr.flush()
    buffer = getattr(sys.stderr, "buffer", None)
    stream = getattr(buffer, "raw", buffer)  # with no buffer, the stream itself
    print(f"\n{line}" if getattr(stream, "in_a_line", False) else line, file=sys.stderr)


def keep_printing() -> None:
    """Have what is printed never fail: the process goes on without it.

    A character that the terminal's encoding lacks is printed as its escape.
    """
    while True:  # a file would get the number of a stream that was closed (>&-), and its output
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
    """Standard output or error: once it cannot be written to, what is printed is dropped.

    Attributes:
        in_a_line: what was written last did not end its line.
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
            if written is None:  # another program has set the terminal not to block
                select.select([], [self], [])
            else:
                left = left[written:]
        return size

    def _give_up(self, error: OSError) -> None:
        """Point the descriptor to nowhere; a full disk is told of, a reader that left is not."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        if error.errno not in (errno.EPIPE, errno.EIO) and self.fileno() == 1:
            call_out(f"warning: standard output: {error.strerror} (what is printed is lost)")
