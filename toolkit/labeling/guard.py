"""Check every request before a page reads it, and set the headers of every answer."""

import hashlib
import ipaddress
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from toolkit.labeling.addresses import is_loopback

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # under no-referrer a form's Origin is null
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class PageSettings:
    """The page's texts and limits.

    Attributes:
        hosts: accepted values of the Host header ("127.0.0.1:8000").
        guidelines: text above the items.
        title: title of the page.
        https: a proxy serves the page by https, so the cookie is sent by https only. If the proxy
            is on this machine, it is believed who asks (``Guard.asker``).
        body_limit, import_limit: most bytes of a form, and of a file that an admin imports.
        rate, burst: requests per second for a session or address, and most requests at once.
        session: seconds until a person must open the invite link again.
    """

    hosts: tuple[str, ...]
    guidelines: str = "Pick the completion that continues the text best."
    title: str = "Which is best?"
    https: bool = False
    body_limit: int = 16 * 1024
    import_limit: int = 64 * 1024 * 1024
    rate: float = 20.0
    burst: int = 60
    session: float = 30 * 24 * 3600.0


@dataclass
class _Bucket:
    tokens: float
    at: float = field(default_factory=time.monotonic)


class Guard:
    """Reject bad requests before anything reads them, and set the headers of every answer."""

    def __init__(self, app: ASGIApp, settings: PageSettings) -> None:
        self.app = app
        self.settings = settings
        scheme = "https" if settings.https else "http"
        self.origins = {f"{scheme}://{host}" for host in settings.hosts}
        self.https_origins = {f"https://{host}" for host in settings.hosts}
        self.buckets: OrderedDict[str, _Bucket] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] = list(message["headers"]) + [
                    (name.encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.encode() not in given
                ]
            await send(message)

        problem = self.problem(scope)
        if problem is not None:
            await plain_text(*problem)(scope, receive, sending)
            return
        await self.app(scope, self.limited(scope, receive), sending)

    def problem(self, scope: Scope) -> tuple[str, int] | None:
        """Return why a request is rejected, and the HTTP status; None if it may pass."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1").lower()
            if key in headers and key in ("host", "origin", "content-length"):
                return "a header was sent twice", 400
            headers[key] = value.decode("latin-1")

        # Stops DNS rebinding: a foreign name that resolves to this address.
        if headers.get("host", "") not in self.settings.hosts:
            return "this host name is not served here (--public_host names it)", 421

        if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            origin, site = headers.get("origin", "null"), headers.get("sec-fetch-site")
            if not self.settings.https and origin in self.https_origins:
                return "a proxy serves this page by https: start it again with --https", 403
            ours = origin in self.origins or (origin == "null" and site == "same-origin")
            if not ours or site not in (None, "same-origin"):
                return "forms are accepted from this page only", 403
            length = headers.get("content-length", "")
            if length and not (length.isascii() and length.isdigit()):
                return "the content-length header is not a number", 400
            if length and int(length) > self.limit(scope):
                return self.too_much(scope), 413

        if not self.has_time(headers, scope):
            return "too many requests: please wait a few seconds", 429
        return None

    def limit(self, scope: Scope) -> int:
        """Return the most bytes that the body may have."""
        is_import = scope["path"] == "/admin/import"
        return self.settings.import_limit if is_import else self.settings.body_limit

    def too_much(self, scope: Scope) -> str:
        """Return the answer to a body that is too large."""
        if scope["path"] != "/admin/import":
            return "the request is too large"
        return (
            f"the file is larger than {self.settings.import_limit >> 20} MiB: import it in parts, "
            "or with preftune label --samples"
        )

    def limited(self, scope: Scope, receive: Receive) -> Receive:
        """Wrap ``receive`` to stop at the limit, for bodies that do not state their length."""
        left = self.limit(scope)

        async def receiving() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, self.too_much(scope))
            return message

        return receiving

    def has_time(self, headers: dict[str, str], scope: Scope) -> bool:
        """Whether the caller's bucket holds a token, which is then taken."""
        address = self.asker(headers, scope)
        key = hashlib.sha256(headers.get("cookie", address).encode()).hexdigest()
        now = time.monotonic()
        rate, burst = self.settings.rate, self.settings.burst

        # The address has a bucket too, so that made-up cookies do not get around the limit.
        for name, size in ((key, burst), (address, 16 * burst)):
            bucket = self.buckets.setdefault(name, _Bucket(size))
            speed = rate * size / burst
            bucket.tokens = min(size, bucket.tokens + (now - bucket.at) * speed)
            bucket.at = now
            self.buckets.move_to_end(name)
            if bucket.tokens < 1:
                return False
            bucket.tokens -= 1

        while len(self.buckets) > 10_000:
            self.buckets.popitem(last=False)
        return True

    def asker(self, headers: dict[str, str], scope: Scope) -> str:
        """Return the address of whoever asks, by which requests are counted.

        Through a proxy on this machine all requests come from this machine. The proxy writes the
        address that it sees at the end of X-Forwarded-For; what stands before it may be made up by
        the client. So the last one counts, and only if ``https`` says that there is a proxy and the
        connection comes from this machine. No other X-Forwarded header is read anywhere.

        Of an IPv6 address the first half counts, because one household has all of the second.
        """
        peer: str = (scope.get("client") or ("", 0))[0]
        told = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
        behind_proxy = self.settings.https and is_loopback(peer)
        try:
            address = ipaddress.ip_address(told if behind_proxy and told else peer)
        except ValueError:
            return peer
        if address.version == 6:
            return str(ipaddress.ip_network((int(address), 64), strict=False))
        return str(address)


def plain_text(text: str, status: int) -> Response:
    """Answer with one line of plain text instead of a page."""
    headers = {"retry-after": "3"} if status in (429, 503) else {}
    return Response(text + "\n", status, headers, "text/plain; charset=utf-8")
