"""The page's server on real sockets: those who speak are served, however many say nothing."""

import contextlib
import http.client
import logging
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from toolkit.labeling import connections
from toolkit.labeling.addresses import listen
from toolkit.labeling.connections import Connection, allow_descriptors, shed
from toolkit.labeling.guard import PageSettings
from toolkit.labeling.pages import Pages
from toolkit.labeling.serving import server_of
from toolkit.labeling.store import Settings, Store


class Site:
    """A store, its server in a thread, and the port."""

    def __init__(self, folder: Path, text: str = " one") -> None:
        self.store = Store(folder / "labels.sqlite", Settings(overlap=0.0, repeats=0.0))
        self.store.add_items([{"prompt": "p", "completions": [text, " two"]}])
        self.token = self.store.invite("ann")
        self.listening = listen("127.0.0.1", 0)
        self.port = self.listening.getsockname()[1]
        settings = PageSettings((f"127.0.0.1:{self.port}",), rate=1e6, burst=10**6)
        self.server = server_of(Pages(self.store, settings).app())
        words: Any = {"sockets": [self.listening]}
        self.thread = threading.Thread(target=self.server.run, kwargs=words)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.store.close()

    def ask(self, path: str = "/", cookie: str = "", timeout: float = 10) -> tuple[int, bytes]:
        """Status and body of a GET on a connection of its own."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        ) as connection:
            connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
            response = connection.getresponse()
            return response.status, response.read()

    def connect(self, said: str = "") -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        one.sendall(said.format(host=f"127.0.0.1:{self.port}").encode())
        return one


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    site = Site(tmp_path)
    yield site
    site.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


HALF = "GET / HTTP/1.1\r\nHost: {host}\r\nX-"
BODY = (
    "POST /invite HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
    "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 90\r\n\r\ntoken="
)


@pytest.mark.slow
@pytest.mark.parametrize("said", ["", HALF, BODY])
def test_those_who_speak_are_served_among_600_who_do_not(site: Site, said: str) -> None:
    """From 512 connections on everybody was turned away."""
    silent = [site.connect(said) for _ in range(600)]
    assert site.ask(f"/invite/{site.token}")[0] == 200
    for one in silent:
        one.close()


@pytest.mark.parametrize("said", ["", HALF, BODY])
def test_where_no_more_connections_are_allowed_the_silent_give_up_theirs(
    site: Site, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "most", 20)
    silent = [site.connect(said) for _ in range(60)]
    assert site.ask(f"/invite/{site.token}")[0] == 200
    assert len(site.server.server_state.connections) <= 21
    for one in silent:
        one.close()


@pytest.mark.slow
def test_the_silent_the_slow_and_those_who_read_nothing_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QUIET", "BODY", "STUCK"):
        monkeypatch.setattr(connections, name, 0.05)
    monkeypatch.setattr(connections, "SPEED", 1e9)
    site = Site(tmp_path, "x" * 8_000_000)  # more than a socket holds
    cookie = f"labelling={site.store.start_session(site.store.by_token(site.token))}"
    deaf = site.connect(f"GET / HTTP/1.1\r\nHost: {{host}}\r\nCookie: {cookie}\r\n\r\n")
    silent = [site.connect(said) for said in ("", HALF, BODY)]
    for one in silent:
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(100) == b""  # ended; else there would be a timeout
        one.close()
    while site.server.server_state.connections:
        time.sleep(0.01)
    assert site.ask("/static/label.js")[0] == 200
    deaf.close()
    site.close()


@pytest.mark.slow
def test_an_answer_in_the_making_and_one_being_read_are_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("QUIET", "BODY"):
        monkeypatch.setattr(connections, name, 0.05)
    site = Site(tmp_path, "x" * 8_000_000)
    cookie = f"labelling={site.store.start_session(site.store.by_token(site.token))}"
    slow = site.connect(
        f"GET / HTTP/1.1\r\nHost: {{host}}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
    )
    got = 0
    for pause in (0.6, 0.6, 0.6, 0.0):  # two looks after the overdue fall into these
        time.sleep(pause)
        got += len(slow.recv(1000))
    while more := slow.recv(1 << 20):
        got += len(more)
    assert got > 8_000_000
    slow.close()
    site.close()


class Transport:
    """Of a connection that is not there."""

    def __init__(self) -> None:
        self.ended = False

    def is_closing(self) -> bool:
        return self.ended

    def abort(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return 0


def test_the_longest_silent_go_first_and_those_at_work_stay() -> None:
    class Cycle:
        response_complete, more_body = False, False

    def connection(since: float, cycle: Any = None) -> Connection:
        made = Connection.__new__(Connection)
        made.transport, made.since, made.cycle = Transport(), since, cycle  # type: ignore[assignment]
        return made

    working, unheard = Cycle(), Cycle()
    unheard.more_body = True
    held = [
        connection(3.0),
        connection(1.0),
        connection(0.0, working),
        connection(0.5, unheard),
        connection(4.0),
    ]
    assert shed(held, 1) == 1 and held[1].transport.is_closing()
    assert shed(held, 2) == 2 and held[0].transport.is_closing() and held[3].transport.is_closing()
    assert shed(held, 9) == 0 and not held[2].transport.is_closing()


def test_the_limit_of_open_files_is_raised_and_room_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    infinity = resource.RLIM_INFINITY
    for given, wanted, most in [
        ((1024, 4096), 4096, 3796),
        ((1024, infinity), 10_300, 10_000),
        ((256, 256), None, 128),
        ((500, 500), None, 250),
        ((infinity, infinity), None, 10_000),
        ((70_000, 70_000), None, 10_000),
    ]:
        asked: list[int] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _, given=given: given)
        monkeypatch.setattr(resource, "setrlimit", lambda _, to, asked=asked: asked.append(to[0]))
        assert allow_descriptors() == most, given
        assert asked == ([] if wanted is None else [wanted])


def test_descriptors_that_run_out_are_one_line_and_no_end(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    loop = _connection(site).loop
    for _ in range(300):
        error = OSError(24, "Too many open files")
        loop.call_soon_threadsafe(site.server.failed, loop, {"message": "x", "exception": error})
    assert site.ask(f"/invite/{site.token}")[0] == 200
    told = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert [r.getMessage() for r in told] == [
        "the limit of open files is too low for the connections (raise ulimit -n)"
    ]


def _connection(site: Site) -> Any:
    one = site.connect(HALF)
    while not site.server.server_state.connections:
        time.sleep(0.005)
    found = next(iter(site.server.server_state.connections))
    one.close()
    return found


@pytest.mark.parametrize("signum", connections.SIGNALS)
def test_a_signal_ends_the_page_in_order_so_that_picks_are_written(signum: int) -> None:
    server = connections.Server(uvicorn.Config("x"))
    with server.capture_signals():
        os.kill(os.getpid(), signum)
        assert server.should_exit
    assert signal.getsignal(signum) is not server.handle_exit


def test_a_page_that_was_started_by_nohup_stays() -> None:
    server = connections.Server(uvicorn.Config("x"))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with server.capture_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not server.should_exit
    finally:
        signal.signal(signal.SIGHUP, before)
