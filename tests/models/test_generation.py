"""Sampling: fixed length, end-of-text as a token like any other, captured log-probs."""

import pytest
import torch

from toolkit.maths.distributions import token_logprobs
from toolkit.maths.sequences import pad
from toolkit.models.generation import sample
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles


@pytest.fixture(scope="module")
def roles(demo_model: str) -> Roles:

    return Roles(load_base(demo_model, "fp32"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prompts(demo_model: str, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    tokenizer = load_tokenizer(demo_model)
    texts = ["We went to the market.", "On Friday I met my old friend at the cafe by the lake."]
    return pad(tokenizer(texts * copies)["input_ids"], tokenizer.pad_token_id, "left")


def test_without_a_stop_exactly_that_many_tokens_come(roles: Roles, demo_model: str) -> None:
    ids, mask = prompts(demo_model)
    sampled = sample(roles.act_as_policy(), ids, mask, 7, 0.7, generator(), pad_id=0)
    assert sampled.completion_ids.shape == (2, 7)
    assert sampled.mask.all()
    assert (sampled.logprobs <= 0).all() and (sampled.logprobs < 0).any()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_captured_logprobs_equal_recomputed_ones(
    roles: Roles, demo_model: str, temperature: float
) -> None:
    ids, mask = prompts(demo_model)
    sampled = sample(roles.act_as_policy(), ids, mask, 12, temperature, generator(), pad_id=0)
    with torch.no_grad():
        logits = roles.policy_logits(
            torch.cat([ids, sampled.completion_ids], 1), torch.cat([mask, sampled.mask], 1), 12
        )
    again = token_logprobs(logits, sampled.completion_ids, temperature)
    assert (again - sampled.logprobs).abs().max() < 2e-5


def test_equal_seeds_give_equal_samples(roles: Roles, demo_model: str) -> None:
    ids, mask = prompts(demo_model)
    first, second, other = (
        sample(roles.act_as_policy(), ids, mask, 12, 1.0, generator(s), 0).completion_ids.tolist()
        for s in (0, 0, 1)
    )
    assert first == second != other


def test_end_of_text_is_sampled_as_often_as_the_model_says(roles: Roles, demo_model: str) -> None:
    """transformers' generate bans it when min_new_tokens is set; here it is one token of many."""
    tokenizer = load_tokenizer(demo_model)
    end = tokenizer.eos_token_id
    text = "We went to the market." + 4 * " The honey was good."
    ids, mask = pad([tokenizer(text)["input_ids"]] * 2000, 0, "left")
    with torch.no_grad():
        logits = roles.act_as_reference()(ids[:1]).logits[0, -1]
    expected = torch.softmax(logits / 0.7, -1)[end].item()
    assert 0.02 < expected < 0.98
    drawn = sample(roles.act_as_reference(), ids, mask, 1, 0.7, generator(), 0).completion_ids
    share = (drawn == end).float().mean().item()
    assert abs(share - expected) < 5 * (expected * (1 - expected) / 2000) ** 0.5


def test_a_stop_token_ends_a_completion_and_padding_follows(roles: Roles, demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    stop = tokenizer(".")["input_ids"][0]
    ids, mask = prompts(demo_model, copies=8)
    sampled = sample(roles.act_as_policy(), ids, mask, 20, 0.7, generator(), 0, stop_id=stop)
    lengths = sampled.mask.sum(1)
    assert lengths.min() >= 1 and lengths.min() < lengths.max()
    for row, keep in zip(sampled.completion_ids, sampled.mask, strict=True):
        assert (row[~keep] == 0).all()
        assert row[keep][-1] == stop or keep.all()
        assert stop not in row[keep][:-1]
    assert not sampled.logprobs[~sampled.mask].any()
