"""The page is served on this machine alone, and ends after the run's process."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from toolkit.live import serving


def test_the_page_is_served_until_the_runs_end_of_the_pipe_is_closed(
    run_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "LOOKED_AT", 0.0)
    ours, runs = os.pipe()
    told: list[str] = []
    ready = threading.Event()

    def say(address: str) -> None:
        told.append(address)
        ready.set()

    with os.fdopen(ours, "rb") as until:
        page = threading.Thread(target=serving.serve_run, args=(run_folder(), 0, say, until))
        page.start()
        assert ready.wait(10)
        assert told[0].startswith("http://127.0.0.1:") and len(told[0].split("/")[3]) == 43
        assert "update 4 of 10" in httpx2.get(told[0]).text
        os.close(runs)
        page.join(10)
        assert not page.is_alive()
