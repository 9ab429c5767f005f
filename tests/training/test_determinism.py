"""full_determinism: on while a run learns, put back after it, and of no effect on a CPU's bits."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toolkit.training.determinism import CUBLAS, only_deterministic
from toolkit.training.ppo.config import PPOConfig

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS, "")  # so that it is put back as it was
    monkeypatch.delenv(CUBLAS)


def settings() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


def test_torchs_settings_hold_inside_and_are_put_back_also_after_an_error() -> None:
    before = settings()
    with only_deterministic(False):
        assert settings() == before and CUBLAS not in os.environ
    with pytest.raises(ZeroDivisionError), only_deterministic(True):
        assert settings() == (True, True, False)
        1 / 0  # noqa: B018
    assert settings() == before

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with only_deterministic(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(before[0])


def test_cublas_is_told_by_the_config_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert CUBLAS not in os.environ
    PPOConfig(output_dir=str(tmp_path), use_cpu=True, full_determinism=True)
    assert os.environ[CUBLAS] == ":4096:8"
    monkeypatch.setenv(CUBLAS, ":16:8")
    PPOConfig(output_dir=str(tmp_path), use_cpu=True, full_determinism=True)
    assert os.environ[CUBLAS] == ":16:8"


@pytest.mark.slow
def test_a_run_on_a_cpu_has_the_same_bits_and_is_resumed_with_or_without(
    new_trainer: Make, tmp_path: Path
) -> None:
    seen: list[bool] = []

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return [float(len(text)) for text in completions]

    for name, options in (
        ("plain", [{}]),
        ("strict", [{"full_determinism": True, "stop_at_update": 1}, {"resume": "auto"}]),
    ):
        for more in options:
            new_trainer(name, reward_model=reward, save_steps=1, **more).train()
    assert seen == [False, False, True, False]
    one, other = (
        load_file(tmp_path / name / "checkpoint-000002" / "weights.safetensors")
        for name in ("plain", "strict")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
