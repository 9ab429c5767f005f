"""An HTTP endpoint; test_http_judge.py has the servers that misbehave on every way to an answer."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from toolkit.errors import InputError
from toolkit.scoring.endpoint import Endpoint, Refused


class Handler(BaseHTTPRequestHandler):
    """Says what it was asked; /no is refused, /much is long, /busy is never free."""

    def do_GET(self) -> None:  # noqa: N802 (http.server's name)
        self.answer(200, {"method": "GET", "path": self.path})

    def do_POST(self) -> None:  # noqa: N802 (http.server's name)
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = {"/v1/no": 400, "/v1/busy": 503}.get(self.path, 200)
        self.answer(status, {"said": content, "filled": "x" * (self.path == "/v1/much") * 5000})

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value | {"key": self.headers.get("Authorization")}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_it_gets_and_posts_with_the_key(address: str) -> None:
    with Endpoint(address, "MY_KEY", 5.0) as endpoint:
        got, posted = endpoint.ask("/models"), endpoint.ask("/say", {"a": [1]})
    assert json.loads(got) == {"method": "GET", "path": "/v1/models", "key": "Bearer sk-secret"}
    assert json.loads(posted)["said"] == {"a": [1]}
    assert endpoint.requests == 2


def test_what_is_refused_is_not_asked_again_and_the_key_is_hidden(address: str) -> None:
    endpoint = Endpoint(address, "MY_KEY", 5.0, cures={400: "ask nicely"})
    with pytest.raises(Refused, match=r"HTTP 400: .*Bearer \[key\].*\(ask nicely\)") as refused:
        endpoint.ask("/no", {"a": 1})
    assert refused.value.status == 400 and '"a": 1' in refused.value.said
    assert "sk-secret" not in refused.value.said + repr(vars(endpoint))
    assert (endpoint.requests, endpoint.retries) == (1, 0)


def test_a_call_may_try_less_often_than_others(address: str) -> None:
    endpoint = Endpoint(address, "MY_KEY", 5.0, backoff=0.0)
    with pytest.raises(InputError, match=r"HTTP 503.*tried 1 times"):
        endpoint.ask("/busy", {}, tries=1)
    with pytest.raises(InputError, match="tried 5 times"):
        endpoint.ask("/busy", {})
    assert (endpoint.requests, endpoint.retries) == (6, 4)


def test_an_answer_that_is_too_long_and_a_wrong_address_are_one_line(address: str) -> None:
    with pytest.raises(InputError, match="the answer has more than 1000 bytes"):
        Endpoint(address, "MY_KEY", 5.0, largest=1000).ask("/much", {})
    with pytest.raises(InputError, match="server_url: 'ftp://x', but must be like") as wrong:
        Endpoint("ftp://x", "MY_KEY", 5.0, field="server_url")
    assert wrong.value.field == "server_url"
