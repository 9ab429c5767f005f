"""The page's process: it shows the run, it can be killed, and it ends after the run's process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from toolkit.live import beside

RUN = """
import sys
from pathlib import Path
from toolkit.live import beside
print(beside.open_beside(Path(sys.argv[1])), flush=True)
print(beside.open_beside(Path(sys.argv[1])), flush=True)
print(*[page.pid for page in beside._pages.values()], flush=True)
sys.stdin.read()
"""


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("end", ["the run is killed", "the page is killed"])
def test_the_page_ends_with_the_run_and_never_the_other_way_round(
    run_folder: Callable[..., Path], root: Path, end: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(run_folder())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as run:
        assert run.stdout is not None and run.stdin is not None
        said, again, pid = (run.stdout.readline() for _ in range(3))
        address = said.removeprefix("live page, on this machine only: ").strip()
        assert "update 4 of 10" in httpx2.get(address).text
        assert "open already" in again

        page = int(pid)
        if end == "the page is killed":
            os.kill(page, signal.SIGKILL)
            run.stdin.close()
            assert run.wait(10) == 0
        else:
            run.kill()
            run.wait()
        ends = time.monotonic() + 15
        while is_there(page) and time.monotonic() < ends:
            time.sleep(0.1)
        assert not is_there(page)


def test_a_page_that_does_not_start_is_a_warning_and_no_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "_pages", {})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    said = beside.open_beside(tmp_path)
    assert said == "warning: the live page did not start: no answer"
    for page in beside._pages.values():
        page.communicate()


def test_the_pages_process_loads_neither_torch_nor_transformers(root: Path) -> None:
    code = "import sys, toolkit.live.serving; print({'torch', 'transformers'} & {*sys.modules})"
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == "set()\n", done.stderr
