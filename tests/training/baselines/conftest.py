"""What the tests of the baselines share: rows, a tokenizer, data and configurations."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from torch import Tensor

from toolkit.arguments.comparisons import ComparisonArguments
from toolkit.data.encoding import Encoder
from toolkit.data.from_arguments import split_picks
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_tokenizer
from toolkit.training.baselines.config import PreferenceConfig
from toolkit.training.baselines.data import (
    SFT_SCHEMA,
    BaselineData,
    preference_shape,
    prepare_completions,
    sft_rows,
)

ENDS = [" The tea was cold.", " We loved it and stayed. Then rain", " He was sad", " Fine.", " No"]

EOS = 1  # of the embedded model

QUIET: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
}


def new_lora() -> LoraConfig:
    return lora_config(4, 8, "all-linear", "CAUSAL_LM")  # peft writes the base's name into it


@pytest.fixture(scope="module")
def tokenizer(demo_model: str) -> Any:
    return load_tokenizer(demo_model)


@pytest.fixture(scope="module")
def comparisons(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty rows of two to five completions of unequal length."""
    path = tmp_path_factory.mktemp("data") / "comparisons.jsonl"
    rows = []
    for i, line in enumerate((root / "data" / "prompts.jsonl").read_text().splitlines()[:20]):
        row = json.loads(line) | {"completions": ENDS[: 2 + i % 4], "best": i % 2}
        rows.append(json.dumps(row) + "\n")
    path.write_text("".join(rows))
    return str(path)


def data_of(
    tokenizer: Any, comparisons: str, folder: Path, config: Any, **kwargs: Any
) -> BaselineData:
    shape = (
        preference_shape(config) if isinstance(config, PreferenceConfig) else (sft_rows, SFT_SCHEMA)
    )
    split = split_picks(ComparisonArguments(comparisons=comparisons, eval_rows=4), 0)
    return prepare_completions(split, Encoder(tokenizer, 64), kwargs.get("stop_id"), *shape, folder)


def preference(folder: Path, method: str, **kwargs: Any) -> PreferenceConfig:
    return PreferenceConfig(output_dir=str(folder / "run"), method=method, **(QUIET | kwargs))


def first_batch(trainer: Any) -> dict[str, Tensor]:
    return next(iter(trainer.get_train_dataloader()))
