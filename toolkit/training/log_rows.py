"""Reading a PPO run's log.jsonl, timings.jsonl and samples.jsonl (``run_log`` writes them).

This module loads neither torch nor transformers, so that a viewer starts at once.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from toolkit.data.records import Row, from_row

LOG, TIMINGS, SAMPLES = "log.jsonl", "timings.jsonl", "samples.jsonl"
NAMES = {
    "update": "update",
    "episode": "episode",
    "scores": "objective/scores",
    "kl": "objective/kl",
    "kl_target": "objective/kl_target",
    "kl_coef": "objective/kl_coef",
    "entropy": "objective/entropy",
    "held_out_scores": "eval/scores",
}


@dataclass(frozen=True)
class LoggedUpdate:
    """One update. What was not measured, or was not a number, is None.

    Attributes:
        update, episode: their numbers so far.
        scores: mean, before the KL penalty.
        kl, kl_target: nats a completion.
        kl_coef: weight of the KL, in score per nat.
        entropy: nats a completion.
        held_out_scores: mean on held-out prompts, if they were evaluated after this update.
        row: all metrics, by TRL's names.
    """

    update: int
    episode: int
    scores: float | None
    kl: float | None
    kl_target: float | None
    kl_coef: float | None
    entropy: float | None
    held_out_scores: float | None
    row: Row


@dataclass(frozen=True)
class Timing:
    """The seconds that one update took, and the process's peak memory in MiB."""

    update: int
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class ShownSample:
    """A completion that a run shows while it trains.

    Attributes:
        update: the update that sampled it.
        score: before the KL penalty; None if it could not be scored.
        prompt, completion: their texts, as the scorer saw them.
    """

    update: int
    score: float | None
    prompt: str
    completion: str


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a log; a last line that was cut off is skipped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def logged_update(row: Row, place: str) -> LoggedUpdate:
    """Make an update from a row of log.jsonl.

    Raises:
        InputError: it is not a log row; the message begins with ``place``.
    """
    fields = {field: row[name] for field, name in NAMES.items() if name in row}
    return from_row(LoggedUpdate, fields | {"row": row}, place)


def read_log(path: Path) -> list[LoggedUpdate]:
    """Read log.jsonl; an empty list if there is no such file.

    Raises:
        InputError: a row is not a log row (file:line).
    """
    rows = enumerate(read_rows(path), start=1)
    return [logged_update(row, f"{path}:{number}") for number, row in rows]


def read_timings(path: Path) -> list[Timing]:
    """Read timings.jsonl; an empty list if there is no such file.

    Raises:
        InputError: a row is not a timing (file:line).
    """
    rows = enumerate(read_rows(path), start=1)
    return [from_row(Timing, row, f"{path}:{number}") for number, row in rows]
