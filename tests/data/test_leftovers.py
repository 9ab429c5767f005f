"""What a killed run left is removed or put back by the next one, and nothing else is touched."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolkit.data.files import atomic_directory, atomic_file
from toolkit.data.leftovers import clear_leftovers, part_file, part_folder, scratch_folder
from toolkit.data.locks import letting_go, lock_file
from toolkit.data.outputs import claim_output


@pytest.fixture(autouse=True)
def unlocked() -> Iterator[None]:
    """The locks that a test takes go at its end."""
    with letting_go():
        yield


def killed_in(work: Callable[[], None]) -> None:
    """Do this in a forked process, which is killed in the midst of it."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if not p.name.startswith(".lock"))


@pytest.mark.parametrize("name", ["good", "x[1]*.txt", "ein Name"])
def test_what_a_kill_left_of_a_folder_is_mended(tmp_path: Path, name: str) -> None:
    """Between its two renames atomic_directory has moved the old folder away already."""
    (tmp_path / name).mkdir()
    gone = tmp_path / f"{name}gone"
    left = [part_folder(tmp_path / name), part_folder(gone)]
    moved = part_folder(gone)
    (moved / "file").write_text("kept")
    os.replace(moved, moved.with_name(moved.name + ".old"))
    for target in (name, gone.name):
        clear_leftovers(tmp_path, target)
    assert names(tmp_path) == sorted([name, gone.name, "file"])
    assert not any(path.exists() for path in left)


def test_what_is_nobodys_leftover_stays(tmp_path: Path) -> None:
    others = [".notes.20240101", ".a.part", ".b.12345678.part.bak", "c.12345678.part", ".part"]
    for name in others:
        (tmp_path / name).touch()
    claim_output(tmp_path / "out.jsonl", False, "output")
    claim_output(tmp_path, True, "output_dir")
    assert names(tmp_path) == sorted(others)


def test_another_outputs_unfinished_file_is_passed_over(tmp_path: Path) -> None:
    lock_file(tmp_path / "picks.jsonl", "output")
    handle, aside = part_file(tmp_path / "picks.jsonl")
    os.close(handle)
    clear_leftovers(tmp_path)
    assert aside.exists()


KINDS = [("output", False), ("output_dir", False), ("output_dir", True)]


@pytest.mark.parametrize(("field", "whole"), KINDS)
def test_a_killed_run_is_in_nobodys_way(tmp_path: Path, field: str, whole: bool) -> None:
    out = tmp_path / "out"

    def work() -> None:
        claim_output(out, False, field, whole)
        if field == "output":
            with atomic_file(out):
                dies()
        if not whole:
            part_folder(out / "tokens")
        with atomic_directory(out if whole else out / "adapter") as aside:
            (aside / "weights").touch()
            dies()

    killed_in(work)
    assert [name for name in names(tmp_path) if name.endswith(".part")]
    claim_output(out, False, field, whole)
    assert not [name for name in names(tmp_path) if name.endswith(".part")]


def test_a_kill_between_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = tmp_path / "out", os.replace
    with atomic_directory(out) as aside:
        (aside / "file").write_text("old")

    def overwrite(act: Callable[[], None]) -> None:
        def first_only(a: Path, b: Path) -> None:
            if str(b).endswith(".old") or str(a).endswith(".old"):
                replace(a, b)
            else:
                act()

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", first_only)
            with atomic_directory(out) as aside:
                (aside / "file").write_text("new")

    killed_in(lambda: overwrite(dies))
    assert not out.exists()
    claim_output(out, True, "output_dir", whole=True)
    assert (out / "file").read_text() == "old"

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        overwrite(interrupt)
    assert (out / "file").read_text() == "old"
    assert names(tmp_path) == ["file", "out"]


def test_scratch_folders_of_the_dead_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work() -> None:
        with scratch_folder() as folder:
            (folder / "file").touch()
            dies()

    with scratch_folder() as mine:
        killed_in(work)
        assert len(list(tmp_path.glob("toolkit-*[0-9a-f]"))) == 2
        with scratch_folder() as other:
            assert mine.is_dir() and other.is_dir()
            assert len(list(tmp_path.iterdir())) == 4  # each with its lock
    assert not list(tmp_path.iterdir())


def test_of_several_processes_the_first_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one might take away what the first is writing."""
    part_folder(tmp_path / "adapter")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, left in (("1", 1), ("0", 0)):
        monkeypatch.setenv("RANK", rank)
        clear_leftovers(tmp_path)
        assert len(os.listdir(tmp_path)) == left
