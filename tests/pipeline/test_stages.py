"""Recipes in a row: what is done is not done again, what was begun is, other settings are told."""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from toolkit.errors import InputError
from toolkit.pipeline.stages import Stage, run_stages

pytestmark = pytest.mark.slow  # runs recipes

ran: list[str] = []


@dataclass
class Told:
    """A recipe's arguments."""

    output_dir: str = "out"
    number: int = 1
    fail: bool = False
    overwrite: bool = False
    resume: str | None = None


def recipe(args: Told) -> int:
    """Writes a file; or fails halfway."""
    folder = Path(args.output_dir)
    ran.append(folder.name + (" again" if args.overwrite else "") + (args.resume or ""))
    (folder / "checkpoint-000001").mkdir(parents=True, exist_ok=True)
    if (folder.parent / "fail").exists() and folder.name == "b":
        raise KeyboardInterrupt
    (folder / "made").write_text(str(args.number))
    return args.number


def stages(tmp_path: Path, resumes: bool = False, number: int = 1) -> list[Stage]:
    return [
        Stage(
            name,
            name,
            recipe,
            ["--output_dir", str(tmp_path / name), "--number", str(number)],
            [tmp_path / name / "made"],
            resumes,
        )
        for name in "abc"
    ]


@pytest.mark.parametrize("resumes", [False, True])
def test_a_row_that_was_stopped_goes_on_where_it_was(tmp_path: Path, resumes: bool) -> None:
    ran.clear()
    (tmp_path / "fail").touch()
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages(tmp_path, resumes), tmp_path, False)
    (tmp_path / "fail").unlink()
    results = run_stages(stages(tmp_path, resumes), tmp_path, False)
    assert results == {"a": None, "b": 1, "c": 1}
    assert ran == ["a", "b", "bauto" if resumes else "b again", "c"]
    assert run_stages(stages(tmp_path), tmp_path, False) == {"a": None, "b": None, "c": None}


def test_a_stage_that_goes_on_by_its_own_words_is_not_told_to_overwrite(tmp_path: Path) -> None:
    row = stages(tmp_path)
    row[1].continues = True
    ran.clear()
    (tmp_path / "fail").touch()
    with pytest.raises(KeyboardInterrupt):
        run_stages(row, tmp_path, False)
    (tmp_path / "fail").unlink()
    run_stages(row, tmp_path, False)
    assert ran == ["a", "b", "b", "c"]
    run_stages(row, tmp_path, True)
    assert ran[4:] == ["a again", "b again", "c again"]


def test_what_comes_after_a_stage_that_was_done_anew_is_done_anew(tmp_path: Path) -> None:
    run_stages(stages(tmp_path), tmp_path, False)
    (tmp_path / "b" / "made").unlink()
    ran.clear()
    run_stages(stages(tmp_path), tmp_path, False)
    assert ran == ["b again", "c again"]


def test_other_settings_are_refused_unless_all_is_done_anew(tmp_path: Path) -> None:
    run_stages(stages(tmp_path), tmp_path, False)
    with pytest.raises(InputError, match=r"stage a was made with another number .None, now 2."):
        run_stages(stages(tmp_path, number=2), tmp_path, False)
    assert run_stages(stages(tmp_path, number=2), tmp_path, True) == {"a": 2, "b": 2, "c": 2}
    assert json.loads((tmp_path / "stages.json").read_text())["c"]["state"] == "done"


def test_a_mistake_in_the_last_stages_words_is_found_before_the_first_runs(tmp_path: Path) -> None:
    ran.clear()
    wrong = stages(tmp_path)
    wrong[2].words.append("--nmber")
    with pytest.raises(InputError, match="unknown argument --nmber .did you mean --number"):
        run_stages(wrong, tmp_path, False)
    assert ran == []


def test_a_folder_in_which_others_are_at_work_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "w") as held:  # as another process holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        ran.clear()
        with pytest.raises(InputError, match="output_dir: .* is being written by another run"):
            run_stages(stages(tmp_path), tmp_path, overwrite=False)
        assert ran == [] and not (tmp_path / "stages.json").exists()
