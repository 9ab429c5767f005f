"""Names for unfinished outputs, by which the next run removes what a killed run left.

    .picks.jsonl.k3v9x2ab.part        a file or folder being written beside its place
    .adapter.k3v9x2ab.part.old        the old content, for the moment between two renames
    TMPDIR/toolkit-7f3a09c2           a scratch folder, with .lock beside it while in use

A run that holds an output's lock (``locks``) may treat its unfinished parts as a dead run's.
"""

import fnmatch
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.data.locks import LOCK
from toolkit.launched import is_first

PART, OLD = ".part", ".old"
UNFINISHED = re.compile(r"\.(.+)\.\w{8}\.part(\.old)?", re.ASCII | re.DOTALL)


def part_folder(path: Path) -> Path:
    """Make a folder beside ``path``, for its replacement or for work on the way there."""
    aside = _aside(path)
    aside.mkdir()
    return aside


def part_file(path: Path) -> tuple[int, Path]:
    """Make a file beside ``path``; return its open descriptor and its path.

    The folder and the umask decide who may read it, as for every file of the user.
    """
    aside = _aside(path)
    return os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), aside


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")


def clear_leftovers(folder: str | Path, names: str = "*") -> None:
    """Clean up after killed runs: put back what was moved away, remove what was begun.

    Call it with the lock of the outputs held; of several processes that train together, the first
    does it for all. Outputs in the folder for which others hold a lock are skipped.

    Args:
        folder: where the outputs are written.
        names: pattern of their names; a name without a wildcard must be locked.
    """
    if not is_first():
        return
    folder = Path(folder)
    with suppress(FileNotFoundError):
        found = {path: UNFINISHED.fullmatch(path.name) for path in folder.iterdir()}
        parts = [
            (path, folder / match[1], match[2])
            for path, match in found.items()
            if match is not None and (match[1] == names or fnmatch.fnmatchcase(match[1], names))
        ]
        for path, target, moved in parts:
            if target.name != names and (folder / f"{LOCK}-{target.name}").exists():
                continue
            if moved and not os.path.lexists(target):
                os.replace(path, target)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder that is removed at the end, and remove those of killed processes."""
    home = Path(tempfile.gettempdir())
    for left in home.glob("toolkit-" + 8 * "[0-9a-f]"):
        with suppress(OSError, Timeout):  # in use, or another user's
            _remove(left)

    folder = home / f"toolkit-{secrets.token_hex(4)}"
    with FileLock(f"{folder}.lock", timeout=0):  # before the folder, so that nobody removes it
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}.lock").unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        return
    with FileLock(f"{folder}.lock", timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{folder}.lock").unlink(missing_ok=True)
