"""Who scores: functions, sums of them, and reward models on other bases."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from toolkit.data.files import write_json
from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles
from toolkit.scoring.reward_models import TextRewardModel
from toolkit.scoring.scorer import Rewards, call_reward_function, score
from toolkit.training.ppo_run import as_prompts, as_rewards

TEXTS = ["We went to the market.", "I met my aunt at the cafe by the lake."]


def length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def shouting(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    return [None if "!" in p else 10.0 for p in prompts]


@pytest.fixture(scope="module")
def roles(demo_model: str) -> Roles:
    return Roles(load_base(demo_model, "fp32"))


def sum_of(roles: Roles, demo_model: str, parts: list, weights: list, prompts: list[str]) -> list:
    tokenizer = load_tokenizer(demo_model)
    rows = Prompts(tokenizer(prompts)["input_ids"])
    ids = torch.tensor(tokenizer([" The tea was good."] * len(prompts))["input_ids"])
    visible = torch.ones_like(ids, dtype=torch.bool)
    return Rewards(parts, weights)(roles, rows, ids, visible, tokenizer).tolist()


def test_scores_are_weighed_and_added(roles: Roles, demo_model: str) -> None:
    total = sum_of(roles, demo_model, [length, shouting], [0.5, -2.0], TEXTS)
    assert total == pytest.approx([0.5 * len(" The tea was good.") - 20.0] * 2)


def test_what_one_part_cannot_score_has_no_score(roles: Roles, demo_model: str) -> None:
    total = sum_of(roles, demo_model, [length, shouting], [1.0, 1.0], ["Stop!", TEXTS[0]])
    assert math.isnan(total[0]) and not math.isnan(total[1])


def test_a_single_scorer_that_cannot_score_is_a_mistake_elsewhere(
    roles: Roles, demo_model: str
) -> None:
    tokenizer = load_tokenizer(demo_model)
    ids = torch.tensor(tokenizer([TEXTS[0]])["input_ids"])
    with pytest.raises(InputError, match="shouting: scored .* as nan"):
        score(roles, tokenizer(["No!"])["input_ids"], ids, ids > 0, tokenizer, shouting)


def test_columns_reach_the_functions_that_ask_for_them() -> None:
    columns = {"answer": [1, 2], "other": ["a", "b"]}

    def by_name(prompts: list[str], completions: list[str], answer: list[int]) -> list[float]:
        return [float(a) for a in answer]

    def all_of_them(prompts: list[str], completions: list[str], **given: Any) -> list[float]:
        assert given == columns
        return [0.0, 0.0]

    assert call_reward_function(by_name, ["p"] * 2, ["c"] * 2, columns) == [1.0, 2.0]
    assert call_reward_function(all_of_them, ["p"] * 2, ["c"] * 2, columns) == [0.0, 0.0]
    assert call_reward_function(length, ["p"] * 2, ["c"] * 2, columns) == [1.0, 1.0]


def test_columns_follow_their_prompts_through_a_run(new_trainer: Any) -> None:
    seen: dict[str, str] = {}

    def remember(prompts: list[str], completions: list[str], number: list[str]) -> list[float]:
        for prompt, value in zip(prompts, number, strict=True):
            assert seen.setdefault(value, prompt) == prompt
        return length(prompts, completions)

    trainer = new_trainer(reward_model=remember, total_episodes=128, learning_rate=0.0)
    trainer.train_dataset.columns["number"] = [str(i) for i in range(64)]
    trainer.train()
    assert len(seen) == 64


@pytest.mark.parametrize(
    ("returned", "message"),
    [([1.0], "1 scores for 2"), (["a", "b"], "not numbers"), ([math.inf, 0.0], "as inf"),
     (None, "not numbers")],
)  # fmt: skip
def test_what_a_function_returns_is_checked(returned: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call_reward_function(lambda prompts, completions: returned, ["p"] * 2, ["c"] * 2, {})


def test_weights_must_go_with_the_parts(roles: Roles) -> None:
    with pytest.raises(InputError, match="1 reward_weights for 2 rewards"):
        as_rewards([length, shouting], [1.0], roles)
    with pytest.raises(InputError, match="needs a reward"):
        as_rewards([None, length], [1.0, 1.0], roles)


def test_a_dataset_of_rows_keeps_its_columns() -> None:
    prompts = as_prompts([{"input_ids": [1, 2], "attention_mask": [1, 1], "answer": "x"}])
    assert list(prompts) == [[1, 2]] and prompts.columns == {"answer": ["x"]}
    for empty in ([], None, [[]]):
        with pytest.raises(InputError, match="train_dataset: no prompts"):
            as_prompts(empty)


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
    scorer = TextRewardModel(str(tmp_path / "adapter"), precision)
    scores = scorer(["We went to the", TEXTS[1]], [" market.", ""])
    tokenizer = load_tokenizer(family_model)
    for text, value in zip(TEXTS, scores, strict=True):
        with torch.no_grad():
            raw = plain(**tokenizer(text, return_tensors="pt")).logits.item()
        assert value == pytest.approx(2 * raw - 1, abs=1e-4)


def test_a_classifier_with_two_outputs_is_refused(demo_model: str, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(demo_model, num_labels=2)
    model.save_pretrained(tmp_path / "two")
    with pytest.raises(InputError, match="not a classifier with one output"):
        TextRewardModel(str(tmp_path / "two"), "fp32")


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
        scorer = TextRewardModel(str(tmp_path / "whole"), "fp32", end_token=flag)
        for text, value in zip(TEXTS, scorer(TEXTS, ["", ""]), strict=True):
            with torch.no_grad():
                ids = tokenizer(text + end, return_tensors="pt")
                assert value == pytest.approx(model(**ids).logits.item(), abs=1e-4)


def test_rewards_are_known_by_their_content_when_a_run_is_resumed(tmp_path: Path) -> None:
    from toolkit.scoring.lexicon import Lexicon

    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, text in zip(files, ("good\t1\n", "good\t2\n", "good\t1\n"), strict=True):
        file.write_text(text)
    one, other, same = (Rewards([Lexicon(f)], [1.0]).identity() for f in files)
    assert one == same != other
    assert Rewards([length], [1.0]).identity() != Rewards([shouting], [1.0]).identity()
    assert Rewards([length], [1.0]).identity() != Rewards([length], [2.0]).identity()
