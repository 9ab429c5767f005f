"""All that moves is in a checkpoint, and the documents say what each key is."""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from toolkit.errors import InputError
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.training.optimizers import optimizer_state, restore_optimizer
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


@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizers_tensors_come_back_on_the_device_where_it_wants_them(fused: bool) -> None:
    """A fused kernel wants the count of steps beside the weights, a plain one on the CPU."""

    def adam(device: str) -> torch.optim.Adam:
        weight = nn.Parameter(torch.ones(3, device=device))
        return torch.optim.Adam([weight], fused=fused)

    there, here = adam("meta"), adam("cpu")
    weight = here.param_groups[0]["params"][0]
    weight.grad = torch.ones(3)
    here.step()
    numbers, tensors = optimizer_state(here, ["w"])
    assert tensors["w|step"] == 1 and not numbers

    restore_optimizer(there, ["w"], numbers, tensors)
    (found,) = there.state.values()
    devices = {name: tensor.device.type for name, tensor in found.items()}
    expected = {"step": "meta" if fused else "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}
    assert devices == expected


@pytest.mark.slow
def test_a_run_with_a_fused_adam_ends_after_a_resume_as_one_that_was_not_stopped(
    new_trainer: Make, demo_model: str, tmp_path: Path
) -> None:
    def trainer(name: str, **options: Any) -> Any:
        torch.manual_seed(0)
        lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
        roles = Roles(load_base(demo_model, "fp32"), lora, value="trunk")
        trained = [p for _, p in roles.trainable()]
        adam = torch.optim.Adam(trained, lr=1e-3, eps=1e-5, fused=True)
        return new_trainer(name, model=roles, optimizers=(adam, None), save_steps=1, **options)

    trainer("whole").train()
    trainer("stopped", stop_at_update=1).train()
    trainer("stopped", resume="auto").train()
    for file in ("weights.safetensors", "optimizer.safetensors"):
        one = load_file(tmp_path / "whole" / "checkpoint-000002" / file)
        other = load_file(tmp_path / "stopped" / "checkpoint-000002" / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), file


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
