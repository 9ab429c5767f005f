"""The page's address: its socket and its host names. This module loads no web server."""

import ipaddress
import socket

from toolkit.errors import InputError

WAITING = 2048  # the most connections that may wait to be accepted


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes any free port.

    Raises:
        InputError: the address is not available.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        # With the protocol, asyncio turns Nagle's algorithm off. Without, each page on a connection
        # that is kept open waits 40 ms for an acknowledgment.
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(
            f"{host}:{port}: {error.strerror} (choose another --host)", "host"
        ) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(WAITING)  # visitors who come before the server is ready wait
    except OSError as error:
        listening.close()
        raise InputError(
            f"{host}:{port}: {error.strerror} (choose another --port)", "port"
        ) from None
    return listening


def host_names(listening: socket.socket, more: list[str]) -> tuple[str, ...]:
    """Return the Host headers to accept: the address, its loopback names, and ``more``."""
    host, port = listening.getsockname()[:2]
    names = [f"[{host}]" if ":" in host else host]
    if is_loopback(host):
        names += ["localhost", "127.0.0.1"]
    return tuple(dict.fromkeys([f"{name}:{port}" for name in names] + more))
