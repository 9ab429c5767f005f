"""Claiming outputs before the work begins, so that nothing is lost and there is room."""

import errno
import os
from pathlib import Path

from toolkit.data.leftovers import clear_leftovers, part_file
from toolkit.data.locks import is_lock, lock_file, lock_folder
from toolkit.errors import InputError
from toolkit.launched import is_first

FILES = ("output", "edited")  # the arguments that name a file to write


def claim_output(
    path: str | Path,
    overwrite: bool,
    field: str,
    whole: bool = False,
    goes_on: bool = False,
    folder: bool = False,
    kept: str | None = None,
) -> Path:
    """Claim a path for output, after checking that nothing is lost there and it can be written.

    It stays locked until the recipe ends, so that no other run writes there. A folder is created,
    and removed again if nothing is written to it; for a file, this is true of its folder.

    Args:
        path: a file if ``field`` is one of ``FILES`` and not ``folder``, a folder otherwise.
        overwrite: whether to replace what is there.
        field: the argument's name.
        whole: whether ``atomic_directory`` will replace the folder as a whole. If ``path`` is a
            link, the folder that it leads to is returned.
        goes_on: whether --resume auto can continue what is there.
        folder: whether it is a folder, whatever the argument's name.
        kept: name of what a run that was cut off may have left in the folder for the next one.

    Raises:
        InputError: a file or a folder with content exists and ``overwrite`` is off; a folder is
            where a file must be, or the reverse; another run writes there; the path cannot be
            written, or the disk is full.
    """
    path = Path(path)
    wants_file = field in FILES and not folder
    if whole and (os.path.islink(path) or path.name in ("", "..")):
        path = Path(os.path.realpath(path))
    if not is_first():  # the first of several processes claims it for all
        return path
    check_place(path, field)
    is_file, is_folder = (
        os.path.isfile(path),
        os.path.isdir(path),
    )  # these raise no error for a name that is too long
    if wants_file and is_folder:
        raise InputError(f"{field}: {path} is a folder, but must be a file", field)
    for parent in path.parents:
        if os.path.exists(parent) and not os.path.isdir(parent):
            raise InputError(f"{field}: {path}: {parent} is a file, not a folder", field)

    is_folder = not wants_file and not is_file
    if is_folder:
        hold_folder(path, field, whole)
    else:
        lock_file(path, field)
        clear_leftovers(path.parent, path.name)
        try_to_write(path, field, beside=True)
    taken = path.exists()
    if path.is_dir():
        taken = any(not is_lock(p) and p.name != kept for p in path.iterdir())
    if taken and not overwrite:
        resume = "--resume auto to go on, " if goes_on else ""
        raise InputError(
            f"{field}: {path} exists (pass {resume}--overwrite, or name another)", field
        )
    if not wants_file and is_file:
        raise InputError(f"{field}: {path} is a file, but must be a folder", field)
    return path


def check_place(path: str | Path, field: str) -> None:
    """Raise InputError if the output is a pipe or a device, which a file would replace.

    Args:
        path: of the output; it may be missing. A link to a file is allowed and is replaced.
        field: the argument's name.
    """
    try:
        home = Path(os.path.realpath(os.path.dirname(path) or "."))
    except ValueError:  # a null byte in the name, which the lock reports
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
    """Lock a folder until the recipe ends, and check that it can be written to.

    This removes what killed runs left in it.

    Args:
        path: of the folder, which is created.
        field: the argument's name.
        whole: whether it will be replaced as a whole; it may then be missing.

    Raises:
        InputError: another run writes there, nothing can be written there, or the disk is full.
    """
    path = Path(path)
    if not is_first():
        return
    if whole:  # look beside it: a killed run may have moved the folder itself away
        lock_file(path, field)
        clear_leftovers(path.parent, path.name)
    else:
        lock_folder(path, field)
        clear_leftovers(path)
    try_to_write(path, field, beside=whole)


ROOM = 8 << 20  # bytes that must be free before work begins, more than the adapters of a demo need


def try_to_write(path: Path, field: str, beside: bool) -> None:
    """Raise InputError unless a file of some size can be written at the output's place.

    Args:
        path: of the output.
        field: the argument's name.
        beside: whether it will be written beside its place and then renamed (``atomic_file``),
            rather than into the folder ``path``.
    """
    if beside and path.is_dir() and os.path.ismount(path):
        raise InputError(
            f"{field}: {path} is a mount point, which cannot be replaced (name a folder in it)",
            field,
        )

    if beside and path.is_dir() and Path.cwd().is_relative_to(path.resolve()):
        raise InputError(
            f"{field}: {path} is the working folder or contains it, and would be replaced "
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
    """Allocate ROOM bytes; where the file system cannot do that, write them."""
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
    """Delete the records that are written last, before the results that they describe are replaced.

    Otherwise a killed run that overwrites another could leave its adapter beside the other's
    figures. reward_report.py puts its page into the run that it is about, so that goes too.
    """
    pages = ("report/reward_report.html", "report/reward_report.json")
    for name in ("run.json", "evaluation.json", "cross_validation.jsonl", *pages):
        (Path(folder) / name).unlink(missing_ok=True)
