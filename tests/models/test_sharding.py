"""A base shared out: each process holds its part, and what is computed is the same."""

import ast
import signal
import socket
from pathlib import Path

import pytest
import torch

from tests.forks import Forked
from toolkit.errors import InputError
from toolkit.models.sharding import shard_base

pytestmark = pytest.mark.slow  # starts processes

SCRIPT = """
import os, sys, torch, torch.distributed as dist
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.models.sharding import shard_base

torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo")
os.environ["LOCAL_WORLD_SIZE"] = "2"  # of four processes, two on each of two nodes
lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
roles = Roles(load_base("data/model", sys.argv[1]), lora, value="adapter")
ids = torch.arange(5, 25).view(2, 10)
mask = torch.ones_like(ids, dtype=torch.bool)

def held(lora):
    layers = roles._causal.model.layers.named_parameters()
    local = [getattr(p, "_local_tensor", p) for n, p in layers if ("lora_" in n) == lora]
    return sum(p.untyped_storage().nbytes() for p in local)

def gradients():
    roles.zero_grad()
    outputs = roles.policy_outputs(ids, mask, ids[:, -4:], 1.0)
    outputs.logprobs.sum().backward()
    roles.values(ids, mask, 4).sum().backward()
    return [p.grad.clone() for _, p in roles.trainable() if p.grad is not None]

before, base, adapters = gradients(), held(False), held(True)
assert shard_base(roles.language_models()) == 3
after = gradients()
same = len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after))
found = [None] * dist.get_world_size()
dist.all_gather_object(found, (same, base / held(False), adapters / held(True)))
if dist.get_rank() == 0:
    print("@", found)
"""


@pytest.mark.parametrize(("precision", "processes"), [("fp32", 2), ("4bit", 2), ("fp32", 4)])
def test_each_process_holds_its_part_and_gradients_are_the_same(
    root: Path, tmp_path: Path, precision: str, processes: int
) -> None:
    """A half: with four processes, too, which are two on each of two nodes."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    started = [
        Forked(script, [precision], tmp_path / f"said-{rank}", root, **place, RANK=str(rank))
        for rank in range(processes)
    ]
    try:
        said = [process.wait(200) for process in started]
    finally:
        for process in started:
            process.signal(signal.SIGKILL)
    found = [line[1:] for line in said[0].splitlines() if line.startswith("@")]
    assert len(found) == 1, said
    parts = ast.literal_eval(found[0].strip())
    assert len(parts) == processes
    for same, base, adapters in parts:
        assert same and 1.9 < base < 2.1 and adapters == 1.0


def test_a_model_that_does_not_name_its_layers_is_an_error() -> None:
    model = torch.nn.Linear(2, 2)
    model._no_split_modules = None
    with pytest.raises(InputError, match="Linear does not name its layers"):
        shard_base([model])
