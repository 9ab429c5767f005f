"""A run that is killed: the same command again is not in its own way, and nothing is mixed."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import call, recipe
from toolkit.errors import InputError
from toolkit.training.baselines import train_and_save as saving

ROWS = (
    '{"prompt": "We went", "completions": [" in.", " out."], "best": 0}\n'
    '{"prompt": "She went", "completions": [" in.", " out."], "best": 1}\n'
)


def dies(*args: Any, **kwargs: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def words(tmp_path: Path, demo_model: str) -> list[str]:
    (tmp_path / "picks.jsonl").write_text(ROWS)
    return [
        "--comparisons", str(tmp_path / "picks.jsonl"), "--eval_rows", "1", "--max_steps", "1",
        "--use_cpu", "--model_name_or_path", demo_model, "--precision", "fp32", "--output_dir",
        str(tmp_path / "out" / "sft"),
    ]  # fmt: skip


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]) -> None:
    """Run sft.py in a forked process that is killed where it calls this function."""
    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(saving, name, dies)
            call(recipe("sft").main, words)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_before_its_adapter_was_done_it_starts_again_by_the_same_command(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at(monkeypatch, "_check_reload", words)
    assert [p for p in (tmp_path / "out" / "sft").iterdir() if p.name.endswith(".part")]
    call(recipe("sft").main, words)
    found = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.parent.name != "adapter")
    assert found == ["adapter", "log.jsonl", "run.json", "sft"]


def test_killed_while_it_overwrites_another_run_it_leaves_no_mixture(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(recipe("sft").main, words)
    assert (tmp_path / "out" / "sft" / "run.json").is_file()
    killed_at(monkeypatch, "write_jsonl", [*words, "--overwrite", "--learning_rate", "1e-2"])
    assert (tmp_path / "out" / "sft" / "adapter").is_dir()  # the new one
    assert not (tmp_path / "out" / "sft" / "run.json").exists()  # the old one's


def test_a_run_with_checkpoints_is_gone_on_with_and_not_overwritten(tmp_path: Path) -> None:
    for name, cure in (("begun", "--resume auto to go on, --overwrite"), ("other", "--overwrite")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").touch()
        if name == "begun":
            (tmp_path / name / "checkpoint-000002").mkdir()
        with pytest.raises(InputError, match=rf"exists \(pass {cure}, or name another\)"):
            call(recipe("ppo").main, ["--output_dir", str(tmp_path / name), "--use_cpu"])
