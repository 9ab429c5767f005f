"""One run per output: the second is refused, a dead one's place is taken, nothing stays behind."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from toolkit.data import locks
from toolkit.data.files import atomic_directory
from toolkit.data.locks import is_being_written, letting_go, lock_file, lock_folder
from toolkit.data.outputs import claim_output
from toolkit.errors import InputError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from toolkit.data.outputs import claim_output
claim_output({path!r}, True, {field!r})
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def another(path: Path, field: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of this output."""
    code = HOLD.format(root=str(ROOT), path=str(path), field=field)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("name", "field"), [("run", "output_dir"), ("picks.jsonl", "output")])
def test_a_live_run_is_refused_with_its_host_process_and_start(
    name: str, field: str, tmp_path: Path
) -> None:
    path = tmp_path / "new" / name
    with another(path, field) as process:
        with pytest.raises(InputError) as caught:
            claim_output(path, True, field)
        said = str(caught.value)
        assert said.startswith(f"{field}: {path} is being written by another run, process")
        assert f"process {process.pid} on {socket.gethostname()}, begun 20" in said

        link = tmp_path / "link"  # by another road
        link.symlink_to(tmp_path / "new")
        with pytest.raises(InputError, match="is being written by another run"):
            claim_output(link / name, True, field)


def test_a_dead_runs_place_is_taken_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    with another(path, "output_dir") as process:
        pass
    assert (path / ".lock").is_file()
    with letting_go():
        claim_output(path, False, "output_dir")  # a lock is nothing that could be lost
        said = capsys.readouterr().err
        assert said.startswith(f"note: {path} was being written by process {process.pid} on ")
        assert "this run takes over" in said
        assert json.loads((path / ".lock").read_text())["pid"] == os.getpid()
    assert os.listdir(path) == []


def test_a_claim_that_comes_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    with letting_go():
        claim_output(tmp_path / "a" / "b" / "run", False, "output_dir")
        claim_output(tmp_path / "c" / "d.jsonl", False, "output")
        assert (tmp_path / "a" / "b" / "run").is_dir()
    assert os.listdir(tmp_path) == []


def test_what_was_written_stays_and_the_lock_goes(tmp_path: Path) -> None:
    with letting_go():
        out = claim_output(tmp_path / "run", False, "output_dir")
        (out / "log.jsonl").write_text("{}\n")
        with letting_go():
            claim_output(out, True, "output_dir")  # ours already, and so it stays
        assert (out / ".lock").exists()
    assert os.listdir(out) == ["log.jsonl"]
    with pytest.raises(InputError, match="exists"), letting_go():
        claim_output(out, False, "output_dir")
    assert os.listdir(out) == ["log.jsonl"]


def test_a_folder_that_is_replaced_as_a_whole_stays_locked(tmp_path: Path) -> None:
    with letting_go():
        out = claim_output(tmp_path / "merged", False, "output_dir", whole=True)
        with atomic_directory(out) as aside:
            (aside / "x").write_text("x")
        assert sorted(os.listdir(tmp_path)) == [".lock-merged", "merged"]
    assert os.listdir(tmp_path) == ["merged"] and os.listdir(out) == ["x"]


def test_only_the_first_of_several_processes_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with another(tmp_path / "run", "output_dir"):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        claim_output(tmp_path / "run", True, "output_dir")
        claim_output(tmp_path / "run", False, "output_dir")  # which the first has written to
        claim_output(tmp_path / "next", False, "output_dir")  # which the first is about to make
    assert os.listdir(tmp_path) == ["run"]


def test_where_files_cannot_be_locked_being_there_is_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with letting_go():
            lock_folder(tmp_path / "run", "output_dir")
            assert (tmp_path / "run" / ".lock").read_text().startswith(str(os.getpid()))
    assert os.listdir(tmp_path) == []


def test_two_files_in_one_folder_are_two_outputs(tmp_path: Path) -> None:
    with another(tmp_path / "a.jsonl", "output"), letting_go():
        lock_file(tmp_path / "b.jsonl", "output")
        claim_output(tmp_path / "c.jsonl", False, "output")


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", ""), ("WORLD_SIZE", "two"),
                                             ("RANK", "-1")])  # fmt: skip
def test_a_launchers_number_that_is_none_is_named(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name} is .* in the environment, but must be a number"):
        claim_output(tmp_path / "run", False, "output_dir")


FOREIGN = [b"12345 of another tool\n", b"\xff\xfe\x01", b"[" * 100_000, b'{"pid": 1}', b"null"]


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
@pytest.mark.parametrize("linked", [False, True])
def test_a_lock_of_another_program_is_left_as_it_is(
    content: bytes, linked: bool, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    lock = tmp_path / "run" / ".lock"
    (tmp_path / "precious").write_bytes(content)
    os.link(tmp_path / "precious", lock) if linked else lock.write_bytes(content)
    with letting_go(), pytest.raises(InputError, match=r"\.lock was not written by this toolkit"):
        claim_output(tmp_path / "run", True, "output_dir")
    assert lock.read_bytes() == (tmp_path / "precious").read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\0" * 80])
def test_a_lock_that_lost_its_content_is_taken_over(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_bytes(content)
    with letting_go():
        claim_output(tmp_path / "run", False, "output_dir")
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize("kind", ["folder", "link", "dangling", "pipe"])
def test_what_is_no_file_is_no_lock(kind: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    lock = tmp_path / "run" / ".lock"
    make = {
        "folder": lock.mkdir,
        "link": lambda: lock.symlink_to("../precious"),
        "dangling": lambda: lock.symlink_to("../none"),
        "pipe": lambda: os.mkfifo(lock),
    }
    make[kind]()
    with letting_go(), pytest.raises(InputError, match=r"\.lock must be a lock file"):
        claim_output(tmp_path / "run", True, "output_dir")
    assert os.path.lexists(lock) and (tmp_path / "precious").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["precious", "run"]


def test_a_lock_that_changes_while_it_is_held_is_left(tmp_path: Path) -> None:
    with letting_go():
        out = claim_output(tmp_path / "run", False, "output_dir")
        (out / ".lock").write_bytes(b"\xff")
    assert (out / ".lock").read_bytes() == b"\xff"


def test_another_users_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()

    def refused(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(locks, "_acquire", refused)
    with pytest.raises(
        InputError, match=r"its lock .*/\.lock belongs to another user: name another"
    ):
        lock_folder(tmp_path, "output_dir")


def test_a_folder_that_another_run_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, removed = locks._acquire, []

    def removing(marker: Path) -> Any:
        if not removed:
            removed.append(marker.parent.rmdir())
        return acquire(marker)

    monkeypatch.setattr(locks, "_acquire", removing)
    with letting_go():
        claim_output(tmp_path / "a" / "run", False, "output_dir")
        assert (tmp_path / "a" / "run" / ".lock").exists()


def test_an_output_that_is_ours_already_is_ours_by_another_road_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with letting_go():
        out = claim_output(tmp_path / "run", False, "output_dir")
        (tmp_path / "link").symlink_to(out)
        for again in ("run", "./run/../run", "link"):
            claim_output(again, True, "output_dir")
        (tmp_path / "link").unlink()
    assert os.listdir(tmp_path) == []


def test_one_can_look_whether_a_run_is_at_work_without_touching_its_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert is_being_written(run) is False  # there is no such folder
    with another(run, "output_dir") as process:
        before = (run / ".lock").stat()
        assert is_being_written(run) is True
        assert (run / ".lock").stat() == before
    assert process.poll() is not None and (run / ".lock").exists()
    assert is_being_written(run) is False  # it was killed

    for text in ("", "[]", '{"host": "another-machine", "pid": 1, "start": ""}'):
        (run / ".lock").write_text(text)
        assert is_being_written(run) is None
