"""Where the page is: its socket, and the names by which it answers. Loads no web server."""

import ipaddress
import socket

from toolkit.errors import InputError

WAITING = 2048  # connections that may wait until they are accepted


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket on the address; port 0 for any that is free.

    Raises:
        InputError: the address can not be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
    except OSError as error:
        raise InputError(f"{host}:{port}: {error.strerror} (another --host?)", "host") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(WAITING)  # who comes before the server is ready waits
    except OSError as error:
        listening.close()
        raise InputError(f"{host}:{port}: {error.strerror} (another --port?)", "port") from None
    return listening


def host_names(listening: socket.socket, more: list[str]) -> tuple[str, ...]:
    """The Host headers to answer: the address, this machine's loopback names, and ``more``."""
    host, port = listening.getsockname()[:2]
    names = [f"[{host}]" if ":" in host else host]
    if is_loopback(host):
        names += ["localhost", "127.0.0.1"]
    return tuple(dict.fromkeys([f"{name}:{port}" for name in names] + more))
