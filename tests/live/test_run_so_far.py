"""A run is read while it writes: half lines, replaced files, and what can be said of its state."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.conftest import lines, log_row, timing_row
from toolkit.live.run_so_far import RECENT, Growing, Watched
from toolkit.training.log_rows import logged_update

Make = Callable[..., Path]


def hold(folder: Path, pid: int, host: str | None = None) -> None:
    """Write the lock's file of a run by this process."""
    record = {"host": host or socket.gethostname(), "pid": pid, "start": "2026-01-01"}
    (folder / ".lock").write_text(json.dumps(record))


def test_half_a_last_line_waits_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    growing = Growing(path, logged_update)
    assert growing.look() == []  # there is no file yet

    text = lines([log_row(1), log_row(2)])
    path.write_text(text[:-20])
    assert [u.update for u in growing.look()] == [1]
    with open(path, "a") as stream:
        stream.write(text[-20:])
    assert [u.update for u in growing.look()] == [1, 2]
    assert growing.unreadable == 0


def test_after_a_resume_the_log_is_read_again_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    growing = Growing(path, logged_update)
    path.write_text(lines([log_row(u, **{"objective/kl": 1.0}) for u in (1, 2, 3)]))
    assert len(growing.look()) == 3

    # The resumed run replaces the file, which then grows past its earlier length.
    aside = tmp_path / "aside"
    aside.write_text(lines([log_row(u, **{"objective/kl": 2.0}) for u in (1, 2, 3, 4, 5)]))
    os.replace(aside, path)
    assert [(u.update, u.kl) for u in growing.look()] == [(u, 2.0) for u in (1, 2, 3, 4, 5)]

    path.unlink()
    assert growing.look() == []


def test_rows_that_are_none_are_counted_and_no_number_is_not_a_number(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        lines([log_row(1, **{"objective/kl": float("nan")})])
        + '{"update": "two"}\n[]\nnot JSON\n'
        + "[" * 100_000
        + "\n"
        + lines([log_row(3)])
    )
    growing = Growing(path, logged_update)
    assert [(u.update, u.kl) for u in growing.look()] == [(1, None), (3, 1.5)]
    assert growing.unreadable == 4


def test_the_time_left_is_that_of_recent_updates_times_those_that_remain(run_folder: Make) -> None:
    folder = run_folder(4)
    slow = [timing_row(u, seconds=100.0) for u in range(1, 4)]
    fast = [timing_row(u, seconds=3.0) for u in range(4, 4 + RECENT)]
    (folder / "timings.jsonl").write_text(lines(slow + fast))
    hold(folder, os.getpid())
    run = Watched(folder).look()
    assert (run.state, run.planned) == ("running", 10)  # 80 episodes, 8 in an update
    assert run.seconds == 3.0 and run.left == 3.0 * 6
    assert run.phases == {"sample": 0.5, "optimize": 1.0, "other": 1.5}
    assert run.peak_mb == 100 + 3 + RECENT


@pytest.mark.parametrize(
    ("done", "held_by", "state"),
    [
        (4, "here", "running"),
        (4, "nobody", "stopped"),
        (4, "the dead", "stopped"),
        (4, "elsewhere", "unknown"),
        (10, "here", "done"),
        (10, "nobody", "done"),
    ],
)
def test_whether_it_runs_is_read_from_the_folders_lock(
    run_folder: Make, done: int, held_by: str, state: str
) -> None:
    folder = run_folder(done)
    if held_by == "here":
        hold(folder, os.getpid())
    elif held_by == "the dead":
        hold(folder, 2**22 + 1)  # above the most that a process number can be
    elif held_by == "elsewhere":
        hold(folder, os.getpid(), "another-machine")
    run = Watched(folder).look()
    assert run.state == state
    assert (run.left is None) == (state != "running")


def test_an_empty_folder_is_a_run_without_updates(tmp_path: Path) -> None:
    run = Watched(tmp_path).look()
    assert run.last is None and run.state == "stopped" and run.quiet is None and not run.phases


def test_the_newest_sample_comes_first(run_folder: Make) -> None:
    rows = [{"update": u, "score": None, "prompt": "p", "completion": "c"} for u in (1, 2)]
    assert [s.update for s in Watched(run_folder(2, rows)).look().samples] == [2, 1]
