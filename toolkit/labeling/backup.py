"""Copy the label store while people label, by SQLite's online backup."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from toolkit.data.files import sync
from toolkit.data.leftovers import clear_leftovers, part_folder
from toolkit.data.locks import letting_go, lock_file
from toolkit.data.outputs import check_place
from toolkit.errors import InputError
from toolkit.labeling.store import Store, explain

# SQLite keeps these files beside a database. Left over, they would be read into the copy.
BESIDE = ("-wal", "-shm", "-journal")


def backup(source: str | Path, target: str | Path, overwrite: bool = False) -> Path:
    """Copy a store at one moment, even while others write to it.

    The copy is checked before it takes its place: it is whole, or it is not there.

    Args:
        source: the store, which is only read.
        target: the file to write.
        overwrite: replace an existing ``target``.

    Returns:
        The path of the copy.

    Raises:
        InputError: ``source`` is missing, damaged or not a store; or ``target`` exists, is in use
            or cannot be written.
    """
    with letting_go():
        return _backup(Path(source), Path(target), overwrite)


def _backup(source: Path, target: Path, overwrite: bool) -> Path:
    if not source.is_file():
        raise InputError(f"store: {source}: no such file (name the store to copy)", "store")
    _check_target(source, target, overwrite)
    lock_file(target, "backup")
    clear_leftovers(target.parent, target.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = part_folder(target)
    except OSError as error:
        raise InputError(f"backup: {target}: {error.strerror}", "backup") from None

    try:
        copy = aside / target.name
        _copy(source, copy)
        Store(copy).close()  # opening a store checks it
        sync(copy)
        _check_target(source, target, overwrite)  # again: somebody may have made it meanwhile
        _place(copy, target, overwrite)
        sync(target.parent)
    except sqlite3.Error as error:
        raise InputError(f"backup: {source} to {target}: {explain(error)}", "backup") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)

    return target


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    check_place(target, "backup")
    if target.is_dir():
        raise InputError(f"backup: {target} is a folder (name a file)", "backup")
    if target.exists():
        if target.samefile(source):
            raise InputError(f"backup: {target} is the store itself (name another file)", "backup")
        if not overwrite:
            raise InputError(
                f"backup: {target} exists (pass --overwrite, or name another)", "backup"
            )
    for end in BESIDE:
        beside = Path(f"{target}{end}")
        if beside.exists():
            raise InputError(
                f"backup: {beside} exists, so a store of that name is in use or was killed (name "
                "another file)",
                "backup",
            )


def _copy(source: Path, copy: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source, timeout=10.0)) as reading,
        contextlib.closing(sqlite3.connect(copy)) as writing,
    ):
        reading.execute("PRAGMA query_only = ON")
        if reading.execute("PRAGMA user_version").fetchone()[0] == 0:
            raise InputError(f"store: {source}: is not a label store", "store")
        reading.backup(writing)  # all pages in one step, so writers cannot make it start again
        writing.execute("PRAGMA journal_mode = DELETE")  # leaves one file, with nothing beside it
    shutil.copymode(source, copy)


def _place(copy: Path, target: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(copy, target)  # unlike renaming, this never replaces a file
            return
        except FileExistsError:
            raise InputError(
                f"backup: {target} exists (pass --overwrite, or name another)", "backup"
            ) from None
        except OSError:  # the file system has no links
            pass
    os.replace(copy, target)
