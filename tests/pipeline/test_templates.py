"""Project files from templates: every stage's parser takes them, whatever init was told."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from toolkit.cli import bind, call, recipe
from toolkit.embedded import embedded
from toolkit.errors import InputError
from toolkit.pipeline.project import stages_of_project
from toolkit.pipeline.templates import (
    TEMPLATES,
    InitArguments,
    has_chat_template,
    parameters_of,
    project_text,
    rates,
)
from toolkit.project import Project


def project(tmp_path: Path, text: str) -> Project:
    path = tmp_path / "project.yaml"
    path.write_text(text)
    return Project.read(path)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("parameters", [None, 260_032, 8_000_000_000])
@pytest.mark.parametrize("source", ["prompts", "comparisons"])
def test_every_template_is_a_project_whose_stages_take_their_settings(
    tmp_path: Path, template: str, parameters: int | None, source: str
) -> None:
    args = InitArguments(template=template, model_name_or_path="org/model", **{source: "org/data"})
    found = project(tmp_path, project_text(args, parameters, chat=False))
    stages = {stage.name: stage for stage in stages_of_project(found)}
    first = ["split", "sample", "label"] if source == "prompts" else ["convert", "split"]
    assert list(stages) == [
        *(*first, "reward", "reward_report", "ppo", "evaluate", "report"),
    ]

    told = {key: v for part in bind(stages["ppo"].main, stages["ppo"].words) for key, v in
            vars(part).items()}  # fmt: skip
    settings = TEMPLATES[template].settings
    assert told["response_length"] == settings["response_length"][0]
    assert told["stop_token"] == settings["stop_token"][0]
    assert told["learning_rate"] == rates(parameters)[1]["learning_rate"]
    assert max(map(len, found.path.read_text().splitlines())) <= 100


@pytest.mark.parametrize(("style", "target"), [("sentiment", 10), ("descriptiveness", 6)])
def test_a_style_has_the_papers_settings_and_words_for_its_labelers(
    style: str, target: int, demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["mine.yaml", "--template", style, "--model_name_or_path", demo_model]
    call(recipe("init").main, words)
    stages = {s.name: s for s in stages_of_project(Project.read("mine.yaml"))}
    told = {k: v for name in ("sample", "label", "reward", "ppo") for part in
            bind(stages[name].main, stages[name].words) for k, v in vars(part).items()}  # fmt: skip
    # openai/lm-human-preferences launch.py:8-33, and the paper's KL targets.
    expected = {"response_length": 24, "max_prompt_length": 64, "temperature": 0.7,
                "truncate_token": ".", "truncate_after": 16, "penalty_reward_value": -1,
                "stop_token": "none", "kl_target": target}  # fmt: skip
    assert {name: told[name] for name in expected} == expected
    sampled = bind(stages["sample"].main, stages["sample"].words)
    assert sampled[-1].completions == 4

    advice = Path(told["guidelines"]).read_text()
    assert ("positive" in advice) == (style == "sentiment")
    assert ("vividly" in advice) == (style == "descriptiveness")
    with pytest.raises(InputError, match="exists"):
        call(recipe("init").main, words)


def test_nobody_is_told_anything_where_nobody_labels() -> None:
    for told in ({"lexicon": embedded("lexicon.txt")}, {"comparisons": "org/data"}):
        args = InitArguments(template="sentiment", model_name_or_path="o/m", prompts="o/d", **told)
        assert "guidelines" not in project_text(args, None, chat=False)


def test_several_models_write_are_ranked_and_rated(tmp_path: Path) -> None:
    args = InitArguments(
        template="text",
        model_name_or_path="org/model",
        prompts="org/data",
        models=["sft=a/adapter", "plain=base"],
        ask="ranking",
    )
    stages = {s.name: s for s in stages_of_project(project(tmp_path, project_text(args, 1, False)))}
    assert list(stages)[:5] == ["split", "sample", "label", "ratings", "reward"]
    told = {name: {k: v for part in bind(stages[name].main, stages[name].words) for k, v in
                   vars(part).items()} for name in ("label", "ratings", "reward")}  # fmt: skip
    assert bind(stages["sample"].main, stages["sample"].words)[-1].models == args.models
    assert told["reward"]["loss_type"] == "plackett_luce"
    assert told["ratings"]["comparisons"] == told["reward"]["comparisons"]
    assert stages["ratings"].made == [Path("outputs/ratings.json")]

    # Who wrote what was learned from is compared with what came of it; base always takes part.
    told = bind(stages["evaluate"].main, stages["evaluate"].words)[-1].contenders
    assert told == ["ppo=outputs/ppo/adapters/policy", "best-of-4=best_of_4", "sft=a/adapter"]


def test_a_model_that_wrote_does_not_take_the_place_of_the_policy_of_that_name(
    tmp_path: Path,
) -> None:
    args = InitArguments(
        template="text", model_name_or_path="org/model", prompts="org/data", models=["ppo=old"]
    )
    stages = {s.name: s for s in stages_of_project(project(tmp_path, project_text(args, 1, False)))}
    told = bind(stages["evaluate"].main, stages["evaluate"].words)[-1].contenders
    assert told == ["ppo=outputs/ppo/adapters/policy", "best-of-4=best_of_4", "ppo-before=old"]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"models": ["a=x", "b=y", "c=z"]}, "completions: 4 cannot be shared out equally"),
        ({"models": ["a=x"], "comparisons": "org/picks"}, "models: they write where"),
        ({"ask": "ranking", "lexicon": "org"}, "ask: only people"),
        ({"ask": "ranking", "completions": 9}, "people rank 8 at most"),
    ],
)
def test_what_does_not_go_together_is_refused(told: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        InitArguments(model_name_or_path="org/model", **told)


def test_what_is_given_takes_the_templates_place(tmp_path: Path) -> None:
    args = InitArguments(
        template="text",
        model_name_or_path="org/model",
        prompts="org/data",
        invite="ann,bob",
        response_length=40,
        truncate_token="none",
        stop_token="eos",
        total_episodes=100,
        folder="mine",
    )
    values = yaml.safe_load(project_text(args, None, chat=True))
    assert values["response_length"] == 40 and values["stop_token"] == "eos"
    assert "truncate_token" not in values and "truncate_after" not in values
    assert values["ppo"]["total_episodes"] == 100 and values["label"] == {"invite": "ann,bob"}
    assert values["folder"] == "mine"


def test_columns_and_word_lists_are_passed_on() -> None:
    columns = ["prompt=Prompt", "completions=Answer A,Answer B", "best=Best"]
    args = InitArguments(
        template="chat", model_name_or_path="org/model", comparisons="org/data", columns=columns
    )
    values = yaml.safe_load(project_text(args, None, chat=False))
    assert values["columns"] == columns and "sample" not in values and "label" not in values
    args = InitArguments(
        template="text",
        model_name_or_path="org/model",
        prompts="org/data",
        lexicon=embedded("lexicon.txt"),
    )
    assert yaml.safe_load(project_text(args, None, False))["label"]["lexicon"] == "demo:lexicon.txt"


def test_the_template_is_that_of_the_model_unless_named() -> None:
    args = InitArguments(template="auto", model_name_or_path="org/model", prompts="org/data")
    assert yaml.safe_load(project_text(args, None, chat=True))["as_messages"] is True
    assert "as_messages" not in yaml.safe_load(project_text(args, None, chat=False))
    text = dataclasses.replace(args, template="text")
    assert "as_messages" not in yaml.safe_load(project_text(text, None, chat=True))


def test_nobody_has_to_name_prompts_for_the_embedded_model_alone() -> None:
    assert (
        yaml.safe_load(project_text(InitArguments(), 1, False))["prompts"] == "demo:prompts.jsonl"
    )
    with pytest.raises(InputError, match="prompts: name your prompts by --prompts FILE"):
        project_text(InitArguments(model_name_or_path="org/model"), 1, False)


def test_a_file_that_is_not_there_and_columns_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="comparisons: nowhere.csv: no such file"):
        InitArguments(comparisons="nowhere.csv")
    with pytest.raises(InputError, match="columns: of which file"):
        InitArguments(columns=["prompt=Prompt"])


def test_a_model_is_counted_and_its_template_found_without_its_weights(
    demo_model: str, tmp_path: Path
) -> None:
    from safetensors import safe_open

    with safe_open(f"{demo_model}/model.safetensors", "pt") as weights:
        held = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    counted = parameters_of(demo_model)
    assert counted is not None and held <= counted <= 1.5 * held  # a tied head is held once
    assert not has_chat_template(demo_model)
    assert parameters_of(str(tmp_path)) is None and not has_chat_template(str(tmp_path))


def test_init_takes_the_files_name_as_its_first_word(
    demo_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ["--model_name_or_path", demo_model]
    call(recipe("init").main, ["mine.yaml", *model, "--folder", "out"])
    assert Project.read("mine.yaml").folder == Path("out")
    assert capsys.readouterr().out.splitlines()[-1] == "next: preftune run mine.yaml"
    with pytest.raises(InputError, match="mine.yaml exists"):
        call(recipe("init").main, ["mine.yaml", *model])
