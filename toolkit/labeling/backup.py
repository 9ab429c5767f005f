"""A copy of the store of labels while people label: SQLite's own online backup."""

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

# What SQLite puts beside a file; it would be read into another file of that name.
BESIDE = ("-wal", "-shm", "-journal")


def backup(source: str | Path, target: str | Path, overwrite: bool = False) -> Path:
    """Copy a store as it is at one moment, whoever is writing; the copy is whole, or not there.

    It is checked as every store is when it is opened, before it takes its place.

    Args:
        source: the store; it is read only.
        target: the copy, one file.
        overwrite: replace what is there.

    Returns:
        The copy's path.

    Raises:
        InputError: no store, or a damaged one; something is at ``target``, or it is being written
            or in use as a store; or it can not be written.
    """
    with letting_go():
        return _backup(Path(source), Path(target), overwrite)


def _backup(source: Path, target: Path, overwrite: bool) -> Path:
    if not source.is_file():
        raise InputError(f"store: {source}: no such file, so there is nothing to back up", "store")
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
        Store(copy).close()  # checks it
        sync(copy)
        _check_target(source, target, overwrite)  # it took a while
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
        raise InputError(f"backup: {target} is a folder, but must be a file", "backup")
    if target.exists():
        if target.samefile(source):
            raise InputError(f"backup: {target} is the store itself: name another file", "backup")
        if not overwrite:
            raise InputError(
                f"backup: {target} exists (pass --overwrite, or name another)", "backup"
            )
    for end in BESIDE:
        beside = Path(f"{target}{end}")
        if beside.exists():
            raise InputError(
                f"backup: there is {beside}, so a store of that name is in use, or was killed "
                "(name another file)",
                "backup",
            )


def _copy(source: Path, copy: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(source, timeout=10.0)) as reading,
        contextlib.closing(sqlite3.connect(copy)) as writing,
    ):
        reading.execute("PRAGMA query_only = ON")
        if reading.execute("PRAGMA user_version").fetchone()[0] == 0:
            raise InputError(f"store: {source}: an SQLite file, but not a store of labels", "store")
        reading.backup(writing)  # all pages in one step: those who write are not waited for
        writing.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
    shutil.copymode(source, copy)


def _place(copy: Path, target: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(copy, target)  # unlike a renaming it replaces nothing that came meanwhile
            return
        except FileExistsError:
            raise InputError(
                f"backup: {target} exists (pass --overwrite, or name another)", "backup"
            ) from None
        except OSError:  # a file system without links
            pass
    os.replace(copy, target)
