"""Nothing follows a link out of a folder that is published."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.data.links import check_inside, copy_inside, inside, open_inside, shown
from toolkit.errors import InputError


@pytest.fixture
def local(tmp_path: Path, demo_model: str) -> Path:
    """A base in a folder that may be changed."""
    return Path(shutil.copytree(demo_model, tmp_path / "base"))


def test_a_link_to_a_file_beside_it_is_none_out_of_the_folder(local: Path, tmp_path: Path) -> None:
    (local / "vocab.json").symlink_to("tokenizer.json")
    assert inside(local, "vocab.json") == local / "tokenizer.json"
    (tmp_path / "name").symlink_to(local)  # the folder itself may be reached by a link
    assert copy_inside(tmp_path / "name", "vocab.json", tmp_path / "copy")
    assert inside(local, "merges.txt") is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.symlink_to("../outside"), "a link out of its folder, to .*outside"),
        (lambda path: path.symlink_to("/etc/passwd"), "a link out of its folder, to /etc/passwd"),
        (lambda path: path.symlink_to("gone"), "a link to nothing"),
        (lambda path: path.symlink_to(path.name), "a link to nothing"),  # a circle
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
    ],
)
def test_what_is_no_file_of_the_folder_is_named_and_never_opened(
    make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside").write_text("a diary")
    make(folder / "a.json")
    for look in (
        lambda: inside(folder, "a.json"),
        lambda: open_inside(folder, "a.json"),
        lambda: copy_inside(folder, "a.json", tmp_path / "copy"),
        lambda: check_inside(folder, (".json",), "more"),
    ):
        with pytest.raises(InputError, match=f"folder/a.json is {said}"):
            look()
    assert not (tmp_path / "copy").exists()
    check_inside(folder, (".jinja",), "more")  # names of other endings do not matter


def test_a_folder_beside_one_of_the_same_beginning_is_outside(tmp_path: Path) -> None:
    for name in ("base", "base-private"):
        (tmp_path / name).mkdir()
    (tmp_path / "base-private" / "x").write_text("a diary")
    with pytest.raises(InputError, match="a link out of its folder"):
        inside(tmp_path / "base", "../base-private/x")


def test_in_the_hubs_cache_a_file_is_a_link_to_a_blob_of_its_own_repository(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for repository in ("models--a--b", "models--a--private"):
        (tmp_path / repository / "blobs").mkdir(parents=True)
        (tmp_path / repository / "blobs" / "1").write_text(repository)
    (snapshot / "x").symlink_to("../../blobs/1")
    stream = open_inside(snapshot, "x")
    assert stream is not None
    with stream:
        assert stream.read() == b"models--a--b"
    (snapshot / "y").symlink_to("../../../models--a--private/blobs/1")
    with pytest.raises(InputError, match="a link out of its folder"):
        inside(snapshot, "y")


def test_a_folder_below_is_looked_through_by_name(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    check_inside(tmp_path, (".jinja",), "more")
    (tmp_path / "more" / "tool.jinja").symlink_to("/etc/passwd")
    with pytest.raises(InputError, match="more/tool.jinja is a link out of its folder"):
        check_inside(tmp_path, (".jinja",), "more")


def test_a_name_is_one_line_whatever_is_in_it() -> None:
    assert shown("a\nb\x1b[2J\u202ec für") == "a\\nb\\x1b[2J\\u202ec für"
