"""The page answers by its own names only, and tells who can reach it."""

import socket

import pytest

from toolkit.errors import InputError
from toolkit.labeling.addresses import host_names, is_loopback, listen


def test_another_address_than_loopback_wants_its_names() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.5")
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        names = host_names(sock, ["labels.example:443"])
        assert names == (f"127.0.0.1:{port}", f"localhost:{port}", "labels.example:443")
        sock.listen()
        with pytest.raises(InputError, match="another --port"):
            listen("127.0.0.1", port)


def test_an_address_of_the_sixth_version_stands_in_brackets_in_its_names() -> None:
    class Listening:
        def getsockname(self) -> tuple[str, int, int, int]:
            return "::1", 8000, 0, 0

    assert host_names(Listening(), ["localhost:8000"]) == (  # type: ignore[arg-type]
        "[::1]:8000",
        "localhost:8000",
        "127.0.0.1:8000",
    )


def test_the_socket_says_that_it_speaks_tcp() -> None:
    """asyncio sets TCP_NODELAY only then (asyncio/base_events.py: _set_nodelay)."""
    with listen("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP


def test_a_host_that_is_none_is_the_flags_mistake() -> None:
    with pytest.raises(InputError, match=r"choose another --host") as caught:
        listen("no such host", 0)
    assert caught.value.field == "host"
