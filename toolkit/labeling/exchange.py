"""Export and import labels: native JSONL, Label Studio's JSON and Argilla's JSON."""

import itertools
import json
from collections.abc import Callable, Iterator

from toolkit.data.files import parse_object
from toolkit.data.numbering import with_whole_numbers
from toolkit.data.problems import problems_of
from toolkit.data.records import Row
from toolkit.errors import InputError
from toolkit.labeling.formats import (
    Imported,
    from_argilla,
    from_label_studio,
    to_argilla,
    to_label_studio,
)
from toolkit.labeling.store import StoreReader
from toolkit.labeling.store.answers import BESIDE_PICK
from toolkit.labeling.times import label_time

FORMATS = ("native", "label_studio", "argilla")


def _lines(rows: Iterator[Row]) -> Iterator[bytes]:
    # In large pieces, because each one crosses threads.
    while some := list(itertools.islice(rows, 1000)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
        yield text.encode("utf-8", "backslashreplace")


def _whole(tasks: list[Row]) -> Iterator[bytes]:
    yield b"["  # one task per line
    yield b",\n".join(
        json.dumps(task, ensure_ascii=False).encode("utf-8", "backslashreplace") for task in tasks
    )
    yield b"]\n"


def _picks_alone(store: StoreReader) -> Iterator[Row]:
    """Yield picks without what these tools have no field for: a ranking, a comment and so on."""
    for row in store.picks():
        yield {name: value for name, value in row.items() if name not in BESIDE_PICK}


EXPORTS: dict[str, Callable[[StoreReader], Iterator[bytes]]] = {
    "comparisons.jsonl": lambda store: _lines(store.picks()),
    "edited.jsonl": lambda store: _lines(store.edited()),
    "events.jsonl": lambda store: _lines(store.events()),
    "label_studio.json": lambda store: _whole(to_label_studio(_picks_alone(store))),
    "argilla.json": lambda store: _whole(to_argilla(_picks_alone(store))),
}


def read_upload(content: bytes, form: str, name: str = "the file") -> Imported:
    """Read and check an uploaded file: rows with ``best`` are comparisons, the others are items.

    An annotation without a choice is skipped and counted. A native row whose ``best`` is null
    becomes an item.

    Args:
        content: the file's bytes.
        form: native, label_studio or argilla.
        name: the file's name for messages.

    Raises:
        InputError: the file is not of that format; the message names the line or task and the cure.
    """
    if form not in FORMATS:
        raise InputError(f"format is {form!r:.40}, but must be one of {', '.join(FORMATS)}")
    made = Imported()
    if form == "native":
        rows = []
        for number, line in enumerate(content.split(b"\n"), start=1):
            if line.strip():
                place = f"{name}:{number}"
                row = with_whole_numbers(parse_object(line, place, number == 1))
                rows.append((place, row))
                label_time(row, f"{place}: ")
                if "best" in row and row["best"] is None:
                    del row["best"]
                    made.skipped += 1
    else:
        try:
            tasks = json.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}: not JSON ({error})") from None
        read = from_label_studio if form == "label_studio" else from_argilla
        found = read(tasks, name)
        made.skipped = found.skipped
        rows = [(f"{name}: row {i}", row) for i, row in enumerate(found, start=1)]

    if not rows:
        raise InputError(f"{name}: holds no rows")
    for place, row in rows:
        problems = problems_of(row, "best" if "best" in row else "completions")
        if problems:
            raise InputError(f"{place}: {problems[0]}")
        made.append(row)

    return made
