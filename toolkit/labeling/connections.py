"""Serve the page's visitors however many silent connections there are.

uvicorn waits forever for a request's headers, its body, or a client that does not read the answer,
and it rejects everybody at its connection limit. Here each wait has a time limit, and if there are
too many connections, the ones that have been silent longest are closed.
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
QUIET = 15.0  # seconds to wait for a request's headers, from the connection or the last answer
BODY, SPEED = 20.0, 4096  # seconds to wait for a body, plus one second for each 4096 bytes
STUCK = 30.0  # seconds within which a client must read some of its answer
MOST = 10_000  # connections at the same time
RESERVED = 300  # descriptors for other uses: each of 40 threads opens the store's three files
AT_ONCE = 50  # connections accepted in one step
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # each one shuts the page down cleanly
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Connection(H11Protocol):
    """One connection, and the time since which the server has been waiting for it."""

    most = MOST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close silent connections if there are too many."""
        super().connection_made(transport)
        self.since = self.moved = self.loop.time()
        self.received = self.unsent = 0
        if len(self.connections) > self.most and not shed(self.connections, self.most // 10 + 1):
            transport.abort()  # all other connections are being served

    def data_received(self, data: bytes) -> None:
        """Count a request's bytes."""
        self.received += len(data)
        super().data_received(data)

    def handle_events(self) -> None:
        """Reset the clock when a new request begins."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.since, self.received = self.loop.time(), 0

    def on_response_complete(self) -> None:
        """Start waiting for the next request."""
        self.since = self.loop.time()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Whether the server waits for a request's headers and has nothing left to send."""
        done = self.cycle is None or self.cycle.response_complete
        return done and not self.transport.get_write_buffer_size()

    @property
    def unheard(self) -> bool:
        """Whether the server waits for the rest of a request."""
        return self.cycle is not None and not self.cycle.response_complete and self.cycle.more_body

    def overdue(self, now: float) -> bool:
        """Whether the client has used up its time; called about once a second."""
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
        """Hang up, and drop what the client did not read."""
        self.transport.abort()


def shed(connections: Iterable[object], count: int) -> int:
    """Close up to ``count`` of the longest-silent connections; return how many were closed.

    Connections without a request go first, then those with half a request. The newest one stays,
    because it has not had time to send anything.
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
    """Raise the limit of open files to its maximum; return how many connections fit in it."""
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
    """uvicorn's server, which also closes overdue connections."""

    _told = -60.0

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but do not raise the signal again: the recipe still writes the picks."""
        if threading.current_thread() is not threading.main_thread():  # no signals arrive here
            yield
            return
        # nohup makes the process ignore SIGHUP.
        heard = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
        before = {s: signal.signal(s, self.handle_exit) for s in heard}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with a long queue for visitors who come at the same time."""
        await super().startup(sockets)
        asyncio.get_running_loop().set_exception_handler(self.failed)
        for listening in sockets or []:
            listening.listen(WAITING)

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Handle an error outside any request; if descriptors ran out, close silent connections.

        asyncio then waits a second and tries again, and logs each failed try.
        """
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in OUT_OF_DESCRIPTORS:
            loop.default_exception_handler(context)
            return
        shed(self.server_state.connections, Connection.most // 10 + 1)
        if loop.time() - self._told > 60:
            self._told = loop.time()
            logger.warning(
                "the limit of open files is too low for the connections (raise ulimit -n)"
            )

    async def on_tick(self, counter: int) -> bool:
        """Close overdue connections once a second; uvicorn calls this ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection) and connection.overdue(now):
                    connection.end()
        return await super().on_tick(counter)
