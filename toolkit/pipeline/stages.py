"""Several recipes in a row, each as a person would run it; what is done is not done again."""

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
    """One recipe with its words.

    Attributes:
        name: of this stage; no two have one.
        title: what is printed above it.
        main: the recipe's.
        words: of its command line.
        made: files or folders that are there once it is done.
        resumes: it is a PPO run: one that was begun goes on from its newest checkpoint.
    """

    name: str
    title: str
    main: Callable[..., object]
    words: list[str]
    made: list[Path] = field(default_factory=list)
    resumes: bool = False

    def settings(self) -> Row:
        """What it was told, as JSON holds it."""
        told: Row = json.loads(json.dumps(changed(*bind(self.main, self.words))))
        return told


def run_stages(stages: Sequence[Stage], folder: Path, overwrite: bool) -> dict[str, object]:
    """Run them in order; results by name, None for those that were done before.

    OUTPUT/stages.json tells which were begun and done, and with which settings. A stage is passed
    over if it was done with these settings, what it made is there, and so were all stages before
    it; one that was only begun is done anew (a PPO run is resumed). All words are read before the
    first stage starts.

    Args:
        stages: in their order.
        folder: of stages.json.
        overwrite: do all of them anew.

    Raises:
        InputError: a mistake in a stage's words; a stage was made with other settings; another run
            is at work in the folder, or nothing can be written there.
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
    fresh = False  # whether a stage was done anew, on which those after it rest
    for number, stage in enumerate(stages, start=1):
        state = record.get(stage.name, {}).get("state")
        there = all(path.exists() for path in stage.made)
        spent = f"{time.monotonic() - started:.0f} s so far"
        if state == "done" and there and not fresh:
            print(f"\n[{number}/{len(stages)}] {stage.title}: done before", flush=True)
            results[stage.name] = None
            continue
        print(f"\n[{number}/{len(stages)}] {stage.title} ({spent})", flush=True)

        # A PPO run that was begun goes on, unless what it starts from is new.
        more = ["--overwrite"] if state is not None or overwrite else []
        begun = stage.resumes and state == "begun" and not fresh
        fresh = True
        if begun and any(p.is_dir() for p in _output(stage).glob("checkpoint-*")):
            more = ["--resume", "auto"]

        record[stage.name] = {"state": "begun", "settings": told[stage.name]}
        write_json(path, record)
        set_seed(0)  # whichever stages this process has run before
        with goes_on():
            results[stage.name] = call(stage.main, [*stage.words, *more])
        record[stage.name]["state"] = "done"
        write_json(path, record)
        gc.collect()  # a trainer's circles, before the next model is loaded
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
                f"{settings.get(k)!r}): --overwrite does all stages anew, another output_dir keeps "
                "them"
            )


def _output(stage: Stage) -> Path:
    """The folder that a stage writes to."""
    for part in bind(stage.main, stage.words):
        if hasattr(part, "output_dir"):
            return Path(part.output_dir)
    raise ValueError(f"{stage.name} has no output_dir")
