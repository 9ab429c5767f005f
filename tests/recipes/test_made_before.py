"""Files of the version before are used as they are: a checkpoint, an adapter, a store, run.json."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toolkit.cli import call, recipe
from toolkit.maths.sequences import pad
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles
from toolkit.record import RunRecord
from toolkit.scoring.trust import check_trust
from toolkit.training.methods import METHODS

# Of what the version before exported from the store.
EXPORT = "86c21bc4e23c4cd2c4ad825748b717503b77833c715fc4e336b611aea3b4b8a2"


@pytest.fixture
def before(root: Path) -> Path:
    return root / "tests" / "made_before"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_goes_on_from_its_checkpoint_to_the_log_and_policy_of_then(
    before: Path, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(before / "ppo", tmp_path / "ppo")
    words = [sys.executable, "recipes/ppo.py", "--config", str(before / "ppo.yaml")]
    subprocess.run(
        [*words, "--output_dir", str(tmp_path / "ppo"), "--resume", "auto"],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    rows, expected = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (tmp_path / "ppo" / "log.jsonl", before / "whole.log.jsonl")
    )
    assert rows[:2] == expected[:2] and len(rows) == 4
    # Other passes of the same layers, and another processor's, round otherwise.
    for row, then in zip(rows, expected, strict=True):
        assert row == pytest.approx(then, abs=1e-4)
    now = load_file(tmp_path / "ppo" / "adapters" / "policy" / "adapter_model.safetensors")
    for name, tensor in load_file(before / "whole.policy.safetensors").items():
        torch.testing.assert_close(now[name], tensor, atol=1e-6, rtol=0)


def test_a_reward_adapter_gives_the_scores_that_it_gave(
    before: Path, root: Path, demo_model: str
) -> None:
    tokenizer = load_tokenizer(demo_model)
    lines = (root / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    rows = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    roles = Roles(load_base(demo_model, "fp32"), reward_adapter=before / "reward" / "adapter")
    ids, mask = pad(rows, tokenizer.pad_token_id, "left")
    with torch.no_grad():
        scores = roles.scores(ids, mask)
    expected = torch.tensor([-0.216231, 0.010983, 0.215451, 0.051939])
    torch.testing.assert_close(scores, expected, atol=2e-6, rtol=0)


def test_what_is_known_of_a_reward_adapter_is_read(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(before / "reward" / "adapter")
    (trust,) = check_trust({"reward_adapter": folder}, allowed=True)
    assert trust.answer == "no" and trust.accuracy == 0.1
    assert "Cannot be distinguished from chance" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ppo", "reward"])
def test_a_run_json_without_its_method_says_which_it_was(before: Path, name: str) -> None:
    assert "method" not in json.loads((before / name / "run.json").read_text(encoding="utf-8"))
    record = RunRecord.read(before / name / "run.json")
    assert record.method == name and name in METHODS
    assert record.settings["lora_r"] == 1


def test_a_store_of_labels_gives_the_comparisons_that_it_gave(before: Path, tmp_path: Path) -> None:
    shutil.copy(before / "labels.sqlite", tmp_path / "labels.sqlite")
    output = tmp_path / "comparisons.jsonl"
    call(
        recipe("label").main,
        ["--store", str(tmp_path / "labels.sqlite"), "--output", str(output)],
    )
    assert digest(output) == EXPORT
