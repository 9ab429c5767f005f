"""On a card that is only pretended: no devices are mixed, and nothing waits for it unseen."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiles with g++"),
]

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs tests/pretend_cuda/run.py in a process of its own; returns what it saw.

    The process is a fork of one that has made the imports, and where no card has appeared yet.
    """
    environment = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}
    imported = subprocess.Popen(
        [sys.executable, "tests/pretend_cuda/run.py", "forks"],
        cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert imported.stdin and imported.stdout
    to, by = imported.stdin, imported.stdout

    @cache  # some tests compare with the same run
    def call(*words: str) -> dict[str, Any]:
        said = tmp_path_factory.mktemp("pretended") / "said.txt"
        to.write(json.dumps([words, str(said)]) + "\n")
        to.flush()
        assert by.readline() == "0\n", said.read_text()[-3000:]
        found: dict[str, Any] = json.loads(said.read_text().splitlines()[-1])
        return found

    yield call
    to.close()
    assert imported.wait(timeout=60) == 0
    by.close()


def test_it_sees_what_was_planted_and_nothing_else(run: Run) -> None:
    found = dict(run("plant"))
    nothing = found.pop("nothing")
    assert not (nothing["mixes"] or nothing["syncs"] or nothing["uploads"])
    assert nothing["operations"] == {"sum": 1, "add": 1, "mul": 1}

    assert found.pop("numpy").startswith("can't convert cuda:0 device type tensor to numpy")
    assert found.pop("uncounted mix").startswith("add got tensors on different devices")
    assert found.pop("varying order").startswith("cumsum_cuda_kernel does not have")
    for name in ("mix", "index mix"):
        seen = found.pop(name)
        assert (sum(seen["mixes"].values()), seen["waits"]) == (1, 0), name
    seen = found.pop("upload")
    assert (sum(seen["uploads"].values()), seen["waits"]) == (1, 0)
    assert {name: seen["waits"] for name, seen in found.items()} == dict.fromkeys(
        ["item", "bool", "tolist", "mask", "copy from", "copy to", "tensor"], 1
    )


GRPO = '{"algorithm": "grpo"}'
A2C = '{"entropy_coef": 0.01, "kl_in": "loss", "value_hidden": [8]}'


@pytest.mark.parametrize(
    "words",
    [
        ["--precision", "fp32", "--stop", "--deterministic", "--settings", GRPO],
        ["--precision", "bf16", "--autocast", "--value", "trunk", "--recompute"]
        + ["--settings", A2C],
        ["--precision", "4bit", "--autocast", "--stop", "--checkpointing"],
    ],
    ids=lambda words: words[1],
)
def test_ppo_mixes_no_devices(run: Run, words: list[str]) -> None:
    """Two updates with evaluation and checkpoints, then one that resumes them, and saving."""
    found = run("ppo", *words, "--layers", "1", "--evaluate", "--resume")
    assert (found["whole"]["mixes"], found["on_cpu"]) == ({}, [])
    assert found["updates"] == 3
    assert found["whole"]["operations"]["_fused_adam_"] == 3 * 4  # before and after the resume
    exact = "fp32" in words
    assert abs(found["kl"][0]) < (1e-5 if exact else 1e-2)  # the policy begins as the reference
    assert found["first_gap"] < (1e-5 if exact else 3e-2)


def test_the_host_waits_as_often_for_many_episodes_as_for_few(run: Run) -> None:
    """Once an optimizer step, and a fixed number of times besides, however many micro-batches."""
    words = ["ppo", "--precision", "4bit", "--autocast", "--layers", "1", "--updates", "3"]
    words += ["--epochs", "2"]
    few, many = (run(*words, "--episodes", episodes) for episodes in ("16", "64"))
    assert few["update"]["syncs"] == many["update"]["syncs"]
    assert few["phases"]["optimize"]["waits"] == 2 + 2  # two steps, and the rollout's lengths
    assert many["phases"]["optimize"]["launches"] > 3 * few["phases"]["optimize"]["launches"]


def test_a_token_is_decoded_almost_without_waiting_and_in_few_operations(run: Run) -> None:
    """With LoRA on all linear layers, in 4 bits under autocast; 32 layers may take 1,900.

    A layer has 7 products, 7 times 2 of LoRA less 3 that are shared, 8 operations in each of two
    norms, 6 of rotary positions, attention, and few others: no rounding of weights, no mask.
    """
    found = run("decode", "--precision", "4bit", "--autocast", "--layers", "8", "--stop")
    assert not found["mixes"] and not found["uploads"]
    assert found["waits"] <= 1 / 8  # whether all have ended is asked every eight tokens
    assert found["launches"] <= 1900 / 4
    assert found["operations"]["attention (efficient)"] == 8


def test_training_passes_reach_flash_attention_and_round_no_weight_twice(run: Run) -> None:
    layers = 3
    words = ["ppo", "--precision", "4bit", "--autocast", "--layers", str(layers), "--episodes"]
    found = run(*words, "32", "--updates", "3", "--epochs", "1")["phases"]["optimize"]["operations"]
    passes = 4 * 2  # micro-batches of policy and value
    # The last layer works on the completions' tokens alone, for which it needs a mask.
    assert (
        found["attention (flash)"] == found["attention backward (flash)"] == passes * (layers - 1)
    )
    assert found["attention (efficient)"] == passes
    assert found["_foreach_copy_"] == 2  # the adapters of policy and value, once a step
    assert found["_fused_adam_"] == 1
    # Casts are left of gradients (14 a layer), norms (10) and the ends of a pass. If each pass
    # rounded LoRA's weights, there would be 14 more.
    assert found["_to_copy"] / passes / layers < 35


@pytest.mark.parametrize("fault", ["mix", "sync"])
def test_a_fault_that_is_planted_in_ppo_is_seen(run: Run, fault: str) -> None:
    words = ["ppo", "--layers", "1", "--updates", "1", "--epochs", "1"]
    found, clean = run(*words, "--plant", fault)["phases"]["optimize"], run(*words)["phases"]
    assert bool(found["mixes"]) == (fault == "mix")
    more = found["waits"] - clean["optimize"]["waits"]
    assert more == (2 if fault == "sync" else 0)  # one for each of two micro-batches


def comparisons(path: Path) -> str:
    rows = [
        {
            "prompt": f"We went to the cafe {i}.",
            "completions": [f" It was {'good' if j == i % 3 else 'bad'}." for j in range(3)],
            "best": i % 3,
        }
        for i in range(32)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Pinned memory is not pretended, and the check of a reload would start another process.
REWARD = {"eval_rows": 8, "folds": 0, "normalize_samples": 8, "response_length": 6,
          "num_train_epochs": 1, "per_device_train_batch_size": 8, "disable_tqdm": True,
          "check_reload": False, "dataloader_pin_memory": False}  # fmt: skip


def as_yaml(path: Path, settings: dict[str, object]) -> str:
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items()))
    return str(path)


def test_reward_training_mixes_no_devices(run: Run, tmp_path: Path) -> None:
    """By TRL's trainer, with the scores' normalization."""
    found = run(
        "recipe", "reward", "--config", as_yaml(tmp_path / "reward.yaml", REWARD),
        "--comparisons", comparisons(tmp_path / "c.jsonl"), "--precision", "bf16",
        "--output_dir", str(tmp_path / "reward"),
    )  # fmt: skip
    assert (found["mixes"], found["code"]) == ({}, 0)
    assert found["operations"]["attention backward (flash)"] > 0
    assert "attention backward (efficient)" not in found["operations"]
    assert (tmp_path / "reward" / "adapter" / "adapter_model.safetensors").is_file()


def test_evaluation_mixes_no_devices(run: Run, tmp_path: Path, demo_model: str) -> None:
    """Of an adapter, of best-of-2 and of the base, in 4 bits."""
    roles = Roles(load_base(demo_model, "fp32"), lora_config(4, 8, "all-linear", "CAUSAL_LM"))
    roles.save(tmp_path)
    found = run(
        "recipe", "evaluate", "--contenders", f"policy={tmp_path / 'policy'}", "best=best_of_2",
        "--limit", "8", "--response_length", "6", "--lexicon", "data/lexicon.txt",
        "--precision", "4bit", "--output_dir", str(tmp_path / "evaluation"),
    )  # fmt: skip
    assert (found["mixes"], found["code"]) == ({}, 0)
    assert (tmp_path / "evaluation" / "evaluation.json").is_file()


def test_the_online_loop_mixes_no_devices(run: Run, tmp_path: Path) -> None:
    """One round: samples, labels, a reward model, PPO, and a validation of its policy."""
    sampling = {"response_length": 6, "limit": 24, "prompts": "demo:prompts.jsonl"}
    ppo = sampling | {"total_episodes": 16, "per_device_train_batch_size": 8, "kl_horizon": 80,
                      "num_ppo_epochs": 1, "disable_tqdm": True}  # fmt: skip
    found = run(
        "recipe", "online", "--rounds", "1", "--initial_labels", "24", "--total_labels", "32",
        "--sample_config", as_yaml(tmp_path / "sample.yaml", sampling),
        "--reward_config", as_yaml(tmp_path / "reward.yaml", REWARD),
        "--ppo_config", as_yaml(tmp_path / "ppo.yaml", ppo),
        "--precision", "bf16", "--lexicon", "data/lexicon.txt", "--allow_untrusted_reward",
        "--output_dir", str(tmp_path / "online"),
    )  # fmt: skip
    assert (found["mixes"], found["code"]) == ({}, 0)
    assert (tmp_path / "online" / "ppo" / "adapters" / "policy").is_dir()
