"""Reading a PPO run's log.jsonl and timings.jsonl (``run_log`` writes them)."""

from dataclasses import dataclass
from pathlib import Path

from toolkit.data.records import Row, from_row
from toolkit.training.run_log import read_rows

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


def read_log(path: Path) -> list[LoggedUpdate]:
    """Read log.jsonl; an empty list if there is no such file.

    Raises:
        InputError: a row is not a log row (file:line).
    """
    updates = []
    for number, row in enumerate(read_rows(path), start=1):
        fields = {field: row[name] for field, name in NAMES.items() if name in row}
        updates.append(from_row(LoggedUpdate, fields | {"row": row}, f"{path}:{number}"))
    return updates


def read_timings(path: Path) -> list[Timing]:
    """Read timings.jsonl; an empty list if there is no such file.

    Raises:
        InputError: a row is not a timing (file:line).
    """
    rows = enumerate(read_rows(path), start=1)
    return [from_row(Timing, row, f"{path}:{number}") for number, row in rows]
