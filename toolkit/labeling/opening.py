"""Open the label store, and read the gold items and the guidelines."""

from pathlib import Path

from toolkit.data.comparisons import read_rows
from toolkit.data.files import require_file
from toolkit.errors import InputError
from toolkit.labeling.store import Settings, Store


def open_store(
    path: str | Path, settings: Settings, gold: str | None = None, filled: bool = True
) -> Store:
    """Open the store and add the gold items.

    Args:
        path: the store's file.
        settings: how items are handed out.
        gold: JSONL of comparisons whose ``best`` is known.
        filled: whether there are items to add; if not, a missing file is a mistyped path.

    Raises:
        InputError: the file is not a store, or the gold file has mistakes.
    """
    if not filled and not Path(path).is_file():
        raise InputError(f"store: {path}: no such file (add --samples FILE to make one)")
    answers = [] if gold is None else read_rows(gold, "best", "--gold")
    store = Store(path, settings)
    store.add_items(answers, gold=True)
    return store


def read_guidelines(path: str | None) -> str | None:
    """Read the guidelines; None if no file is named.

    Raises:
        InputError: the file is missing or not UTF-8.
    """
    if path is None:
        return None
    try:
        return require_file(path, "--guidelines").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start} (save it as UTF-8)") from None
