"""WARP: which stages, with what words; and a killed run ends as one that was not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models.test_adapter_arithmetic import deltas
from toolkit.cli import call, recipe
from toolkit.errors import InputError
from toolkit.maths.interpolation import slerp_weights
from toolkit.models import adapter_arithmetic
from toolkit.models.toolkit_json import adapter_digest, read_facts
from toolkit.pipeline.warp import WarpArguments, check_config, warp_stages
from toolkit.training.ppo.trainer import PPOTrainer

main = recipe("warp").main


def words_of(stage: Any) -> dict[str, str]:
    """The flags of a stage with their last value."""
    return {w[2:]: v for w, v in zip(stage.words, stage.words[1:], strict=False) if w[:2] == "--"}


@pytest.mark.parametrize("start", [None, "sft/adapter"])
def test_each_iteration_trains_from_one_start_and_the_next_begins_where_it_was_merged(
    start: str | None,
) -> None:
    args = WarpArguments(iterations=2, runs=2, output_dir="o", policy_adapter=start, seed=5)
    stages = warp_stages(args, recipe("ppo").main, 16, 32)
    names = [stage.name for stage in stages]
    first = [] if start is None else ["start1"]
    assert names == [*first, "iteration1-run1", "iteration1-run2", "merged1", "start2",
                     "iteration2-run1", "iteration2-run2", "merged2"]  # fmt: skip

    told = {stage.name: words_of(stage) for stage in stages}
    runs = [told[name] for name in names if "-run" in name]
    assert len({run["seed"] for run in runs}) == 4
    assert {run["reference_ema"] for run in runs} == {"0.01"}
    begun = None if start is None else "o/iteration-1/start"
    assert [run.get("policy_adapter") for run in runs] == [begun] * 2 + ["o/iteration-2/start"] * 2
    assert [run.get("train_last_ranks") for run in runs] == [begun and "16"] * 2 + ["16"] * 2
    assert told["start2"]["scale"] == "0.3" and "scale" not in told["merged2"]
    assert told["start2"]["new_ranks"] == "16" and told["start2"]["new_scale"] == "2.0"
    assert told["merged2"]["start"] == "o/iteration-2/start"
    assert told["merged1"].get("start") == begun
    assert stages[-1].made == [Path("o/adapter/toolkit.json")]


@pytest.mark.parametrize("name", ["policy_adapter", "reference_ema", "stop_at_update"])
def test_what_warp_sets_itself_is_refused_in_the_config(name: str) -> None:
    with pytest.raises(InputError, match=f"leave out {name}, which WARP sets"):
        check_config({name: 1, "lora_r": 4}, "ppo.yaml")
    with pytest.raises(InputError, match="save_strategy must be steps"):
        check_config({"save_strategy": "no"}, "ppo.yaml")


@pytest.mark.slow
def test_killed_twice_it_ends_to_the_last_bit_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "ppo.yaml"
    told = {"lexicon": "demo:lexicon.txt", "total_episodes": 16, "per_device_train_batch_size": 8,
            "response_length": 8, "learning_rate": 0.01, "lora_r": 2, "lora_alpha": 4,
            "lora_target_modules": "q_proj,v_proj", "value": "trunk", "limit": 32,
            "save_steps": 1, "precision": "fp32", "disable_tqdm": True,
            "kl_horizon": 80}  # fmt: skip
    config.write_text(json.dumps(told))
    words = ["--ppo_config", str(config), "--seed", "3", "--anchor", "0.1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    call(main, [*words, "--output_dir", str(whole)])

    # Killed after the first of two updates of the second run, and again in the last merge.
    finish, merge = PPOTrainer.finish, adapter_arithmetic.merge_adapters
    finished: list[int] = []

    def dies(self: PPOTrainer, *args: Any) -> None:
        finish(self, *args)
        finished.append(1)
        if len(finished) == 3:
            raise KeyboardInterrupt

    def dies_too(*args: Any, **kwargs: Any) -> Any:
        if "iteration-2" in str(args[0][0]):
            raise KeyboardInterrupt
        return merge(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "finish", dies)
        with pytest.raises(KeyboardInterrupt):
            call(main, [*words, "--output_dir", str(killed)])
    assert not (killed / "iteration-1" / "merged").exists()
    finished.clear()
    with monkeypatch.context() as patch:
        patch.setattr(adapter_arithmetic, "merge_adapters", dies_too)
        with pytest.raises(KeyboardInterrupt):
            call(main, [*words, "--output_dir", str(killed)])
    assert not (killed / "adapter").exists()
    call(main, [*words, "--output_dir", str(killed)])
    assert adapter_digest(killed / "adapter") == adapter_digest(whole / "adapter")

    # The merges are those of the formulas, around each iteration's start.
    runs = [whole / "iteration-2" / f"run-{m}" / "adapters" / "policy" for m in (1, 2)]
    start = whole / "iteration-2" / "start"
    for name, before in deltas(start).items():
        tasks = torch.stack([deltas(run)[name] - before for run in runs])
        a, b = slerp_weights(torch.einsum("iab,jab->ij", tasks, tasks), 0.5)
        expected = before + a * tasks[0] + b * tasks[1]
        found = deltas(whole / "adapter")[name]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
        merged = deltas(whole / "iteration-1" / "merged")[name]
        torch.testing.assert_close(before, 0.3 * merged, atol=1e-6, rtol=1e-4)

    # Ranks grow by those of the runs, and the start's stay as they are.
    held = load_file(start / "adapter_model.safetensors")
    for run in runs:
        later = load_file(run / "adapter_model.safetensors")
        for name, weight in held.items():
            kept = (slice(4),) if ".lora_A." in name else (slice(None), slice(4))
            assert torch.equal(weight[kept], later[name][kept])
            assert weight.shape[0 if ".lora_A." in name else 1] == 6
    assert json.loads((whole / "adapter" / "adapter_config.json").read_text())["r"] == 8
    assert read_facts(whole / "adapter")["start"] is None  # it can be scaled towards the base
    record = json.loads((whole / "run.json").read_text())
    assert record["method"] == "warp" and record["seed"] == 3
    assert record["settings"]["prompts"] and record["settings"]["output_dir"] == str(whole)
