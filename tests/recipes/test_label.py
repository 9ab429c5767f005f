"""The lines that the admin's page shows train on this store's picks."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit.cli import call, recipe
from toolkit.data.comparisons import read_rows
from toolkit.labeling.store import Store

label = recipe("label")


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

    go, write, learn = label.training_commands("labels.sqlite", "samples.jsonl")
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
    _, write, learn = label.training_commands("labels.sqlite", None)
    assert write.endswith("/comparisons-2.jsonl'")
    assert "--model_name_or_path MODEL" in learn and learn.endswith("/reward-2'")
