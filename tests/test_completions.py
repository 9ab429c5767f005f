"""Completions: a real bash offers subcommands, flags, choices and files."""

import subprocess
from pathlib import Path

import pytest

from toolkit.commands import SHELLS, command_names, shown_name
from toolkit.completions import completions

# bash hands a completing function the words so far; it answers in COMPREPLY.
DRIVE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p preftune | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" preftune "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bash") / "preftune"
    path.write_text(completions("bash"))
    return path


def offered(script: Path, cwd: Path, *words: str) -> set[str]:
    line = ["bash", "--norc", "-c", DRIVE, "bash", str(script), "preftune", *words]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
def test_bash_completes_subcommands_flags_choices_and_files(script: Path, tmp_path: Path) -> None:
    (tmp_path / "picks.jsonl").touch()
    (tmp_path / "prompts").mkdir()
    every = {shown_name(name) for name in command_names()} | {"completions"}
    for words, expected in {
        ("",): every,
        ("reward",): {"reward", "reward-report"},
        ("completions", ""): set(SHELLS),
        ("ppo", "--kl_con"): {"--kl_controller"},
        ("ppo", "--kl_controller", "ad"): {"adaptive", "adaptive_paper", "adaptive_pi"},
        ("ppo", "--kl_controller", "fixed", "--precision", ""): {"4bit", "bf16", "fp32"},
        ("label", "--samples", "pi"): {"picks.jsonl"},
        ("label", "--samples", ""): {"picks.jsonl", "prompts"},
        ("evaluate", "--contenders", "a=b", "--jud"): {
            "--judges", "--judge_key_variable", "--judge_max_tokens", "--judge_timeout",
            "--judge_patience",
        },
        ("run", "pi"): {"picks.jsonl"},  # a project file
        ("ppo", "--torch_com"): set(),  # inherited: --help does not show it either
    }.items():  # fmt: skip
        assert offered(script, tmp_path, *words) == expected, words


@pytest.mark.slow
def test_zsh_gets_a_script_with_the_same_flags() -> None:
    text = completions("zsh")
    assert text.startswith("#compdef preftune")
    assert "(adaptive adaptive_paper adaptive_pi fixed)" in text and "reward-report:" in text
