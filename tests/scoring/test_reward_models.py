"""Reward models on other bases than the policy's: they score text as plain libraries do."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from toolkit.data.files import write_json
from toolkit.errors import InputError
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.scoring.reward_models import RewardModel
from toolkit.scoring.scorer import Completions

TEXTS = ["We went to the market.", "I met my aunt at the cafe by the lake."]


@pytest.mark.parametrize("precision", ["fp32", "4bit"])
def test_a_reward_model_on_another_base_scores_text(
    family_model: str, tmp_path: Path, precision: str
) -> None:
    """An adapter whose config names its base: scores are those of the plain model on the text."""
    torch.manual_seed(0)
    base = load_base(family_model, precision, score_head=True)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")
    plain = get_peft_model(base, config).eval()
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    plain.save_pretrained(str(tmp_path / "adapter"))
    write_json(tmp_path / "adapter" / "toolkit.json", {"gain": 2.0, "bias": -1.0})
    scorer = RewardModel(str(tmp_path / "adapter"), precision)
    scores = scorer(Completions(["We went to the", TEXTS[1]], [" market.", ""])).tolist()
    tokenizer = load_tokenizer(family_model)
    for text, value in zip(TEXTS, scores, strict=True):
        with torch.no_grad():
            raw = plain(**tokenizer(text, return_tensors="pt")).logits.item()
        assert value == pytest.approx(2 * raw - 1, abs=1e-4)


def test_a_classifier_with_two_outputs_is_refused(demo_model: str, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(demo_model, num_labels=2)
    model.save_pretrained(tmp_path / "two")
    with pytest.raises(InputError, match="not a classifier with one output"):
        RewardModel(str(tmp_path / "two"), "fp32")


def test_a_whole_classifier_scores_with_its_own_head_behind_an_end_token_as_trl_trained_it(
    demo_model: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(demo_model, num_labels=1).eval()
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "whole")
    tokenizer = load_tokenizer(demo_model)
    tokenizer.save_pretrained(tmp_path / "whole")
    for flag, end in (("auto", tokenizer.eos_token), ("none", "")):
        scorer = RewardModel(str(tmp_path / "whole"), "fp32", end_token=flag)
        for text, value in zip(TEXTS, scorer(Completions(TEXTS, ["", ""])).tolist(), strict=True):
            with torch.no_grad():
                ids = tokenizer(text + end, return_tensors="pt")
                assert value == pytest.approx(model(**ids).logits.item(), abs=1e-4)
