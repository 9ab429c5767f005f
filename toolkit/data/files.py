"""Reading JSON files, with line numbers in errors, and writing files atomically."""

import functools
import gzip
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from toolkit.data.leftovers import OLD, part_file, part_folder
from toolkit.data.records import Row
from toolkit.errors import InputError


def require_file(path: str | Path, what: str) -> Path:
    """Return the path if it is a regular file.

    Raises:
        InputError: there is no such file; ``what`` names the argument that gave the path.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{what}: {path}: no such file (give the path of an existing file)")
    return path


def read_jsonl(
    path: str | Path, what: str = "file", on_bad: Callable[[str], None] | None = None
) -> Iterator[tuple[int, Row]]:
    """Yield rows of a JSON Lines file as ``(line number from 1, row)``, skipping blank lines.

    A gzipped file is recognized by its first bytes, not by its name. If ``on_bad`` is given, it is
    called for each line that is not a row, and the line is skipped.

    Raises:
        InputError: the file is missing or broken, or a line is not a JSON object (file:line).
    """
    path = require_file(path, what)
    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        try:
            lines = gzip.GzipFile(fileobj=stream) if zipped else stream
            for number, raw in enumerate(lines, start=1):
                if not raw.strip():
                    continue
                try:
                    row = parse_object(raw, f"{path}:{number}", first=number == 1)
                except InputError as error:
                    if on_bad is None:
                        raise
                    on_bad(str(error))
                    continue
                yield number, row
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path}: broken gzip file: {error} (copy it again)") from None


def parse_object(raw: bytes, place: str, first: bool) -> Row:
    """Parse a line of JSON as an object; raise InputError with ``place`` if it is not one."""
    try:
        row = parse_json(raw.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: not UTF-8 at byte {error.start} (save the file as UTF-8)"
        ) from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{place}: not JSON, {error.msg} at column {error.colno} "
            "(each line must be one JSON object; correct or delete the line)"
        ) from None
    except NoNumber as error:
        raise InputError(f"{place}: {error}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of 5,000 digits
        raise InputError(f"{place}: not JSON that can be read: {error} (delete the line)") from None

    if not isinstance(row, dict):
        raise InputError(
            f'{place}: a {type(row).__name__}, not an object (write {{"prompt": ..., ...}})'
        )

    return row


def read_object(path: str | Path, what: str) -> Row:
    """Read the one JSON object in a file.

    Raises:
        InputError: the file is missing or holds something else.
    """
    path = require_file(path, what)
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except NoNumber as error:
        raise InputError(f"{path}:{error.line}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a {type(value).__name__}, not a JSON object")
    return value


class NoNumber(ValueError):
    """JSON text has NaN, Infinity, or a number that is too large for a float.

    Args:
        word: as it stands there.
        line: from 1.
    """

    def __init__(self, word: str, line: int) -> None:
        shown = word if len(word) <= 24 else f"{word[:20]}..."
        super().__init__(
            f"not JSON that can be read: {shown} is not a number (write a finite one, or null)"
        )
        self.line = line


# Strings are matched first, so that a word within one is not taken for a number.
_WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|-?Infinity|NaN|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?', re.S)


def parse_json(text: str) -> Any:
    """Parse JSON in which every number is finite.

    Python's own reader accepts NaN and Infinity, which are not JSON, and reads 1e999 as infinity.

    Raises:
        NoNumber: the text has a number of this kind.
        ValueError: it is not JSON (``json.JSONDecodeError``), or cannot be read.
    """

    def refuse(word: str) -> NoReturn:
        found = next((m for m in _WORDS.finditer(text) if m[0] == word), None)
        raise NoNumber(word, 1 if found is None else text.count("\n", 0, found.start()) + 1)

    def number(word: str) -> float:
        value = float(word)
        return value if math.isfinite(value) else refuse(word)

    def whole(word: str) -> int:
        return int(word) if len(word) < 300 else refuse(word)

    return json.loads(text, parse_float=number, parse_int=whole, parse_constant=refuse)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Fill a folder beside ``path``, then rename it into place, so readers see all of it or none.

    It replaces what was at ``path`` only when it is complete and synced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = part_folder(path)
    old = aside.with_name(aside.name + OLD)
    try:
        yield aside
        mode = aside.stat().st_mode & 0o666
        for file in aside.rglob("*"):
            if file.is_file():
                os.chmod(file, mode)  # safetensors makes files that only the owner can read
                sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        if old.exists() and not path.exists():  # interrupted between the two renames
            os.replace(old, path)
        if old.is_symlink():  # the old path was a link to a folder
            old.unlink()
        for left in (old, aside):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a stream whose content replaces ``path`` once all of it is written and synced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = part_file(path)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write the content atomically."""
    with atomic_file(path) as stream:
        stream.write(content)


def write_text(path: str | Path, text: str) -> None:
    """Write the text as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically; NaN becomes null."""
    write_bytes(path, _dump(value, indent=2, sort_keys=True))


def write_jsonl(path: str | Path, rows: Iterable[Row]) -> None:
    """Write one JSON object a line, atomically; NaN becomes null."""
    with atomic_file(path) as stream:
        for row in rows:
            stream.write(_dump(row))


def json_text(
    value: object,
    indent: int | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = True,
    default: Callable[[object], str] | None = None,
) -> str:
    """Write JSON that every reader accepts: NaN and infinities become null.

    An undefined metric (the error of a single value, say) is therefore null. Values that must be
    numbers are checked where they are made or read.
    """
    write = functools.partial(
        json.dumps,
        allow_nan=False,
        indent=indent,
        sort_keys=sort_keys,
        ensure_ascii=ensure_ascii,
        default=default,
    )
    try:
        return write(value)
    except ValueError:
        return write(_without_nan(value))


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return value


def _dump(value: object, indent: int | None = None, sort_keys: bool = False) -> bytes:
    """Dump JSON in UTF-8; dates become text, half characters stay escapes."""
    text = json_text(value, indent, sort_keys, ensure_ascii=False, default=str)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        text = json_text(value, indent, sort_keys, default=str)
        return f"{text}\n".encode("ascii")


def sync(path: Path) -> None:
    """Force the file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
