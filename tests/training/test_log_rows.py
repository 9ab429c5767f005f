"""What a run's log says of an update, whatever else stands in the row."""

from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.training.log_rows import LoggedUpdate, Timing, read_log, read_timings

ROW = '{"update": 1, "episode": 8, "objective/scores": 0.5, "objective/kl": null, "loss/policy": 2}'


def test_an_update_is_read_and_a_last_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{ROW}\n{ROW[:-20]}")
    (update,) = read_log(path)
    assert update == LoggedUpdate(1, 8, 0.5, None, None, None, None, None, update.row)
    assert update.row["loss/policy"] == 2
    assert read_log(tmp_path / "none.jsonl") == []


def test_seconds_and_memory_of_each_update(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    path.write_text('{"update": 1, "seconds": 2.5, "peak_mb": 100, "seconds/rollout": 1.0}\n')
    assert read_timings(path) == [Timing(1, 2.5, 100)]


@pytest.mark.parametrize(
    ("line", "said"),
    [('{"episode": 8}', "log.jsonl:1: update: missing"),
     ('{"update": 1, "episode": "x"}', "log.jsonl:1: episode is 'x'"), ("[]", "update: missing")],
)  # fmt: skip
def test_a_row_of_something_else_is_named(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=said):
        read_log(tmp_path / "log.jsonl")
