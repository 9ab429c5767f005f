"""What a trainer is given, brought into one form: prompts, rewards, models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from toolkit.errors import InputError
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.scoring.reward_models import RewardAdapter
from toolkit.training.ppo.algorithms import OF_POLICY, PolicyTerm, Term, algorithm_of
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.ppo.inputs import (
    as_eval_prompts,
    as_prompts,
    as_rewards,
    check_actors,
    check_credit,
    check_term,
    digest_of,
    identity_of,
    own_algorithm,
)


def padded(model: str) -> tuple[Any, list[list[int]]]:
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    texts = ["We went to the market.", "I met my aunt at the cafe by the lake.", "Oh."]
    return tokenizer, tokenizer(texts)["input_ids"]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["lists", "torch", "numpy", "without a mask"])
def test_prompts_that_come_padded_are_what_they_are_without_padding(
    demo_model: str, side: str, form: str
) -> None:
    """Old scripts pad in their map, keep the mask, and ask for tensors by set_format."""
    tokenizer, plain = padded(demo_model)
    tokenizer.padding_side = side
    rows = Dataset.from_dict(dict(tokenizer.pad({"input_ids": plain})))
    assert len(set(map(len, rows["input_ids"]))) == 1
    if form in ("torch", "numpy"):
        rows.set_format(form, columns=["input_ids", "attention_mask"])
    elif form == "without a mask":
        rows = rows.remove_columns("attention_mask")
    assert list(as_prompts(rows, tokenizer)) == plain


def test_a_mask_is_believed_where_pad_is_also_a_token_of_the_text(demo_model: str) -> None:
    """With pad == eos, TRL's reading by the id took real tokens out of the prompt."""
    tokenizer, _ = padded(demo_model)
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    row = {"input_ids": [end, end, 5, end, 6], "attention_mask": [0, 1, 1, 1, 1]}
    assert list(as_prompts([row], tokenizer)) == [[end, 5, end, 6]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "Hello"}], "row 0 has no input_ids .tokenize"),
        ([{"input_ids": [3, 4], "attention_mask": [1]}], "row 0 has 2 input_ids, but an .* of 1"),
        ([{"input_ids": [3, 4], "attention_mask": [0, 0]}], "one without tokens"),
        ([{"input_ids": {"input_ids": [3, 4]}}], "row 0: .* a dictionary, .* return_dict=False"),
        ({"train": Dataset.from_dict({"input_ids": [[3]]})}, "is a dict, but .* pass one split"),
    ],
)  # fmt: skip
def test_rows_that_are_no_prompts_are_named(demo_model: str, rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"train_dataset.*{message}"):
        as_prompts(rows, padded(demo_model)[0])


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


class Parts:
    """Stands in for the roles, where only one thing is asked of them."""

    def __init__(self, has_reward: bool) -> None:
        self.has_reward = has_reward


def test_several_rewards_are_summed_with_the_weights_that_were_given_or_one_each() -> None:
    actors: Any = Parts(has_reward=True)
    found = as_rewards([lengths, None], None, actors)
    assert found.weights == [1.0, 1.0]
    assert [isinstance(part, RewardAdapter) for part in found.parts] == [False, True]
    assert as_rewards([lengths, None], [0.5, 2.0], actors).weights == [0.5, 2.0]


@pytest.mark.parametrize(
    ("reward", "weights", "message"),
    [
        (None, None, "PPO needs a reward"),
        ([], None, "PPO needs a reward"),
        (5, None, "reward_model: 5 is neither a model nor a function"),
        ([lengths, lengths], [1.0], "1 reward_weights for 2 rewards"),
    ],
)
def test_rewards_that_cannot_be_summed_are_refused(
    reward: Any, weights: list[float] | None, message: str
) -> None:
    actors: Any = Parts(has_reward=False)
    with pytest.raises(InputError, match=message):
        as_rewards(reward, weights, actors)


@dataclass(frozen=True)
class Own:
    """Stands in for an algorithm, where only what it holds is asked."""

    policy: PolicyTerm = PolicyTerm(0.2)
    gamma: Any = 1.0
    uses_value: bool = False
    group_size: int = 1
    statistics: tuple[str, ...] = OF_POLICY

    credit = loss = None  # the hooks, which nothing here calls


@dataclass(frozen=True)
class Bare:
    """An algorithm that says nothing of its groups."""

    credit = loss = None
    uses_value: bool = False


class Plain:
    """An algorithm with a constant of its class."""

    cliprange = 0.2


def test_what_an_own_algorithm_gives_is_looked_at() -> None:
    with pytest.raises(InputError, match="credit returned a tuple"):
        check_credit((torch.ones(1), torch.ones(1)))
    with pytest.raises(InputError, match="loss gave a Tensor"):
        check_term(torch.ones(1), own())
    with pytest.raises(InputError, match="loss counts extra"):
        check_term(Term(torch.ones(1), {"policy": torch.ones(1), "extra": torch.ones(1)}), own())
    check_term(Term(torch.ones(1), {"policy": torch.ones(1)}), own())


def own(**told: Any) -> Any:
    return Own(**told)


def test_an_own_algorithm_is_known_by_its_class_and_all_that_it_holds() -> None:
    assert identity_of(own()) == identity_of(own())
    others = own(gamma=0.5), own(policy=PolicyTerm(0.3))
    assert len({identity_of(one) for one in (own(), *others)}) == 3
    before = identity_of(Plain())  # type: ignore[arg-type]
    Plain.cliprange = 0.3
    assert identity_of(Plain()) != before  # type: ignore[arg-type]
    assert identity_of(own()).partition(" ")[0].endswith("test_inputs:Own")


@pytest.mark.parametrize(
    ("algorithm", "flags", "message"),
    [
        (own(), {"algorithm": "group_relative"}, "both group_relative and an own Own are given"),
        (own(group_size=3), {}, "Own has groups of 3, which do not divide the batch of 64"),
        (own(statistics=("policy",)), {}, "Own's statistics lack 'ratio'"),
        (own(gamma=torch.ones(2)), {}, "Own holds what a run cannot note"),
        (Bare(), {}, "Bare lacks group_size"),
        (Own, {}, "Own is a class"),
        (own(), {"kl_in": "loss"}, "kl_in is not used by an own algorithm"),
        (own(), {"entropy_coef": 0.1}, "entropy_coef is not used by an own algorithm"),
        (own(), {"value_warmup": 2}, "Own has no value that could warm up"),
    ],
)
def test_an_own_algorithm_that_cannot_be_run_or_resumed_is_refused(
    algorithm: Any, flags: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        own_algorithm(algorithm, PPOConfig(use_cpu=True, **flags))


def test_whole_models_are_no_roles_and_the_message_says_what_takes_them(tmp_path: Path) -> None:
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(InputError, match=r"model is a Linear, not Roles .*toolkit\.trl_compat"):
        check_actors(torch.nn.Linear(1, 1), algorithm_of(args), args)


def test_several_eval_datasets_are_one_behind_the_other_and_a_missing_column_is_none(
    demo_model: str,
) -> None:
    tokenizer, _ = padded(demo_model)
    parts = {
        "news": [{"input_ids": [5], "tag": "n"}, {"input_ids": [6], "tag": "m"}],
        "tales": [{"input_ids": [7], "length": 3}],
    }
    whole, named = as_eval_prompts(parts, tokenizer)
    assert whole is not None and list(whole) == [[5], [6], [7]]
    assert whole.columns == {"tag": ["n", "m", None], "length": [None, None, 3]}
    assert {name: list(part) for name, part in named.items()} == {
        "news": [[5], [6]],
        "tales": [[7]],
    }
    assert as_eval_prompts(None, tokenizer) == as_eval_prompts({}, tokenizer) == (None, {})
    one, unnamed = as_eval_prompts(parts["news"], tokenizer)
    assert one == [[5], [6]] and unnamed == {}


def test_a_digest_tells_the_reward_model_from_what_else_is_frozen(demo_model: str) -> None:
    roles = Roles(load_base(demo_model, "fp32"), lora_config(4, 8, "all-linear", "CAUSAL_LM"))
    before = digest_of(roles, reward=True), digest_of(roles, reward=False)
    for parameter in roles.trainable():
        parameter[1].data += 1  # what is trained is in neither
    assert (digest_of(roles, reward=True), digest_of(roles, reward=False)) == before
    roles.gain = 2.0
    assert digest_of(roles, reward=True) != before[0]
    assert digest_of(roles, reward=False) == before[1]
