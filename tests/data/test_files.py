"""Files: whole or absent, and mistakes named by line."""

import json
import math
import os
import tempfile
from pathlib import Path

import pytest

from toolkit.data.files import (
    atomic_directory,
    read_jsonl,
    read_object,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
)
from toolkit.data.tables import read_table
from toolkit.errors import InputError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"f\.jsonl:2: not JSON"),
        (b'{"a": 1}\n\n[1]\n', r"f\.jsonl:3: a list, not an object"),
        (b'{"a": "\xff"}\n', r"f\.jsonl:1: not UTF-8 at byte 7"),
    ],
)
def test_broken_jsonl_is_named_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_jsonl(path))


def test_missing_file_names_the_argument(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--prompts: .*nowhere: no such file"):
        list(read_jsonl(tmp_path / "nowhere", "--prompts"))


def test_rows_come_back_as_written_with_line_numbers(tmp_path: Path) -> None:
    rows = [{"prompt": "a\u2028b\n<script>"}, {"prompt": "\U0001f600"}]
    write_jsonl(tmp_path / "f.jsonl", rows)
    assert list(read_jsonl(tmp_path / "f.jsonl")) == [(1, rows[0]), (2, rows[1])]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\n')
    assert list(read_jsonl(tmp_path / "f.jsonl")) == [(1, {"prompt": "a"})]


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    write_text(tmp_path / "f", "old")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "f", "not bytes")  # type: ignore[arg-type]
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError("killed")
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "adapter"
    for name in ("a", "b"):
        with atomic_directory(target) as folder:
            (folder / name).write_text(json.dumps(name))
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in target.parent.iterdir()] == ["adapter"]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 400])
def test_a_number_that_is_none_is_named_by_line_and_not_within_a_text(
    tmp_path: Path, word: str
) -> None:
    (tmp_path / "f.jsonl").write_text(f'{{"a": "{word}"}}\n{{"a": [1, {word}]}}\n')
    with pytest.raises(InputError, match=r"f\.jsonl:2: not JSON.*is not a number"):
        list(read_jsonl(tmp_path / "f.jsonl"))
    (tmp_path / "f.json").write_text(f'{{\n"a": "{word}",\n"b": {{"c":\n{word}}}\n}}')
    with pytest.raises(InputError, match=r"f\.json:4: not JSON.*is not a number"):
        read_object(tmp_path / "f.json", "file")
    (tmp_path / "a.json").write_text(f'[{{"a": 1}},\n{{"a": {word}}}]')
    with pytest.raises(InputError, match=r"a\.json:2: not JSON.*is not a number"):
        list(read_table(tmp_path / "a.json", "file"))


def test_what_is_undefined_is_null_in_every_file(tmp_path: Path) -> None:
    row = {"mean": 1.0, "error": math.nan, "deep": [{"x": (math.inf, 2)}], "name": "NaN"}
    write_json(tmp_path / "f.json", row)
    write_jsonl(tmp_path / "f.jsonl", [row])
    expected = {"mean": 1.0, "error": None, "deep": [{"x": [None, 2]}], "name": "NaN"}
    assert read_object(tmp_path / "f.json", "file") == expected
    assert list(read_jsonl(tmp_path / "f.jsonl")) == [(1, expected)]


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002])
def test_who_may_read_a_file_is_up_to_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.json", "x")
        with atomic_directory(tmp_path / "b") as aside:
            handle, name = tempfile.mkstemp(dir=aside)  # for the owner alone, as safetensors does
            os.close(handle)
    finally:
        os.umask(before)
    modes = [p.stat().st_mode & 0o777 for p in (tmp_path / "a.json", tmp_path / "b")]
    assert modes == [0o666 & ~mask, 0o777 & ~mask]
    assert (tmp_path / "b" / os.path.basename(name)).stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_link_to_a_folder_that_is_replaced_leaves_no_litter(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "out").symlink_to("other")
    with atomic_directory(tmp_path / "out"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]
