"""Run several recipes one after another, and skip those that are done."""

import gc
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.cli import bind, call, changed
from toolkit.data.files import read_object, write_json
from toolkit.data.outputs import hold_folder
from toolkit.data.records import Row
from toolkit.endings import goes_on
from toolkit.errors import InputError

RECORD = "stages.json"


@dataclass
class Stage:
    """One recipe with its command-line words.

    Attributes:
        name: unique name of the stage.
        title: title that is printed above it.
        main: the recipe's ``main``.
        words: words of its command line.
        made: files or folders that exist once the stage is done.
        resumes: whether it is a PPO run, which continues from its newest checkpoint.
        continues: whether the same words continue it, as with WARP.
    """

    name: str
    title: str
    main: Callable[..., object]
    words: list[str]
    made: list[Path] = field(default_factory=list)
    resumes: bool = False
    continues: bool = False

    def settings(self) -> Row:
        """Return the stage's settings as JSON."""
        told: Row = json.loads(json.dumps(changed(*bind(self.main, self.words))))
        return told


def run_stages(stages: Sequence[Stage], folder: Path, overwrite: bool) -> dict[str, object]:
    """Run the stages in order; return results by name, None for a stage that was done before.

    FOLDER/stages.json records which stages were begun and done, with their settings. A stage is
    skipped if it was done with the same settings, its output exists, and all earlier stages were
    skipped too. A stage that was only begun starts again (a PPO run is resumed). All words are
    checked before the first stage starts.

    Args:
        stages: the stages in order.
        folder: folder of stages.json.
        overwrite: run all stages again.

    Raises:
        InputError: a stage's words are wrong; a stage was made with other settings; another run is
            at work in the folder; or the folder cannot be written.
    """
    import torch
    from transformers import set_seed

    hold_folder(folder, "output_dir")
    told = {stage.name: stage.settings() for stage in stages}
    path = folder / RECORD
    record = read_object(path, "stages") if path.is_file() and not overwrite else {}
    _check_unchanged(path, record, told)

    print(f"{len(stages)} stages follow, one after another: {', '.join(told)}.", flush=True)
    results: dict[str, object] = {}
    started = time.monotonic()
    fresh = False  # whether an earlier stage ran, so that later ones must run too
    for number, stage in enumerate(stages, start=1):
        state = record.get(stage.name, {}).get("state")
        there = all(path.exists() for path in stage.made)
        spent = f"{time.monotonic() - started:.0f} s so far"
        if state == "done" and there and not fresh:
            print(f"\n[{number}/{len(stages)}] {stage.title}: already done", flush=True)
            results[stage.name] = None
            continue
        print(f"\n[{number}/{len(stages)}] {stage.title} ({spent})", flush=True)

        # A PPO run that was begun is resumed, unless an earlier stage ran again.
        more = ["--overwrite"] if state is not None or overwrite else []
        begun = state == "begun" and not fresh
        fresh = True
        if stage.continues and begun and not overwrite:
            more = []
        if stage.resumes and begun and any(p.is_dir() for p in _output(stage).glob("checkpoint-*")):
            more = ["--resume", "auto"]

        record[stage.name] = {"state": "begun", "settings": told[stage.name]}
        write_json(path, record)
        set_seed(0)  # so that a stage does not depend on the stages before it
        with goes_on():
            results[stage.name] = call(stage.main, [*stage.words, *more])
        record[stage.name]["state"] = "done"
        write_json(path, record)
        gc.collect()  # free the trainer's cycles before the next model is loaded
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def _check_unchanged(path: Path, record: Row, told: dict[str, Row]) -> None:
    """Raise InputError if a stage of the record was made with other settings."""
    for name, settings in told.items():
        then = record.get(name, {}).get("settings", settings)
        odd = [k for k in sorted({*then, *settings}) if then.get(k) != settings.get(k)]
        if odd:
            k = odd[0]
            raise InputError(
                f"{path}: stage {name} was made with another {k} ({then.get(k)!r}, now "
                f"{settings.get(k)!r}). --overwrite runs all stages again; another output_dir "
                "keeps them"
            )


def _output(stage: Stage) -> Path:
    """Return the folder that a stage writes to."""
    for part in bind(stage.main, stage.words):
        if hasattr(part, "output_dir"):
            return Path(part.output_dir)
    raise ValueError(f"{stage.name} has no output_dir")
