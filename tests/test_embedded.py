"""The files that come with the toolkit have names that hold in any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import embedded as module
from toolkit.arguments.model import ModelArguments
from toolkit.cli import parse
from toolkit.embedded import (
    embedded,
    embedded_files,
    expand,
    expand_value,
    expand_words,
    is_embedded_model,
    short_name,
)
from toolkit.errors import InputError
from toolkit.scoring.arguments import FunctionArguments

NAMES = ["configs", "lexicon.txt", "model", "ppo.yaml", "prompts.heldout.jsonl", "prompts.jsonl"]


def test_what_is_named_lies_in_data_and_in_the_demos_configs(root: Path) -> None:
    files = embedded_files()
    assert set(NAMES) <= set(files) and "README.md" not in files
    assert files["model"] == root / "data" / "model"
    assert files["ppo.yaml"] == root / "recipes" / "configs" / "demo" / "ppo.yaml"
    assert {path.name for path in (root / "recipes/configs/demo").iterdir()} <= set(files)


@pytest.mark.parametrize("name", NAMES)
def test_the_path_is_relative_in_the_checkouts_root_and_absolute_elsewhere(
    name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    here = embedded(name)
    monkeypatch.chdir(tmp_path)
    there = embedded(name)
    assert not Path(here).is_absolute() and Path(there).is_absolute()
    assert root / here == Path(there) and Path(there).exists()


def test_a_folder_that_was_deleted_is_no_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert Path(embedded("model")).is_absolute()


def test_an_unknown_name_is_one_line_with_those_there_are() -> None:
    with pytest.raises(InputError, match="^demo:lexcon.txt: no such file comes with") as caught:
        embedded("lexcon.txt")
    assert "\n" not in str(caught.value)
    assert all(f"demo:{name}" in str(caught.value) for name in NAMES)
    with pytest.raises(InputError, match=r"^demo:\.\./pyproject.toml: no such file"):
        embedded("../pyproject.toml")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("demo:lexicon.txt", "data/lexicon.txt"),
        ("demo:model/", "data/model"),
        ("--lexicon=demo:lexicon.txt", "--lexicon=data/lexicon.txt"),
        ("words=lexicon:demo:lexicon.txt", "words=lexicon:data/lexicon.txt"),
        ("demo:prompts.jsonl,mine.jsonl", "data/prompts.jsonl,mine.jsonl"),
        ("demo:model,demo:model", "data/model,data/model"),
        ("a=demo:model,b=demo:model", "a=data/model,b=data/model"),
        ("--config=demo:ppo.yaml", "--config=recipes/configs/demo/ppo.yaml"),
        ("owner/demo:train", "owner/demo:train"),  # a dataset on the Hub
        ("mine=function:demo:score", "mine=function:demo:score"),  # a user's demo.py
        ("demo: a first run", "demo: a first run"),
        ("demo", "demo"),
        ("", ""),
    ],
)
def test_a_word_gets_paths_where_values_begin(
    word: str, expected: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert expand(word) == expected
    assert expand(expected) == expected  # a stage's words are read twice


def test_a_users_demo_py_stays_his(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    words = ["--reward_function", "demo:score", "--reward_function=demo:score"]
    assert expand_words(words) == words
    assert expand_words(["--reward-function", "demo:score"])[1] == "demo:score"
    assert expand_value("demo:score", "reward_function") == "demo:score"
    assert expand_words([*words, "--lexicon", "demo:lexicon.txt"])[-1] == "data/lexicon.txt"


def test_lists_of_a_file_are_expanded_and_other_values_are_left(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert expand_value(["demo:model", 3, ["demo:model"]], "x") == ["data/model", 3, ["data/model"]]
    assert [expand_value(value, "x") for value in (None, 1.5, True)] == [None, 1.5, True]


def test_a_mistake_is_told_with_its_flag_or_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^lexicon: demo:x: no such file comes with the toolkit"):
        parse(FunctionArguments, argv=["--lexicon", "demo:x"])
    with pytest.raises(InputError, match="^config: demo:x.yaml: no such file comes with"):
        parse(FunctionArguments, argv=["--config=demo:x.yaml"])
    path = tmp_path / "c.yaml"
    path.write_text("\nlexicon: demo:x\n")
    with pytest.raises(InputError, match=r"c\.yaml:2: lexicon: demo:x: no such file comes with"):
        parse(FunctionArguments, argv=["--config", str(path)])


def test_flags_and_files_are_expanded_at_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lexicon = str(embedded_files()["lexicon.txt"])
    assert parse(FunctionArguments, argv=["--lexicon", "demo:lexicon.txt"])[0].lexicon == lexicon
    Path("c.yaml").write_text("lexicon: demo:lexicon.txt\n")
    assert parse(FunctionArguments, argv=["--config", "c.yaml"])[0].lexicon == lexicon
    argv = ["--config", "demo:label.yaml"]
    with pytest.raises(InputError, match=r"label\.yaml:\d+: unknown key 'samples'"):
        parse(FunctionArguments, argv=argv)


def test_the_help_names_embedded_files_in_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert short_name(embedded("model")) == "demo:model"
    assert short_name("data/model/config.json") == "data/model/config.json"
    with pytest.raises(SystemExit):
        parse(ModelArguments, argv=["--help"])
    assert "(default: demo:model)" in " ".join(capsys.readouterr().out.split())


def test_the_embedded_model_is_known_however_it_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    assert is_embedded_model("data/model") and is_embedded_model("./data/model/")
    monkeypatch.chdir(tmp_path)
    assert is_embedded_model(str(root / "data/model"))
    Path("data/model").mkdir(parents=True)
    assert not is_embedded_model("data/model")  # a user's own of that name
    Path("link").symlink_to(root / "data/model")
    assert is_embedded_model("link")


def test_an_installed_package_has_them_inside_itself(root: Path) -> None:
    """What pyproject.toml maps is where this module looks (``.ci/wheel`` tries a real one)."""
    assert not module.INSTALLED
    assert root == module.ROOT
    text = (root / "pyproject.toml").read_text()
    assert '"toolkit.demo" = "data"' in text and '"toolkit.recipes" = "recipes"' in text


# What recipes take by default, and what the demo's configs name, in a folder with nothing in it.
ELSEWHERE = """
from pathlib import Path
from toolkit.cli import bind, recipe
from toolkit.data.from_arguments import DEMO_PROMPTS
from toolkit.pipeline.comparison import stages_of

(compare,) = bind(recipe("compare").main, [])
stages = stages_of(Path(compare.configs), compare.stages.split(","), {})
assert [stage.name for stage in stages][:3] == ["sample", "label", "reward"]
settings = {stage.name: stage.settings() for stage in stages}
(sweep,) = bind(recipe("sweep").main, [])
online = bind(recipe("online").main, ["--config", "demo:online.yaml"])
(model, *_) = bind(recipe("sample").main, [])
for path in (
    settings["sample"]["prompts"], settings["label"]["lexicon"], settings["ppo"]["prompts"],
    sweep.ppo_config, sweep.evaluate_config, online[1].lexicon, online[3].sample_config,
    online[3].reward_config, online[3].ppo_config, DEMO_PROMPTS,
):
    assert Path(path).is_absolute() and Path(path).is_file(), path
assert Path(model.model_name_or_path, "model.safetensors").is_file()
"""


@pytest.mark.slow
def test_defaults_and_the_demos_configs_name_files_that_are_there_in_any_folder(
    root: Path, tmp_path: Path
) -> None:
    env = os.environ | {"PYTHONPATH": str(root)}
    line = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
