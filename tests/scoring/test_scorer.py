"""What scorers are asked, sums of them, and what a checkpoint notes of them."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from toolkit.data.files import write_json
from toolkit.data.prompts import Prompts
from toolkit.errors import InputError
from toolkit.models.adapters import lora_config
from toolkit.models.base_config import base_fingerprint
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles
from toolkit.scoring.functions import FunctionScorer, Lexicon, call_reward_function
from toolkit.scoring.reward_models import RewardAdapter, RewardModel
from toolkit.scoring.scorer import Completions, TokenCompletions, WeightedSum
from toolkit.training.ppo.inputs import as_prompts, as_rewards

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
    asked = TokenCompletions.seen(rows, ids, visible, tokenizer, roles)
    return WeightedSum([FunctionScorer(part) for part in parts], weights)(asked).tolist()


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
    with pytest.raises(InputError, match="shouting scored .* as nan"):
        asked = TokenCompletions.seen(tokenizer(["No!"])["input_ids"], ids, ids > 0, tokenizer)
        FunctionScorer(shouting).finite_scores(asked)


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


@pytest.mark.slow
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
        with pytest.raises(InputError, match="train_dataset has no prompts"):
            as_prompts(empty)


class Plain:
    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        return [0.0]


class Named(Plain):
    identity = "mine, version 3"


def test_what_a_checkpoint_notes_of_its_rewards_is_what_it_has_always_noted(
    root: Path, roles: Roles, demo_model: str, tmp_path: Path
) -> None:
    """Of each kind; a run is not resumed where one of these differs from what was noted."""
    torch.manual_seed(0)
    base = load_base(demo_model, "fp32", score_head=True)
    get_peft_model(base, lora_config(4, 8, "all-linear", "SEQ_CLS")).save_pretrained(tmp_path)
    write_json(tmp_path / "toolkit.json", {"gain": 2.0, "bias": -1.0})
    weights = (tmp_path / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()[:16]

    parts = [
        Lexicon(root / "data" / "lexicon.txt"),
        math.sqrt,
        Plain(),
        Named(),
        length,
        RewardModel(str(tmp_path), "fp32"),
        None,
        base,
    ]
    roles.has_reward = True
    try:
        found = as_rewards(parts, [1, 0.5, 1.0, 1.0, -1.0, 2.0, 1.0, 1.0], roles).identity
    finally:
        roles.has_reward = False
    assert json.loads(json.dumps(found)) == [
        ["lexicon 4adaa7818494c0e2", 1],
        ["math:sqrt", 0.5],
        [f"{__name__}:Plain", 1.0],
        ["mine, version 3", 1.0],
        [f"{__name__}:length", -1.0],
        [f"{tmp_path} {base_fingerprint(demo_model)} {digest} 2.0 -1.0 None", 2.0],
        ["reward model", 1.0],
        ["reward model", 1.0],
    ]


def test_the_door_takes_scorers_functions_and_lists_of_them(roles: Roles, root: Path) -> None:
    lexicon = Lexicon(root / "data" / "lexicon.txt")
    assert as_rewards(lexicon, None, roles).parts == [lexicon]
    assert as_rewards([lexicon, length], [1.0, 2.0], roles).name == "Lexicon+length"
    with pytest.raises(InputError, match="'no scorer' is neither a model nor a function"):
        as_rewards("no scorer", None, roles)
    with pytest.raises(InputError, match="needs a reward"):
        as_rewards(RewardAdapter(), None, roles)


def test_a_reward_adapter_needs_the_actors_whose_base_it_shares() -> None:
    with pytest.raises(ValueError, match="with the actors on its base"):
        RewardAdapter()(Completions(["p"], ["c"]))


def test_a_sum_has_the_precision_that_it_is_asked_for() -> None:
    third = FunctionScorer(lambda prompts, completions: [1 / 3])
    asked = Completions(["p"], ["c"])
    exact = WeightedSum([third, third], [0.1, 0.3], torch.float64)(asked)
    assert exact.dtype == torch.float64 and exact.item() == 0.1 * (1 / 3) + 0.3 * (1 / 3)
    single = torch.tensor([1 / 3])
    in_ppo = WeightedSum([third, third], [0.1, 0.3])(asked)
    assert torch.equal(in_ppo, 0.1 * single + 0.3 * single)  # as fp32 does it


def test_completions_are_shown_in_trls_form_and_made_of_tokens_only_when_asked_for(
    demo_model: str,
) -> None:
    chat = [{"role": "user", "content": "Hi."}]
    asked = Completions(["Hi.", chat], ["Ho.", "Ho."])
    assert asked.answers == ["Ho.", [{"role": "assistant", "content": "Ho."}]]

    tokenizer = load_tokenizer(demo_model)
    prompts = Prompts(tokenizer(TEXTS)["input_ids"], {"n": [1, 2]})
    ids = tokenizer([" It rained.", " Tea."], add_special_tokens=False)["input_ids"]
    by_ids = TokenCompletions(prompts, tokenizer, ids)
    assert "texts" not in vars(by_ids) and by_ids.columns == {"n": [1, 2]}
    assert by_ids.prompts == TEXTS and by_ids.texts == [" It rained.", " Tea."]
    assert TokenCompletions(prompts, tokenizer, texts=by_ids.texts).ids == ids


def test_rewards_are_known_by_their_content_when_a_run_is_resumed(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, text in zip(files, ("good\t1\n", "good\t2\n", "good\t1\n"), strict=True):
        file.write_text(text)
    one, other, same = (WeightedSum([Lexicon(f)], [1.0]).identity for f in files)
    assert one == same != other
    by_length = WeightedSum([FunctionScorer(length)], [1.0]).identity
    assert by_length != WeightedSum([FunctionScorer(shouting)], [1.0]).identity  # type: ignore
    assert by_length != WeightedSum([FunctionScorer(length)], [2.0]).identity
