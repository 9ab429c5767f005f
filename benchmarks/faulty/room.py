"""An empty folder in which one fault is tried, and what is asked of every ending.

    def a_prompt_that_is_a_number(room: Room) -> str:
        (room.folder / "p.jsonl").write_text('{"prompt": 7}')
        return room.recipe("sample", "--prompts", "p.jsonl").refused("p.jsonl:1")

    FAULTS = [Fault("rows", "a prompt that is a number", a_prompt_that_is_a_number)]

A fault's function returns in a few words what happened ("refused in one line"), which the table
counts, or raises ``Wrong``: something was lost, half-written, silently wrong, or badly said.
"""

import hashlib
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "data" / "model"
LEXICON = ROOT / "data" / "lexicon.txt"
REFUSED = "refused in one line"
Process = Any

# Processes are forked from one that has imported the toolkit already: half a second in place of
# eight. Faults that come while it is imported use Room.command.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["toolkit.cli", "benchmarks.faulty.imports"])


class Wrong(Exception):
    """What happened is not what a careful tool does."""


@dataclass(frozen=True)
class Fault:
    """One thing that is tried.

    Attributes:
        kind: its row in the table.
        name: what was done; no two of a kind have one.
        run: does it in an empty room, and says what happened.
    """

    kind: str
    name: str
    run: Callable[["Room"], str]


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        room: where it ran.
        code: its exit code; minus the signal's number where one killed it.
        out, err: what it printed.
        before: the room's files as they were (``Room.files``).
    """

    room: "Room"
    code: int
    out: str
    err: str
    before: dict[str, str]

    def refused(self, *said: str) -> str:
        """One line that has all of ``said``, exit code 2, and nothing written."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        self.expect(self.code == 2 and len(lines) == 1, "not one line and exit code 2")
        for words in said:
            self.expect(words in self.err, f"it does not say {words!r}")
        self.expect(self.room.files() == self.before, "files were written or changed")
        return REFUSED

    def done(self) -> "Ended":
        """It ended well."""
        self.expect(self.code == 0, "it did not end well")
        return self

    def expect(self, holds: bool, otherwise: str) -> None:
        """Raise Wrong with the process's last words unless this ``holds``; never a traceback."""
        if "Traceback" in self.err:
            holds, otherwise = False, "a traceback"
        if not holds:
            raise Wrong(f"{otherwise}; code {self.code}: {self.err[-600:] or self.out[-300:]}")


@dataclass
class Room:
    """A folder of its own.

    Attributes:
        folder: it; processes work in it.
    """

    folder: Path

    def files(self) -> dict[str, str]:
        """Each file's digest, by its path from here; temporary ones too."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in ("stdout", "stderr")
        }

    def write(self, name: str, text: str | bytes) -> Path:
        """A file in here."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def start(
        self,
        recipe: str,
        *words: object,
        first: Callable[[], None] | None = None,
        **environment: str,
    ) -> Process:
        """Begin a recipe on a CPU in a process of its own; ``wait`` ends it.

        ``first``, a function of a module, is called in that process before the recipe is.
        """
        told = [str(word) for word in words]
        process = _context.Process(
            target=_work, args=(recipe, told, str(self.folder), environment, first)
        )
        process.before = self.files()
        process.start()
        # Else another thread that starts one would look whether this one has ended, at the same
        # moment as ``wait``, and one of the two would miss its exit code.
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        return process

    def wait(self, process: Process, seconds: float = 300) -> Ended:
        """Wait until it ends, or raise Wrong."""
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise Wrong(f"it hung for {seconds} s")
        for name in ("stdout", "stderr"):
            (self.folder / name).touch()  # of one that was killed at its very start
        out, err = (_text((self.folder / name).read_bytes()) for name in ("stdout", "stderr"))
        return Ended(self, process.exitcode, out, err, process.before)

    def recipe(self, name: str, *words: object, seconds: float = 300, **environment: str) -> Ended:
        """Run a recipe to its end."""
        return self.wait(self.start(name, *words, **environment), seconds)

    def killed(
        self, name: str, *words: object, after: float, by: int = signal.SIGKILL, **environment: str
    ) -> Ended:
        """Begin a recipe and send it a signal after so many seconds."""
        process = self.start(name, *words, **environment)
        process.join(after)
        if process.is_alive():
            os.kill(process.pid, by)
        return self.wait(process)

    def command(self, *words: object, seconds: float = 300, **options: Any) -> Ended:
        """A command with an interpreter of its own: ``room.command("recipes/x.py", ...)``."""
        before = self.files()
        done = subprocess.run(
            [sys.executable, str(ROOT / str(words[0])), *map(str, words[1:])],
            cwd=self.folder,
            capture_output=True,
            timeout=seconds,
            check=False,
            **options,
        )
        return Ended(self, done.returncode, _text(done.stdout), _text(done.stderr), before)

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something to happen, or raise Wrong."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise Wrong(f"nothing happened for {seconds} s")
            time.sleep(0.02)


def _text(printed: bytes) -> str:
    """What was printed, without what a progress bar has overwritten."""
    return re.sub(r"[^\n]*\r", "", printed.decode("utf-8", "replace"))


def _work(
    recipe: str,
    words: list[str],
    folder: str,
    environment: dict[str, str],
    first: Callable[[], None] | None,
) -> None:
    """In the new process: the recipe as ``python recipes/RECIPE.py WORDS`` would run it."""
    os.chdir(folder)
    os.environ.update(environment)
    tempfile.tempdir = None  # read TMPDIR anew
    multiprocessing.set_start_method("fork", force=True)  # as it is in a new interpreter
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    if size := environment.get("FAULTY_FILE_SIZE"):  # as a quota would
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [f"recipes/{recipe}.py", *words]
    if first is not None:
        first()
    from toolkit import cli, endings

    endings.prepare()
    cli.run(cli.recipe(recipe).main)
