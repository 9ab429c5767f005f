"""What trains, and whether the gradient reaches it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from toolkit.data.encoding import Encoder
from toolkit.errors import InputError
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.preflight import preflight
from toolkit.training.reward.trainer import BestOfKTrainer

ROWS = [
    {
        "prompt": f"We went {i}.",
        "completions": [" It was good.", " It was very bad."],
        "best": i % 2,
    }
    for i in range(8)
]


@pytest.fixture
def trainer(demo_model: str, tmp_path: Path) -> Any:
    tokenizer = load_tokenizer(demo_model)
    data = Dataset.from_list(list(Encoder(tokenizer, 64).encode(("", row) for row in ROWS)))
    config = BestOfKConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        max_steps=2,
        disable_tqdm=True,
        per_device_train_batch_size=4,
    )
    return BestOfKTrainer(
        load_base(demo_model, "4bit", score_head=True),
        config,
        tokenizer,
        data,
        None,
        lora_config(4, 8, "all-linear", "SEQ_CLS"),
    )


def head(trainer: Any) -> torch.nn.Parameter:
    return trainer.model.base_model.model.score.modules_to_save["default"].weight


@pytest.mark.slow
def test_it_says_what_trains_and_changes_nothing(trainer: Any) -> None:
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    random_state, was_training = torch.get_rng_state(), trainer.model.training
    found = preflight(trainer)
    lora = sum(p.numel() for n, p in trainer.model.named_parameters() if ".lora_" in n)
    assert found.trained == {"LoRA": lora, "score head": 128}
    assert 0.1 < found.loss < 3 and found.gradient_norm > 0
    assert "and 128 weights of score head" in str(found)
    assert found.frozen > 700_000  # 4-bit weights are counted, not their bytes
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None, name
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not trainer._metrics["train"] and trainer.model.training == was_training
    trainer.train()
    assert not torch.equal(head(trainer), before[next(n for n in before if "score.modules" in n)])


def test_a_frozen_head_is_refused(trainer: Any) -> None:
    head(trainer).requires_grad_(False)
    with pytest.raises(InputError, match="no score head weight is trained"):
        preflight(trainer)


def test_an_adapter_without_gradient_is_refused(trainer: Any) -> None:
    torch.nn.init.zeros_(head(trainer))  # so nothing behind it is reached
    with pytest.raises(InputError, match="the LoRA gets no gradient"):
        preflight(trainer)


def test_a_weight_that_is_not_finite_is_seen_before_the_run(trainer: Any) -> None:
    with torch.no_grad():
        head(trainer)[0, 3] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss of the first batch is nan"):
        preflight(trainer)
