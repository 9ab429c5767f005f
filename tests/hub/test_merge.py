"""The merged export: the same model as adapter and base, and told by how much it is not."""

import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from toolkit.errors import InputError
from toolkit.hub.adapter_source import TrainedAdapter, read_adapter
from toolkit.hub.base_on_hub import Base
from toolkit.hub.gate import PROBES, measure
from toolkit.hub.merge import check_merge, merge

pytestmark = pytest.mark.slow  # loads what was merged anew


@pytest.fixture
def base(demo_model: str) -> Base:
    return Base(Path(demo_model), "org/base", "a" * 40, {"license": "mit"})


def policy(adapters: Path, precision: str = "fp32") -> TrainedAdapter:
    return read_adapter(adapters / "ppo/adapters/policy", precision)


def figures(said: str) -> list[float]:
    return [float(x) for x in re.findall(r"(?:up to|average by|merged\) is) ([-\d.e]+\d)", said)]


@torch.no_grad()
def test_a_merged_policy_says_what_the_adapter_says(
    adapters: Path, base: Base, tmp_path: Path
) -> None:
    source = policy(adapters)
    said = merge(source, base, tmp_path / "merged", "fp32", None)
    largest, mean, divergence = figures(said)
    assert largest < 1e-4 and mean < 1e-5 and abs(divergence) < 1e-6
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    expected = measure(source, base.files)
    for text, ids, numbers in zip(PROBES, expected.ids, expected.numbers, strict=True):
        assert tokenizer(text)["input_ids"] == ids
        logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        ours = logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(ours, torch.tensor(numbers), atol=1e-4, rtol=0)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert said in card and "license: mit" in card and "base_model: org/base" in card


@torch.no_grad()
def test_the_difference_from_a_4_bit_base_is_measured(
    adapters: Path, base: Base, tmp_path: Path
) -> None:
    """Rounding the base to 4 bits moves the numbers much more than merging does."""
    said = merge(policy(adapters, "4bit"), base, tmp_path / "merged", "fp32", None)
    largest, mean, divergence = figures(said)
    assert "compared with the adapter on the base in 4-bit" in said
    assert largest > 0.1 and largest > mean > 1e-3 and divergence > 1e-4


@torch.no_grad()
def test_a_merged_reward_scores_as_the_adapter_before_gain_and_bias(
    adapters: Path, base: Base, tmp_path: Path
) -> None:
    source = read_adapter(adapters / "reward/adapter")
    said = merge(source, base, tmp_path / "merged", "fp32", None)
    assert figures(said)[0] < 1e-4 and "raw scores" in said
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    expected = measure(source, base.files)
    for ids, (score,) in zip(expected.ids, expected.numbers, strict=True):
        assert 2.5 * model(torch.tensor([ids])).logits.item() - 0.75 == pytest.approx(
            score, abs=1e-4
        )


def test_what_nobody_trained_is_not_merged_unasked(adapters: Path) -> None:
    with pytest.raises(InputError, match="was trained on a 4-bit base.*--merge_into_full_prec"):
        check_merge(policy(adapters, "4bit"), "bf16", False)
    check_merge(policy(adapters, "4bit"), "bf16", True)
    check_merge(policy(adapters, "bf16"), "bf16", False)
    with pytest.raises(InputError, match="a value has a head"):
        check_merge(read_adapter(adapters / "ppo/adapters/value"), "bf16", False)
    with pytest.raises(InputError, match="merged_dtype is 'int8'"):
        check_merge(policy(adapters), "int8", True)
