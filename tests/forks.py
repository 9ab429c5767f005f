"""Scripts as processes of their own, forked from the tests' process: nothing is imported again.

A fresh interpreter spends some seconds on the imports of torch, transformers and peft, which a fork
has already. What a launcher does (torchrun, accelerate) is tested with a real one in test_nodes.py.
"""

import contextlib
import importlib
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
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

        def script_alone() -> None:
            os.environ.update(environment)
            sys.argv = [str(script), *words]
            runpy.run_path(str(script), run_name="__main__")

        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.pid = _fork(script_alone, folder, descriptor, descriptor)
        os.close(descriptor)

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


class Commands:
    """The console command ``preftune`` for a shell's scripts, each call in a fork of this process.

    Args:
        folder: where the command is put; it belongs on the script's PATH.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = 0
        self._running: dict[int, socket.socket] = {}

    @contextlib.contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        # A socket's path may have 107 characters at most, and pytest's folders can be longer.
        with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as server:
            path = os.path.join(short, "s")
            server.bind(path)
            server.listen()
            server.settimeout(0.02)
            command = self.folder / "preftune"
            command.write_text(f"#!{sys.executable} -IS\n{_ASK.replace('PATH', repr(path))}")
            command.chmod(0o755)
            yield server

    def run(
        self, words: Sequence[str], folder: Path, environment: dict[str, str], timeout: float
    ) -> tuple[int, str]:
        """Run a script to its end, and each of its calls of ``preftune``; exit code and words.

        Raises:
            subprocess.TimeoutExpired: if it takes longer.
        """
        end = time.monotonic() + timeout
        with self._listening() as server, tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                words, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT
            )
            try:
                while process.poll() is None:
                    with contextlib.suppress(TimeoutError):
                        self._answer(server.accept()[0])
                    self._reap()
                    if time.monotonic() > end:
                        raise subprocess.TimeoutExpired(words, timeout)
            finally:
                process.kill()
                process.wait()
                for pid in self._running:
                    os.kill(pid, signal.SIGKILL)
                while self._running:
                    self._reap()
            said.seek(0)
            return process.returncode, said.read().decode(errors="replace")

    def _answer(self, asked: socket.socket) -> None:
        asked.settimeout(30)
        part, descriptors, _, _ = socket.recv_fds(asked, 1 << 16, 3)
        message = part
        while part := asked.recv(1 << 16):
            message += part
        words, folder, environment = json.loads(message)

        def command() -> None:
            os.environ.clear()
            os.environ.update(environment)
            sys.argv = ["preftune", *words]

            # Defaults such as data/model are written as the folder sees them at the import.
            for name in [n for n in sys.modules if n.partition(".")[0] == "toolkit"]:
                del sys.modules[name]
            importlib.import_module("toolkit.console").main()

        self.calls += 1
        pid = _fork(command, Path(folder), *descriptors[1:])
        self._running[pid] = asked
        for descriptor in descriptors:
            os.close(descriptor)

    def _reap(self) -> None:
        for pid, asked in list(self._running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._running[pid]
                with contextlib.suppress(OSError):  # the script may have been killed
                    asked.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                asked.close()


class Reloading:
    """What ``verify_reload`` starts: a fork answers in place of a fresh interpreter.

    It stands for the module ``subprocess``. tests/models/test_reload.py has the clean process.
    """

    @staticmethod
    def run(command: Sequence[str], input: str, **_: object) -> subprocess.CompletedProcess[str]:
        def work() -> None:
            sys.stdin = io.StringIO(input)
            sys.argv = [command[-1]]
            runpy.run_module(command[-1], run_name="__main__")

        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            pid = _fork(work, Path.cwd(), out.fileno(), err.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, code, out.read(), err.read())


# What the command is: it hands over its words, folder, environment and streams, and waits.
_ASK = """import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect(PATH)
    message = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    sent = socket.send_fds(asked, [message], [0, 1, 2])
    asked.sendall(message[sent:])
    asked.shutdown(socket.SHUT_WR)
    sys.exit(int(asked.recv(16) or b"1"))
"""


def _fork(work: Callable[[], object], folder: Path, stdout: int, stderr: int) -> int:
    """Do this in a fork, in that folder, with these descriptors as its streams; its number."""
    with warnings.catch_warnings():  # Python 3.12 warns of forks beside threads; none computes
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        _become(work, folder, stdout, stderr)
    return pid


def _become(work: Callable[[], object], folder: Path, stdout: int, stderr: int) -> NoReturn:
    """Do the work as a script of its own would, and end this process."""
    code = 1
    try:
        for number, descriptor, name in ((1, stdout, "stdout"), (2, stderr, "stderr")):
            os.dup2(descriptor, number)
            setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
        warnings.resetwarnings()  # the tests make errors of them
        warnings.simplefilter("ignore", DeprecationWarning)
        os.chdir(folder)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        work()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # of a pipe whose reader has gone
            sys.stdout.flush()
        os._exit(code)
