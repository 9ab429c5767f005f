"""A recipe's file shadows nobody's module: not a library's, not a user's of the same name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.cli import RECIPES, recipe
from toolkit.errors import InputError
from toolkit.scoring import functions

NAMES = sorted(path.stem for path in RECIPES.glob("*.py"))
SAMPLES = '{"prompt": "We went.", "completions": [" No.", " It was a good day."]}\n'
LENGTH = "def score(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"


def started(words: list[str], cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name, value in variables.items():  # in front of what a path holds already
        env[name] = os.pathsep.join(filter(None, (value, env.get(name))))
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def labeled(cwd: Path, function: str, *launcher: str, **variables: str) -> tuple[int, str, Path]:
    """label.py with this function, in this working folder: exit code, what it said, its picks."""
    (cwd / "samples.jsonl").write_text(SAMPLES)
    words = [
        *(launcher or (sys.executable,)),
        str(RECIPES / "label.py"),
        "--reward_function",
        function,
        "--samples",
        "samples.jsonl",
        "--output",
        "picks.jsonl",
    ]
    done = started(words, cwd, **variables)
    return done.returncode, done.stderr, cwd / "picks.jsonl"


@pytest.mark.parametrize("name", ["reward", "sample"])
def test_a_users_own_module_is_loaded_though_a_recipe_has_its_name(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / f"{name}.py").write_text(LENGTH)
    code, said, picks = labeled(tmp_path, f"{name}:score")
    assert code == 0, said
    assert '"best": 1' in picks.read_text()  # the longer one


def test_the_same_holds_under_accelerate_launch(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(LENGTH)
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--quiet",
        "--config_file",
        str(RECIPES / "accelerate" / "one_process.yaml"),
    ]
    code, said, picks = labeled(tmp_path, "reward:score", *launcher)
    assert code == 0, said
    assert '"best": 1' in picks.read_text()


def test_a_library_that_a_reward_function_imports_is_the_library(tmp_path: Path) -> None:
    """Hugging Face's `evaluate`, wherever it is installed, stands for all of them."""
    site = tmp_path / "site"
    work = tmp_path / "work"
    site.mkdir(), work.mkdir()
    (site / "evaluate.py").write_text("FACTOR = -1\n")
    (work / "mine.py").write_text(
        "import evaluate\n\n\ndef score(prompts, completions, **columns):\n"
        "    return [evaluate.FACTOR * len(c) for c in completions]\n"
    )
    code, said, picks = labeled(work, "mine:score", PYTHONPATH=str(site))
    assert code == 0, said
    assert '"best": 0' in picks.read_text()  # the shorter one


IMPORTS = "import preview_kl\n\n\ndef score(*_):\n    return []\n"


def test_a_library_that_is_not_installed_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(IMPORTS)
    code, said, _ = labeled(tmp_path, "mine:score")
    assert code == 2
    assert "mine.py:1: ModuleNotFoundError: No module named 'preview_kl'" in said


def test_that_holds_for_someone_who_works_in_recipes_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "preview_kl.py").touch()
    (tmp_path / "mine.py").write_text(IMPORTS)
    (tmp_path / "yours.py").write_text(LENGTH)
    monkeypatch.setattr(functions, "RECIPES", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="mine.py:1: ModuleNotFoundError: No module"):
        functions.load_function("mine:score")
    assert functions.load_function("yours:score")([], ["ab"]) == [2]


def test_the_working_folder_comes_before_whatever_else_the_path_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, factor in (("other", 1), ("here", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "my_own_scores.py").write_text(
            "def score(prompts, completions):\n"
            f"    return [{factor} * len(c) for c in completions]\n"
        )
    monkeypatch.chdir(tmp_path / "here")
    path = [str(tmp_path / "other"), str(tmp_path / "here"), *sys.path]
    monkeypatch.setattr(sys, "path", path)
    assert functions.load_function("my_own_scores:score")([], ["abc"]) == [6]


def test_recipes_that_start_others_leave_a_users_names_alone(tmp_path: Path) -> None:
    """online.py runs recipes/reward.py, and is rewarded by the working folder's."""
    (tmp_path / "reward.py").write_text(LENGTH)
    done = started(
        [
            sys.executable,
            str(RECIPES / "online.py"),
            "--reward_function",
            "reward:other",
            "--model_name_or_path",
            "nowhere",
        ],
        tmp_path,
    )
    assert done.returncode == 2
    assert "reward_function: reward has no function 'other'" in done.stderr


SPY = """
import sys
class Spy:
    def find_spec(self, name, path=None, target=None):
        if name in {names} and any(p.endswith("recipes") for p in sys.path):
            sys.stderr.write(f"asked for {{name}}\\n")
sys.meta_path.insert(0, Spy())
"""


@pytest.mark.parametrize("name", ["ppo", "online", "sample"])
def test_nothing_asks_for_a_recipes_name_while_recipes_is_on_the_path(
    name: str, tmp_path: Path
) -> None:
    """Some import torch or tqdm before the toolkit takes recipes/ off the path."""
    (tmp_path / "sitecustomize.py").write_text(SPY.format(names=set(NAMES)))
    done = started(
        [sys.executable, str(RECIPES / f"{name}.py"), "--help"], tmp_path, PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "asked for" not in done.stderr


def test_importing_the_toolkit_from_a_users_script_changes_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"  # a user's own folder of that name
    folder.mkdir()
    (folder / "reward.py").write_text("VALUE = 7\n")
    (folder / "script.py").write_text(
        "import sys\nbefore = list(sys.path)\nimport toolkit\nassert sys.path == before\n"
        "import reward\nassert reward.VALUE == 7\n"
    )
    done = started([sys.executable, str(folder / "script.py")], tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_recipe_is_loaded_once_and_under_a_name_of_its_own() -> None:
    assert recipe("reward") is recipe("reward")
    assert recipe("reward").__name__ == "toolkit.recipes.reward"
    assert not {"reward", "evaluate", "recipes.reward"} & set(sys.modules)
