"""The base's flags: TRL's names where TRL has the flag, and a default that is there."""

import dataclasses
from pathlib import Path

import pytest
from trl import ModelConfig

from toolkit.arguments.model import DEMO_MODEL, PRECISIONS, ModelArguments
from toolkit.errors import InputError
from toolkit.models.quantized import DTYPES


def test_the_base_is_named_as_trl_names_it() -> None:
    theirs = {f.name for f in dataclasses.fields(ModelConfig)}
    assert {"model_name_or_path", "model_revision"} <= theirs
    args = ModelArguments(model_name_or_path="a/b", model_revision="v1")
    assert (
        ModelConfig(**{n: v for n, v in vars(args).items() if n in theirs}).model_revision == "v1"
    )


def test_the_model_that_is_taken_by_default_is_part_of_the_project(root: Path) -> None:
    assert ModelArguments().model_name_or_path == DEMO_MODEL
    assert (root / DEMO_MODEL / "model.safetensors").is_file()


def test_each_precision_is_taken_and_another_is_refused_with_the_list() -> None:
    assert {ModelArguments(precision=word).precision for word in PRECISIONS} == set(PRECISIONS)
    assert set(DTYPES) == set(PRECISIONS) - {"4bit"}
    with pytest.raises(
        InputError, match="precision is '8bit', but must be one of 4bit, bf16, fp32"
    ):
        ModelArguments(precision="8bit")  # type: ignore[arg-type]


def test_a_models_own_code_is_not_run_unasked() -> None:
    assert ModelArguments().trust_remote_code is False
