"""Outputs, claimed before the work begins: nothing is lost, and what will be made has room."""

import errno
import os
from pathlib import Path

from toolkit.data.leftovers import clear_leftovers, part_file
from toolkit.data.locks import is_lock, lock_file, lock_folder
from toolkit.errors import InputError
from toolkit.launched import is_first


def claim_output(
    path: str | Path, overwrite: bool, field: str, whole: bool = False, goes_on: bool = False
) -> Path:
    """The path, if nothing would be lost by writing there, and if something can be written there.

    It is locked until the recipe ends, so that no other run writes there too. A folder is made, and
    goes again if nothing is written to it; of a file, the folder that it is to lie in.

    Args:
        path: a file if ``field`` is "output", a folder otherwise.
        overwrite: replace what is there.
        field: the argument's name.
        whole: the folder will be replaced as a whole, by ``atomic_directory``; where ``path`` is a
            link, the folder that it leads to, which is returned.
        goes_on: what is there can be gone on with, by --resume auto.

    Raises:
        InputError: a file or a folder with something in it is there and ``overwrite`` is off; a
            folder stands where a file is to be (or the other way round); another run writes there;
            nothing can be written there, or the disk is full.
    """
    path = Path(path)
    if whole and (os.path.islink(path) or path.name in ("", "..")):
        path = Path(os.path.realpath(path))
    if not is_first():  # of several processes that train together, the first claims it for all
        return path
    check_place(path, field)
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # no error for a name too long
    if field == "output" and is_folder:
        raise InputError(f"{field}: {path} is a folder, but must be a file", field)
    for parent in path.parents:
        if os.path.exists(parent) and not os.path.isdir(parent):
            raise InputError(f"{field}: {path}: {parent} is a file, not a folder", field)

    is_folder = field != "output" and not is_file
    if is_folder:
        hold_folder(path, field, whole)
    else:
        lock_file(path, field)
        clear_leftovers(path.parent, path.name)
        try_to_write(path, field, beside=True)
    taken = any(not is_lock(p) for p in path.iterdir()) if path.is_dir() else path.exists()
    if taken and not overwrite:
        resume = "--resume auto to go on, " if goes_on else ""
        raise InputError(
            f"{field}: {path} exists (pass {resume}--overwrite, or name another)", field
        )
    if field != "output" and is_file:
        raise InputError(f"{field}: {path} is a file, but must be a folder", field)
    return path


def check_place(path: str | Path, field: str) -> None:
    """Raise InputError if the output is a pipe or a device, which a file would take the place of.

    Args:
        path: of the output; nothing need be there. A link to a file may be: it is replaced.
        field: the argument's name.
    """
    try:
        home = Path(os.path.realpath(os.path.dirname(path) or "."))
    except ValueError:  # a null byte in the name, of which the lock will tell
        return
    devices = home.is_relative_to("/dev") and not home.is_relative_to("/dev/shm")  # noqa: S108
    odd = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    if odd or devices:
        raise InputError(
            f"{field}: {path} is a pipe, a device or the like, but must be a plain path (name a "
            "file, and read it when the recipe has ended)",
            field,
        )


def hold_folder(path: str | Path, field: str, whole: bool = False) -> None:
    """Lock a folder until the recipe ends, whatever is in it, and see that it can be written to.

    What killed runs left of it is removed.

    Args:
        path: of the folder, which is made.
        field: the argument's name.
        whole: it will be replaced as a whole; it need not be there.

    Raises:
        InputError: another run writes there, nothing can be written there, or the disk is full.
    """
    path = Path(path)
    if not is_first():
        return
    if whole:  # beside it, since the folder may be the one that a killed run moved away
        lock_file(path, field)
        clear_leftovers(path.parent, path.name)
    else:
        lock_folder(path, field)
        clear_leftovers(path)
    try_to_write(path, field, beside=whole)


ROOM = 8 << 20  # bytes that must be free before work begins: a demo's adapters with room to spare


def try_to_write(path: Path, field: str, beside: bool) -> None:
    """Raise InputError unless a file of some size can be written where the work will end.

    Args:
        path: of the output.
        field: the argument's name.
        beside: it will be written beside its place and then be renamed (``atomic_file``), as
            against into the folder ``path``.
    """
    if beside and path.is_dir() and os.path.ismount(path):
        raise InputError(
            f"{field}: {path} is a mount point, which cannot be replaced (name a folder in it)",
            field,
        )

    if beside and path.is_dir() and Path.cwd().is_relative_to(path.resolve()):
        raise InputError(
            f"{field}: {path} is the folder that you work in, or around it, and would be replaced "
            "(name another)",
            field,
        )

    try:
        handle, aside = part_file(path if beside else path / "try")
        try:
            _fill(handle)
        finally:
            os.close(handle)
            aside.unlink()
    except OSError as error:
        cure = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name another"
        raise InputError(
            f"{field}: {path} cannot be written: {error.strerror} ({cure})", field
        ) from None


def _fill(handle: int) -> None:
    """Take up ROOM bytes: at once where the file system can do that, else by writing them."""
    allocate = getattr(os, "posix_fallocate", None)
    try:
        if allocate is not None:
            allocate(handle, 0, ROOM)
            return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
    left = ROOM
    while left:
        left -= os.write(handle, bytes(min(left, 1 << 20)))


def forget_run(folder: str | Path) -> None:
    """Delete the records that are written last, before what they tell of is replaced.

    So a run that overwrites another and is killed never leaves its adapter beside the other's
    figures.
    """
    for name in ("run.json", "evaluation.json"):
        (Path(folder) / name).unlink(missing_ok=True)
