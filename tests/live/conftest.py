"""A run's folder, written as PPO writes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def log_row(update: int, **changes: Any) -> dict[str, Any]:
    return {
        "update": update,
        "episode": 8 * update,
        "objective/scores": 0.1 * update,
        "objective/kl": 0.5 * update,
        "objective/kl_target": 5.0,
        "objective/kl_coef": 0.07,
        "objective/entropy": 20.0,
        "guard/skipped": 0,
    } | changes


def timing_row(update: int, **changes: Any) -> dict[str, Any]:
    phases = {"seconds/sample": 0.5, "seconds/optimize": 1.0}
    return {"update": update, "seconds": 2.0, "peak_mb": 100 + update} | phases | changes


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a run of 10 updates, of which so many are done."""

    def make(done: int = 4, samples: list[dict[str, Any]] | None = None) -> Path:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        updates = range(1, done + 1)
        (folder / "log.jsonl").write_text(lines([log_row(u) for u in updates]))
        (folder / "timings.jsonl").write_text(lines([timing_row(u) for u in updates]))
        if samples is not None:
            (folder / "samples.jsonl").write_text(lines(samples))
        settings = {"total_episodes": 80, "model_name_or_path": "base", "prompts": "p.jsonl"}
        record = {"settings": settings | {"algorithm": "ppo"}, "data": {"prompts": 3}}
        (folder / "run.json").write_text(json.dumps(record))
        return folder

    return make
