"""Serve the page on a run on this machine, until it is stopped or the run's process ends."""

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from toolkit.labeling.addresses import host_names, listen
from toolkit.labeling.serving import server_of
from toolkit.live.page import LivePage

HOST = "127.0.0.1"  # nobody else can reach it
LOOKED_AT = 6.0  # seconds for which the page is served after the run's process has ended


def serve_run(
    folder: Path, port: int, say: Callable[[str], None], until: BinaryIO | None = None
) -> None:
    """Tell the page's address, then serve it until Ctrl-C.

    Args:
        folder: the run's folder.
        port: 0 takes any free port.
        say: is given the address.
        until: a pipe whose other end is the run's; the server stops soon after it is closed.

    Raises:
        InputError: the port is not available.
    """
    listening = listen(HOST, port)
    hosts = host_names(listening, [])
    token = secrets.token_urlsafe(32)
    server = server_of(LivePage(folder, token, hosts).app())

    def stop_after_the_run() -> None:
        assert until is not None
        while until.read(1024):
            pass
        time.sleep(LOOKED_AT)  # whoever has the page open still gets the run's end
        server.should_exit = True

    if until is not None:
        threading.Thread(target=stop_after_the_run, daemon=True).start()
    say(f"http://{hosts[0]}/{token}/")
    server.run(sockets=[listening])
