"""Connections of the page's server: those who speak are served, however many say nothing.

uvicorn waits for ever for a request's headers, for its body, and for a client who does not read its
answer, and turns everybody away once there are so many connections. Here each has a time, and where
there are too many connections those end that have been silent for longest.
"""

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
import threading
from collections.abc import Iterable, Iterator

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from toolkit.labeling.addresses import WAITING

logger = logging.getLogger(__name__)
QUIET = 15.0  # seconds until a request's headers are there: from the connection, or the last answer
BODY, SPEED = 20.0, 4096  # seconds for a request's body, and one more for so many bytes of it
STUCK = 30.0  # seconds in which a client has to read something of its answer
MOST = 10_000  # connections
RESERVED = 300  # descriptors for other things: each of 40 threads has the store's three files open
AT_ONCE = 50  # connections accepted in one go
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # each ends the page in order
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connection(H11Protocol):
    """One connection, and since when something has been waited for."""

    most = MOST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it if need be."""
        super().connection_made(transport)
        self.since = self.moved = self.loop.time()
        self.received = self.unsent = 0
        if len(self.connections) > self.most and not shed(self.connections, self.most // 10 + 1):
            transport.abort()  # all others are being served

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self.received += len(data)
        super().data_received(data)

    def handle_events(self) -> None:
        """What these bytes are; with whole headers a request begins."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.since, self.received = self.loop.time(), 0

    def on_response_complete(self) -> None:
        """The next request is waited for, or is there."""
        self.since = self.loop.time()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Whether a request's headers are waited for, and nothing is left to be read by it."""
        done = self.cycle is None or self.cycle.response_complete
        return done and not self.transport.get_write_buffer_size()

    @property
    def unheard(self) -> bool:
        """Whether the rest of a request is waited for."""
        return self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body

    def overdue(self, now: float) -> bool:
        """Whether the client has had its time; to be asked every second or so."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self.unsent or not unsent:
            self.unsent, self.moved = unsent, now
        if now - self.moved > STUCK:
            return True
        if self.idle:
            return now - self.since > QUIET
        if self.unheard and not self.flow.read_paused:
            return now - self.since > BODY + self.received / SPEED
        return False

    def end(self) -> None:
        """Hang up; what nobody reads is dropped."""
        self.transport.abort()


def shed(connections: Iterable[object], count: int) -> int:
    """End this many of the connections that have been silent for longest; how many were ended.

    First of those that have not said what they want, then of those that have not said all of it.
    The newest of all stays: it has not had the time to say anything.
    """
    open_ones = [c for c in connections if isinstance(c, Connection)]
    silent = [c for c in open_ones if not c.transport.is_closing() and (c.idle or c.unheard)]
    silent.sort(key=lambda c: (not c.idle, c.since))
    newest = max(silent, key=lambda c: c.since, default=None)
    ended = [c for c in silent if c is not newest][:count]
    for connection in ended:
        connection.end()
    return len(ended)


def allow_descriptors() -> int:
    """Raise the limit of open files as far as it goes; how many connections there may then be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + RESERVED
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return MOST
    return min(MOST, soft - RESERVED if soft > 2 * RESERVED else soft // 2)


class Server(uvicorn.Server):
    """uvicorn's server, which looks after its connections."""

    _told = -60.0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signal is not raised again at the end: picks are to be written."""
        if threading.current_thread() is not threading.main_thread():  # signals are not for it
            yield
            return
        heard = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]  # as by nohup
        before = {s: signal.signal(s, self.handle_exit) for s in heard}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; those who come at once may wait in a long queue."""
        await super().startup(sockets)
        asyncio.get_running_loop().set_exception_handler(self.failed)
        for listening in sockets or []:
            listening.listen(WAITING)

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """An error outside of any request; where descriptors ran out, the silent give up theirs.

        asyncio waits for a second then, and tries again; it says so for each that it tried.
        """
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in OUT_OF_DESCRIPTORS:
            loop.default_exception_handler(context)
            return
        shed(self.server_state.connections, Connection.most // 10 + 1)
        if loop.time() - self._told > 60:
            self._told = loop.time()
            logger.warning("too many connections for the limit of open files (raise ulimit -n)")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; in one of them the overdue are ended."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection) and connection.overdue(now):
                    connection.end()
        return await super().on_tick(counter)
