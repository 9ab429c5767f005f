"""Recipes as processes of their own, forked from the tests' process: nothing is imported again.

A fresh interpreter spends some seconds on the imports of torch, transformers and peft, which a fork
has already. What a launcher does (torchrun, accelerate) is tested with a real one in test_nodes.py.
"""

import os
import runpy
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest
from accelerate.state import AcceleratorState, GradientState

import toolkit.training.ppo.trainer  # noqa: F401  what a fork would otherwise import again


class Forked:
    """A recipe that runs in a fork; its words on stdout and stderr go to one file."""

    def __init__(
        self, recipe: Path, words: Sequence[str], said: Path, environment: dict[str, str]
    ) -> None:
        self.said = said
        self.returncode: int | None = None
        with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads; none computes
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            _become(recipe, words, said, environment)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 240) -> str:
        """What it has said when it has ended."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, self.said.read_text()
            time.sleep(0.01)
        return self.said.read_text()

    def signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)


def _become(
    recipe: Path, words: Sequence[str], said: Path, environment: dict[str, str]
) -> NoReturn:
    """Run the recipe as ``python recipe words`` would, and end this process."""
    code = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(descriptor, number)
            setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
        warnings.resetwarnings()  # the tests make errors of them
        warnings.simplefilter("ignore", DeprecationWarning)
        os.environ.update(environment)
        os.chdir(recipe.parent.parent)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

        sys.argv = [str(recipe), *words]
        runpy.run_path(str(recipe), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@pytest.fixture
def forked(root: Path, tmp_path: Path) -> Iterator[Callable[..., list[Forked]]]:
    """Starts ppo.py with a list of words for each process; all of them make one run.

    One list alone is a run of one process. With ``nodes``, each is the only process of a node of
    its own, as torchrun says it. What is still there in the end is killed.
    """
    started: list[Forked] = []

    def start(*each: Sequence[str], nodes: bool = False, **environment: str) -> list[Forked]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        for rank, words in enumerate(each):
            told = {"ACCELERATE_USE_CPU": "true"} | environment
            if len(each) > 1:
                told |= {"RANK": str(rank), "WORLD_SIZE": str(len(each)),
                         "LOCAL_RANK": "0" if nodes else str(rank),
                         "LOCAL_WORLD_SIZE": "1" if nodes else str(len(each)),
                         "GROUP_RANK": str(rank) if nodes else "0",
                         "GROUP_WORLD_SIZE": str(len(each)) if nodes else "1",
                         "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
            said = tmp_path / f"said-{len(started)}.txt"
            started.append(Forked(root / "recipes" / "ppo.py", words, said, told))
        return started[-len(each) :]

    yield start
    for process in started:
        process.signal(signal.SIGCONT)  # a stopped one would not end
        process.signal(signal.SIGKILL)
        process.wait()
