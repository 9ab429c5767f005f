"""run.json says which method made a run, also where the file is from before it said so."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from toolkit import record
from toolkit.cli import bind, recipe, write_run
from toolkit.errors import InputError
from toolkit.record import RUN_FILE, RunRecord, record_beside
from toolkit.training.methods import METHODS


def written(folder: Path, whole: dict[str, Any]) -> Path:
    path = folder / RUN_FILE
    path.write_text(json.dumps(whole))
    return path


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    record = RunRecord.now("dpo", {"beta": 0.2}, {"beta": 0.2, "seed": 3}, 3, 512)
    record.metrics = {"accuracy": 0.5}
    record.write(tmp_path / RUN_FILE)
    assert RunRecord.read(tmp_path / RUN_FILE) == record
    on_disk = json.loads((tmp_path / RUN_FILE).read_text())
    assert on_disk["method"] == "dpo" and "history" not in on_disk and "others" not in on_disk


def test_what_is_not_known_of_a_file_is_kept(tmp_path: Path) -> None:
    whole = {"settings": {"seed": 1}, "note": "mine", "metrics": None}
    record = RunRecord.read(written(tmp_path, whole))
    assert record.others == {"note": "mine"} and record.metrics is None
    assert record.as_json()["note"] == "mine"


# The words of a recipe that name its method, of those whose main takes these dataclasses.
RECIPES = [
    ("ppo", "ppo", []),
    ("rloo", "rloo", []),
    ("sft", "sft", []),
    ("reward", "reward", []),
    ("kto", "preference", ["--method", "kto"]),
    ("dpo", "preference", []),
    ("evaluate", "evaluate", []),
]


@pytest.mark.parametrize(("method", "name", "words"), RECIPES)
def test_an_old_file_of_each_recipe_is_told_by_its_settings(
    method: str, name: str, words: list[str], tmp_path: Path
) -> None:
    """Held against what the recipes write today, but for the key that old files lack."""
    arguments = bind(recipe(name).main, words)
    write_run(tmp_path, "something else", *arguments)
    whole = json.loads((tmp_path / RUN_FILE).read_text())
    del whole["method"]
    assert RunRecord.read(written(tmp_path, whole)).method == method


def test_a_file_without_settings_does_not_tell(tmp_path: Path) -> None:
    assert RunRecord.read(written(tmp_path, {"seed": 1})).method is None


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"settings": [1]}, r"settings is \[1\], but must be an object"),
        ({"data": "many"}, "data is 'many', but must be an object"),
        ({"history": {}}, "history is {}, but must be a list"),
        ({"method": 3}, "method is 3, but must be a text"),
    ],
)
def test_a_part_of_another_kind_is_one_line(
    part: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"run\.json: {message}"):
        RunRecord.read(written(tmp_path, part))


def test_the_record_of_an_adapter_is_the_nearest_around_it(tmp_path: Path) -> None:
    adapter = tmp_path / "ppo" / "adapters" / "policy"
    adapter.mkdir(parents=True)
    assert record_beside(adapter) is None
    far = written(tmp_path / "ppo", {})
    written(tmp_path, {})  # three up: another's
    assert record_beside(adapter) == far and record_beside(adapter, levels=1) is None
    near = written(tmp_path / "ppo" / "adapters", {})
    assert record_beside(adapter) == near


def test_every_method_but_evaluation_has_a_row() -> None:
    assert {method for method, _, _ in RECIPES} - set(METHODS) == {"evaluate"}


def test_an_installed_toolkit_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment may lie inside a user's own project, whose commit git would tell."""

    def git(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 0, "c0ffee\n" if "HEAD" in words else "")

    monkeypatch.setattr(subprocess, "run", git)
    assert RunRecord.now("dpo", {}, {}, 3, 512).git == "c0ffee"
    monkeypatch.setattr(record, "INSTALLED", True)
    assert RunRecord.now("dpo", {}, {}, 3, 512).git is None
