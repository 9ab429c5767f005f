"""Worthless reward models, foreign models on the demo's prompts, prompts that are not held out."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import call, recipe
from toolkit.data.files import read_jsonl, write_json, write_jsonl
from toolkit.data.records import from_row
from toolkit.errors import InputError
from toolkit.evaluation.run_report import read_ppo_run, verdicts
from toolkit.record import RunRecord
from toolkit.scoring.accuracy import RewardMetrics

SHORT = ["--response_length", "12", "--truncate_token", ".", "--truncate_after", "4"]
PPO = [*SHORT, "--total_episodes", "32", "--per_device_train_batch_size", "16", "--use_cpu",
       "--disable_tqdm", "true", "--limit", "16", "--precision", "fp32", "--save_steps",
       "1"]  # fmt: skip
CHANCE = {"accuracy": 0.25, "accuracy_low": 0.19, "accuracy_high": 0.32, "p": 0.53, "p_below": 0.5,
          "chance": 0.25, "comparisons": 200, "prompts": 200, "loss": 1.4}  # fmt: skip
GOOD = CHANCE | {"accuracy": 0.7, "accuracy_low": 0.63, "accuracy_high": 0.76, "p": 1e-30}


@pytest.fixture(scope="module", autouse=True)
def at_root(root: Path) -> Any:
    before = os.getcwd()
    os.chdir(root)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, at_root: None) -> Path:
    """A reward adapter on the embedded model, of one step."""
    out = tmp_path_factory.mktemp("untrusted")
    rows = [
        {"prompt": f"We went to the cafe {i}.", "completions": [" Good.", " Bad."], "best": 0}
        for i in range(24)
    ]
    write_jsonl(out / "c.jsonl", rows)
    call(recipe("reward").main, [
        "--comparisons", str(out / "c.jsonl"), "--output_dir", str(out / "reward"), "--max_steps",
        "1", "--eval_rows", "8", "--folds", "0", "--normalize_samples", "0", "--use_cpu",
        "--precision", "fp32", "--check_reload", "false", "--disable_tqdm", "true", *SHORT,
    ])  # fmt: skip
    return out / "reward" / "adapter"


def test_a_model_at_chance_is_trained_again_longer_and_at_a_higher_rate(tmp_path: Path) -> None:
    retraining = recipe("reward_report").retraining
    (tmp_path / "reward").mkdir()
    record = RunRecord(arguments={"comparisons": "c.jsonl", "overwrite": True})
    at_chance = from_row(RewardMetrics, CHANCE | {"train_comparisons": 800}, "")
    step = retraining(tmp_path / "reward", record, at_chance, 1e-4)
    assert step.recipe == "reward" and step.flags == {
        "comparisons": "c.jsonl",
        "learning_rate": "0.001",
        "num_train_epochs": 4,
        "output_dir": str(tmp_path / "reward-2"),
    }

    # More steps help neither inverted labels nor what was trained at a high rate.
    inverted = replace(at_chance, accuracy=0.1, accuracy_low=0.06, accuracy_high=0.15)
    assert retraining(tmp_path / "reward", record, inverted, 1e-4) is None
    assert retraining(tmp_path / "reward", record, at_chance, 2e-3) is None


def test_a_run_tells_what_it_came_to() -> None:
    rows = [{"objective/scores": 0.1 * i, "objective/kl": 0.1 * i} for i in range(10)]
    outcome = recipe("ppo").outcome
    said = outcome(rows, 6.0)
    assert said.startswith("The score went from 0.05 to 0.85, and the KL to 0.85 nats (target 6).")
    assert "has hardly moved" in said
    assert "hardly" not in outcome(rows, 0.5) and "target" not in outcome(rows, None)
    assert "nan" in outcome([{"objective/kl": 1.0}], 6.0)  # no completion could be scored


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("toolkit.models.from_arguments.load_base", loaded)


TRAINS: dict[str, Callable[[Path], list[str]]] = {
    "ppo": lambda out: [*PPO, "--output_dir", str(out)],
    "rloo": lambda out: [
        *SHORT,
        "--max_steps",
        "1",
        "--use_cpu",
        "--precision",
        "fp32",
        "--limit",
        "16",
        "--output_dir",
        str(out),
    ],
    "best_of_n": lambda out: [
        *SHORT,
        "--n",
        "2",
        "--limit",
        "4",
        "--precision",
        "fp32",
        "--output",
        str(out / "best.jsonl"),
    ],
}


@pytest.mark.parametrize("name", TRAINS)
def test_a_model_at_chance_is_refused_before_a_model_is_loaded(
    name: str, adapter: Path, tmp_path: Path, no_model: None
) -> None:
    write_json(adapter / "metrics.json", CHANCE)
    words = ["--reward_adapter", str(adapter), *TRAINS[name](tmp_path / "out")]
    with pytest.raises(
        InputError,
        match=r"at chance|distinguished from chance: 25\.0% of 200 .*"
        r"probability 0\.53.*--allow_untrusted_reward",
    ):
        call(recipe(name).main, words)


def test_what_was_allowed_stands_in_run_json_and_in_the_report_and_stays_when_it_goes_on(
    adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ppo"
    words = ["--reward_adapter", str(adapter), *TRAINS["ppo"](out), "--online", "true"]
    write_json(adapter / "metrics.json", CHANCE)
    more = ["--stop_at_update", "1", "--allow_untrusted_reward"]
    call(recipe("ppo").main, [*words, *more])

    other = tmp_path / "another"  # the next round's, of an online run
    shutil.copytree(adapter, other)
    write_json(other / "metrics.json", GOOD)
    words[1] = str(other)
    call(recipe("ppo").main, [*words, "--resume", "auto"])

    found = json.loads((out / "run.json").read_text())["reward_verdicts"]
    assert [(row["answer"], row["allowed"]) for row in found] == [("no", True), ("yes", False)]
    facts = verdicts({"mine": read_ppo_run(out)}, {}, None)
    (fact,) = [f for f in facts if f[0] == "mine: its reward model can be trusted"]
    assert fact[2] == "no" and "the run used it anyway (--allow_untrusted_reward)" in fact[1]


@pytest.mark.parametrize("name", ["sample", "ppo", "rloo", "best_of_n", "evaluate", "online"])
def test_another_model_has_no_prompts_by_default(
    name: str, demo_model: str, tmp_path: Path, no_model: None
) -> None:
    other = tmp_path / "model"
    shutil.copytree(demo_model, other)
    words = ["--model_name_or_path", str(other), *([] if name == "sample" else LEXICON)]
    words += [
        "--output" if name in ("sample", "best_of_n") else "--output_dir",
        str(tmp_path / "out"),
    ]
    said = (
        r"^prompts: none were given, and data/prompts\.\S+ fits only the embedded model "
        r"\(choose the prompts that \S+ continues with --prompts\)$"
    )
    with pytest.raises(InputError, match=said):
        call(recipe(name).main, words)


LEXICON = ["--lexicon", "data/lexicon.txt"]


def test_eval_prompts_that_are_trained_on_are_counted(adapter: Path, tmp_path: Path) -> None:
    rows = [row for _, row in read_jsonl("data/prompts.jsonl")][10:20]
    write_jsonl(tmp_path / "held_out.jsonl", rows)  # 6 of them are among the first 16
    write_json(adapter / "metrics.json", GOOD)
    out = tmp_path / "ppo"
    call(
        recipe("ppo").main,
        [
            "--reward_adapter",
            str(adapter),
            *TRAINS["ppo"](out),
            "--eval_prompts",
            str(tmp_path / "held_out.jsonl"),
        ],
    )
    data = json.loads((out / "run.json").read_text())["data"]
    assert (data["held_out_prompts"], data["held_out_trained_on"]) == (10, 6)
    facts = verdicts({"mine": read_ppo_run(out)}, {}, None)
    assert (
        "mine: its held-out prompts are held out",
        "it was trained on 6 of the 10 prompts of --eval_prompts",
        "no",
    ) in facts
