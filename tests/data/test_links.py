"""Nothing follows a link out of a folder that is published."""

import shutil
from pathlib import Path

import pytest

from toolkit.data.links import copy_inside, inside


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
