"""Recipes in a row: what is done is not done again, what was begun is, other settings are told."""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.cli import bind
from toolkit.errors import InputError
from toolkit.pipeline.stages import Stage, run_stages

pytestmark = pytest.mark.slow  # runs recipes

ran: list[str] = []


@pytest.fixture(autouse=True)
def no_model_to_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """These recipes leave nothing behind, and collecting it would take most of their time."""
    monkeypatch.setattr("toolkit.pipeline.stages.gc", SimpleNamespace(collect=int))


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
    with pytest.raises(
        InputError, match=r"stage a was made with another number .its default, now 2."
    ):
        run_stages(stages(tmp_path, number=2), tmp_path, False)
    assert run_stages(stages(tmp_path, number=2), tmp_path, True) == {"a": 2, "b": 2, "c": 2}
    assert json.loads((tmp_path / "stages.json").read_text())["c"]["state"] == "done"


def test_a_setting_that_is_free_may_change_once_the_stage_is_done(tmp_path: Path) -> None:
    run_stages(stages(tmp_path), tmp_path, False)
    others = stages(tmp_path, number=2)
    for stage in others[:2]:
        stage.free = ("number",)
    with pytest.raises(InputError, match="stage c was made with another number"):
        run_stages(others, tmp_path, False)
    others[2].free = ("number",)
    assert run_stages(others, tmp_path, False) == {"a": None, "b": None, "c": None}
    assert (tmp_path / "a" / "made").read_text() == "1"


def test_a_stage_that_was_only_begun_starts_again_with_other_settings(tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages(tmp_path), tmp_path, False)
    (tmp_path / "fail").unlink()
    record = json.loads((tmp_path / "stages.json").read_text())
    begun = next(name for name, row in record.items() if row["state"] == "begun")
    row = stages(tmp_path)
    other = next(stage for stage in row if stage.name == begun)
    other.words += ["--number", "2"]
    assert run_stages(row, tmp_path, False)[begun] == 2


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


def test_only_what_reads_a_new_result_runs_again(tmp_path: Path) -> None:
    def row(number: int = 1) -> list[Stage]:
        made = stages(tmp_path, number=number)
        made[1].words[-1] = "1"
        made[0].after, made[1].after, made[2].after = (), (), ("a",)
        return made

    run_stages(row(), tmp_path, False)
    ran.clear()
    results = run_stages(row(2), tmp_path, False, from_stage="a", cure="")
    assert results == {"a": 2, "b": None, "c": 2} and ran == ["a again", "c again"]
    with pytest.raises(InputError, match="from_stage: 'd' is not one of a, b, c"):
        run_stages(row(2), tmp_path, False, from_stage="d")


def test_what_reads_a_new_result_runs_again_though_another_stage_failed_between(
    tmp_path: Path,
) -> None:
    def row() -> list[Stage]:
        made = stages(tmp_path)
        made[0].after, made[1].after, made[2].after = (), ("a",), ("a",)
        return made

    run_stages(row(), tmp_path, False)
    (tmp_path / "a" / "made").unlink()
    (tmp_path / "fail").touch()
    with pytest.raises(KeyboardInterrupt):  # a is made anew, b fails, c was not reached
        run_stages(row(), tmp_path, False)
    (tmp_path / "fail").unlink()
    ran.clear()
    assert run_stages(row(), tmp_path, False) == {"a": None, "b": 1, "c": 1}
    assert ran == ["b again", "c again"]


def test_a_row_ends_at_a_stage_that_waits_and_goes_on_when_it_need_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = stages(tmp_path)
    row[1].waits = lambda: None if (tmp_path / "labeled").exists() else "label now"
    assert run_stages(row, tmp_path, False) == {"a": 1}
    assert "label now" in capsys.readouterr().out
    (tmp_path / "labeled").touch()
    assert run_stages(row, tmp_path, False) == {"a": None, "b": 1, "c": 1}
    (tmp_path / "labeled").unlink()
    assert run_stages(row, tmp_path, False) == {"a": None, "b": None, "c": None}


def test_what_was_made_by_hand_with_the_same_settings_is_done(tmp_path: Path) -> None:
    row = stages(tmp_path, resumes=True)
    for stage in row[:2]:
        recipe(*bind(recipe, stage.words))
        record = {"method": "x", "arguments": stage.settings() | {"overwrite": True}}
        (tmp_path / stage.name / "run.json").write_text(json.dumps(record))
    (tmp_path / "b" / "made").unlink()  # it was cut off, but has a checkpoint
    ran.clear()
    assert run_stages(row, tmp_path, False) == {"a": None, "b": 1, "c": 1}
    assert ran == ["bauto", "c"]


def test_what_was_made_by_hand_with_other_settings_is_not_done(tmp_path: Path) -> None:
    row = stages(tmp_path)
    recipe(*bind(recipe, row[0].words))
    record = {"method": "x", "arguments": row[0].settings() | {"number": 2}}
    (tmp_path / "a" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="a/made is there, but not made here .* stage a. Do a."):
        run_stages(row, tmp_path, False, cure="Do {stage}.")
    ran.clear()
    run_stages(row, tmp_path, False)
    assert ran == ["a", "b", "c"]


def test_a_file_that_changed_since_a_stage_read_it_is_named(tmp_path: Path) -> None:
    def row() -> list[Stage]:
        made = stages(tmp_path)
        made[0].given, made[0].after = {"prompts": tmp_path / "p.txt"}, ()
        made[1].given, made[1].after = {"texts": tmp_path / "texts"}, ()
        return made

    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one").write_text("one")
    (tmp_path / "p.txt").write_text("one\n")
    run_stages(row(), tmp_path, False)
    (tmp_path / "p.txt").write_text("two\n")
    with pytest.raises(InputError, match=r"p.txt has changed since stage a read .* Do a\."):
        run_stages(row(), tmp_path, False, cure="Do {stage}.")
    assert run_stages(row(), tmp_path, False, from_stage="a")["a"] == 1

    (tmp_path / "texts" / "one").rename(tmp_path / "texts" / "two")
    with pytest.raises(InputError, match=r"texts has changed since stage b"):
        run_stages(row(), tmp_path, False)
    path = tmp_path / "stages.json"
    record = json.loads(path.read_text())
    for stage in record.values():  # as an older version noted them
        del stage["files"]
    path.write_text(json.dumps(record))
    assert run_stages(row(), tmp_path, False) == {"a": None, "b": None, "c": None}


def test_a_changed_file_stops_no_stage_that_starts_again_anyway(tmp_path: Path) -> None:
    def row(resumes: bool) -> list[Stage]:
        made = stages(tmp_path, resumes)
        made[1].given = {"prompts": tmp_path / "p.txt"}
        return made

    (tmp_path / "p.txt").write_text("one\n")
    (tmp_path / "fail").touch()
    with pytest.raises(KeyboardInterrupt):
        run_stages(row(False), tmp_path, False)
    (tmp_path / "fail").unlink()
    (tmp_path / "p.txt").write_text("two\n")
    with pytest.raises(InputError, match="has changed since stage b"):  # it would be half of each
        run_stages(row(True), tmp_path, False)
    assert run_stages(row(False), tmp_path, False) == {"a": None, "b": 1, "c": 1}


def test_a_result_that_nothing_must_be_built_on_ends_the_row_and_is_made_again(
    tmp_path: Path,
) -> None:
    def check(result: object) -> None:
        if result == 1:
            raise InputError("a: nobody should learn from this")

    def row(number: int) -> list[Stage]:
        made = stages(tmp_path, number=number)
        made[0].check = check
        return made

    ran.clear()
    with pytest.raises(InputError, match="nobody should learn"):
        run_stages(row(1), tmp_path, False)
    assert ran == ["a"]
    assert run_stages(row(2), tmp_path, False) == {"a": 2, "b": 2, "c": 2}
    assert ran == ["a", "a again", "b", "c"]
