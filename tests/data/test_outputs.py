"""An output is claimed before the work: nothing is lost, and what will be made has room."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from toolkit.data import outputs
from toolkit.data.files import (
    atomic_directory,
)
from toolkit.data.locks import letting_go
from toolkit.data.outputs import check_place, claim_output, forget_run, hold_folder
from toolkit.errors import InputError

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("name", "field", "said"),
    [("/proc/x/run", "output_dir", "No such file or directory"),
     ("/sys/x.jsonl", "output", "(Permission denied|Operation not permitted|Read-only)"),
     ("n" * 300, "output_dir", "File name too long"),
     ("n" * 245, "output", "File name too long"),  # what is written aside has a longer name
     ("a\0b", "output", "embedded null byte")],
)  # fmt: skip
def test_what_cannot_be_written_is_told_when_it_is_claimed(
    name: str, field: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name  # an absolute name stays what it is
    with pytest.raises(InputError, match=f"^{field}: .* cannot be written: {said}"), letting_go():
        claim_output(path, False, field)
    assert os.listdir(tmp_path) == []


def test_a_folder_may_be_named_by_an_argument_called_output(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old.html").touch()
    said = "^output: .*report exists .pass --overwrite"
    with pytest.raises(InputError, match=said), letting_go():
        claim_output(tmp_path / "report", False, "output", folder=True)
    with letting_go():
        assert claim_output(tmp_path / "new", False, "output", folder=True).is_dir()


def test_a_full_disk_is_told_when_it_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise NO_SPACE

    monkeypatch.setattr(os, "posix_fallocate", full)
    for name, field in (("run", "output_dir"), ("x.jsonl", "output")):
        with pytest.raises(InputError, match=r"No space left on device \(free some"), letting_go():
            claim_output(tmp_path / name, False, field)
    assert os.listdir(tmp_path) == []


def test_a_mount_point_cannot_be_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs.os.path, "ismount", lambda path: True)
    (tmp_path / "merged").mkdir()
    with pytest.raises(InputError, match="is a mount point"), letting_go():
        claim_output(tmp_path / "merged", False, "output_dir", whole=True)


def test_a_rank_that_was_left_in_the_environment_does_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picks.jsonl").write_text("precious")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="exists"):
        claim_output(tmp_path / "picks.jsonl", False, "output")


@pytest.mark.parametrize("field", ["output", "output_dir"])
def test_a_pipe_is_not_replaced_by_a_file(field: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (
        tmp_path / "pipe",
        tmp_path / "link",
        Path("/dev/null"),
        Path("/dev/stdout"),
        Path("/dev/new.jsonl"),
    ):
        with letting_go(), pytest.raises(InputError, match="a pipe, a device or the like"):
            claim_output(path, True, field)
    assert (tmp_path / "pipe").is_fifo() and sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_folder_stays_when_that_is_replaced_as_a_whole(
    there: bool, tmp_path: Path
) -> None:
    if there:
        (tmp_path / "big").mkdir()
    (tmp_path / "out").symlink_to("big")
    with letting_go():
        out = claim_output(tmp_path / "out", False, "output_dir", whole=True)
        with atomic_directory(out) as aside:
            (aside / "x").write_text("x")
    assert sorted(os.listdir(tmp_path)) == ["big", "out"] and (tmp_path / "out").is_symlink()
    assert os.listdir(tmp_path / "big") == ["x"]


def test_the_working_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    for path in (".", "..", "../a", str(tmp_path)):
        with letting_go(), pytest.raises(InputError, match="is the working folder or contains it"):
            claim_output(path, True, "output_dir", whole=True)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_where_room_cannot_be_allocated_it_is_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    written, write = [0], os.write

    def counting(handle: int, content: bytes) -> int:
        written[0] += len(content)
        return write(handle, content)

    monkeypatch.setattr(outputs, "ROOM", 3_000_000)
    monkeypatch.setattr(os, "posix_fallocate", refused)
    monkeypatch.setattr(os, "write", counting)
    with letting_go():
        claim_output(tmp_path / "run", False, "output_dir")
    assert written[0] >= 3_000_000 and os.listdir(tmp_path) == []


def test_output_that_exists_is_not_written_over_unasked(tmp_path: Path) -> None:
    taken = tmp_path / "f"
    taken.write_text("labels")
    with pytest.raises(InputError, match="exists .pass --overwrite"):
        claim_output(taken, False, "output")
    assert claim_output(taken, True, "output") == taken
    with pytest.raises(InputError, match="is a file, not a folder"):
        claim_output(taken / "inside", False, "output")
    (tmp_path / "empty").mkdir()
    claim_output(tmp_path / "empty", False, "output_dir")


def test_a_folder_that_is_held_already_may_have_anything_in_it(tmp_path: Path) -> None:
    (tmp_path / "labels.sqlite").write_text("x")
    with letting_go():
        hold_folder(tmp_path, "store")
    assert os.listdir(tmp_path) == ["labels.sqlite"]


def test_what_tells_of_an_earlier_run_goes_before_the_new_one_writes(tmp_path: Path) -> None:
    for name in ("run.json", "evaluation.json", "adapter.json"):
        (tmp_path / name).write_text("{}")
    forget_run(tmp_path)
    forget_run(tmp_path)  # nothing there is no mistake
    assert os.listdir(tmp_path) == ["adapter.json"]


def test_the_page_on_a_reward_model_goes_with_the_run_that_it_is_about(tmp_path: Path) -> None:
    page = tmp_path / "report"
    page.mkdir()
    for name in ("reward_report.html", "reward_report.json", "mine.txt"):
        (page / name).write_text("of the model before")
    forget_run(tmp_path)
    assert os.listdir(page) == ["mine.txt"]


def test_a_plain_path_that_is_not_there_yet_may_become_an_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path / "new", tmp_path / "file", tmp_path / "link", tmp_path):
        check_place(path, "output")
    with pytest.raises(InputError, match="output: /dev/null is a pipe, a device or the like"):
        check_place("/dev/null", "output")
