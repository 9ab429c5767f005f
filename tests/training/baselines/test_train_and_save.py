"""What is saved is what was trained, and what reloads otherwise is an error."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from tests.training.baselines.conftest import QUIET, data_of, first_batch, new_lora, preference
from toolkit.errors import InputError
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.training.baselines import train_and_save as saving
from toolkit.training.baselines.config import SFTBaselineConfig
from toolkit.training.baselines.train_and_save import role_logprobs, train_and_save
from toolkit.training.baselines.trainers import preference_trainer, sft_trainer

pytestmark = pytest.mark.slow  # trains


def test_the_saved_adapter_is_what_was_trained_and_the_next_stage_starts_from_it(
    tokenizer: Any, demo_model: str, comparisons: str, tmp_path: Path
) -> None:
    config = SFTBaselineConfig(output_dir=str(tmp_path), **QUIET)
    data = data_of(tokenizer, comparisons, tmp_path, config)
    held: list[Any] = []

    def make() -> Any:
        trainer = sft_trainer(load_base(demo_model, "4bit"), config, tokenizer, data, new_lora())
        held.append({n: p for n, p in trainer.model.named_parameters() if p.requires_grad})
        return trainer

    metrics, history = train_and_save(
        make,
        "Training by SFT",
        tmp_path,
        lambda: load_base(demo_model, "4bit"),
        demo_model,
        "4bit",
        data.probes,
        {"trained_on": "text"},
    )
    assert metrics["eval_loss"] > 0 and metrics["reload_difference"] < 1e-4 and history
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.json",
        "toolkit.json",
    ]
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    for name, p in plain.named_parameters():
        if "lora_" in name:
            assert torch.equal(p, held[0][name])

    # DPO from it: the reference is a frozen copy of it, so the first loss is ln 2.
    pairs = preference(tmp_path, "dpo")
    data = data_of(tokenizer, comparisons, tmp_path, pairs)
    trainer: Any = preference_trainer(
        load_base(demo_model, "4bit"), pairs, tokenizer, data, new_lora(), str(tmp_path / "adapter")
    )
    loss = trainer.compute_loss(trainer.model, first_batch(trainer))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    for name, p in trainer.model.named_parameters():
        if ".default." in name:
            assert p.requires_grad and torch.equal(p, held[0][name])
        assert p.requires_grad == (".default." in name)


def test_an_adapter_that_reloads_otherwise_is_an_error(demo_model: str, tmp_path: Path) -> None:
    roles, rows = Roles(load_base(demo_model, "fp32")), [[5, 6, 7]]
    same = role_logprobs(roles, rows)
    assert saving._check_reload(roles, rows, same, tmp_path, "fp32") == 0
    with pytest.raises(InputError, match="log-probs differ by up to 0.01"):
        saving._check_reload(roles, rows, [same[0] + 0.01], tmp_path, "fp32")
