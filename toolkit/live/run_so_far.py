"""Read what a PPO run has written so far, again and again while it writes."""

import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from toolkit.data.files import read_object
from toolkit.data.locks import is_being_written
from toolkit.data.records import Row, from_row
from toolkit.errors import InputError
from toolkit.maths.schedules import num_updates
from toolkit.record import RUN_FILE
from toolkit.training.log_rows import (
    LOG,
    SAMPLES,
    TIMINGS,
    LoggedUpdate,
    ShownSample,
    Timing,
    logged_update,
)

LARGEST = 1e300
RECENT = 20  # updates over which speed and phases are averaged
T = TypeVar("T")


class Growing(Generic[T]):
    """The rows of a JSON Lines file to which a run appends.

    Each look reads only what is new. A last line that is still being written waits for the next
    look. If the file was replaced, as a resumed run does, it is read again from its start.

    Args:
        path: the file; it may be missing.
        make: makes an item of a row, or raises InputError.
    """

    def __init__(self, path: Path, make: Callable[[Row, str], T]) -> None:
        self.path, self.make = path, make
        self._forget()

    def _forget(self) -> None:
        self.items: list[T] = []
        self.unreadable = 0
        self.offset, self.rest = 0, b""
        self.file: tuple[int, int] | None = None
        self.changed: float | None = None  # when the file was last written, in seconds

    def look(self) -> list[T]:
        """Read the new rows; return all of them."""
        try:
            stream = open(self.path, "rb")  # noqa: SIM115 (closed below)
        except OSError:
            self._forget()
            return self.items

        with stream:
            about = os.fstat(stream.fileno())
            if (about.st_dev, about.st_ino) != self.file or about.st_size < self.offset:
                self._forget()
            self.file, self.changed = (about.st_dev, about.st_ino), about.st_mtime
            stream.seek(self.offset)
            new = stream.read()

        self.offset += len(new)
        *lines, self.rest = (self.rest + new).split(b"\n")
        for line in lines:
            try:
                row = json.loads(line)
                self.items.append(self.make(_finite(row), str(self.path)))
            except (ValueError, RecursionError, InputError):
                self.unreadable += 1
        return self.items


def _finite(value: object) -> Row:
    """Return a row in which what is not a finite number, or is a huge one, is None.

    Differences and sums of numbers up to ``LARGEST`` are finite, so that they can be drawn.
    """
    if not isinstance(value, dict):
        raise InputError("not an object")
    return {
        key: None if isinstance(x, int | float) and not abs(x) <= LARGEST else x
        for key, x in value.items()
    }


@dataclass(frozen=True)
class Timed:
    """A row of timings.jsonl: seconds of the whole update, and of each phase."""

    timing: Timing
    phases: dict[str, float]


def _timed(row: Row, place: str) -> Timed:
    phases = {
        name.removeprefix("seconds/"): float(value)
        for name, value in row.items()
        if name.startswith("seconds/") and isinstance(value, int | float)
    }
    return Timed(from_row(Timing, row, place), phases)


def _sample(row: Row, place: str) -> ShownSample:
    return from_row(ShownSample, row, place)


@dataclass(frozen=True)
class RunSoFar:
    """A run at one moment.

    Attributes:
        folder: the run's folder.
        state: "running", "done", "stopped", or "unknown" if another machine may be at work.
        updates: those of the log, in order.
        planned: number of updates in the whole run; None if run.json does not say.
        quiet: seconds since the log was last written; None without a log.
        seconds: mean seconds of a recent update; None if not known.
        left: estimate of the seconds that are left; None unless it is running.
        phases: mean seconds of a recent update by phase, "other" last.
        peak_mb: highest memory so far in MiB.
        samples: what the run showed, the newest first.
        record: run.json; empty if there is none.
        unreadable: rows that could not be read.
    """

    folder: Path
    state: str
    updates: list[LoggedUpdate]
    planned: int | None
    quiet: float | None
    seconds: float | None
    left: float | None
    phases: dict[str, float]
    peak_mb: float | None
    samples: list[ShownSample]
    record: Row = field(default_factory=dict)
    unreadable: int = 0

    @property
    def last(self) -> LoggedUpdate | None:
        """The newest update."""
        return self.updates[-1] if self.updates else None


class Watched:
    """A run's folder, of which one reads what is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = Growing(folder / LOG, logged_update)
        self.timings = Growing(folder / TIMINGS, _timed)
        self.samples = Growing(folder / SAMPLES, _sample)
        self.lock = threading.Lock()  # several visitors may look at once

    def look(self) -> RunSoFar:
        """Read what is new; return the run as it stands."""
        with self.lock:
            return self._look()

    def _look(self) -> RunSoFar:
        updates = list(self.log.look())
        recent = self.timings.look()[-RECENT:]
        samples = self.samples.look()[::-1]
        record = self._record()

        planned = _planned(record, updates[-1]) if updates else None
        state = self._state(updates, planned)
        seconds = statistics.fmean(t.timing.seconds for t in recent) if recent else None
        left = None
        if state == "running" and planned is not None and seconds is not None:
            left = seconds * (planned - updates[-1].update)

        changed = self.log.changed
        return RunSoFar(
            folder=self.folder,
            state=state,
            updates=updates,
            planned=planned,
            quiet=None if changed is None else max(0.0, time.time() - changed),
            seconds=seconds,
            left=left,
            phases=_phases(recent),
            peak_mb=max((t.timing.peak_mb for t in self.timings.items), default=None),
            samples=samples,
            record=record,
            unreadable=self.log.unreadable + self.timings.unreadable + self.samples.unreadable,
        )

    def _record(self) -> Row:
        try:
            return read_object(self.folder / RUN_FILE, "run")
        except (InputError, OSError):  # not written yet, or not ours
            return {}

    def _state(self, updates: list[LoggedUpdate], planned: int | None) -> str:
        writing = is_being_written(self.folder)
        if planned is not None and updates[-1].update >= planned:
            return "done"  # the run still saves what it made, or has ended
        if writing is None:
            return "unknown"
        return "running" if writing else "stopped"


def _planned(record: Row, last: LoggedUpdate) -> int | None:
    """Return the number of updates of the whole run, from its episodes and those of an update."""
    settings = record.get("settings")
    total = settings.get("total_episodes") if isinstance(settings, dict) else None
    if (
        not isinstance(total, int)
        or not 1 <= total <= LARGEST
        or last.update < 1
        or last.episode < last.update
    ):
        return None
    return num_updates(total, last.episode // last.update)


def _phases(recent: list[Timed]) -> dict[str, float]:
    """Return the mean seconds of each phase; what no phase accounts for is "other"."""
    if not recent:
        return {}
    names = dict.fromkeys(name for t in recent for name in t.phases)
    means = {n: statistics.fmean(t.phases.get(n, 0.0) for t in recent) for n in names}
    other = statistics.fmean(t.timing.seconds for t in recent) - sum(means.values())
    shown = {name: mean for name, mean in means.items() if mean > 0}
    return shown | ({"other": other} if other > 0 else {})
