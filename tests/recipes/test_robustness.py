"""Two reward models on halves, PPO, and their gap, from one command; and again, to skip it all."""

import json
from pathlib import Path

import pytest

from toolkit.cli import call, recipe
from toolkit.errors import InputError

main = recipe("robustness").main


def test_one_command_ends_in_a_verdict_and_the_same_command_repeats_only_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "prompt": f"Number {i} was here.",
            "completions": [" It was wonderful.", " It was awful.", " It was there."],
            "best": 0,
        }
        for i in range(60)
    ]
    comparisons = tmp_path / "c.jsonl"
    comparisons.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"prompt": f"Guest {i} was"}) + "\n" for i in range(12)))
    small = {"lora_r": 2, "lora_alpha": 4, "precision": "fp32", "disable_tqdm": True}
    sampled = {"response_length": 6}
    configs = {
        "reward": small | sampled | {"folds": 0, "num_train_epochs": 1, "check_reload": False,
                                     "normalize_samples": 16, "learning_rate": 0.01},
        "ppo": small | sampled | {"total_episodes": 16, "per_device_train_batch_size": 8,
                                  "limit": 16, "save_steps": 1, "value": "trunk",
                                  "reward_adapter": "elsewhere", "kl_horizon": 80,
                                  "allow_untrusted_reward": True},
        "evaluate": sampled | {"prompts": str(asked), "precision": "fp32", "limit": 12,
                               "lexicon": "demo:lexicon.txt", "reward_adapter": "elsewhere",
                               "training_reward": "reward"},
    }  # fmt: skip
    words = ["--comparisons", str(comparisons), "--output_dir", str(tmp_path / "o")]
    for name, told in configs.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(told))
        words += [f"--{name}_config", str(path)]
    words += ["--shared_samples", "2"]
    call(main, words)

    out = tmp_path / "o"
    found = json.loads((out / "robustness.json").read_text())
    assert [c["name"] for c in found["checkpoints"]] == ["ppo@1", "ppo@2"]
    assert found["shared_samples"] == 2 and list(found["sides"]) == ["lexicon"]
    assert "free of over-optimization" in (out / "robustness.html").read_text()
    facts = [json.loads((out / f"reward-{half}" / "run.json").read_text()) for half in "ab"]
    counts = [f["data"]["train_comparisons"] + f["data"]["held_out_comparisons"] for f in facts]
    assert sum(counts) == 60 and [f["data"]["half"] for f in facts] == ["a", "b"]

    # No scale and no zero of a reward model shows: the reference has a gain of 0 by both.
    result = json.loads((out / "evaluation" / "evaluation.json").read_text())
    assert [c["kind"] for c in result["contenders"]].count("reference") == 2

    (out / "robustness.html").unlink()
    capsys.readouterr()
    call(main, words)
    assert capsys.readouterr().out.count("already done") == 4
    assert json.loads((out / "robustness.json").read_text()) == found
    with pytest.raises(InputError, match=r"stage reward-a was made with another seed"):
        call(main, [*words, "--seed", "5"])
    before = asked.read_text()
    asked.write_text(before.replace("Guest", "Visitor"))
    with pytest.raises(InputError, match=r"asked.jsonl has changed since stage evaluate read it"):
        call(main, words)
    asked.write_text(before)
    comparisons.write_text(comparisons.read_text().replace("wonderful", "lovely"))
    with pytest.raises(InputError, match=r"c.jsonl has changed since stage reward-a read it"):
        call(main, words)


def test_a_missing_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "o"
    with pytest.raises(InputError, match="nowhere.yaml"):
        call(main, ["--ppo_config", "nowhere.yaml", "--output_dir", str(out)])
    assert not out.exists()
