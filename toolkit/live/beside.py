"""Start the page on a run beside it, in a process of its own that cannot disturb it.

    python -P -m toolkit.live.beside FOLDER

The run hands that process a pipe as its standard input. Once the run's process has ended, for
whatever reason, the pipe is closed, and the page ends soon after. The other way round nothing
happens: the run never writes to the pipe, and never waits for the page after it has started.
"""

import os
import selectors
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STARTS_WITHIN = 30.0  # seconds

# The pages of this process. They are kept so that their pipes stay open as long as it lives.
_pages: dict[Path, "subprocess.Popen[bytes]"] = {}


def open_beside(folder: Path) -> str:
    """Start the page on a run of this process, if it has none yet; return a line that says where.

    If the page cannot start, the line says why: the run goes on without it.
    """
    folder = folder.resolve()
    known = _pages.get(folder)
    if known is not None and known.poll() is None:
        return f"the page on {folder} is open already"

    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    page = subprocess.Popen(
        [sys.executable, "-P", "-m", "toolkit.live.beside", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the run, which then saves
    )
    _pages[folder] = page
    assert page.stdout is not None
    said = _first_lines(page)
    page.stdout.close()
    if said.startswith("http://"):
        return f"live page, on this machine only: {said}"
    return f"warning: the live page did not start: {' '.join(said.split())[-300:] or 'no answer'}"


def _first_lines(page: "subprocess.Popen[bytes]") -> str:
    """Return what the page's process says first: an address, or all of an error."""
    assert page.stdout is not None
    said, ends = b"", time.monotonic() + STARTS_WITHIN
    with selectors.DefaultSelector() as selector:
        selector.register(page.stdout, selectors.EVENT_READ)
        while not (said.startswith(b"http://") and said.endswith(b"\n")):
            if not selector.select(timeout=max(0.0, ends - time.monotonic())):
                break
            part = os.read(page.stdout.fileno(), 4096)
            if not part:
                break
            said += part
    return said.decode("utf-8", "replace").strip()


def _serve(folder: str) -> None:
    """Serve the page: this is what the new process does."""
    from toolkit.live.serving import serve_run

    def say(address: str) -> None:
        print(address, flush=True)
        # Nobody reads on: an error that is logged later must not end the page.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)

    serve_run(Path(folder), 0, say, until=sys.stdin.buffer)


if __name__ == "__main__":
    _serve(sys.argv[1])
