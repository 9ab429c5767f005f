"""A store with items in it, and two people who label them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.labeling.store import Labeler, Settings, Store


def _rows(count: int, k: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Text {i}.",
            "completions": [f" {'abcdefgh'[n]}{i}" for n in range(k)],
            "source": {"model": "m", "update": i},
        }
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[dict[str, Any]]]:
    """Makes items of K completions, each of which says its letter and its item."""
    return _rows


@pytest.fixture(scope="session")
def plain() -> Settings:
    """Settings by which one person labels each item, once."""
    return Settings(overlap=0.0, repeats=0.0, gold=0.0)


@pytest.fixture(scope="session")
def new(plain: Settings) -> Callable[..., Any]:
    """Makes a store with so many items, and ann and bob who label them."""

    def make(path: Path, count: int = 8, settings: Settings = plain) -> Any:
        store = Store(path / "labels.sqlite", settings)
        store.add_items(_rows(count))
        people = [store.by_token(store.invite(name)) for name in ("ann", "bob")]
        return store, *people

    return make


@pytest.fixture(scope="session")
def label_all() -> Callable[..., list[int]]:
    """Says the same of all that a labeler is asked, and tells of which items that was."""

    def label(store: Store, who: Labeler, action: str = "pick") -> list[int]:
        items = []
        while (task := store.next_task(who)) is not None:
            assert store.record(who, task.form, action, 0 if action == "pick" else None)
            items.append(task.item)
        return items

    return label
