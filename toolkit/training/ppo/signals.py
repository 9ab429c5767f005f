"""SIGTERM and Ctrl-C during a run: the update is finished and saved before the run ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from toolkit.endings import SIGNALS, Stopped, call_out


class Signals:
    """Notes the first signal, for the run to obey after the update; obeys a second one at once.

    Attributes:
        came: the number of the signal that came; 0 for none.
    """

    def __init__(self, is_main: bool) -> None:
        self.is_main = is_main
        self.came = 0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Around the updates. Outside the main thread Python hears no signals, nor do we."""
        self.came = 0
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: FrameType | None) -> None:
            if self.came:
                raise Stopped(signum)
            self.came = signum
            if self.is_main:
                call_out("\nfinishing this update, then saving (once more to stop now)")

        # What is ignored stays ignored: nohup's SIGHUP.
        heeded = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
        before = {s: signal.signal(s, note) for s in heeded}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
