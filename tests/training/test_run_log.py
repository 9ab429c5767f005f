"""A run's log: what was learned and the times apart, to files, trackers and callbacks."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainingArguments

from toolkit.data.records import Row
from toolkit.training.log_rows import ShownSample, read_rows
from toolkit.training.run_log import RunLog


def test_trackers_and_callbacks_hear_of_every_update(new_trainer: Any) -> None:
    heard: list[str] = []

    class Ear(TrainerCallback):
        def on_train_begin(self, *args: Any, **kw: Any) -> None:
            heard.append("begin")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
            heard.append(f"log {logs['update']} {logs['eps'] > 0}")

        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            control.should_training_stop = state.global_step == 2

        def on_save(self, *args: Any, **kw: Any) -> None:
            heard.append("save")

        def on_train_end(self, *args: Any, **kw: Any) -> None:
            heard.append("end")

    new_trainer(total_episodes=16, save_steps=2, callbacks=[Ear()]).train()
    assert heard == ["begin", "log 1 True", "log 2 True", "save", "end"]


def test_timings_are_kept_apart_from_what_was_learned(new_trainer: Any, tmp_path: Path) -> None:
    rows = new_trainer(value="adapter").train()
    timings = [json.loads(x) for x in (tmp_path / "run" / "timings.jsonl").read_text().splitlines()]
    phases = {f"seconds/{n}" for n in ("sample", "value", "reference", "score", "optimize")}
    assert phases <= timings[0].keys() and timings[0]["peak_mb"] > 0
    assert sum(timings[1][name] for name in phases) <= timings[1]["seconds"]
    assert not [name for name in rows[0] if "second" in name or "time" in name]


def new_log(folder: Path, is_main: bool = True, updates: int = 4) -> RunLog:
    args = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to="none", disable_tqdm=True
    )
    handed = {"model": None, "processing_class": None, "optimizer": None}
    return RunLog(args, updates, is_main, [], **handed)


def row(update: int) -> Row:
    numbers = dict.fromkeys(("objective/scores", "objective/kl", "objective/kl_coef"), 0.5)
    return {"update": update, "episode": 8 * update} | numbers


def updates_in(path: Path) -> list[int]:
    return [row["update"] for row in read_rows(path)]


def test_a_run_taken_up_again_keeps_the_rows_of_its_checkpoint_and_no_later_ones(
    tmp_path: Path,
) -> None:
    first = new_log(tmp_path)
    first.start(0)
    for update in (1, 2, 3):
        first.write(row(update))
    with open(tmp_path / "log.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"update": 4, "epis')  # killed while it wrote

    again = new_log(tmp_path)
    again.start(2)
    assert updates_in(tmp_path / "log.jsonl") == [1, 2]
    again.write(row(3))
    assert updates_in(tmp_path / "log.jsonl") == updates_in(tmp_path / "timings.jsonl") == [1, 2, 3]
    assert read_rows(tmp_path / "log.jsonl")[2] == row(3)


def test_samples_go_to_a_file_and_those_after_the_checkpoint_are_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "samples.jsonl"
    first = new_log(tmp_path)
    first.start(0)
    for update in (1, 2):
        first.write(row(update))
        first.show([ShownSample(update, 0.5, "It was", " a\x1b[31m day.")])
    said = capsys.readouterr().out
    assert "[2] +0.50  It was >>> a\\x1b[31m day." in said
    assert read_rows(path)[1]["completion"] == " a\x1b[31m day."  # as the policy wrote it

    again = new_log(tmp_path)
    again.start(1)
    assert updates_in(path) == [1]
    again.show([ShownSample(2, None, "It was", " not scored.")])
    assert read_rows(path)[1] == {
        "update": 2, "score": None, "prompt": "It was", "completion": " not scored."
    }  # fmt: skip


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    log = new_log(tmp_path / "run", is_main=False)
    log.start(0)
    log.write(row(1))
    log.show([ShownSample(1, 0.5, "It was", " a day.")])
    log.close()
    assert not (tmp_path / "run").exists()


def test_the_parts_of_a_phase_are_summed_and_forgotten_with_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(100))  # a second passes from one look at the clock to the next
    monkeypatch.setattr("toolkit.training.run_log.time.perf_counter", lambda: float(next(ticks)))
    log = new_log(tmp_path)
    log.start(0)
    for _ in range(2):
        with log.clock("sample"):
            pass
    log.write(row(1))
    log.write(row(2))
    timings = read_rows(tmp_path / "timings.jsonl")
    assert timings[0]["seconds/sample"] == 2 and "seconds/sample" not in timings[1]


def test_a_line_is_said_once_by_the_main_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_log(tmp_path).say("checkpoint saved")
    new_log(tmp_path, is_main=False).say("checkpoint saved")
    assert capsys.readouterr().out == "checkpoint saved\n"


def test_rows_behind_a_broken_line_are_not_believed_and_no_file_has_no_rows(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.jsonl"
    assert read_rows(path) == []
    path.write_text('{"update": 1}\n{"upd\n{"update": 3}\n')
    assert read_rows(path) == [{"update": 1}]
