"""A request passes the guard or is turned away, with a word that says why."""

import asyncio
import time
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from toolkit.labeling.guard import HEADERS, Guard, PageSettings

HOST = "127.0.0.1:8000"


class App:
    """What stands behind the guard: reads the whole body, and answers with a header of its own."""

    def __init__(self) -> None:
        self.read = b""
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        more = True
        while more:
            message = await receive()
            self.read += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(b"cache-control", b"public")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})


def scope(method: str = "GET", path: str = "/", **headers: str) -> dict[str, Any]:
    given = {"host": HOST} | {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("10.0.0.1", 5000),
    }


def guard(**settings: Any) -> Guard:
    return Guard(App(), PageSettings(hosts=(HOST,), **settings))


def ask(guard: Guard, asked: dict[str, Any], *body: bytes) -> list[Message]:
    """What is sent in answer to a request whose body comes in these pieces."""
    pieces, sent = list(body or [b""]), []

    async def receive() -> Message:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(asked, receive, send))
    return sent


OURS = {"origin": f"http://{HOST}"}


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (scope(), None),
        (scope("POST", **OURS), None),
        (scope("POST", origin="null", sec_fetch_site="same-origin"), None),
        (scope("POST", content_length="16384", **OURS), None),
        (scope("POST", "/admin/import", content_length="16385", **OURS), None),
        (scope(host="evil.example"), 421),
        (scope(host="127.0.0.1"), 421),  # the port is part of the name
        (scope("POST"), 403),
        (scope("POST", origin="null"), 403),
        (scope("POST", origin=f"https://{HOST}"), 403),
        (scope("DELETE", origin="http://evil.example"), 403),
        (scope("POST", sec_fetch_site="cross-site", **OURS), 403),
        (scope("POST", content_length="-1", **OURS), 400),
        (scope("POST", content_length="²", **OURS), 400),
        (scope("POST", content_length="16385", **OURS), 413),
    ],
)
def test_a_form_of_this_page_passes_and_what_is_not_one_is_turned_away(
    asked: dict[str, Any], status: int | None
) -> None:
    problem = guard().problem(asked)
    assert (problem and problem[1]) == status


@pytest.mark.parametrize("name", ["host", "origin", "content-length"])
def test_a_header_that_comes_twice_is_turned_away_though_both_are_right(name: str) -> None:
    asked = scope("POST", content_length="3", **OURS)
    twice = next(header for header in asked["headers"] if header[0] == name.encode())
    asked["headers"].append((name.upper().encode(), twice[1]))
    assert guard().problem(asked) == ("a header was sent twice", 400)


def test_behind_a_proxy_that_speaks_https_forms_come_by_https() -> None:
    behind = guard(https=True)
    assert behind.problem(scope("POST", origin=f"https://{HOST}")) is None
    assert behind.problem(scope("POST", **OURS)) is not None


def test_a_page_that_is_reached_by_https_without_the_flag_says_what_is_missing() -> None:
    problem = guard().problem(scope("POST", origin=f"https://{HOST}"))
    assert problem is not None and "--https" in problem[0] and problem[1] == 403
    problem = guard().problem(scope("POST", origin="https://evil.example"))
    assert problem is not None and "--https" not in problem[0]


@pytest.mark.parametrize(
    ("https", "peer", "told", "counted"),
    [
        (True, "127.0.0.1", "203.0.113.7", "203.0.113.7"),
        (True, "::1", "203.0.113.7", "203.0.113.7"),
        (True, "127.0.0.1", "10.0.0.1, 198.51.100.2 , 203.0.113.7", "203.0.113.7"),  # the last one
        (True, "127.0.0.1", "", "127.0.0.1"),
        (True, "127.0.0.1", "unknown", "127.0.0.1"),
        (True, "127.0.0.1", "203.0.113.7,", "127.0.0.1"),
        (True, "192.0.2.9", "203.0.113.7", "192.0.2.9"),  # not from this machine: who knows
        (False, "127.0.0.1", "203.0.113.7", "127.0.0.1"),  # no proxy was announced
        (True, "127.0.0.1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (False, "2001:db8:1:2:ffff::1", "", "2001:db8:1:2::/64"),
    ],
)
def test_requests_are_counted_by_the_address_that_the_proxy_saw(
    https: bool, peer: str, told: str, counted: str
) -> None:
    asked = scope() | {"client": (peer, 5000)}
    assert guard(https=https).asker({"x-forwarded-for": told}, asked) == counted


def test_of_a_header_in_several_lines_the_last_address_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic() + 60
    monkeypatch.setattr("time.monotonic", lambda: now)
    slow = guard(rate=1.0, burst=2, https=True)

    def passed(*lines: str) -> bool:
        asked = scope() | {"client": ("127.0.0.1", 5000)}
        asked["headers"] += [(b"X-Forwarded-For", line.encode()) for line in lines]
        return slow.problem(asked) is None

    assert [passed(f"10.0.0.{n}", "203.0.113.7") for n in range(4)] == [True, True, False, False]
    assert passed("203.0.113.7", "203.0.113.8")


def test_a_body_that_does_not_say_how_long_it_is_is_cut_off_at_the_limit() -> None:
    limited = guard(body_limit=10)
    ask(limited, scope("POST", **OURS), b"12345", b"67890")
    assert limited.app.read == b"1234567890"  # type: ignore[attr-defined]
    with pytest.raises(HTTPException) as caught:
        ask(limited, scope("POST", **OURS), b"12345", b"67890", b"1")
    assert caught.value.status_code == 413


def test_a_session_has_its_burst_at_once_and_then_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bucket of 5 that fills by 2 a second, 3 seconds later 5 are left, not 6."""
    now = [time.monotonic() + 60]  # buckets begin by the true clock
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    slow, asked = guard(rate=2.0, burst=5), scope(cookie="ann")

    def passed() -> int:
        return sum(slow.problem(asked) is None for _ in range(20))

    assert passed() == 5
    now[0] += 1.0
    assert passed() == 2
    now[0] += 3.0
    assert passed() == 5
    assert slow.problem(scope(cookie="bob")) is None  # another session has its own


def test_made_up_sessions_share_the_bucket_of_their_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.monotonic() + 60
    monkeypatch.setattr("time.monotonic", lambda: now)
    slow = guard(rate=1.0, burst=2)
    assert sum(slow.problem(scope(cookie=str(n))) is None for n in range(100)) == 16 * 2


def test_every_answer_has_the_headers_but_an_answers_own_stay() -> None:
    for asked, status in ((scope(), 200), (scope(host="evil.example"), 421)):
        behind = guard()
        start = ask(behind, asked)[0]
        assert start["status"] == status
        assert behind.app.asked == (status == 200)  # type: ignore[attr-defined]
        sent = [(name.decode(), value.decode()) for name, value in start["headers"]]
        assert len({name for name, _ in sent}) == len(sent)
        own = {"cache-control": "public"} if status == 200 else {}
        assert HEADERS | own == {name: v for name, v in sent if name in HEADERS}
