"""What is imported, and when: nobody waits for a library that is not used."""

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted(p.stem for p in (Path(__file__).parents[2] / "recipes").glob("*.py"))
# Their flags extend transformers' TrainingArguments, which import torch and accelerate.
TRAINING = {"doctor", "ppo", "preference", "reward", "rloo", "sft"}
NOT_TO_READ_FLAGS = {
    *("peft", "bitsandbytes", "datasets", "pandas", "scipy", "choix", "matplotlib"),
    *("starlette", "uvicorn", "tokenizers"),
}
NOT_IN_PPO = {"starlette", "uvicorn", "matplotlib", "choix", "krippendorff", "scipy.stats"}

PRINT_IMPORTED = """
import atexit, runpy, sys
path, *words = sys.argv[1:]
sys.argv = [path, *words]
atexit.register(lambda: print("IMPORTED", *sys.modules))
runpy.run_path(path, run_name="__main__")
"""


def imported(root: Path, cwd: Path, name: str, *words: str) -> tuple[set[str], str]:
    """The modules that were imported when a recipe ended, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_IMPORTED, str(root / "recipes" / f"{name}.py"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    said, _, names = done.stdout.rpartition("IMPORTED ")
    return set(names.split()), said + done.stderr


@pytest.mark.parametrize("name", RECIPES)
def test_a_help_text_waits_for_no_library_that_it_does_not_need(
    name: str, root: Path, tmp_path: Path
) -> None:
    modules, said = imported(root, tmp_path, name, "--help")
    assert "usage:" in said
    assert not modules & NOT_TO_READ_FLAGS
    if name not in TRAINING:
        assert not modules & {"torch", "transformers", "accelerate"}


@pytest.mark.parametrize("name", ["ppo", "convert"])
def test_a_misspelt_flag_is_refused_before_models_are_imported(
    name: str, root: Path, tmp_path: Path
) -> None:
    modules, said = imported(root, tmp_path, name, "--skip_invalidd", "true")
    assert said == "error: unknown argument --skip_invalidd (did you mean --skip_invalid?)\n"
    assert not modules & NOT_TO_READ_FLAGS


def test_a_ppo_run_imports_no_web_server_no_plotting_and_no_statistics(
    root: Path, tmp_path: Path
) -> None:
    words = ["--lexicon", str(root / "data" / "lexicon.txt"), "--total_episodes", "8"]
    words += ["--model_name_or_path", str(root / "data" / "model"), "--precision", "fp32"]
    words += ["--prompts", str(root / "data" / "prompts.jsonl"), "--limit", "8"]
    words += ["--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "ppo")]
    modules, said = imported(root, tmp_path, "ppo", *words)
    assert (tmp_path / "ppo" / "adapters" / "policy").is_dir(), said
    assert {"torch", "peft", "transformers"} <= modules
    assert not modules & NOT_IN_PPO
    assert not {m for m in modules if m.startswith(("toolkit.evaluation", "toolkit.hub"))}
    assert not {m for m in modules if m.startswith(("toolkit.labeling", "toolkit.pipeline"))}
