"""Run several recipes one after another, and skip those that are done."""

import gc
import hashlib
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
from toolkit.next_step import settings_beside
from toolkit.record import RUN_FILE, RunRecord

RECORD = "stages.json"
STALE = "stale"  # the state of a stage that an earlier one makes anew


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
        after: names of the stages whose results it reads, so that it runs again if one of them
            does; None for all earlier ones.
        waits: says what must happen before it can run (people must label, say), or None.
        free: names of settings that may change after it was done, since what it made stays true.
        given: the files and folders of the user's own that it reads, by the names of its flags. A
            change in one is told like another setting.
        check: looks at the recipe's result, and raises InputError if nothing must be built on it.
            The stage then counts as begun, and starts again.
    """

    name: str
    title: str
    main: Callable[..., object]
    words: list[str]
    made: list[Path] = field(default_factory=list)
    resumes: bool = False
    continues: bool = False
    after: tuple[str, ...] | None = None
    waits: Callable[[], str | None] | None = None
    free: tuple[str, ...] = ()
    given: dict[str, Path] = field(default_factory=dict)
    check: Callable[[object], None] | None = None

    def settings(self) -> Row:
        """Return the stage's settings as JSON."""
        told: Row = json.loads(json.dumps(changed(*bind(self.main, self.words))))
        return told

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each given file that is there, and of a folder's files, by their flags."""
        return {name: _digest(path) for name, path in self.given.items() if path.exists()}


OTHER_SETTINGS = "--overwrite runs all stages again; another output_dir keeps them"


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    overwrite: bool,
    from_stage: str | None = None,
    cure: str = OTHER_SETTINGS,
) -> dict[str, object]:
    """Run the stages in order; return results by name, None for a stage that was done before.

    FOLDER/stages.json records which stages were begun and done, with their settings and the digests
    of the files that they were given. A stage is skipped if it was done with the same settings and
    files, its output exists, and the stages that it comes after were skipped too. What somebody
    made by hand with the same settings counts as done. A stage that was only begun starts again (a
    PPO run is resumed). All words are checked before the first stage starts. The row ends early,
    without an entry for the rest, at a stage that waits.

    Args:
        stages: the stages in order.
        folder: folder of stages.json.
        overwrite: run all stages again.
        from_stage: run this stage again and those that come after it, with other settings or not.
        cure: what to do about a stage with other settings; {stage} stands for its name.

    Raises:
        InputError: a stage's words are wrong; a stage was made with other settings, or from files
            that have changed; another run is at work in the folder; or the folder cannot be
            written.
    """
    import torch
    from transformers import set_seed

    hold_folder(folder, "output_dir")
    told = {stage.name: stage.settings() for stage in stages}
    path = folder / RECORD
    record = read_object(path, "stages") if path.is_file() and not overwrite else {}
    again = {stage.name for stage in stages} if overwrite else _following(stages, from_stage)
    _check_unchanged(path, record, stages, told, again, cure)
    _check_files(path, record, stages, again, cure)

    print(f"{len(stages)} stages follow, one after another: {', '.join(told)}.", flush=True)
    results: dict[str, object] = {}
    started = time.monotonic()
    ran: set[str] = set()  # stages whose successors must run too
    for number, stage in enumerate(stages, start=1):
        state = record.get(stage.name, {}).get("state")
        there = all(path.exists() for path in stage.made)
        fresh = bool(ran if stage.after is None else ran & {*stage.after}) or stage.name in again
        if state is None and not fresh and _made_by_hand(stage, told[stage.name]):
            state = "done" if there else "begun" if stage.resumes else None
            record[stage.name] = _noted(stage, state, told)
            write_json(path, record)
        spent = f"{time.monotonic() - started:.0f} s so far"
        if state == "done" and there and not fresh:
            print(f"\n[{number}/{len(stages)}] {stage.title}: already done", flush=True)
            results[stage.name] = None
            continue
        if state is None and there and not fresh and cure != OTHER_SETTINGS:
            raise InputError(
                f"{stage.made[0]} is there, but not made here with the settings of stage "
                f"{stage.name}. {cure.format(stage=stage.name)}"
            )
        print(f"\n[{number}/{len(stages)}] {stage.title} ({spent})", flush=True)
        if stage.waits is not None and (needed := stage.waits()) is not None:
            print(needed, flush=True)
            return results

        # A PPO run that was begun is resumed, unless an earlier stage ran again.
        more = ["--overwrite"] if state is not None or stage.name in again else []
        begun = state == "begun" and not fresh
        ran.add(stage.name)
        if stage.continues and begun:
            more = []
        if stage.resumes and begun and any(p.is_dir() for p in _output(stage).glob("checkpoint-*")):
            more = ["--resume", "auto"]

        for name in _following(stages, stage.name) & record.keys():
            record[name]["state"] = STALE  # should this run end before they have run
        record[stage.name] = _noted(stage, "begun", told)
        write_json(path, record)
        set_seed(0)  # so that a stage does not depend on the stages before it
        with goes_on():
            results[stage.name] = call(stage.main, [*stage.words, *more])
        if stage.check is not None:
            stage.check(results[stage.name])
        record[stage.name]["state"] = "done"
        write_json(path, record)
        gc.collect()  # free the trainer's cycles before the next model is loaded
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def _following(stages: Sequence[Stage], first: str | None) -> set[str]:
    """The stage of this name, and those that come after it by what they read; none without one.

    Raises:
        InputError: there is no stage of this name.
    """
    if first is None:
        return set()
    names = [stage.name for stage in stages]
    if first not in names:
        raise InputError(f"from_stage: {first!r} is not one of {', '.join(names)}", "from_stage")

    found = {first}
    for stage in stages[names.index(first) + 1 :]:
        if stage.after is None or found & {*stage.after}:
            found.add(stage.name)
    return found


def _made_by_hand(stage: Stage, settings: Row) -> bool:
    """Whether somebody made a stage's results with these settings: by the recipe's own record."""
    for part in bind(stage.main, stage.words):
        told: Row | None = None
        if hasattr(part, "output_dir") and (Path(str(part.output_dir)) / RUN_FILE).is_file():
            told = RunRecord.read(Path(str(part.output_dir)) / RUN_FILE).arguments
        elif isinstance(getattr(part, "output", None), str):
            told = settings_beside(part.output)
        if told is not None:
            return _lasting(told) == _lasting(settings)
    return False


def _lasting(settings: Row) -> Row:
    """Settings without those that say how a run was started, as JSON."""
    kept = {name: value for name, value in settings.items() if name not in ("overwrite", "resume")}
    lasting: Row = json.loads(json.dumps(kept))
    return lasting


def _check_unchanged(
    path: Path,
    record: Row,
    stages: Sequence[Stage],
    told: dict[str, Row],
    again: set[str],
    cure: str,
) -> None:
    """Raise InputError if a stage of the record, unless it runs again, had other settings.

    A stage that was begun and starts again may have others: nothing of it is kept.
    """
    for stage in stages:
        before, settings = record.get(stage.name, {}), told[stage.name]
        starts_again = before.get("state") == "begun" and not (stage.resumes or stage.continues)
        if starts_again or stage.name in again or before.get("state") == STALE:
            continue
        then = before.get("settings", settings)
        fixed = sorted({*then, *settings} - {*stage.free})
        odd = [k for k in fixed if then.get(k) != settings.get(k)]
        if odd:
            k = odd[0]
            was, now = (repr(each[k]) if k in each else "its default" for each in (then, settings))
            raise InputError(
                f"{path}: stage {stage.name} was made with another {k} ({was}, now {now}). "
                f"{cure.format(stage=stage.name)}"
            )


def _check_files(
    path: Path, record: Row, stages: Sequence[Stage], again: set[str], cure: str
) -> None:
    """Raise InputError if a stage, unless it runs again, has read a given file that is now another.

    Stages that older versions noted, without digests, count as they are. So does a stage that was
    begun and starts again: it reads the file as it is now.
    """
    for stage in stages:
        before = record.get(stage.name, {})
        goes_on = before.get("state") == "begun" and (stage.resumes or stage.continues)
        if stage.name in again or not (before.get("state") == "done" or goes_on):
            continue
        then = before.get("files", {})
        for name, digest in stage.digests().items() if then else ():
            if then.get(name, digest) != digest:
                raise InputError(
                    f"{stage.given[name]} has changed since stage {stage.name} read it as {name} "
                    f"({path} has its digest). {cure.format(stage=stage.name)}"
                )


def _noted(stage: Stage, state: str | None, told: dict[str, Row]) -> Row:
    """What the record says of a stage."""
    return {"state": state, "settings": told[stage.name], "files": stage.digests()}


def _digest(path: Path) -> str:
    """The SHA-256 of a file, or of the names and the contents of a folder's files."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    found = sorted(file for file in path.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(path)} {_digest(file)}\n" for file in found]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _output(stage: Stage) -> Path:
    """Return the folder that a stage writes to."""
    for part in bind(stage.main, stage.words):
        if hasattr(part, "output_dir"):
            return Path(part.output_dir)
    raise ValueError(f"{stage.name} has no output_dir")
