"""What a recipe says last: commands that their recipes take, with what must be handed on."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toolkit import next_step
from toolkit.arguments.model import ModelArguments
from toolkit.arguments.prompts import PromptArguments
from toolkit.arguments.sampling import SamplingArguments
from toolkit.cli import bind, call, recipe
from toolkit.evaluation.contenders import parse_contenders
from toolkit.evaluation.judges import PeopleJudge
from toolkit.next_step import (
    DEFAULTS,
    SHARED,
    Step,
    again,
    beside,
    called,
    command,
    evaluation,
    fresh,
    held_out_flags,
    note_settings,
    reward_beside,
    say_next,
    say_open,
    settings_beside,
    settings_file,
    step,
    wrote,
)
from toolkit.scoring.arguments import Spec

Understood = Callable[[str], dict[str, Any]]
OWN = ModelArguments(model_name_or_path="my model", precision="bf16")


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process looks as if it had been started from a checkout."""
    monkeypatch.setattr("sys.argv", ["recipes/toy.py"])


# The command line


@pytest.mark.parametrize(
    ("started", "wanted"),
    [
        ("recipes/ppo.py", "python recipes/reward_report.py --run 'my run'"),
        ("/a b/recipes/ppo.py", "python '/a b/recipes/reward_report.py' --run 'my run'"),
        ("/usr/bin/preftune", "preftune reward-report --run 'my run'"),
        ("/x/toolkit/__main__.py", "python -m toolkit reward-report --run 'my run'"),
    ],
)
def test_the_command_is_written_as_the_first_one_was(
    monkeypatch: pytest.MonkeyPatch, started: str, wanted: str
) -> None:
    monkeypatch.setattr("sys.argv", [started])
    assert command(Step("reward_report", {"run": "my run"})) == wanted


def test_several_processes_go_on_as_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["recipes/ppo.py"])
    launched = "accelerate launch --num_processes 2 recipes/ppo.py --resume auto"
    assert command(again("ppo", resume="auto")) == launched
    assert command(Step("report")) == "python recipes/report.py"


def test_several_machines_go_on_as_several(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"WORLD_SIZE": "16", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1"}
    for name, value in (told | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["recipes/ppo.py"])
    assert command(again("ppo", resume="auto")) == (
        "accelerate launch --num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 "
        "--main_process_port 29500 --num_processes 16 recipes/ppo.py --resume auto"
    )


def test_a_value_is_one_word_and_a_switch_is_none() -> None:
    flags = {"serve": True, "none": None, "off": False, "kwargs": {"a": False}, "two": ["x", "y z"]}
    words = Step("label", flags).words()
    assert words == ["--serve", "--off", "false", "--kwargs", '{"a": false}', "--two", "x", "y z"]
    assert shlex.split(command(Step("label", flags)))[2:] == words


def test_what_was_typed_is_said_again_but_for_what_is_replaced() -> None:
    typed = ["--config", "a.yaml", "--resume", "auto", "--kl-target=2", "--two", "x", "y", "--end"]
    with called(typed):
        kept = again("ppo", "kl_target", resume="auto").words()
    assert kept == ["--config", "a.yaml", "--two", "x", "y", "--end", "--resume", "auto"]


# What is handed on


@pytest.mark.parametrize("name", SHARED)
def test_each_recipe_takes_what_it_may_be_handed_and_has_the_same_defaults(name: str) -> None:
    assert {*DEFAULTS} == {flag for shared in SHARED.values() for flag in shared}
    told = {k: v for part in bind(recipe(name).main, []) for k, v in vars(part).items()}
    for flag in SHARED[name]:
        assert flag in told, f"{name} has no --{flag}"
        assert told[flag] == DEFAULTS[flag], f"{name}: --{flag} has another default"


@pytest.mark.parametrize("name", ["sample", "reward", "sft", "preference", "rloo", "ppo"])
def test_a_recipe_that_was_told_nothing_hands_nothing_on(name: str) -> None:
    assert step("ppo", *bind(recipe(name).main, [])).flags == {}


def test_only_what_differs_from_the_defaults_is_handed_on_and_only_if_it_is_taken() -> None:
    sampling = SamplingArguments(response_length=12, max_prompt_length=99, prompt_tokens=4)
    told = step("reward", OWN, sampling, comparisons="c.jsonl").flags
    assert told == {
        "comparisons": "c.jsonl",
        "model_name_or_path": "my model",
        "precision": "bf16",
        "response_length": 12,
        "max_prompt_length": 99,
    }
    assert step("sft", OWN, sampling).flags == {
        "model_name_or_path": "my model",
        "precision": "bf16",
    }
    assert step("label", OWN, sampling).flags == {}
    assert step("reward", OWN, model_name_or_path="MODEL").flags == {
        "model_name_or_path": "MODEL",
        "precision": "bf16",
    }


def test_the_settings_of_samples_come_to_those_who_learn_from_the_labels(
    tmp_path: Path, understood: Understood, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, picks = tmp_path / "samples.jsonl", tmp_path / "picks.jsonl"
    row = {"prompt": "It was", "completions": [" good.", " bad."]}
    samples.write_text(json.dumps(row))
    told = {"model_name_or_path": "m", "temperature": 0.5, "limit": 3}
    settings_file(samples).write_text(yaml.safe_dump(told))
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("good\t1\n")
    words = ["--samples", str(samples), "--lexicon", str(lexicon), "--output", str(picks)]
    call(recipe("label").main, words)
    found = understood(capsys.readouterr().out)
    assert found["recipe"] == "reward" and found["comparisons"] == str(picks)
    assert found["given"] == {"comparisons", "output_dir", "model_name_or_path", "temperature"}

    settings_file(samples).write_text("not: [yaml")
    assert settings_beside(samples) is None
    call(recipe("label").main, [*words, "--overwrite"])
    said = capsys.readouterr().out
    assert understood(said)["model_name_or_path"] == "MODEL"
    assert "put your model's folder, its id on the Hub, or demo:model in place of MODEL." in said


def test_a_secret_that_was_typed_is_not_printed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "correct horse battery")
    typed = ["--judge_url", "http://localhost/v1?key=correct horse battery", "--title", "a  b"]
    with called(typed):
        line = command(again("label"))
    assert "horse" not in line and "***" in line
    assert shlex.split(line)[-1] == "a  b"  # the others stay as they were


def test_only_the_outermost_command_notes_its_settings(tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    with called(["sample"]):
        note_settings(samples, {"temperature": 0.5})
        assert settings_beside(samples) == {"temperature": 0.5}
        with called(["sample"]):  # as an online loop calls it
            note_settings(samples, {"temperature": 0.9})
        assert settings_beside(samples) is None


# Who judges a policy


def test_a_policy_of_the_embedded_model_is_judged_by_what_it_was_not_trained_on_too(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    rewards = [Spec("reward", "reward_adapter", "r")]
    found = evaluation(tmp_path / "ppo/adapters/policy", ModelArguments(), judges=rewards).flags
    assert (found["reward_adapter"], found["lexicon"]) == ("r", next_step.DEMO_LEXICON)
    assert found["training_reward"] == "reward" and "prompts" not in found


def test_another_models_policy_needs_held_out_prompts_and_people_if_nobody_else_judges(
    tmp_path: Path,
) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "run.json").touch()
    found = evaluation(tmp_path / "sft" / "adapter", OWN, judges=[]).flags
    assert found["prompts"] == "HELD_OUT.jsonl" and found["precision"] == "bf16"
    assert found["judges"] == [f"people=people:{tmp_path / 'matches.sqlite'}"]
    assert found["output_dir"] == str(tmp_path / "evaluation")

    # If the only judge is what it was trained on, that is marked, so that no report hides it.
    alone = evaluation("p", OWN, judges=[Spec("reward", "reward_adapter", "r")]).flags
    assert alone["training_reward"] == "reward"

    known = PromptArguments(eval_prompts="mine.jsonl", eval_skip=5)
    two = [Spec("a", "function", "m:a"), Spec("b", "function", "n:b")]
    found = evaluation("p", OWN, judges=two, held_out=held_out_flags(known)).flags
    assert (found["prompts"], found["skip"]) == ("mine.jsonl", 5)
    assert found["reward_function"] == "m:a" and found["judges"] == ["b=function:n:b"]
    assert found["training_reward"] is None


def test_a_reward_adapter_is_found_beside_a_run_if_it_is_of_the_same_base(tmp_path: Path) -> None:
    assert reward_beside(tmp_path / "sft", "m") is None
    folder = tmp_path / "reward" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/m"}')
    assert reward_beside(tmp_path / "sft", "org/m") == str(folder)
    assert reward_beside(tmp_path / "sft", "org/other") is None


# Where it is written, and who says it


def test_an_output_gets_a_number_if_something_is_there(tmp_path: Path) -> None:
    path = tmp_path / "picks.jsonl"
    assert fresh(path) == str(path)
    path.touch()
    assert fresh(path) == str(tmp_path / "picks-2.jsonl")
    (tmp_path / "picks-2.jsonl").touch()
    assert beside(tmp_path / "samples.jsonl", "picks.jsonl") == str(tmp_path / "picks-3.jsonl")


def test_only_the_outermost_recipe_says_what_comes_next(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with called(["--outer"]), called(["--inner"]):
        wrote("a", "b")
        say_next(Step("report"))
        say_open("page.html")
    assert capsys.readouterr().out == "wrote: a (b)\n"

    with called(["--outer"]):
        say_next(Step("report"), Step("ppo", {"prompts": "PROMPTS.jsonl"}))
        say_open("my page.html")
    assert capsys.readouterr().out.splitlines() == [
        "In the command below, put your file of prompts in place of PROMPTS.jsonl.",
        "next: python recipes/report.py",
        "or: python recipes/ppo.py --prompts PROMPTS.jsonl",
        "open: 'my page.html'",
    ]

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    say_next(Step("report"))
    assert capsys.readouterr().out == ""


# Recipes that need no model


@pytest.fixture
def comparisons(tmp_path: Path) -> Path:
    path = tmp_path / "their picks.jsonl"
    rows = [{"prompt": f"{i}", "completions": ["a", "b"], "best": i % 2} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("to", "wanted"), [("demonstrations", "sft"), ("prompts", "sample")])
def test_converted_dialogues_are_learned_from_or_answered(
    tmp_path: Path, followed: Callable[..., dict[str, Any]], to: str, wanted: str
) -> None:
    (tmp_path / "a.json").write_text('[{"instruction": "Tea?", "input": "", "output": "Yes."}]')
    out = tmp_path / "made.jsonl"
    words = ["--input", str(tmp_path / "a.json"), "--to", to, "--output", str(out)]
    found = followed(recipe("convert").main, words)
    assert found["recipe"] == wanted
    assert str(out) in (found.get("demonstrations"), found.get("prompts"))


def test_rows_that_are_shown_lead_to_the_same_command_without_show(
    comparisons: Path, tmp_path: Path, followed: Callable[..., dict[str, Any]]
) -> None:
    out = tmp_path / "made.jsonl"
    words = ["--input", str(comparisons), "--show", "2", "--output", str(out)]
    found = followed(recipe("convert").main, words)
    assert found["recipe"] == "convert" and not found["show"] and not out.exists()


def test_ppo_reads_the_prompts_of_a_table_by_the_columns_that_were_named() -> None:
    from toolkit.arguments.comparisons import ComparisonArguments

    words = ["prompt=Frage", "completions=A,B", "best=Wahl"]
    given = ComparisonArguments(comparisons="a.csv", columns=words, as_messages=True)
    assert step("ppo", given, prompts="a.csv").words() == [
        *("--prompts", "a.csv", "--columns", *words, "--as_messages")
    ]
    assert step("ppo", given, prompts="b.jsonl").words() == ["--prompts", "b.jsonl"]


@pytest.mark.parametrize("to", ["comparisons", "pairs"])
def test_converted_comparisons_are_learned_from(
    comparisons: Path, tmp_path: Path, followed: Callable[..., dict[str, Any]], to: str
) -> None:
    out = tmp_path / f"{to}.jsonl"
    words = ["--input", str(comparisons), "--to", to, "--output", str(out)]
    found = followed(recipe("convert").main, words)
    if to == "pairs":
        assert found["recipe"] == "convert" and found["to"] == "comparisons"
    else:
        assert found["recipe"] == "reward" and found["comparisons"] == str(out)
        assert found["output_dir"] == str(tmp_path / "reward")


def test_a_preview_leads_to_the_run_that_it_was_of(followed: Callable[..., dict[str, Any]]) -> None:
    words = ["--kl_target", "3", "--kl_horizon", "9000", "--batch_size", "256"]
    found = followed(recipe("preview_kl").main, words)
    assert found["recipe"] == "ppo" and (found["kl_target"], found["kl_horizon"]) == (3, 9000)
    batch = found["per_device_train_batch_size"] * found["gradient_accumulation_steps"]
    assert batch == 256 and found["total_episodes"] == 20_000


def test_scores_made_of_rankings_are_learned_as_scores(
    comparisons: Path, tmp_path: Path, followed: Callable[..., dict[str, Any]]
) -> None:
    out = tmp_path / "scores.jsonl"
    words = ["--comparisons", str(comparisons), "--scores", str(out)]
    found = followed(recipe("ratings").main, words)
    assert (found["recipe"], found["loss_type"]) == ("reward", "scalar_rating")
    assert found["comparisons"] == str(out)


def test_a_translated_yaml_leads_to_the_run_that_it_is_for(
    tmp_path: Path, followed: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "theirs.yaml").write_text("learning_rate: 1.0e-5\n")
    out = tmp_path / "ours.yaml"
    words = ["--input", str(tmp_path / "theirs.yaml"), "--output", str(out)]
    found = followed(recipe("trl_config").main, words)
    assert found["recipe"] == "ppo" and found["learning_rate"] == 1e-5
    assert found["prompts"] == "PROMPTS.jsonl"


def test_a_store_leads_to_its_picks_and_these_to_a_reward_model(
    tmp_path: Path, followed: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    label, store = recipe("label").main, str(tmp_path / "labels.sqlite")
    lexicon, samples = tmp_path / "words.txt", tmp_path / "samples.jsonl"
    lexicon.write_text("good\t1\n")
    samples.write_text(json.dumps({"prompt": "It was", "completions": [" good.", " bad."]}))

    found = followed(label, ["--store", store, "--samples", str(samples)])
    assert found["recipe"] == "label" and found["serve"] and found["store"] == store
    found = followed(label, ["--store", store, "--lexicon", str(lexicon)])
    assert found["recipe"] == "label" and found["output"] == str(tmp_path / "comparisons.jsonl")
    found = followed(label, ["--store", store, "--output", found["output"]])
    assert found["recipe"] == "reward" and found["model_name_or_path"] == "MODEL"
    found = followed(label, ["--store", store, "--backup", str(tmp_path / "copy.sqlite")])
    assert found["output"] == str(tmp_path / "comparisons-2.jsonl")

    people = PeopleJudge("people", str(tmp_path / "matches.sqlite"))
    people.verdicts([("It was", " good.", " bad.")])
    call(label, ["--store", people.path, "--lexicon", str(lexicon)])
    assert capsys.readouterr().out.endswith("run preftune evaluate again with --samples.\n")


@pytest.mark.slow  # the report's pictures are imported
def test_a_report_leads_to_a_dry_run_of_the_policy_that_it_is_on(
    tmp_path: Path, understood: Understood, capsys: pytest.CaptureFixture[str]
) -> None:
    report, run = recipe("report"), tmp_path / "ppo"
    args = report.ReportArguments(runs=[f"mine={run}"])
    assert report.publish_of(args, None) is None

    adapter = run / "adapters" / "policy"
    adapter.mkdir(parents=True)
    for base, id_wanted in ((str(tmp_path), True), ("org/base", False)):
        (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        say_next(report.publish_of(args, None))
        found = understood(capsys.readouterr().out)
        assert (found["recipe"], found["adapter"]) == ("publish", str(adapter))
        assert found["dry_run"] and ("base_model_id" in found["given"]) == id_wanted


def test_an_evaluation_says_how_much_it_will_do() -> None:
    evaluate = recipe("evaluate")
    contenders = parse_contenders(["a=org/model", "b=best_of_4"])
    args = bind(
        evaluate.main,
        ["--judges", "j=http:m@u", "l=lexicon:x", "--frontier_prompts", "5", "--pick_limit", "7"],
    )[-1]
    assert evaluate.work(args, contenders, 40).splitlines() == [
        "3 contenders on 40 prompts are compared by 2 judges.",
        "240 completions are sampled for this first.",
        "2560 more are sampled for the frontier (--frontier_prompts 0 for none).",
        "Each HTTP judge is asked 14 questions at most (see --pick_limit).",
    ]
