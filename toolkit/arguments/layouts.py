"""The flags that say how rows of other layouts are read: which column is which."""

import csv
import difflib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from toolkit.arguments.prompt_form import MessageArguments
from toolkit.errors import InputError
from toolkit.flags import Named, flag

# Names that --columns knows. Each stands for one column, but completions for one or several.
COLUMN_NAMES = (
    "prompt",
    "system",
    "completions",
    "best",
    "worst",
    "ranking",
    "scores",
    "margin",
    "chosen",
    "rejected",
    "labeler",
    "source",
    "id",
)
EXAMPLE = 'prompt=Prompt completions="Answer A,Answer B" best=Best'


@dataclass
class ColumnArguments(MessageArguments):
    """How a file's columns are named, and how its prompts are read."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    columns: Named = flag(
        [], f"Which columns of the file are which: {EXAMPLE}. In YAML also a mapping."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.columns = as_words(self.columns)

    @property
    def mapping(self) -> dict[str, list[str]]:
        """Our names, each with the headers that stand for it."""
        return read_words(self.columns)


@dataclass
class LayoutArguments(ColumnArguments):
    """The same, and how the file's labels are read."""

    HELP_GROUP: ClassVar[str] = "prompts and data"

    first: int | None = flag(
        None,
        "Number of the first completion in best and ranking: 0 or 1. By default the number in its "
        "column's name, else 0.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first not in (None, 0, 1):
            raise InputError(f"first is {self.first}, but must be 0 or 1", "first")

    @classmethod
    def of(cls, given: ColumnArguments) -> "LayoutArguments":
        """The flags of a recipe that reads no labels, as those of one that does."""
        return cls(columns=given.columns, as_messages=given.as_messages)


def as_words(given: Mapping[str, object] | list[str] | str) -> list[str]:
    """Return ``--columns`` as words, ``name=header,header``, however it was given.

    >>> as_words({"prompt": "Prompt", "completions": ["Answer A", "B, too"]})
    ['prompt=Prompt', 'completions=Answer A,"B, too"']

    Raises:
        InputError: a name is unknown, or a header stands for two.
    """
    words = [given] if isinstance(given, str) else given
    if isinstance(words, Mapping):
        words = [
            f"{name}={_joined(value if isinstance(value, list) else [value])}"
            for name, value in words.items()
        ]
    return [f"{name}={_joined(headers)}" for name, headers in read_words(words).items()]


def read_words(words: list[str]) -> dict[str, list[str]]:
    """Return the headers of each name; raise InputError as ``as_words``."""
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = str(word).partition("=")
        name = name.strip()
        if not equals or not text.strip():
            raise _wrong(f"{word!r:.60} is not NAME=HEADER, as in {EXAMPLE}")
        if name not in COLUMN_NAMES:
            raise _wrong(
                f"{name!r:.40} is not a name that it knows{nearest(name, COLUMN_NAMES)}; "
                f"they are {', '.join(COLUMN_NAMES)}"
            )
        if name in found:
            raise _wrong(f"{name} is given twice (completions take several, as in {EXAMPLE})")
        (headers,) = csv.reader([text], skipinitialspace=True)
        found[name] = [header.strip() for header in headers]
        if name != "completions" and len(headers) > 1:
            raise _wrong(
                f"{name} is one column, but {len(headers)} are named (put a header with a comma in "
                f"quotes: '{name}=\"{text}\"')"
            )

    headers = [header for each in found.values() for header in each]
    twice = next((header for header in headers if headers.count(header) > 1), None)
    if twice is not None:
        raise _wrong(f"{twice!r:.40} is named twice (a column has one meaning)")
    pair = {"chosen", "rejected"} & set(found)
    for name in ("completions", "best"):
        if name in found and pair:
            raise _wrong(f"{name} stands beside {min(pair)} (name the one or the other)")
    if "scores" in found and len(found.get("completions", [])) > 1:
        raise _wrong("scores is a list in rows of JSON, which a table of completions does not have")
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question that proposes the name most like a wrong one; empty if none is like it."""
    by_lower = {str(each).lower(): str(each) for each in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def _joined(headers: Iterable[object]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow([str(header) for header in headers])
    return stream.getvalue()


def _wrong(problem: str) -> InputError:
    return InputError(f"columns: {problem}", "columns")
