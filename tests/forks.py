"""Scripts as processes of their own, forked from the tests' process: nothing is imported again.

A fresh interpreter spends some seconds on the imports of torch, transformers and peft, which a fork
has already. What a launcher does (torchrun, accelerate) is tested with a real one in test_nodes.py.
"""

import os
import runpy
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from accelerate.state import AcceleratorState, GradientState


class Forked:
    """A script that runs in a fork; its words on stdout and stderr go to one file.

    Args:
        script: its path.
        words: its command line.
        said: the file.
        folder: where it works.
        environment: what it gets beside this process's.
    """

    def __init__(
        self, script: Path, words: Sequence[str], said: Path, folder: Path, **environment: str
    ) -> None:
        self.said = said
        self.returncode: int | None = None
        with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads; none computes
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            _become(script, words, said, folder, environment)

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
    script: Path, words: Sequence[str], said: Path, folder: Path, environment: dict[str, str]
) -> NoReturn:
    """Run the script as ``python script words`` would, and end this process."""
    code = 1
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(descriptor, number)
            setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
        warnings.resetwarnings()  # the tests make errors of them
        warnings.simplefilter("ignore", DeprecationWarning)
        os.environ.update(environment)
        os.chdir(folder)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

        sys.argv = [str(script), *words]
        runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
