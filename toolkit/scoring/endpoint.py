"""Asking an HTTP endpoint: retries, one deadline for a whole request, and a key that nobody sees.

Used for judges (``http_judge``) and for sampling by a vLLM server. Nothing is sent anywhere but to
``base_url``.
"""

import contextlib
import email.utils
import json
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import httpx2

from toolkit.errors import InputError, check_range

Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


class Refused(InputError):
    """Raised if an endpoint refuses a request; asking again would not help.

    Attributes:
        status: of the answer.
        said: its text, without the key.
    """

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


class Endpoint:
    """An HTTP endpoint that takes and gives JSON.

    Rate limits (429), server errors (5xx) and connections that fail or stall are retried after the
    time in ``Retry-After``, or after 1, 2, 4, ... times ``backoff``. Several threads may ask.

    Args:
        base_url: its address. Redirects are not followed.
        key_variable: environment variable with the key; if it is not set, no key is sent.
        timeout: seconds for one request, from looking up the address to the answer's last byte.
        retries: most retries of one request.
        backoff: seconds before the first retry.
        longest_wait: seconds. If the endpoint asks for more, ``ask`` gives up.
        largest: most bytes of an answer.
        field: the argument that gave the address, for messages.
        flag: the flag that gave it, if it has another name.
        cures: what to do about an answer with this status, for messages.

    Attributes:
        requests: requests sent, including retries.
        retries: retries among them.

    Raises:
        InputError: the address or key is impossible, or a number is out of range.
    """

    def __init__(
        self,
        base_url: str,
        key_variable: str,
        timeout: float,
        retries: int = 4,
        backoff: float = 1.0,
        longest_wait: float = 120.0,
        largest: int = 1 << 20,
        field: str = "base_url",
        flag: str | None = None,
        cures: Mapping[int, str] | None = None,
    ) -> None:
        check_range("timeout", timeout, above=0)
        check_range("retries", retries, low=0)
        check_range("backoff", backoff, low=0)
        check_range("longest_wait", longest_wait, low=0)

        self.base_url = _address(base_url, field)
        self.timeout, self.tries, self.backoff = timeout, retries + 1, backoff
        self.longest_wait, self.largest = longest_wait, largest
        self.flag, self.cures = flag or field, dict(cures or {})
        self.requests = self.retries = 0
        self._counting = threading.Lock()

        key = _key(key_variable)
        # The key is kept here and in the client, whose repr hides it, but not in an attribute.
        self._hide = lambda text: text.replace(key, "[key]") if key else text
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"

        # Each request has its own connection, so that bytes that an endpoint sends after an answer
        # are never taken for the next one.
        self._client = httpx2.Client(
            headers=headers,
            timeout=timeout,
            follow_redirects=False,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, path: str, content: object = None, tries: int | None = None) -> bytes:
        """Return the body of the answer, after retries if needed.

        Args:
            path: behind the address, with a slash.
            content: what to POST as JSON; None to GET.
            tries: most requests; by default as at construction.

        Raises:
            Refused: the endpoint refuses the request (a wrong key or address, say).
            InputError: it answers too much, asks to wait too long, or cannot be reached.
        """
        body = None if content is None else json.dumps(content).encode()
        tries = tries or self.tries
        problem = ""
        for attempt in range(tries):
            with self._counting:
                self.requests += 1
                self.retries += attempt > 0
            asked: float | None = None
            try:
                status, headers, answer = self._post(path, body)
            except httpx2.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if 200 <= status < 300:
                    if len(answer) > self.largest:
                        raise InputError(
                            f"{self.base_url}: the answer has more than {self.largest} bytes"
                        )
                    return answer
                said = answer.decode("utf-8", "replace")
                problem = f"HTTP {status}: {said}"
                if status != 429 and status < 500:
                    message = self.line(problem) + self._cure(status, headers)
                    raise Refused(message, status, self._hide(said))
                asked = _seconds(headers.get("retry-after"))

            if asked is not None and asked > self.longest_wait:
                raise InputError(
                    f"{self.line(problem)} (asks to wait {asked:.0f} s: run this then)"
                )
            if attempt + 1 < tries:
                own = min(self.backoff * 2**attempt, self.longest_wait)
                time.sleep(own if asked is None else asked)
        raise InputError(f"{self.line(problem)} (tried {tries} times)")

    def _post(self, path: str, body: bytes | None) -> Answer:
        """Return status, headers and at most ``largest`` + 1 bytes of the answer, by the deadline.

        The client's own timeouts start anew at each read, so a server that sends a byte now and
        then would keep it forever. So a thread asks, and its connection is cut at the deadline.
        """
        outcome: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()
        call = _Call()

        def ask() -> None:
            try:
                outcome.put(self._exchange(path, body, call))
            except BaseException as error:
                outcome.put(error)

        threading.Thread(target=ask, name="endpoint", daemon=True).start()
        try:
            found = outcome.get(timeout=self.timeout)
        except queue.Empty:
            raise httpx2.ReadTimeout(f"no complete answer in {self.timeout:g} s") from None
        finally:
            call.hang_up()
        if isinstance(found, BaseException):
            raise found
        return found

    def _exchange(self, path: str, body: bytes | None, call: "_Call") -> Answer:
        url, method = f"{self.base_url}{path}", "GET" if body is None else "POST"
        answer = b""
        extensions = {"trace": call.trace}
        with self._client.stream(method, url, content=body, extensions=extensions) as response:
            for chunk in response.iter_raw():  # undecoded, so that nothing small can become large
                answer += chunk
                if len(answer) > self.largest:
                    break
            return response.status_code, dict(response.headers), answer[: self.largest + 1]

    def line(self, problem: str) -> str:
        """Make a line from a server's message: short, without key and control characters."""
        return f"{self.base_url}: {self.cut(problem, 200)}"

    def cut(self, text: str, length: int) -> str:
        """Return the beginning of a server's text, without key and control characters."""
        # Cut only after the key is removed, or a part of it could stay.
        words = "".join(c if c.isprintable() else " " for c in self._hide(text)).split()
        return " ".join(words)[:length]

    def _cure(self, status: int, headers: dict[str, str]) -> str:
        if 300 <= status < 400:
            there = self.cut(headers.get("location", "").split("?")[0], 100) or "nowhere"
            return (
                f" (it redirects to {there}, which is not followed: pass the right --{self.flag})"
            )
        cure = self.cures.get(status)
        return f" ({cure})" if cure else ""


class _Call:
    """One request's connection, which another thread can cut."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.over = threading.Event()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Receive the client's events; end the connection if the call is over."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self.sockets.append(info["return_value"].get_extra_info("socket"))
        if self.over.is_set() and event.endswith(".started") and "close" not in event:
            raise httpx2.ReadTimeout("hung up")

    def hang_up(self) -> None:
        """Wake the thread that waits for this connection, which then closes it."""
        self.over.set()
        for one in self.sockets:
            with contextlib.suppress(OSError):  # it is closed already
                socket.socket.shutdown(one, socket.SHUT_RDWR)


def _address(base_url: str, field: str) -> str:
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, TypeError):
        raise InputError(f"{field}: not an address", field) from None
    # Without a scheme there is no userinfo, but what stands before the @ is as secret.
    if url.userinfo or url.query or url.fragment or "@" in base_url:
        raise InputError(f"{field} has a name, password or query in it (leave it out)", field)
    try:
        url.host.encode("idna")
    except UnicodeError:
        raise InputError(f"{field}: {base_url!r:.80}: no such host", field) from None
    if url.scheme not in ("http", "https") or not url.host or " " in base_url:
        raise InputError(
            f"{field}: {base_url!r:.80}, but must be like http://localhost:8000/v1", field
        )
    return base_url.rstrip("/")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or any(not 32 < ord(c) < 127 for c in key):  # a header cannot hold these
        raise InputError(f"{variable} has spaces or characters that no key has (set it again)")
    return key


def _seconds(header: str | None) -> float | None:
    """Parse Retry-After (seconds or a date) to seconds; None if it is neither."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", header.strip(), re.ASCII):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
