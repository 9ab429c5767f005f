"""Locks on outputs: a run that writes a folder or a file holds its lock until the recipe ends.

    outputs/ppo/.lock             locks the folder outputs/ppo
    outputs/.lock-picks.jsonl     locks the file outputs/picks.jsonl

The operating system holds the lock (flock, by filelock) and releases it when the process ends, for
whatever reason. The file names its holder: host, process and start. A recipe that ends normally
deletes it, so a file that is not locked was left by a run that was killed.
"""

import atexit
import datetime
import hashlib
import json
import os
import socket
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from toolkit.errors import InputError
from toolkit.launched import is_first

LOCK = ".lock"


@dataclass
class _Held:
    """A lock of this process.

    Attributes:
        lock: filelock's.
        made: folders that were created for it; they are removed if nothing was written there.
        pid: process that took it; a fork of that process does not release it.
        record: text that was written into the file.
    """

    lock: BaseFileLock
    made: list[Path]
    pid: int = field(default_factory=os.getpid)
    record: str = ""


_held: dict[Path, _Held] = {}
_scopes: list[list[Path]] = []


@contextmanager
def letting_go() -> Iterator[None]:
    """Release at the end what was locked inside; otherwise that happens when the process ends."""
    scope: list[Path] = []
    _scopes.append(scope)
    try:
        yield
    finally:
        # Compare by identity: a generator may leave its scope after an outer one was left.
        _scopes[:] = [other for other in _scopes if other is not scope]
        for marker in reversed(scope):
            _release(marker)


def lock_folder(path: str | Path, field: str) -> None:
    """Lock this folder until the recipe ends, creating it if needed.

    Raises:
        InputError: another run holds it, or it cannot be written.
    """
    _lock(Path(path) / LOCK, Path(path), field)


def lock_file(path: str | Path, field: str) -> None:
    """Lock this file until the recipe ends; the file may be missing, its folder is created.

    Raises:
        InputError: another run holds it, or it cannot be written.
    """
    path = Path(path)
    _lock(path.with_name(f"{LOCK}-{path.name}"), path, field)


def lock_part(path: str | Path, name: str, field: str) -> None:
    """Lock this name within a file that other runs may write to at the same time.

    Raises:
        InputError: another run holds it, or it cannot be written.
    """
    path, digest = Path(path), hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:8]
    _lock(path.with_name(f"{LOCK}-{path.name}-{digest}"), f"{path}, {name!r},", field)


def is_lock(path: Path) -> bool:
    """Whether this file is a folder's lock."""
    return path.name == LOCK


def is_being_written(folder: str | Path) -> bool | None:
    """Whether a process of this machine holds the folder's lock; None if that cannot be told.

    It looks at the lock's file only, and never tries to acquire the lock: a run that starts at
    that moment would be refused.
    """
    marker = Path(folder) / LOCK
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
        host, pid = record["host"], int(record["pid"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if host != socket.gethostname() or pid <= 0:
        return None
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _lock(marker: Path, shown: Path | str, field: str) -> None:
    if not is_first():
        return
    marker = Path(os.path.abspath(marker.parent.resolve() / marker.name))
    if marker in _held and _held[marker].pid == os.getpid():
        return

    made: list[Path] = []
    try:
        made = [folder for folder in marker.parents if not folder.exists()]
        _check_kind(marker, field)
        lock = _acquire_in_a_folder(marker)
        if lock is not None:
            _held[marker] = _Held(lock, made)
            if _scopes:
                _scopes[-1].append(marker)
            _sign(marker, shown, field, _held[marker])
    except InputError:
        if marker in _held:
            _forget(marker)
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if marker in _held:  # it was acquired, but could not be signed
            _forget(marker)
        else:
            _remove_empty(made)
        why, cure = getattr(error, "strerror", None) or error, "name another"
        if isinstance(error, PermissionError) and os.path.lexists(marker):
            cure = f"its lock {marker} belongs to another user: {cure}"
        raise InputError(f"{field}: {shown} cannot be written: {why} ({cure})", field) from None
    if lock is None:
        raise InputError(
            f"{field}: {shown} is being written by another run, {_holder(marker)} (wait until it "
            "has ended, stop it, or name another)",
            field,
        )


def _acquire_in_a_folder(marker: Path) -> BaseFileLock | None:
    """Create the folder and acquire; a run that ends may remove the empty folder meanwhile."""
    for _ in range(5):
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            return _acquire(marker)
        except FileNotFoundError as error:
            problem = error
    raise problem


def _acquire(marker: Path) -> BaseFileLock | None:
    """Acquire the lock; return None if another process has it."""
    lock = FileLock(marker, timeout=0, thread_local=False)
    with warnings.catch_warnings():
        # Without flock, filelock checks whether the file exists and the process named in it runs.
        warnings.filterwarnings("ignore", message="flock not supported")
        for _ in range(3):  # its holder may delete the file between two checks
            try:
                lock.acquire()
                return lock
            except Timeout:
                if marker.exists():
                    return None
    return None


def _check_kind(marker: Path, field: str) -> None:
    """Raise InputError if the lock's path is not a plain file."""
    if os.path.lexists(marker) and not stat.S_ISREG(marker.lstat().st_mode):
        raise InputError(
            f"{field}: {marker} must be a lock file, but is a link, a folder or the like (remove "
            "it, or name another output)",
            field,
        )


def _sign(marker: Path, shown: Path | str, field: str, held: _Held) -> None:
    """Write the holder into the file; print a note if a run that was killed held it before.

    Raises:
        InputError: the file belongs to another program; it is not changed.
    """
    if isinstance(held.lock, SoftFileLock):  # filelock has written the record
        return
    # After a power cut a file may have its length but not its content.
    if marker.stat().st_size and marker.read_bytes().strip(b"\0"):
        if _record(marker) is None:
            raise InputError(
                f"{field}: {marker} was not written by this toolkit (delete it if no other "
                "program needs it, or name another output)",
                field,
            )
        print(
            f"note: {shown} was being written by {_holder(marker)}, which ended before it was done;"
            " this run takes over",
            file=sys.stderr,
        )
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"host": socket.gethostname(), "pid": os.getpid(), "start": now}
    held.record = json.dumps(record) + "\n"
    with open(marker, "w", encoding="utf-8", opener=_no_link) as stream:
        stream.write(held.record)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _holder(marker: Path) -> str:
    """Describe who holds or held a lock."""
    return _record(marker) or "about which nothing is known"


def _record(marker: Path) -> str | None:
    """Describe a lock file's record; None if ``_sign`` did not write it."""
    try:
        record = json.loads(marker.read_text(encoding="utf-8"))
        return f"process {record['pid']:d} on {record['host']:s}, begun {record['start']:s}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _release(marker: Path) -> None:
    """Release a lock, unless this is a fork of its holder."""
    if marker in _held and _held[marker].pid == os.getpid():
        _forget(marker)


def _forget(marker: Path) -> None:
    """Delete the file, release the lock, and remove the empty folders created for it."""
    held = _held.pop(marker)
    with suppress(OSError):
        # Delete it while the lock is held, so that nobody acquires a file that is about to go; and
        # only if it is still ours, since the folder may have been replaced as a whole.
        if not isinstance(held.lock, SoftFileLock) and marker.read_bytes() == held.record.encode():
            marker.unlink()
    with suppress(OSError):
        held.lock.release()
    _remove_empty(held.made)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the deepest first, as long as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


@atexit.register
def _release_all() -> None:
    for marker in list(_held):
        _release(marker)
