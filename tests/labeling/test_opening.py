"""A store is opened with its gold items, and a mistyped path makes no new one."""

import json
from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.labeling.opening import open_store, read_guidelines
from toolkit.labeling.store import Settings


def test_gold_items_come_in_and_are_no_items_to_be_labeled(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text(json.dumps({"prompt": "Hi.", "completions": ["a", "b"], "best": 1}) + "\n")
    with open_store(tmp_path / "s.sqlite", Settings(), str(gold)) as store:
        assert store.db.execute("SELECT gold FROM items").fetchone()[0] == 1
        assert store.progress()["items"] == 0


def test_a_gold_item_without_its_answer_is_named_and_no_store_is_made(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    gold.write_text(json.dumps({"prompt": "Hi.", "completions": ["a", "b"]}) + "\n")
    with pytest.raises(InputError, match=r"gold\.jsonl:1: best"):
        open_store(tmp_path / "s.sqlite", Settings(), str(gold))
    assert not (tmp_path / "s.sqlite").exists()


def test_a_path_where_nothing_is_and_nothing_to_fill_it_with_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with pytest.raises(InputError, match="no such file \\(add --samples"):
        open_store(path, Settings(), filled=False)
    assert not path.exists()
    open_store(path, Settings()).close()
    open_store(path, Settings(), filled=False).close()  # now it is there


def test_guidelines_are_the_files_text_and_a_wrong_byte_is_told_by_its_place(
    tmp_path: Path,
) -> None:
    path = tmp_path / "g.txt"
    path.write_bytes("Für dich:\nthe kinder one.\n".encode())
    assert read_guidelines(str(path)) == "Für dich:\nthe kinder one.\n"
    assert read_guidelines(None) is None
    path.write_bytes("Für".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 at byte 1"):
        read_guidelines(str(path))
    with pytest.raises(InputError, match="no such file"):
        read_guidelines(str(tmp_path / "gone"))
