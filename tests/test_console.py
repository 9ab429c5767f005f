"""The console command: a list that comes at once, and recipes that run as Python runs them."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from toolkit import console
from toolkit.commands import COMMAND, overview, shown_name
from toolkit.console import main
from toolkit.embedded import RECIPES

LENGTH = "def score(prompts, completions, **columns):\n    return [len(c) for c in completions]\n"


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the console command in this process; it must not run a recipe."""
    monkeypatch.setattr(console.endings, "prepare", lambda: None)
    monkeypatch.setattr("sys.argv", ["preftune", *words])
    try:
        main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def started(
    cwd: Path, *words: str, script: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The command, or a recipe's file, in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(RECIPES.parent)} | variables
    # As an installed script does: Python puts the script's folder on the path, not the working one.
    light = cwd / "bin" / "preftune"
    light.parent.mkdir(exist_ok=True)
    light.write_text("import sys\nfrom toolkit.console import main\nsys.exit(main())\n")
    line = [sys.executable, str(script or light), *words]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_the_list_is_what_one_gets_without_a_command(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, *words) == 0
    assert capsys.readouterr().out == overview() + "\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["ppoo"], "'ppoo' is no command (did you mean ppo? preftune --help lists them)"),
        (["reward_reprt"], "did you mean reward-report?"),
        (["--ppo"], "'--ppo' is no command"),
        (["../ppo"], "'../ppo' is no command"),
        (["completions"], "completions: for which shell? (preftune completions bash or zsh)"),
        (["completions", "fish"], "completions: for which shell?"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert called(monkeypatch, *words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert line in said.err


def test_the_version_is_the_projects(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "--version") == 0
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"{project['name']} {project['version']}\n"
    assert project["scripts"] == {COMMAND: "toolkit.console:main"}


def test_every_package_is_in_the_wheel(root: Path) -> None:
    tool = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {str(p.parent.relative_to(root)) for p in (root / "toolkit").rglob("*.py")}
    mapped = set(tool["package-dir"])
    assert set(tool["packages"]) - mapped == {folder.replace("/", ".") for folder in folders}
    assert mapped < set(tool["packages"])


@pytest.mark.slow
def test_the_list_comes_at_once_and_loads_no_recipe(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom toolkit.console import main\nsys.argv = ['preftune']\nmain()\n"
        "assert time.process_time() < 0.3, time.process_time()\n"
        "assert not {'torch', 'numpy', 'yaml', 'toolkit.cli'} & set(sys.modules)\n"
    )
    path = tmp_path / "light.py"
    path.write_text(code)
    done = started(tmp_path, script=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == overview() + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["preview_kl", "--kl_horizon", "640"],
        ["preview_kl", "--kl_horizn", "640"],
        ["preview_kl", "--kl_target", "-1"],
        ["convert", "--input", "nowhere.jsonl"],
    ],
    ids=" ".join,
)
def test_a_recipe_does_what_its_file_does(words: list[str], tmp_path: Path) -> None:
    name, *rest = words
    ours = started(tmp_path, shown_name(name), *rest)
    theirs = started(tmp_path, *rest, script=RECIPES / f"{name}.py")
    said, next_line = ours.stdout, "next: preftune ppo "
    if ours.returncode == 0:  # what comes next is started as this was
        assert next_line in said
        said = said.replace(next_line, f"next: python {RECIPES / 'ppo.py'} ")
    assert (ours.returncode, said, ours.stderr) == (
        theirs.returncode,
        theirs.stdout,
        theirs.stderr,
    )
    assert ours.returncode == (0 if "640" in words and "--kl_horizon" in words else 2)


@pytest.mark.slow
def test_a_users_module_of_a_recipes_name_is_found_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "import sys\nassert not any(p.endswith('recipes') for p in sys.path), sys.path\n" + LENGTH
    )
    (tmp_path / "samples.jsonl").write_text(
        '{"prompt": "We went.", "completions": [" No.", " It was a good day."]}\n'
    )
    done = started(tmp_path, "label", "--reward_function", "reward:score", "--samples",
                   "samples.jsonl", "--output", "picks.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"best": 1' in (tmp_path / "picks.jsonl").read_text()  # the longer one


@pytest.mark.slow
def test_a_signal_while_a_recipe_is_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nclass Spy:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'yaml':\n"
        f"            import os; os.kill(os.getpid(), {signal.SIGTERM:d})\n"
        "sys.meta_path.insert(0, Spy())\n"
    )
    path = os.pathsep.join([str(tmp_path), str(RECIPES.parent)])
    done = started(tmp_path, "ppo", "--help", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "interrupted\n")
