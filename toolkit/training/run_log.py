"""The log of a run: its files, progress, trackers, callbacks and phase times.

``log.jsonl`` has no wall-clock times, so that a run that was killed and resumed ends with exactly
the same file; times are in ``timings.jsonl``. ``samples.jsonl`` has the completions that are shown
while it trains.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from toolkit.data.files import json_text, write_text
from toolkit.data.records import Row, to_row
from toolkit.data.text import printable
from toolkit.training.log_rows import LOG, SAMPLES, TIMINGS, ShownSample, read_rows
from toolkit.training.trackers import send_samples


class AtTheStart(TrainerCallback):
    """Calls a function when a run begins, after its checkpoint was accepted."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        """Call the function."""
        self.act()


class RunLog:
    """Writes the log of a run.

    Args:
        args: the run's arguments.
        updates: number of updates in the run.
        is_main: whether this process writes.
        callbacks: the caller's, called after those of ``report_to``.
        model, processing_class, optimizer: passed to callbacks.
    """

    def __init__(
        self,
        args: TrainingArguments,
        updates: int,
        is_main: bool,
        callbacks: list[TrainerCallback],
        **handed: Any,
    ) -> None:
        self.args, self.updates, self.is_main = args, updates, is_main
        self.folder = Path(args.output_dir or "")
        self.phases: dict[str, float] = {}
        self.progress: Any = None
        self.state = TrainerState(
            max_steps=updates, is_world_process_zero=is_main, is_local_process_zero=is_main
        )
        self.control = TrainerControl()
        reporting = get_reporting_integration_callbacks(args.report_to) if is_main else []
        self.handler = CallbackHandler(
            [DefaultFlowCallback(), *(callback() for callback in reporting), *callbacks],
            handed["model"],
            handed["processing_class"],
            handed["optimizer"],
            None,
        )

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to this phase of the current update."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.phases[phase] = self.phases.get(phase, 0.0) + time.perf_counter() - started

    def start(self, done: int) -> None:
        """Open the files and keep the rows of the first ``done`` updates."""
        self.started, self.done, self.last = time.perf_counter(), done, time.perf_counter()
        self.state.global_step = done
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (LOG, TIMINGS, SAMPLES):
                _keep_rows(self.folder / name, done)
        self.progress = tqdm(
            initial=done,
            total=self.updates,
            desc="PPO",
            unit="update",
            disable=not self.is_main or bool(self.args.disable_tqdm),
        )
        self.handler.on_train_begin(self.args, self.state, self.control)

    def write(self, row: Row) -> None:
        """Write an update's row to log, trackers and progress bar, and its times."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        timing = {"update": row["update"], "seconds": round(seconds, 4), "peak_mb": peak_mb()}
        timing |= {f"seconds/{name}": round(value, 4) for name, value in self.phases.items()}
        self.phases = {}
        self.state.global_step = row["update"]
        self.state.epoch = row["update"] / self.updates
        if self.is_main:
            _append(self.folder / LOG, row)
            _append(self.folder / TIMINGS, timing)

        per_update = row["episode"] / row["update"]
        rate = per_update * (row["update"] - self.done) / (now - self.started)
        self.handler.on_log(
            self.args, self.state, self.control, logs=row | {"eps": rate, "seconds": seconds}
        )
        self.handler.on_step_end(self.args, self.state, self.control)
        self.progress.update(1)
        self.progress.set_postfix(
            score=_shown(row["objective/scores"], 2),
            kl=_shown(row["objective/kl"], 2),
            kl_coef=_shown(row["objective/kl_coef"], 3),
            eps_per_s=f"{rate:.0f}",
        )

    def show(self, samples: Sequence[ShownSample]) -> None:
        """Print an update's samples above the bar, and write them to the file and the trackers."""
        if not self.is_main:
            return
        for sample in samples:
            _append(self.folder / SAMPLES, to_row(sample))
            text = printable(" ".join(f"{sample.prompt} >>>{sample.completion}".split()))
            score = "no score" if sample.score is None else f"{sample.score:+.2f}"
            self.say(f"  [{sample.update}] {score}  {text}")
        send_samples(self.handler.callbacks, self.state.global_step, samples)

    def say(self, line: str) -> None:
        """Print a line above the progress bar, from the main process."""
        if not self.is_main:
            return
        if self.progress is None:
            print(line, flush=True)
        else:
            self.progress.write(line)
            sys.stdout.flush()

    def close(self) -> None:
        """End the log."""
        self.progress.close()
        self.handler.on_train_end(self.args, self.state, self.control)


def _shown(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _keep_rows(path: Path, done: int) -> None:
    kept = [row for row in read_rows(path) if row["update"] <= done]
    if path.name == SAMPLES and not path.exists():  # a run that shows none leaves no file
        return
    write_text(path, "".join(json_text(row) + "\n" for row in kept))


def _append(path: Path, row: Row) -> None:
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json_text(row) + "\n")


def peak_mb() -> int:
    """Return this process's peak memory in MiB: the GPU's, or else its resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
