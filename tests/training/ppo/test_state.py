"""All that moves is in a checkpoint, and the documents say what each key is."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.training.ppo.checkpoints import load_checkpoint
from toolkit.training.ppo.state import TENSORS, PPOState

Make = Callable[..., Any]


def test_the_documents_table_has_a_row_for_each_key_and_names_its_file(root: Path) -> None:
    text = (root / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| ([\w.]+) \| .{10,}\|$", text, re.MULTILINE)
    expected = {f.name: TENSORS.get(f.name, "state.json") for f in fields(PPOState)}
    assert dict(rows) == expected and len(rows) == len(expected)


def test_a_checkpoint_read_back_is_the_state_that_was_captured(
    new_trainer: Make, tmp_path: Path
) -> None:
    trainer = new_trainer(total_episodes=8)
    trainer.train()
    path = tmp_path / "run" / "checkpoint-000001"
    read, now = (
        load_checkpoint(path),
        PPOState.capture(trainer, 1, 8, trainer.identity(), trainer.ranks),
    )
    assert read.update == 1 and read.episodes == 8
    assert read.kl == now.kl and read.gain == now.gain and read.generator == now.generator
    assert read.weights.keys() == dict(trainer.model.trainable()).keys()
    assert all((read.weights[name] == now.weights[name]).all() for name in read.weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_thing": 1}, "state.json has new_thing, which this version does not know"),
        ({"kl": ...}, "state.json lacks .*kl"),
    ],
)
def test_the_state_of_another_version_is_refused(change: dict, message: str) -> None:
    state = {f.name: None for f in fields(PPOState) if f.name not in TENSORS} | change
    state = {name: value for name, value in state.items() if value is not ...}
    with pytest.raises(InputError, match=message):
        PPOState.from_json(state, "run/checkpoint-000001", dict.fromkeys(TENSORS, {}))
