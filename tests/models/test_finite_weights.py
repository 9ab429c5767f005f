"""Weights that are no numbers are refused where they enter, by tensor and file."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.errors import InputError
from toolkit.models.finite_weights import check_file, check_weights_of, is_finite
from toolkit.models.loading import load_base

TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_among_many_is_seen(dtype: torch.dtype, value: float) -> None:
    tensor = torch.ones(37, 53)
    assert is_finite(tensor.to(dtype))
    tensor[11, 7] = value
    assert not is_finite(tensor.to(dtype))


def test_what_is_no_float_or_empty_is_finite() -> None:
    assert is_finite(torch.arange(3)) and is_finite(torch.empty(0)) and is_finite(torch.tensor(1.0))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "4bit"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_base_with_a_weight_that_is_none_is_refused_before_it_is_loaded(
    precision: str, value: float, demo_model: str, tmp_path: Path
) -> None:
    """In 4 bits too, where rounding would make some number of it."""
    base = Path(shutil.copytree(demo_model, tmp_path / "base"))
    state = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    state[name][5, 6] = value
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"model.safetensors: {name}: 1 of \d+ numbers are NaN"):
        load_base(str(base), precision)


def test_a_model_that_is_not_there_yet_is_told_of(
    tmp_path: Path, demo_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not check_weights_of("some-org/some-model")
    assert check_weights_of(demo_model)


def test_a_file_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(InputError, match=r"adapter: .*x.safetensors cannot be read"):
        check_file(tmp_path / "x.safetensors", "adapter")
