"""The file of labels is whole or refused, and nothing in it is changed afterwards."""

import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.labeling.store import Labeler, Store
from toolkit.labeling.store.database import MIGRATIONS, Database


def label_one(store: Store, who: Labeler) -> None:
    task = store.next_task(who)
    assert task is not None and store.record(who, task.form, "pick", 0)


def test_events_are_only_ever_added(new: Any, label_all: Any, tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path)
    label_all(store, ann)
    for statement in ("UPDATE events SET choice = 1", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
            store.db.execute(statement)


@pytest.fixture(scope="module")
def labeled(new: Any, label_all: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 300 labels, closed."""
    store, ann, _ = new(tmp_path_factory.mktemp("labeled"), 300)
    label_all(store, ann)
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    return store.path


def damaged(kind: str, file: Path) -> Path:
    store = Store(file)
    db = store.db
    if kind == "newer":
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    elif kind == "undone by hand":
        db.execute("DELETE FROM labels WHERE event = 3")
    elif kind == "orphan":
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("INSERT INTO sessions VALUES ('x', 99, 0)")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    content = file.read_bytes()
    if kind == "flipped":
        half = len(content) // 2
        file.write_bytes(content[:half] + bytes(200) + content[half + 200 :])
    elif kind == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "no database":
        file.write_text("prompt,completions\n" * 100)
    elif kind == "another database":
        file.unlink()
        with sqlite3.connect(file) as other:
            other.execute("CREATE TABLE songs (name)")
        other.close()
    elif kind == "a folder":
        file.unlink()
        file.mkdir()
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("newer", "made by a newer version"),
        ("undone by hand", "labels differ from the events"),
        ("orphan", "a label has no item"),
        ("flipped", "damaged"),
        ("cut", "damaged"),
        ("no database", "not an SQLite file"),
        ("another database", "not a label store"),
        ("a folder", "cannot be opened"),
    ],
)
def test_a_file_that_is_no_good_is_named_and_left_alone(
    labeled: Path, tmp_path: Path, kind: str, message: str
) -> None:
    file = damaged(kind, Path(shutil.copy(labeled, tmp_path)))
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(InputError, match=message) as error:
        Store(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    if before is not None and kind != "another database":
        assert file.read_bytes() == before


def test_a_store_is_opened_while_others_label(
    new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label comes in before each query of the check: it looks at one moment, so all agree."""
    store, ann, _ = new(tmp_path, 30)
    connect = Database._connect

    def watched(database: Database) -> sqlite3.Connection:
        connection = connect(database)
        if database is not store:
            connection.set_trace_callback(lambda statement: label_one(store, ann))
        return connection

    monkeypatch.setattr(Database, "_connect", watched)
    Store(store.path).close()  # no false alarm
    assert len(list(store.events())) >= 6  # labels did come in


def test_connections_of_threads_that_ended_are_closed(new: Any, tmp_path: Path) -> None:
    """A server's threads come and go; each left three files open."""
    store, _, _ = new(tmp_path)
    for _ in range(30):
        thread = threading.Thread(target=store.progress)
        thread.start()
        thread.join()
    assert len(store._connections) <= 3
    store.close()
