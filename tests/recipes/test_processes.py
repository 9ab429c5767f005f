"""Several processes: the same update as one makes, and no silence about one that is missing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GRPO = ["--algorithm", "grpo"]
A2C = ["--num_ppo_epochs", "1", "--whiten_advantages", "false", "--entropy_coef", "0.1", "--kl_in",
       "loss", "--value_hidden", "8", "8"]  # fmt: skip
MOVING = ["--reference_ema", "0.1"]  # the reference follows the policy


@pytest.mark.parametrize(
    ("value", "precision", "fsdp", "more"),
    [("trunk", "fp32", "false", [*A2C, *MOVING]), ("adapter", "fp32", "false", []),
     ("adapter", "fp32", "false", GRPO), ("adapter", "fp32", "true", []),
     ("trunk", "4bit", "true", MOVING)],
)  # fmt: skip
def test_two_processes_make_the_update_that_one_makes(
    root: Path,
    tmp_path: Path,
    forked: Callable[..., list],
    value: str,
    precision: str,
    fsdp: str,
    more: list[str],
) -> None:
    """Same global batch, minibatches and micro-batches of other sizes: 1e-5 after one update.

    Under FSDP (QLoRA of 4-bit) the base is shared out, and passes are kept in step. With a value
    adapter the runs also learn from text, of which each process reads its share of the rows.
    """
    words = ["--lexicon", "data/lexicon.txt", "--precision", precision, "--value", value,
             "--response_length", "10", "--stop_token", ".", "--learning_rate", "1e-3",
             "--limit", "60", "--total_episodes", "32", "--num_mini_batches", "2", "--lora_r", "4",
             "--eval_prompts", "data/prompts.heldout.jsonl", "--eval_limit", "9", "--eval_every",
             "1", "--save_steps", "1", *more]  # fmt: skip
    if value == "adapter":
        text = tmp_path / "text.jsonl"
        lines = (root / "data" / "prompts.heldout.jsonl").read_text().splitlines()[:23]
        text.write_text("".join(line.replace("prompt", "text") + "\n" for line in lines))
        words += ["--ptx_coef", "0.2", "--ptx_data", str(text), "--ptx_ratio", "3"]
    for processes, batch in ((1, "32"), (2, "16")):
        out = tmp_path / str(processes)
        sizes = ["--per_device_train_batch_size", batch, "--output_dir", str(out)]
        environment = {"ACCELERATE_USE_FSDP": fsdp, "FSDP_VERSION": "2"} if processes > 1 else {}
        for process in forked(*[words + sizes] * processes, **environment):
            said = process.wait()
            assert process.returncode == 0, said
    one, two = (
        load_file(tmp_path / name / "checkpoint-000001" / "weights.safetensors") for name in "12"
    )
    moved = 0.0
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name
        moved = max(moved, tensor.abs().max().item() if "lora_B" in name else 0.0)
    assert moved > 5e-4
    row, other = (
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0]) for name in "12"
    )
    assert row.keys() == other.keys()
    for name, number in row.items():
        assert other[name] == pytest.approx(number, abs=1e-4), name
    assert (tmp_path / "2" / "adapters" / "policy" / "adapter_model.safetensors").is_file()


def test_a_world_smaller_than_asked_for_is_an_error(
    tmp_path: Path, forked: Callable[..., list]
) -> None:
    words = ["--lexicon", "data/lexicon.txt", "--output_dir", str(tmp_path / "run")]
    (process,) = forked([*words, "--world_size", "2"])
    said = process.wait()
    assert process.returncode == 2
    assert "world_size is 2, but the number of processes is 1" in said
    assert not (tmp_path / "run").exists()
