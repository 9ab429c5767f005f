"""Open the store that a command line names, and read the files that go with it."""

from pathlib import Path

from toolkit.data.comparisons import read_rows
from toolkit.data.files import require_file
from toolkit.errors import InputError
from toolkit.labeling.store import Settings, Store


def open_store(
    path: str | Path, settings: Settings, gold: str | None = None, filled: bool = True
) -> Store:
    """The store, with the gold items in it.

    Args:
        path: of its file.
        settings: how items are handed out.
        gold: JSONL of comparisons whose ``best`` is known.
        filled: there are items to put in; without any a new store is a mistyped path.

    Raises:
        InputError: a file that is no store, or a gold file with mistakes.
    """
    if not filled and not Path(path).is_file():
        raise InputError(f"store: {path}: no such file, and no --samples to fill one")
    answers = [] if gold is None else read_rows(gold, "best", "--gold")
    store = Store(path, settings)
    store.add_items(answers, gold=True)
    return store


def read_guidelines(path: str | None) -> str | None:
    """The text of a file of guidelines; None where none is named.

    Raises:
        InputError: no such file, or not UTF-8.
    """
    if path is None:
        return None
    try:
        return require_file(path, "--guidelines").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start} (save it as UTF-8)") from None
