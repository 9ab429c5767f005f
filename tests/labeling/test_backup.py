"""Copies of the store: whole while others write, or not there; nothing is replaced unasked."""

import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from toolkit import cli
from toolkit.data.leftovers import part_folder
from toolkit.errors import InputError
from toolkit.labeling import backup as module
from toolkit.labeling.backup import backup
from toolkit.labeling.store import Settings, Store


def filled(path: Path, count: int = 60) -> Store:
    store = Store(path, Settings(overlap=0.0, repeats=0.0))
    store.add_items(
        {"prompt": f"p {i}", "completions": [f"{i} {k}" for k in "ab"]} for i in range(count)
    )
    return store


def label(store: Store, name: str, count: int) -> None:
    labeler = store.script(name)
    for _ in range(count):
        task = store.next_task(labeler)
        assert task is not None
        store.record(labeler, task.form, "pick", 0)


def test_a_copy_opens_as_a_store_and_holds_what_was_labeled(tmp_path: Path) -> None:
    with filled(tmp_path / "labels.sqlite") as store:
        label(store, "ann", 20)
        os.chmod(store.path, 0o600)
        copy = backup(store.path, tmp_path / "copies" / "monday.sqlite")
        label(store, "ann", 1)  # the store goes on
        assert [p.name for p in copy.parent.iterdir()] == ["monday.sqlite"]
        assert copy.stat().st_mode & 0o777 == 0o600
        with Store(copy) as other:
            assert list(other.picks()) == list(store.picks())[:20]


def test_a_copy_made_while_labels_come_in_is_of_one_moment(tmp_path: Path) -> None:
    with filled(tmp_path / "labels.sqlite", 150) as store:
        worker = threading.Thread(target=label, args=(store, "ann", 150))
        worker.start()
        counts = []
        for number in range(4):
            copy = backup(store.path, tmp_path / f"{number}.sqlite")
            with Store(copy) as other:  # opening it checks it
                picks = list(other.picks())
                counts.append(len(picks))
                assert picks == list(store.picks())[: len(picks)]
        worker.join()
    assert counts == sorted(counts)


def refused(tmp_path: Path, target: Path, match: str, **options: Any) -> None:
    """It is refused in one line, and nothing is there that was not before, or other than it was."""

    def files() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    before = files()
    with pytest.raises(InputError, match=match) as error:
        backup(tmp_path / "labels.sqlite", target, **options)
    assert "\n" not in str(error.value)
    assert files() == before and not list(tmp_path.glob(".*"))


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    filled(tmp_path / "labels.sqlite").close()
    target = tmp_path / "copy.sqlite"
    target.write_text("mine")
    refused(tmp_path, target, "copy.sqlite exists .pass --overwrite")
    refused(tmp_path, tmp_path / "labels.sqlite", "is the store itself", overwrite=True)
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "labels.sqlite")
    refused(tmp_path, tmp_path / "link.sqlite", "is the store itself", overwrite=True)
    (tmp_path / "folder").mkdir()
    refused(tmp_path, tmp_path / "folder", "is a folder", overwrite=True)
    refused(
        tmp_path,
        target / "in" / "a" / "file",
        "copy.sqlite/in/a/file cannot be written: Not a directory",
    )
    backup(tmp_path / "labels.sqlite", target, overwrite=True)
    Store(target).close()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_not_put_beside_another_stores_log(tmp_path: Path, overwrite: bool) -> None:
    """SQLite would read that log into the copy."""
    filled(tmp_path / "labels.sqlite").close()
    (tmp_path / "copy.sqlite-wal").write_bytes(b"of another")
    refused(tmp_path, tmp_path / "copy.sqlite", "in use or was killed", overwrite=overwrite)


def test_what_came_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "labels.sqlite").close()
    target = tmp_path / "copy.sqlite"
    place = module._place

    def late(copy: Path, to: Path, overwrite: bool) -> None:
        to.write_text("mine")
        place(copy, to, overwrite)

    monkeypatch.setattr(module, "_place", late)
    with pytest.raises(InputError, match="exists"):
        backup(tmp_path / "labels.sqlite", target)
    assert target.read_text() == "mine" and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["none", "text", "another database", "damaged"])
def test_what_is_no_store_is_not_copied(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "labels.sqlite"
    if kind == "text":
        path.write_text("prompt,completions\n" * 100)
    elif kind == "another database":
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE songs (name)")
        other.close()
    elif kind == "damaged":
        with filled(path) as store:
            label(store, "ann", 9)
            store.db.execute("DELETE FROM labels WHERE event = 3")
    said = {
        "none": "no such file",
        "text": "not an SQLite file",
        "damaged": "damaged",
        "another database": "not a label store",
    }[kind]
    refused(tmp_path, tmp_path / "copy.sqlite", said)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "labels.sqlite").close()
    connect = sqlite3.connect

    def full(path: Any, **options: Any) -> sqlite3.Connection:
        if "copy" in str(path):
            raise sqlite3.OperationalError("database or disk is full")
        return connect(path, **options)

    monkeypatch.setattr(module.sqlite3, "connect", full)
    with pytest.raises(InputError, match="disk is full"):
        backup(tmp_path / "labels.sqlite", tmp_path / "copy.sqlite")
    assert [p.name for p in tmp_path.iterdir()] == ["labels.sqlite"]


def test_the_recipe_copies_and_does_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = cli.recipe("label").main
    path, copy = str(tmp_path / "labels.sqlite"), str(tmp_path / "copy.sqlite")
    filled(Path(path)).close()
    cli.call(main, ["--store", path, "--backup", copy])
    assert f"wrote: {copy} (a copy of {path}" in capsys.readouterr().out
    Store(copy).close()
    for words, match in [
        (["--store", path, "--backup", copy], "exists"),
        (["--backup", copy], "backup: needs a store"),
        (["--store", path, "--backup", copy, "--serve"], "leave out --serve"),
        (["--store", path, "--backup", copy, "--output", "x.jsonl"], "only copies the store"),
        (["--store", f"{path}.none", "--backup", f"{copy}.2"], "no such file"),
    ]:
        with pytest.raises(InputError, match=match):
            cli.call(main, words)
    assert not Path(f"{path}.none").exists()
    cli.call(main, ["--store", path, "--backup", copy, "--overwrite"])


def test_what_a_killed_backup_left_goes_with_the_next(tmp_path: Path) -> None:
    store = filled(tmp_path / "a.sqlite", 3)
    left = part_folder(tmp_path / "b.sqlite")
    (left / "b.sqlite").write_bytes(b"half")
    backup(tmp_path / "a.sqlite", tmp_path / "b.sqlite")
    store.close()
    assert sorted(os.listdir(tmp_path)) == ["a.sqlite", "b.sqlite"]


def test_a_pipe_is_no_place_for_a_backup(tmp_path: Path) -> None:
    filled(tmp_path / "a.sqlite", 3).close()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="backup: .* is a pipe"):
        backup(tmp_path / "a.sqlite", tmp_path / "pipe", overwrite=True)
    assert (tmp_path / "pipe").is_fifo()
