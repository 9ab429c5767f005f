"""One file for a project: each recipe reads its part, and mistakes are named with their line."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import bind, call, recipe
from toolkit.commands import command_names
from toolkit.errors import Caution, InputError
from toolkit.pipeline.comparison import judge_and_report
from toolkit.project import ADAPTERS, METHODS, POLICIES, STAGES, Project, has_sections
from toolkit.training import methods

WHOLE = """\
model_name_or_path: demo:model
response_length: 12
stop_token: none
prompts: prompts.txt
folder: out
seed: 3
sample:
  completions: 3
label:
reward:
  learning_rate: 1e-3
ppo:
  total_episodes: 128
evaluate:
  contenders: [best-of-4=best_of_4]
report:
"""


def written(tmp_path: Path, text: str = WHOLE) -> Path:
    path = tmp_path / "project.yaml"
    path.write_text(text)
    return path


def told(name: str, path: Path, *words: str) -> dict[str, Any]:
    bound = bind(recipe(name).main, ["--config", str(path), *words])
    return {key: value for part in bound for key, value in vars(part).items()}


def test_commands_that_run_others_read_their_settings_from_the_project(tmp_path: Path) -> None:
    path = tmp_path / "project.yaml"
    path.write_text("prompts: p\nfolder: out\nsample:\nlabel:\nreward:\nppo:\nevaluate:\n")
    found = Project.read(path)
    configs = ("reward_config", "ppo_config", "evaluate_config")
    told, _ = found.told("label_sweep", {*configs, "output_dir"})
    assert [told[name] for name in configs] == [str(path)] * 3
    assert told["output_dir"] == str(Path("out") / "label_sweep")
    told, _ = found.told("head_to_head", {"evaluate_config", "output_dir"})
    assert told == {"evaluate_config": str(path), "output_dir": str(Path("out") / "head_to_head")}


def test_the_tables_of_methods_and_adapters_are_those_of_the_methods() -> None:
    rows = methods.METHODS
    assert set(METHODS) == {n for n, row in rows.items() if row.recipe != n}
    assert {n: rows[n].recipe for n in METHODS} == METHODS
    for name, adapter in ADAPTERS.items():
        assert rows.get(name, rows["dpo"]).adapter == adapter
    assert set(POLICIES) == {*rows, "preference"} - {"reward", "warp", "ilql"}
    assert set(STAGES) - set(METHODS) <= set(command_names())


def test_a_file_with_sections_is_a_project_and_one_without_is_none() -> None:
    assert has_sections({"model_name_or_path": "m", "reward": {"seed": 1}})
    assert has_sections({"reward-report": None})
    assert not has_sections({"run": "outputs/reward", "chat_template_kwargs": {"a": 1}})


def test_each_recipe_reads_the_shared_keys_the_paths_and_its_own_section(tmp_path: Path) -> None:
    path = written(tmp_path)
    sample, reward, ppo = (told(name, path) for name in ("sample", "reward", "ppo"))
    assert (sample["response_length"], sample["seed"], sample["completions"]) == (12, 3, 3)
    assert (sample["prompts"], sample["output"]) == ("out/prompts.jsonl", "out/samples.jsonl")
    assert (reward["comparisons"], reward["output_dir"]) == ("out/comparisons.jsonl", "out/reward")
    assert (reward["learning_rate"], reward["response_length"], reward["seed"]) == (1e-3, 12, 3)
    assert (ppo["reward_adapter"], ppo["output_dir"]) == ("out/reward/adapter", "out/ppo")
    assert (ppo["total_episodes"], ppo["prompts"]) == (128, "out/prompts.jsonl")

    evaluate, report = told("evaluate", path), told("report", path)
    assert evaluate["contenders"] == ["ppo=out/ppo/adapters/policy", "best-of-4=best_of_4"]
    assert evaluate["prompts"] == "out/prompts.heldout.jsonl"
    assert (evaluate["reward_adapter"], evaluate["training_reward"]) == (
        "out/reward/adapter",
        "reward",
    )
    assert (report["runs"], report["rewards"]) == (["ppo=out/ppo"], ["reward=out/reward"])
    assert (report["evaluation"], report["output_dir"]) == ("out/evaluation", "out/report")
    assert told("doctor", path)["total_episodes"] == 128  # doctor is asked about the PPO run
    publish = told("publish", path)
    assert publish["adapter"] == "out/ppo/adapters/policy"
    assert publish["model_name_or_path"] is None  # the adapter's own record says it
    assert told("sweep", path)["ppo_config"] == told("online", path)["ppo_config"] == str(path)


def test_the_report_shows_how_models_are_rated_unless_choices_become_scores(tmp_path: Path) -> None:
    assert told("report", written(tmp_path))["ratings"] is None
    rated = written(tmp_path, WHOLE + "ratings:\n")
    assert told("report", rated)["ratings"] == told("ratings", rated)["output"]
    scored = written(tmp_path, WHOLE + "ratings:\n  scores: out/scores.jsonl\n")
    assert told("report", scored)["ratings"] is None


def test_a_sweep_leaves_out_the_projects_own_run_which_may_not_be_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    own = [Project.read(path).adapter("ppo")]
    evaluation = judge_and_report(["--config", str(path)], [], tmp_path, "", [], own)[0]
    assert bind(evaluation.main, evaluation.words)[-1].contenders == ["best-of-4=best_of_4"]


def test_flags_overrule_the_section_which_overrules_the_paths_and_the_shared_keys(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, WHOLE.replace("learning_rate: 1e-3", "seed: 5\n  output_dir: mine"))
    assert told("reward", path)["seed"] == 5
    assert told("reward", path, "--seed", "7")["seed"] == 7
    assert told("ppo", path)["reward_adapter"] == "mine/adapter"  # where the section puts it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Caution)
        assert told("ppo", path, "--response_length", "20")["response_length"] == 20


def test_people_label_in_a_store_and_scripts_into_the_file_that_is_learned_from(
    tmp_path: Path,
) -> None:
    people = told("label", written(tmp_path))
    assert (people["serve"], people["store"], people["output"]) == (True, "out/labels.sqlite", None)
    path = written(tmp_path, WHOLE.replace("label:", "label:\n  lexicon: demo:lexicon.txt"))
    script = told("label", path)
    assert (script["serve"], script["output"]) == (False, "out/comparisons.jsonl")
    assert told("evaluate", path)["lexicon"] == script["lexicon"]  # who picked also judges


def test_comparisons_of_ones_own_are_converted_and_their_prompts_are_used(tmp_path: Path) -> None:
    path = written(tmp_path, "comparisons: picks.csv\nconvert:\n  first: 1\nreward:\nppo:\n")
    convert = told("convert", path)
    assert (convert["input"], convert["output"]) == ("picks.csv", "outputs/comparisons.jsonl")
    assert convert["first"] == 1
    assert told("split", path)["prompts"] == told("reward", path)["comparisons"]


def test_a_file_that_a_stage_brings_into_its_form_reaches_no_other_as_it_was(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, WHOLE.replace("folder: out", "folder: out\neval_prompts: raw.txt"))
    assert told("split", path)["eval_prompts"] == "raw.txt"
    assert told("ppo", path)["eval_prompts"] is None
    assert told("evaluate", path)["prompts"] == "out/prompts.heldout.jsonl"


def test_a_method_of_preference_has_a_section_of_its_own(tmp_path: Path) -> None:
    known = {"method", "beta", "output_dir", "comparisons"}
    text = "prompts: p\ncomparisons: c\ndpo:\n  beta: 0.5\nkto:\n  beta: 0.7\n"
    project = Project.read(written(tmp_path, text))
    kto, lines = project.told("preference", known, ["--method", "kto"])
    assert (kto["method"], kto["beta"], kto["output_dir"]) == ("kto", 0.7, "outputs/kto")
    assert lines["beta"] == 6
    assert project.told("preference", known, ["--method=dpo"])[0]["output_dir"] == "outputs/dpo"
    assert project.policies() == ["dpo", "kto"]

    one = Project.read(written(tmp_path, "comparisons: c\norpo:\n  beta: 0.2\n"))
    assert one.told("preference", known)[0]["method"] == "orpo"  # the only one needs no flag


def test_a_policy_is_called_by_its_method_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    text = "comparisons: c\npreference:\n  method: kto\nevaluate:\n"
    contenders = told("evaluate", written(tmp_path, text))["contenders"]
    assert contenders == ["kto=outputs/preference/adapter"]
    with pytest.raises(InputError, match=r"yaml:5: the sections preference and kto both train by"):
        Project.read(written(tmp_path, f"{text}kto:\n"))
    with pytest.raises(InputError, match=r"yaml:3: the section dpo has the method kto"):
        Project.read(written(tmp_path, text.replace("preference", "dpo")))


def test_of_two_methods_with_a_section_the_one_to_train_must_be_said(tmp_path: Path) -> None:
    path = written(tmp_path, "comparisons: c\ndpo:\n  beta: 0.5\nkto:\n")
    with pytest.raises(InputError, match=r"yaml:4: there are sections dpo and kto .*--method dpo"):
        told("preference", path)
    assert told("preference", path, "--method", "dpo")["beta"] == 0.5


def test_a_reward_of_another_kind_takes_the_place_of_the_projects_own(tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE.replace("  total_episodes: 128", "  lexicon: demo:lexicon.txt"))
    assert told("ppo", path)["reward_adapter"] is None


BAD = [
    ("resp_length: 1", r"project\.yaml:17: unknown key 'resp_length' .did you mean response_le"),
    ("kl_target: 5", r"project\.yaml:17: 'kl_target' is not shared by stages"),
    ("rewrad: {seed: 1}", r"project\.yaml:17: no stage is called 'rewrad' .did you mean reward"),
    ("sft: 5", r"project\.yaml:17: sft is the section of a stage"),
    ("seed: 4", r"project\.yaml:17: seed is given twice, first on line 6"),
    ("sft: {seed: 1, seed: 2}", r"project\.yaml:17: seed is given twice, first on line 17"),
    ("report: {}", r"project\.yaml:17: report is given twice"),
    ("reward_report:\nreward-report:", r"project\.yaml:18: a second section reward_report"),
    ("sft:\n  response_length: 99", r"yaml:18: sft: response_length is 99, but line 2 says 12"),
    ("sft:\n  precision: fp32", r"yaml:18: sft: precision is 'fp32', but the other stages have"),
    ("sft:\n  model_name_or_path: x", r"yaml:18: sft: model_name_or_path is 'x', but line 1"),
    ("sft:\n  stop_token: eos", r"yaml:18: sft: stop_token is 'eos', but line 3 says 'none'"),
    ("truncate_token: demo:x", r"yaml:17: truncate_token: demo:x: no such file comes"),
]


@pytest.mark.parametrize(("more", "message"), BAD, ids=[more for more, _ in BAD])
def test_a_mistake_anywhere_is_named_with_its_line(tmp_path: Path, more: str, message: str) -> None:
    path = written(tmp_path, f"{WHOLE}{more}\n")
    with pytest.raises(InputError, match=message):
        told("sample", path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("completions: 3", "completion: 3", r"yaml:8: unknown key 'completion' .did you mean comp"),
        ("completions: 3", "completions: 1", r"yaml:8: completions is 1, but must be at least 2"),
        ("completions: 3", "completions: x", r"yaml:8: completions is 'x', but must be of type"),
        ("seed: 3", "seed: -3", r"yaml:6: seed is -3, but must be at least 0"),
    ],
)
def test_a_value_of_a_section_is_checked_like_one_of_a_flat_file(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        told("sample", written(tmp_path, WHOLE.replace(before, after)))


def test_what_is_the_same_in_other_words_is_no_disagreement(tmp_path: Path) -> None:
    text = "chat_template_kwargs: {a: 1}\nppo:\n  chat_template_kwargs: '{\"a\": 1}'\n"
    text += f"  model_name_or_path: {Path.cwd()}/data/model\n"
    assert told("ppo", written(tmp_path, text))["chat_template_kwargs"] == {"a": 1}


def test_a_flag_that_differs_from_the_project_is_told(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.warns(Caution, match="--response_length is 20 here, but 12 for the other stages"):
        told("ppo", path, "--response_length", "20")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told("ppo", path, "--response_length", "12", "--learning_rate", "1e-3")


def test_a_file_that_an_earlier_stage_makes_is_missed_by_name(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(InputError, match="prompts: out/prompts.jsonl is not there yet; an earl"):
        call(recipe("sample").main, ["--config", str(path)])


def test_a_reward_model_of_another_length_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE.replace("folder: out", f"folder: {tmp_path}"))
    (tmp_path / "reward").mkdir()
    record = tmp_path / "reward" / "run.json"
    project, adapter = Project.read(path), f"{tmp_path}/reward/adapter"
    record.write_text('{"method": "reward", "settings": {"response_length": 12, "seed": 9}}')
    project.check_reward("ppo", adapter, {"response_length": 12, "seed": 3})

    record.write_text('{"method": "reward", "settings": {"response_length": 48}}')
    with pytest.raises(InputError, match=r"yaml:2: response_length is 12 for ppo, but the reward"):
        project.check_reward("ppo", adapter, {"response_length": 12})
    project.check_reward("ppo", "another/adapter", {"response_length": 12})  # not the project's
