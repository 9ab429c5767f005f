"""Files that are really in a folder: no link leads out, none is a pipe or a device."""

import os
import shutil
import stat
from io import BufferedReader
from pathlib import Path

from toolkit.errors import InputError


def shown(name: str) -> str:
    """A file's name in one line, with control characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def inside(folder: Path, name: str) -> Path | None:
    """Return the path of the folder's file with this name; None if there is none.

    A link may lead to another file of the folder. In the Hub's cache, whose snapshots are links
    (snapshots/COMMIT/file -> ../../blobs/HASH), it may lead to a blob of the same repository.

    Args:
        folder: the folder, which may itself be reached by a link.
        name: of a file in it, or in a folder of it.

    Raises:
        InputError: the name leads out of the folder, to nothing, or to something else than a file.
    """
    path = folder / name
    if not os.path.lexists(path):
        return None
    try:
        home, found = folder.resolve(strict=True), path.resolve(strict=True)
        kind = found.lstat().st_mode
    except (OSError, RuntimeError):  # the link leads nowhere, or in a circle
        raise InputError(f"{shown(str(path))} is a link to nothing (put the file there)") from None
    roots = [home]
    if home.parent.name == "snapshots":
        roots.append(home.parent.parent / "blobs")
    if not any(found.is_relative_to(root) for root in roots):
        raise InputError(
            f"{shown(str(path))} is a link out of its folder, to {shown(str(found))}, and is not "
            "followed (put a copy of the file there if it is meant to be published)"
        )
    if not stat.S_ISREG(kind):
        raise InputError(f"{shown(str(path))} is not a regular file (remove it)")
    return found


def open_inside(folder: Path, name: str) -> BufferedReader | None:
    """Open the file of ``inside`` without following a link that was put there in the meantime.

    Raises:
        InputError: as ``inside``, or the file was replaced meanwhile.
    """
    found = inside(folder, name)
    if found is None:
        return None
    try:
        handle = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{shown(str(folder / name))}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(f"{shown(str(folder / name))} is not a regular file (remove it)")
    return os.fdopen(handle, "rb")


def copy_inside(folder: Path, name: str, target: Path) -> bool:
    """Copy the folder's file of this name to ``target``, byte for byte; False if there is none.

    Raises:
        InputError: as ``open_inside``.
        OSError: the copy could not be written.
    """
    stream = open_inside(folder, name)
    if stream is None:
        return False
    with stream, open(target, "wb") as copy:
        shutil.copyfileobj(stream, copy)
    return True


def check_inside(folder: Path, endings: tuple[str, ...], below: str) -> None:
    """Raise InputError if a file of the folder, or of one folder below, is a link out of it."""
    for place in (folder, folder / below):
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            if path.name.endswith(endings):
                inside(folder, str(path.relative_to(folder)))
