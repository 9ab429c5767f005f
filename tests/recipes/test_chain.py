"""The recipes, each as a person runs it, from prompts to a verdict; and mistakes they may make."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from scipy.stats import linregress

from toolkit import embedded
from toolkit.cli import call, recipe
from toolkit.data.files import read_jsonl, write_jsonl
from toolkit.data.records import to_row
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer

best_of_n = recipe("best_of_n")
demo = recipe("demo")
doctor = recipe("doctor")
evaluate = recipe("evaluate")
label = recipe("label")
ppo = recipe("ppo")
preview_kl = recipe("preview_kl")
report = recipe("report")
reward = recipe("reward")
sample = recipe("sample")

SHORT = ["--response_length", "12", "--truncate_token", ".", "--truncate_after", "4"]
TINY_PPO = ["--total_episodes", "32", "--per_device_train_batch_size", "16", "--response_length",
            "12", "--kl_target", "2", "--use_cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, root: Path, followed: Callable[..., dict[str, Any]]
) -> Path:
    """A folder with the output of every stage; the stages run in the project's root.

    Each says what comes next, which is looked at before that is done.
    """
    out = tmp_path_factory.mktemp("chain")
    cwd = os.getcwd()
    os.chdir(root)
    try:
        next_one = followed(
            sample.main, ["--limit", "60", "--output", str(out / "samples.jsonl"), *SHORT]
        )
        assert next_one["recipe"] == "label" and next_one["serve"]
        next_one = followed(
            label.main,
            [
                "--samples",
                str(out / "samples.jsonl"),
                "--lexicon",
                "data/lexicon.txt",
                "--output",
                str(out / "comparisons.jsonl"),
            ],
        )
        assert next_one["recipe"] == "reward"
        assert next_one["response_length"] == 12 and next_one["truncate_after"] == 4
        next_one = followed(
            reward.main,
            [
                "--comparisons",
                str(out / "comparisons.jsonl"),
                "--output_dir",
                str(out / "reward"),
                "--eval_rows",
                "10",
                "--folds",
                "0",
                "--normalize_samples",
                "32",
                "--use_cpu",
                "--disable_tqdm",
                "true",
                "--per_device_train_batch_size",
                "8",
                "--learning_rate",
                "1e-3",
                *SHORT,
            ],
        )
        assert next_one["recipe"] == "reward_report"
        assert next_one["run"] == str(out / "reward")
        next_one = followed(
            ppo.main,
            [
                "--reward_adapter",
                str(out / "reward/adapter"),
                "--output_dir",
                str(out / "ppo"),
                *TINY_PPO,
            ],
        )
        assert next_one["recipe"] == "evaluate" and next_one["response_length"] == 12
        assert next_one["adapter"] == str(out / "ppo/adapters/policy")
        assert next_one["training_reward"] == "reward"
        next_one = followed(
            evaluate.main,
            [
                "--adapter",
                str(out / "ppo/adapters/policy"),
                "--lexicon",
                "data/lexicon.txt",
                "--output_dir",
                str(out / "evaluation"),
                "--limit",
                "20",
                *SHORT,
            ],
        )
        assert next_one["recipe"] == "report"
        assert next_one["runs"] == [f"policy={out / 'ppo'}"]
    finally:
        os.chdir(cwd)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def test_sampled_rows_have_k_completions_that_end(run: Path) -> None:
    sampled = rows(run / "samples.jsonl")
    assert len(sampled) == 60
    for row in sampled:
        assert row["prompt"].endswith(".") and len(row["completions"]) == 4
        assert all(c.endswith(".") and c.startswith(" ") for c in row["completions"])


def test_the_labeller_picks_the_highest_score_and_says_who_it_was(run: Path) -> None:
    labeled = rows(run / "comparisons.jsonl")
    assert 30 < len(labeled) <= 60
    for row in labeled:
        assert row["scores"][row["best"]] == max(row["scores"])
        assert row["scores"].count(max(row["scores"])) == 1 and row["labeler"] == "lexicon"


def test_the_reward_folder_holds_an_adapter_its_scale_and_its_metrics(run: Path) -> None:
    assert sorted(p.name for p in (run / "reward" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.json",
        "toolkit.json",
    ]
    metrics = json.loads((run / "reward" / "adapter" / "metrics.json").read_text())
    assert metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"]
    facts = json.loads((run / "reward" / "adapter" / "toolkit.json").read_text())
    assert facts["gain"] * facts["raw_mean"] + facts["bias"] == pytest.approx(0, abs=1e-5)
    assert facts["gain"] * facts["raw_std"] == pytest.approx(1, abs=1e-5)


def test_ppo_leaves_a_log_and_an_adapter_that_plain_peft_loads(run: Path) -> None:
    assert len(rows(run / "ppo" / "log.jsonl")) == 2
    model = AutoPeftModelForCausalLM.from_pretrained(run / "ppo" / "adapters" / "policy")
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


def test_the_evaluation_counts_what_its_samples_show(run: Path) -> None:
    result = json.loads((run / "evaluation" / "evaluation.json").read_text())
    shown = rows(run / "evaluation" / "samples.jsonl")
    scores = [row["scores"]["lexicon"] for row in shown]
    assert result["prompts"] == len(shown) == 20
    (pair,) = result["pairs"]
    assert pair["wins"] == sum(s["policy"] > s["reference"] for s in scores)
    by_name = {c["name"]: c for c in result["contenders"]}
    assert by_name["policy"]["adapter"] == str(run / "ppo/adapters/policy")
    assert by_name["policy"]["kl"] == pytest.approx(
        sum(r["log_ratios"]["policy"] for r in shown) / 20
    )


def test_more_judges_are_asked_about_samples_that_are_there(
    run: Path, root: Path, tmp_path: Path
) -> None:
    os.chdir(root)
    again = call(
        evaluate.main,
        [
            "--samples",
            str(run / "evaluation/samples.jsonl"),
            "--lexicon",
            "data/lexicon.txt",
            "--reward_adapter",
            str(run / "reward/adapter"),
            "--training_reward",
            "reward",
            "--output_dir",
            str(tmp_path / "again"),
            *SHORT,
        ],
    )
    first = json.loads((run / "evaluation" / "evaluation.json").read_text())
    drop = ("scores", "judge")
    for before, after in zip(first["contenders"], to_row(again)["contenders"], strict=True):
        assert after["scores"]["lexicon"] == before["scores"]["lexicon"]
        assert {k: v for k, v in after.items() if k not in drop} == pytest.approx(
            {k: v for k, v in before.items() if k not in drop}
        )
    assert [g.name for g in again.gaps] == ["policy"]


def test_the_report_is_made_of_what_the_stages_left(run: Path, tmp_path: Path) -> None:
    facts = call(
        report.main,
        [
            "--runs",
            f"mine={run / 'ppo'}",
            "--rewards",
            str(run / "reward"),
            "--comparisons",
            str(run / "comparisons.jsonl"),
            "--evaluation",
            str(run / "evaluation"),
            "--output_dir",
            str(tmp_path / "report"),
        ],
    )
    names = [name for name, _, _ in facts]
    assert names[:2] == ["mine: the KL was held", "reward: held-out accuracy"]
    page = (tmp_path / "report/report.html").read_text()
    identity = json.loads((run / "ppo" / "run.json").read_text())
    assert identity["seed"] == 42 and identity["versions"]["trl"] in page
    assert identity["git"] is None or identity["git"] in page
    with pytest.raises(InputError, match="nothing to report on"):
        call(report.main, ["--output_dir", str(tmp_path / "none")])


def test_ppo_on_several_reward_models_hands_them_on_as_one_judge(
    root: Path, tmp_path: Path, followed: Callable[..., dict[str, Any]], reward_adapters: list[str]
) -> None:
    os.chdir(root)
    joined = ",".join(reward_adapters)
    words = ["--reward_adapter", joined, "--reward_combine", "mean_minus_std", "--precision"]
    words += ["fp32", "--reference_samples", "32", "--value", "trunk", *TINY_PPO]
    found = followed(ppo.main, [*words, "--output_dir", str(tmp_path / "ppo")])
    assert (found["reward_adapter"], found["reward_combine"]) == (joined, "mean_minus_std")
    assert found["training_reward"] == "reward"
    run = json.loads((tmp_path / "ppo" / "run.json").read_text())
    assert run["settings"]["reward_adapter"] == joined
    assert [verdict["model"] for verdict in run["reward_verdicts"]] == reward_adapters
    for row in rows(tmp_path / "ppo" / "log.jsonl"):
        assert row["reward/disagreement"] > 0 and row["reward/alarm"] in (True, False)
    with pytest.raises(InputError, match="TRL's RLOO takes one"):
        rest = ["--output_dir", str(tmp_path / "r"), "--use_cpu"]
        call(recipe("rloo").main, ["--reward_adapter", joined, *rest])


def test_best_of_n_picks_by_several_reward_models_whose_scores_length_does_not_win(
    root: Path, tmp_path: Path, followed: Callable[..., dict[str, Any]], reward_adapters: list[str]
) -> None:
    os.chdir(root)
    out = tmp_path / "best.jsonl"
    words = ["--reward_adapter", ",".join(reward_adapters), "--reward_combine", "min", "--n", "4"]
    words += ["--limit", "16", "--regress_length", "--length_penalty", "0.25", *SHORT]
    words += ["--output", str(out), "--truncate_token", ".", "--truncate_after", "2"]
    found = followed(best_of_n.main, [*words, "--precision", "fp32"])
    assert (found["recipe"], found["reward_combine"]) == ("evaluate", "min")

    tokenizer = load_tokenizer(str(root / "data/model"))
    texts = [text for row in rows(out) for text in row["completions"]]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    scores = [score for row in rows(out) for score in row["scores"]]
    assert len(set(lengths)) > 2  # what is left of the score's slope is the price alone
    assert linregress(lengths, scores).slope == pytest.approx(-0.25, abs=0.02)


def test_best_of_n_writes_comparisons_whose_pick_scores_highest(
    root: Path, tmp_path: Path, followed: Callable[..., dict[str, Any]]
) -> None:
    os.chdir(root)
    out = tmp_path / "best.jsonl"
    found = followed(
        best_of_n.main,
        [
            "--lexicon",
            "data/lexicon.txt",
            "--n",
            "3",
            "--limit",
            "12",
            "--output",
            str(out),
            *SHORT,
        ],
    )
    for row in rows(out):
        assert len(row["completions"]) == 3 and row["scores"][row["best"]] == max(row["scores"])
    assert found["result"][3][1] == "0.432 nats"  # ln 3 - 2/3
    assert found["result"][4][1].endswith(" tokens")
    assert found["recipe"] == "evaluate" and found["contenders"] == ["best_of_3=best_of_3"]


def test_no_stage_writes_over_what_is_there(run: Path, root: Path) -> None:
    os.chdir(root)
    for main, argv in (
        (sample.main, ["--output", str(run / "samples.jsonl")]),
        (
            reward.main,
            [
                "--comparisons",
                str(run / "comparisons.jsonl"),
                "--use_cpu",
                "--output_dir",
                str(run / "reward"),
            ],
        ),
        (
            ppo.main,
            [
                "--reward_adapter",
                str(run / "reward/adapter"),
                "--output_dir",
                str(run / "ppo"),
                *TINY_PPO,
            ],
        ),
    ):
        with pytest.raises(InputError, match="exists .pass .*--overwrite"):
            call(main, argv)


def test_a_reward_function_serves_ppo_as_well(run: Path, root: Path, tmp_path: Path) -> None:
    os.chdir(root)
    log = call(
        ppo.main,
        [
            "--lexicon",
            "data/lexicon.txt",
            "--output_dir",
            str(tmp_path / "p"),
            "--value",
            "trunk",
            *TINY_PPO,
        ],
    )
    assert [row["update"] for row in log] == [1, 2]


def test_several_rewards_are_weighed_and_held_out_prompts_evaluated(
    run: Path, root: Path, tmp_path: Path
) -> None:
    os.chdir(root)
    log = call(ppo.main, [
        "--reward_adapter", str(run / "reward/adapter"), "--lexicon", "data/lexicon.txt",
        "--reward_model", str(run / "reward/adapter"), "--reward_weights", "1", "-1", "0.5",
        "--eval_prompts", "data/prompts.heldout.jsonl", "--eval_limit", "7", "--eval_every", "1",
        "--value_init", "reward", "--output_dir", str(tmp_path / "p"), *TINY_PPO,
    ])  # fmt: skip
    # The reward adapter, and the same as a model of its own on text, cancel: the lexicon is left.
    alone = call(
        ppo.main,
        [
            "--lexicon",
            "data/lexicon.txt",
            "--output_dir",
            str(tmp_path / "q"),
            *TINY_PPO,
        ],
    )
    score, lexicon = log[0]["objective/scores"], alone[0]["objective/scores"]
    assert score == pytest.approx(0.5 * lexicon, abs=1e-3)
    assert all("eval/scores" in row for row in log)


def test_a_run_goes_on_by_the_recipe_and_refuses_other_settings(root: Path, tmp_path: Path) -> None:
    os.chdir(root)
    words = ["--lexicon", "data/lexicon.txt", "--save_steps", "1", *TINY_PPO]
    whole = call(ppo.main, [*words, "--output_dir", str(tmp_path / "p")])
    shutil.rmtree(tmp_path / "p" / "checkpoint-000002")
    resume = ["--output_dir", str(tmp_path / "p"), "--resume", "auto"]
    assert call(ppo.main, [*words, *resume]) == whole
    record = (tmp_path / "p" / "run.json").read_bytes()
    with pytest.raises(InputError, match="made under other settings, lam: was 0.95, is 0.5"):
        call(ppo.main, [*words, *resume, "--lam", "0.5"])
    assert (tmp_path / "p" / "run.json").read_bytes() == record  # a later resume trusts it


def test_prompts_of_messages_go_through_a_template(root: Path, tmp_path: Path) -> None:
    os.chdir(root)
    chats = [
        {"prompt": [{"role": "user", "content": f"Tell me of the market {i}."}]} for i in range(16)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(c) for c in chats))
    words = ["--prompts", str(tmp_path / "chats.jsonl"), "--chat_template", "plain"]
    call(sample.main, [*words, "--output", str(tmp_path / "samples.jsonl")])
    assert [row["prompt"] for row in rows(tmp_path / "samples.jsonl")] == [
        chat["prompt"] for chat in chats
    ]
    log = call(
        ppo.main,
        [*words, "--lexicon", "data/lexicon.txt", "--output_dir", str(tmp_path / "p"), *TINY_PPO],
    )
    assert len(log) == 2
    with pytest.raises(InputError, match="no chat template"):
        call(
            ppo.main,
            [
                *words[:2],
                "--lexicon",
                "data/lexicon.txt",
                "--output_dir",
                str(tmp_path / "q"),
                *TINY_PPO,
            ],
        )


def test_the_doctor_shows_the_plan_and_loads_nothing(
    run: Path,
    root: Path,
    no_model: None,
    capsys: pytest.CaptureFixture[str],
    understood: Callable[[str], dict[str, Any]],
) -> None:
    os.chdir(root)
    words = ["--reward_adapter", str(run / "reward/adapter"), "--use_cpu", "true"]
    output = ["--output_dir", str(run / "doctor")]
    assert call(doctor.main, [*words, *output, "--prompt_length", "32"]) == 0
    shown = capsys.readouterr().out
    found = understood(shown)
    assert found["recipe"] == "ppo" and found["given"] == {
        "reward_adapter",
        "use_cpu",
        "output_dir",
    }
    for text in (
        "policy      adapter r=16",
        "reference   no adapter",
        "KV cache",
        "this fits",
        "ok    4-bit gradients after sampling",
        "torch",
    ):
        assert text in shown
    assert (
        call(
            doctor.main, [*words, "--per_device_train_batch_size", "1000000", "--kl_horizon", "1e9"]
        )
        == 1
    )
    assert "this does not fit; --gradient_checkpointing true" in capsys.readouterr().out


def test_the_preview_says_whether_the_kl_will_settle(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--kl_target", "5", "--batch_size", "256", "--total_episodes", "51200"]
    call(preview_kl.main, [*words, "--kl_horizon", "2560"])
    assert "does not settle" not in capsys.readouterr().out
    call(preview_kl.main, [*words, "--kl_horizon", "1e6"])
    assert "does not settle" in capsys.readouterr().out


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake that can be seen in the files must be found before a model is loaded."""

    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr("toolkit.models.from_arguments.load_base", loaded)


def broken(good: str, tmp_path: Path, edit: Callable[[dict], dict]) -> str:
    path = tmp_path / "broken.jsonl"
    lines = Path(good).read_text().splitlines()
    lines[2] = json.dumps(edit(json.loads(lines[2])))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


MISTAKES: list[tuple[str, Any, Callable[[Path, Path], list[str]], str]] = [
    (
        "sample: no such prompts",
        sample.main,
        lambda run, t: ["--prompts", "no.jsonl"],
        "--prompts: no.jsonl: no such file",
    ),
    (
        "sample: prompts without prompts",
        sample.main,
        lambda run, t: ["--prompts", str(run / "ppo" / "log.jsonl")],
        r"log.jsonl:1: prompt: missing",
    ),
    (
        "sample: K of one",
        sample.main,
        lambda run, t: ["--completions", "1"],
        "completions is 1, but must be at least 2",
    ),
    (
        "sample: no such model",
        sample.main,
        lambda run, t: ["--model_name_or_path", "./no"],
        "./no: no such folder",
    ),
    (
        "sample: a model without weights",
        sample.main,
        lambda run, t: ["--model_name_or_path", str(t)],
        "no config.json",
    ),
    (
        "sample: a truncation token of two tokens",
        sample.main,
        lambda run, t: ["--truncate_token", "the end"],
        "tokens, not one",
    ),
    (
        "sample: a rule that nothing meets",
        sample.main,
        lambda run, t: ["--truncate_token", ".", "--truncate_after", "24"],
        "below response_length",
    ),
    (
        "sample: a reward adapter as the policy",
        sample.main,
        lambda run, t: ["--adapter", str(run / "reward/adapter")],
        "must be that of a policy adapter .CAUSAL_LM",
    ),
    (
        "sample: all prompts too long",
        sample.main,
        lambda run, t: ["--max_prompt_length", "2"],
        "none of the 2000 prompts",
    ),
    (
        "sample: beyond the context",
        sample.main,
        lambda run, t: ["--response_length", "250"],
        "do not fit the context of data/model, which is 256",
    ),
    (
        "ppo: beyond the context",
        ppo.main,
        lambda run, t: ["--use_cpu", "--lexicon", "data/lexicon.txt", "--response_length", "250"],
        "do not fit the context of data/model, which is 256",
    ),
    (
        "label: samples that are comparisons of one",
        label.main,
        lambda run, t: [
            "--lexicon",
            "data/lexicon.txt",
            "--samples",
            broken(run / "samples.jsonl", t, lambda r: r | {"completions": ["x"]}),
        ],
        r"broken.jsonl:3: completions: only 1",
    ),
    (
        "label: an empty completion",
        label.main,
        lambda run, t: [
            "--lexicon",
            "data/lexicon.txt",
            "--samples",
            broken(run / "samples.jsonl", t, lambda r: r | {"completions": ["x", ""]}),
        ],
        r"broken.jsonl:3: completions.1.: empty",
    ),
    (
        "label: nobody to label",
        label.main,
        lambda run, t: ["--samples", str(run / "samples.jsonl")],
        "nobody is to label .add --serve ",
    ),
    (
        "label: a reward adapter as the labeller",
        label.main,
        lambda run, t: ["--samples", str(run / "samples.jsonl"), "--reward_adapter", "x"],
        "unknown argument --reward_adapter",
    ),
    (
        "label: too much noise",
        label.main,
        lambda run, t: ["--noise", "1.5"],
        "noise is 1.5, but must be at most 1",
    ),
    (
        "label: a lexicon that knows no word",
        label.main,
        lambda run, t: [
            "--samples",
            str(run / "samples.jsonl"),
            "--reward_function",
            "operator:not_there",
        ],
        "has no function",
    ),
    (
        "reward: best out of range",
        reward.main,
        lambda run, t: [
            "--use_cpu",
            "--comparisons",
            broken(run / "comparisons.jsonl", t, lambda r: r | {"best": 4}),
        ],
        r"broken.jsonl:3: best: 4, out of range",
    ),
    (
        "reward: no best",
        reward.main,
        lambda run, t: ["--use_cpu", "--comparisons", str(run / "samples.jsonl")],
        r"samples.jsonl:1: best: missing.*; 59 more bad rows",
    ),
    (
        "reward: nothing left to train on",
        reward.main,
        lambda run, t: [
            "--use_cpu",
            "--comparisons",
            str(run / "comparisons.jsonl"),
            "--eval_rows",
            "1000",
        ],
        "leaves none of",
    ),
    (
        "reward: all too long",
        reward.main,
        lambda run, t: [
            "--use_cpu",
            "--comparisons",
            str(run / "comparisons.jsonl"),
            "--eval_rows",
            "5",
            "--max_length",
            "3",
        ],
        "no training row fits 3 tokens",
    ),
    ("ppo: no reward", ppo.main, lambda run, t: ["--use_cpu"], "no reward: give"),
    (
        "ppo: two rewards",
        ppo.main,
        lambda run, t: ["--use_cpu", "--lexicon", "data/lexicon.txt", "--reward_adapter", "x"],
        "2 rewards need --reward_weights",
    ),
    (
        "ppo: weights for others",
        ppo.main,
        lambda run, t: ["--use_cpu", "--lexicon", "data/lexicon.txt", "--reward_weights", "1", "2"],
        "2 reward_weights for 1 rewards",
    ),
    (
        "ppo: no such reward model",
        ppo.main,
        lambda run, t: ["--use_cpu", "--reward_model", "./nowhere"],
        "nowhere: no such folder",
    ),
    (
        "ppo: a value from a reward that is not there",
        ppo.main,
        lambda run, t: ["--use_cpu", "--lexicon", "data/lexicon.txt", "--value_init", "reward"],
        "needs a --reward_adapter",
    ),
    (
        "ppo: a reward adapter to start from",
        ppo.main,
        lambda run, t: [
            "--use_cpu",
            "--lexicon",
            "data/lexicon.txt",
            "--policy_adapter",
            str(run / "reward/adapter"),
        ],
        "must be that of a policy adapter .CAUSAL_LM",
    ),
    (
        "ppo: fewer processes than asked for",
        ppo.main,
        lambda run, t: ["--use_cpu", "--lexicon", "data/lexicon.txt", "--world_size", "3"],
        "world_size is 3, but the number of processes is 1",
    ),
    (
        "ppo: more than the machine holds",
        ppo.main,
        lambda run, t: [
            "--use_cpu",
            "--lexicon",
            "data/lexicon.txt",
            "--per_device_train_batch_size",
            "1000000",
            "--kl_horizon",
            "1e9",
        ],
        "MiB are needed while optimizing.*--per_device_train_batch_size [0-9]+",
    ),
    (
        "ppo: a policy adapter as the reward",
        ppo.main,
        lambda run, t: ["--use_cpu", "--reward_adapter", str(run / "ppo/adapters/policy")],
        "must be that of a reward adapter .SEQ_CLS",
    ),
    (
        "evaluate: no such adapter",
        evaluate.main,
        lambda run, t: ["--lexicon", "data/lexicon.txt", "--adapter", "nowhere"],
        "contenders: nowhere: no such folder|nowhere: neither",
    ),
    (
        "evaluate: nobody judges",
        evaluate.main,
        lambda run, t: ["--adapter", str(run / "ppo/adapters/policy")],
        "judges: none is given",
    ),
    (
        "evaluate: a training reward that is no judge",
        evaluate.main,
        lambda run, t: [
            "--adapter",
            str(run / "ppo/adapters/policy"),
            "--lexicon",
            "data/lexicon.txt",
            "--training_reward",
            "x",
        ],
        "no judge that scores is called 'x'",
    ),
    (
        "evaluate: samples of something else",
        evaluate.main,
        lambda run, t: ["--samples", str(run / "samples.jsonl"), "--lexicon", "data/lexicon.txt"],
        "evaluation.json",
    ),
]


@pytest.mark.parametrize(
    ("main", "argv", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_is_one_line_before_any_model_is_loaded(
    run: Path,
    root: Path,
    tmp_path: Path,
    no_model: None,
    main: Any,
    argv: Callable[[Path, Path], list[str]],
    message: str,
) -> None:
    os.chdir(root)
    target = "--output_dir" if main in (reward.main, ppo.main, evaluate.main) else "--output"
    words = [*argv(run, tmp_path), target, str(tmp_path / "result")]
    with pytest.raises(InputError, match=message) as caught:
        call(main, words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "result").exists()


def test_a_reward_adapter_for_another_base_is_refused(
    run: Path, root: Path, tmp_path: Path, no_model: None
) -> None:
    os.chdir(root)
    other = tmp_path / "other"
    shutil.copytree(root / "data" / "model", other)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(InputError, match="trained on .*data/model, not .*other"):
        call(
            ppo.main,
            [
                "--reward_adapter",
                str(run / "reward/adapter"),
                "--model_name_or_path",
                str(other),
                "--output_dir",
                str(tmp_path / "p"),
                "--use_cpu",
            ],
        )


def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(root: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "recipes/label.py",
            "--samples",
            "nowhere.jsonl",
            "--lexicon",
            "data/lexicon.txt",
            "--output",
            "outputs/never.jsonl",
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert (
        last == "error: --samples: nowhere.jsonl: no such file (give the path of an existing file)"
    )
    assert "Traceback" not in done.stderr


def test_the_demo_says_no_with_its_exit_code(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In five updates the policy cannot be better by much, nor the KL at its target."""
    for name in ("data", "recipes"):
        (tmp_path / name).symlink_to(root / name)
    shutil.copytree(root / "recipes" / "configs" / "demo", tmp_path / "configs")
    fewer = {"ppo": {"kl_coef_samples": ("8192", "1024"),
                     "value_warmup": ("4", "4\nnum_ppo_epochs: 1")},
             "reward": {"num_train_epochs": ("2", "1\ncheck_reload: false")},
             "evaluate": {"limit": ("512", "128"), "frontier_prompts": ("32", "8")}}  # fmt: skip
    for name, counts in fewer.items():
        path = tmp_path / "configs" / f"{name}.yaml"
        text = path.read_text()
        for key, (shipped, fast) in counts.items():
            assert f"{key}: {shipped}\n" in text
            text = text.replace(f"{key}: {shipped}\n", f"{key}: {fast}\n")
        path.write_text(text)
    for module in (embedded, demo):
        monkeypatch.setattr(module, "CONFIGS", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    assert call(demo.main, ["--prompts", "300", "--total_episodes", "640"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "open: outputs/demo/report/report.html"  # of the stages, none says a next
    assert not [line for line in said[:-1] if line.startswith(("next: ", "or: ", "open: "))]
    page = (tmp_path / "outputs/demo/report/report.html").read_text()
    assert "the KL was held" in page and "data:image/png" in page
    assert (tmp_path / "outputs/demo/report/frontier_lexicon.png").stat().st_size > 10_000


def test_a_labeller_that_finds_all_alike_leaves_no_comparison_and_says_so(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    understood: Callable[[str], dict[str, Any]],
) -> None:
    (tmp_path / "words.txt").write_text("nosuchword\t1\n")
    samples, words = str(run / "samples.jsonl"), str(tmp_path / "words.txt")
    out = str(tmp_path / "c.jsonl")
    call(label.main, ["--samples", samples, "--lexicon", words, "--output", out])
    assert (tmp_path / "c.jsonl").read_text() == ""
    said = capsys.readouterr().out
    assert "rows are ties, so there is no pick to train on" in said
    found = understood(said)
    assert (found["recipe"], found["ties"], found["lexicon"]) == ("label", "random", words)
    assert found["output"] == str(tmp_path / "c-2.jsonl")


def test_a_reward_report_says_what_it_will_train_before_it_does(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], understood: Any
) -> None:
    os.chdir(root)
    words = ["--run", str(run / "reward"), "--output_dir", str(tmp_path / "page")]
    call(recipe("reward_report").main, [*words, "--label_fractions", "0.5,0.25"])
    said = capsys.readouterr().out
    trained = json.loads((run / "reward" / "run.json").read_text())
    count, seconds = trained["metrics"]["train_comparisons"], trained["seconds"]
    announced = said.index("Now 2 more reward models are trained")
    assert f"on {round(count / 4)}, {round(count / 2)} comparisons" in said
    assert f"trained for {seconds:.0f} s, so these take about {0.75 * seconds:.0f} s" in said
    assert announced < said.index("trained on 25% of the labels")
    assert understood(said)["recipe"] in ("ppo", "sample")


def test_sampling_says_how_many_completions_end_by_themselves(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    words = ["--limit", "8", "--stop_token", "eos"]
    call(sample.main, [*words, "--response_length", "2", "--output", str(tmp_path / "a.jsonl")])
    assert "warning: 0 of 32 completions end by themselves" in capsys.readouterr().out
    cut = ["--truncate_token", ".", "--truncate_after", "4", "--output", str(tmp_path / "b.jsonl")]
    call(sample.main, [*words, *cut])
    assert "by themselves" not in capsys.readouterr().out


def test_labeling_that_has_just_begun_goes_on_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("good\t1\n")
    rows = [{"prompt": f"{i}.", "completions": [" Good.", " Bad."]} for i in range(8)]
    write_jsonl(tmp_path / "samples.jsonl", rows)
    words = ["--samples", str(tmp_path / "samples.jsonl"), "--store", str(tmp_path / "s.sqlite"),
             "--lexicon", str(tmp_path / "words.txt"), "--output",
             str(tmp_path / "c.jsonl")]  # fmt: skip
    call(label.main, [*words, "--limit", "2"])
    said = capsys.readouterr().out
    assert "Without an answer yet: 6 of 8 items." in said
    assert re.search(r"next: .*label.* --overwrite\nor: .*reward ", said)

    call(label.main, [*words, "--overwrite"])
    said = capsys.readouterr().out
    assert "Without an answer" not in said and re.search(r"next: .*reward ", said)
