"""label.py with a store: what people said beyond their pick, and the lines to train on it."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.cli import call, recipe
from toolkit.data.comparisons import read_rows
from toolkit.data.files import read_jsonl
from toolkit.errors import InputError
from toolkit.labeling.store import Asked, Details, Settings, Store
from toolkit.next_step import called, in_project

label = recipe("label")
ROWS = [{"prompt": f"Text {i}.", "completions": [f" {w}{i}" for w in "abcd"]} for i in range(3)]


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    """A store of three rankings by ann, of which one has an edited answer."""
    with Store(tmp_path / "labels.sqlite", Settings(0.0, 0.0, 0.0)) as store:
        store.add_items(ROWS)
        store.settle(Asked("ranking", strength=True, edit=True))
        ann = store.by_token(store.invite("ann"))
        assert ann is not None
        for edited in (None, "Mine.", None):
            task = store.next_task(ann)
            assert task is not None
            said = Details(ranking=[3, 1, 0, 2], strength=1, edited=edited)
            assert store.record(ann, task.form, "pick", 3, None, said)
    return store.path


def test_rankings_and_edited_answers_are_written_and_the_next_step_reads_them(
    ranked: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    understood: Callable[[str], dict[str, Any]],
) -> None:
    picks, edited = tmp_path / "picks.jsonl", tmp_path / "edited.jsonl"
    call(label.main, ["--store", str(ranked), "--output", str(picks), "--edited", str(edited)])
    said = capsys.readouterr().out
    rows = [row for _, row in read_jsonl(picks)]
    assert len(rows) == 3
    assert all(row["ranking"][0] == row["best"] and row["margin"] == 0.333333 for row in rows)
    ((_, row),) = read_jsonl(edited)
    assert row["completions"][row["best"]] == " Mine." and len(row["completions"]) == 5
    found = understood(said)
    assert (found["recipe"], found["loss_type"]) == ("reward", "plackett_luce")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--serve", "--ask", "best"], "asks people for ranking,strength,edit, and holds 3"),
        (["--edited", "{picks}", "--output", "{picks}"], "edited: .* is --output as well"),
        (["--output", "{picks}", "--ask", "ranking"], "ask: only people are asked"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    ranked: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    picks = str(tmp_path / "picks.jsonl")
    told = [word.replace("{picks}", picks) for word in flags]
    with pytest.raises((InputError, SystemExit), match=said):
        call(label.main, ["--store", str(ranked), *told])
    assert not (tmp_path / "picks.jsonl").exists()


def test_the_lines_to_train_name_this_stores_real_paths(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    understood: Callable[[str], dict[str, Any]],
    root: Path,
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/preftune", "label"])
    place = tmp_path / "two words"
    place.mkdir()
    monkeypatch.chdir(place)
    settings = {"model_name_or_path": "our/model", "response_length": 12, "limit": 9}
    Path("samples.jsonl.settings.yaml").write_text(yaml.safe_dump(settings))
    row = {"prompt": "p", "completions": ["a", "b"], "best": 1, "labeler": "ann"}
    with Store("labels.sqlite") as store:
        store.add_picks([row])

    go, write, learn = label.training_commands("labels.sqlite", "samples.jsonl", [{}])
    assert shlex.split(go) == ["cd", str(place)]

    # The first command writes the picks, from whichever folder it is typed in.
    os.chdir(root)
    told = understood(f"next: {write}")
    assert (told["store"], told["output"]) == (
        str(place / "labels.sqlite"),
        str(place / "comparisons.jsonl"),
    )
    call(label.main, shlex.split(write)[2:])
    assert read_rows(told["output"], "best", "--comparisons") == [row]

    # The second one learns from them, with the settings of the samples.
    told = understood(f"next: {learn}")
    assert told["recipe"] == "reward" and told["comparisons"] == str(place / "comparisons.jsonl")
    assert (told["model_name_or_path"], told["response_length"]) == ("our/model", 12)
    assert told["output_dir"] == str(place / "reward")

    # Later the lines name new files; without samples, the model is the reader's to fill in.
    (place / "reward").mkdir()
    os.chdir(place)
    _, write, learn = label.training_commands("labels.sqlite", None, [{"ranking": [1, 0]}])
    assert write.endswith("/comparisons-2.jsonl'")
    assert "--loss_type plackett_luce" in learn  # the loss that reads all of a ranking
    assert "--model_name_or_path MODEL" in learn and learn.endswith("/reward-2'")


def test_in_a_project_the_lines_to_train_go_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/preftune", "label"])
    monkeypatch.chdir(tmp_path)
    with called(["--config", "project.yaml"]):
        in_project("project.yaml")
        lines = label.training_commands("labels.sqlite", None, [{}])
    assert lines == [f"cd {tmp_path}", "preftune run project.yaml --enough"]
    assert len(label.training_commands("labels.sqlite", None, [{}])) == 3
