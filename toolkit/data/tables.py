"""Reading tables row by row from files, folders and datasets, and writing them to files.

    comparisons.jsonl   .jsonl.gz   .json (one array)   .csv   .tsv   .parquet
    a table that Excel saved as "Unicode text": UTF-16 with tabs, .txt
    a folder: all such files in it, by name; or written by save_to_disk of datasets
    folder:split, of what save_to_disk wrote, or of files that load_dataset tells apart by name
    owner/name or owner/name:split, a dataset on the Hub

Each row comes with its place, for messages: ``file:line`` if the format has lines, else
``name:index`` (from 0). Only a .json array is held in memory.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from toolkit.data.files import (
    NoNumber,
    atomic_file,
    parse_json,
    read_jsonl,
    require_file,
    write_jsonl,
)
from toolkit.data.records import Placed, Row
from toolkit.errors import InputError

OnBad = Callable[[str], None] | None
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\[\]%-]+)?")
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".parquet")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
SEPARATORS = ",;\t"
DECLARED = re.compile(r"sep=(.)\r?\n?")  # a first line by which Excel is told the separator


def read_table(source: str | Path, what: str, on_bad: OnBad = None) -> Iterator[Placed]:
    """Yield the rows of ``source``, each with its place.

    Args:
        source: as listed at the top of this file.
        what: the argument that named it, for messages.
        on_bad: called for a line that is not a row (not JSON, too many fields), which is then
            skipped; without it, such a line is an error.

    Raises:
        InputError: the source does not exist, its format is unknown, or the file is broken (with
            file:line if the format has lines).
    """
    path = Path(source)
    if path.is_dir() and not _is_saved_dataset(path):
        files = sorted(f for f in path.iterdir() if f.name.lower().endswith(SUFFIXES))
        if not files:
            raise InputError(
                f"{what}: {path}: this folder has no file that ends in {', '.join(SUFFIXES)}"
            )
        for file in files:
            yield from read_table(file, what, on_bad)
        return

    folder = Path(str(source).rpartition(":")[0])
    split = not path.exists() and str(folder) != "." and folder.is_dir()
    if path.is_dir() or split or (not path.exists() and HUB_ID.fullmatch(str(source))):
        yield from _read_dataset(str(source), what)
        return

    require_file(path, what)
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from _read_parquet(path)
    elif name.endswith((".csv", ".tsv")) or (name.endswith(".txt") and is_utf_16(path)):
        yield from _read_csv(path, on_bad)
    elif name.endswith(".json"):
        yield from _read_json_array(path, on_bad)
    elif name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".txt")):
        yield from _read_lines(path, on_bad)
    else:
        raise InputError(
            f"{what}: {path} does not end in one of {', '.join(SUFFIXES)} "
            "(rename it, or save a spreadsheet as .csv)"
        )


def _read_lines(path: Path, on_bad: OnBad) -> Iterator[Placed]:
    for number, row in read_jsonl(path, on_bad=on_bad):
        yield f"{path}:{number}", row


def _read_json_array(path: Path, on_bad: OnBad) -> Iterator[Placed]:
    text = path.read_bytes()
    if not text.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):  # JSON Lines, it seems
        yield from _read_lines(path, on_bad)
        return
    try:
        rows = parse_json(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start} (save it as UTF-8)") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON, {error.msg}") from None
    except NoNumber as error:
        raise InputError(f"{path}:{error.line}: {error}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path}: not JSON that can be read: {error}") from None
    for index, row in enumerate(rows):
        if isinstance(row, dict):
            yield f"{path}:{index}", row
        else:
            _report(f"{path}:{index}: a {type(row).__name__}, not an object (correct it)", on_bad)


def _report(problem: str, on_bad: OnBad) -> None:
    if on_bad is None:
        raise InputError(problem)
    on_bad(problem)


def is_utf_16(path: Path) -> bool:
    """Whether a file begins with UTF-16's byte order mark, as what Excel calls Unicode text."""
    with open(path, "rb") as stream:
        return stream.read(2) in UTF_16


def _read_csv(path: Path, on_bad: OnBad) -> Iterator[Placed]:
    csv.field_size_limit(1 << 27)
    encoding = "utf-16" if is_utf_16(path) else "utf-8-sig"
    with open(path, encoding=encoding, newline="") as stream:
        start, before = 1, 0
        try:
            header = stream.readline()
            separator = None
            if declared := DECLARED.fullmatch(header):
                separator, before, header = declared[1], 1, stream.readline()
            separator = separator or _separator(header)
            lines = itertools.chain([header], stream)
            reader = csv.reader(lines, strict=True, delimiter=separator)
            names = next(reader, [])
            if len(set(names)) != len(names):
                raise InputError(
                    f"{path}:{before + 1}: two columns have the same name (rename one)"
                )
            start = before + reader.line_num + 1
            for fields in reader:
                place, start = f"{path}:{start}", before + reader.line_num + 1
                if len(fields) != 1 and not any(field.strip() for field in fields):
                    continue  # an empty line, or a row of empty cells, which spreadsheets leave
                if len(fields) == len(names):
                    yield place, dict(zip(names, fields, strict=True))
                else:
                    _report(
                        f"{place}: {len(fields)} fields, but line {before + 1} has {len(names)} "
                        'columns (put text with commas or newlines in "quotes")',
                        on_bad,
                    )
        except csv.Error as error:
            raise InputError(f"{path}:{start}: not CSV, {error}") from None
        except UnicodeError:
            found = "broken UTF-16" if encoding == "utf-16" else "not UTF-8"
            raise InputError(
                f"{path}:{start}: {found} (save it as UTF-8, which Excel calls CSV UTF-8)"
            ) from None


def _separator(header: str) -> str:
    """What separates the columns: what the header has most of outside quotes; a comma in doubt.

    >>> _separator('Prompt;"Answer; long";Which, if any;Best')
    ';'
    """
    outside = re.sub(r'"[^"]*"?', "", header)
    return max(SEPARATORS, key=outside.count)


def _read_parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        index = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path}:{index}", row
                    index += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as Parquet: {_first_line(error)}") from None


def _is_saved_dataset(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _read_dataset(source: str, what: str) -> Iterator[Placed]:
    from datasets import DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetNotFoundError

    name, _, split = source.rpartition(":") if not Path(source).is_dir() else (source, "", "")
    name, split = (name, split) if name else (source, "")
    try:
        if _is_saved_dataset(Path(name)):
            loaded: Any = load_from_disk(name)
        else:
            loaded = load_dataset(name)
    except (OSError, ValueError, DatasetNotFoundError) as error:
        raise InputError(
            f"{what}: {source}: no such file, and not a dataset either: {_first_line(error)}"
        ) from None
    except Exception as error:  # the error of datasets for a file that it could not parse
        raise InputError(
            f"{what}: {source}: the dataset cannot be loaded: {_first_line(error)}"
        ) from None
    if isinstance(loaded, DatasetDict):
        wanted = split or ("train" if "train" in loaded else next(iter(loaded)))
        if wanted not in loaded:
            raise InputError(f"{what}: {source}: its splits are {', '.join(loaded)}")
        if not split and len(loaded) > 1:
            print(
                f"{source}: split {wanted} of {', '.join(loaded)} ({source}:SPLIT selects another)"
            )
        loaded = loaded[wanted]
    for index, row in enumerate(loaded):
        yield f"{source}:{index}", row


def check_table_name(path: str | Path) -> None:
    """Raise InputError unless ``write_table`` can write a file with this name."""
    if Path(path).suffix not in (".jsonl", ".parquet"):
        raise InputError(f"output: {path} must end in .jsonl or .parquet", "output")


def write_table(path: str | Path, rows: Iterable[Row], none: Callable[[], str]) -> int:
    """Write rows atomically as JSON Lines or Parquet, by the name; return their number.

    Raises:
        InputError: the rows do not make a Parquet table, or there are none (the message is
            ``none()``); and whatever the rows raise. Nothing is written then.
    """
    path = Path(path)
    check_table_name(path)
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row
        if not count:
            raise InputError(none())

    if path.suffix == ".parquet":
        _write_parquet(path, counted())
    else:
        write_jsonl(path, counted())
    return count


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    held = list(rows)  # the columns are known only after the last row
    names = list(dict.fromkeys(name for row in held for name in row))
    held = [{name: row.get(name) for name in names} for row in held]
    try:
        table = pyarrow.Table.from_pylist(held)
    except pyarrow.ArrowException as error:
        raise InputError(
            f"output: {path}: a column mixes two types of value: {_first_line(error)} "
            "(write .jsonl instead)",
            "output",
        ) from None
    with atomic_file(path) as stream:
        parquet.write_table(table, stream)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
