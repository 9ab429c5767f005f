"""Sampling: fixed length, end-of-text as a token like any other, captured log-probs."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributions import Categorical
from transformers import GPT2Config, GPT2LMHeadModel

from toolkit.maths.sequences import pad
from toolkit.models.generation import draw_uniforms, sample, step_of
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles


@pytest.fixture(scope="module")
def roles(demo_model: str) -> Roles:

    return Roles(load_base(demo_model, "fp32"))


def noise(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return draw_uniforms(batch, length, torch.Generator().manual_seed(seed))


def prompts(demo_model: str, copies: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    tokenizer = load_tokenizer(demo_model)
    texts = ["We went to the market.", "On Friday I met my old friend at the cafe by the lake."]
    return pad(tokenizer(texts * copies)["input_ids"], tokenizer.pad_token_id, "left")


def test_without_a_stop_exactly_that_many_tokens_come(roles: Roles, demo_model: str) -> None:
    ids, mask = prompts(demo_model)
    sampled = sample(roles.step(), ids, mask, noise(2, 7), 0.7, pad_id=0)
    assert sampled.completion_ids.shape == (2, 7)
    assert sampled.mask.all()
    assert (sampled.logprobs <= 0).all() and (sampled.logprobs < 0).any()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_captured_logprobs_equal_recomputed_ones(
    roles: Roles, demo_model: str, temperature: float
) -> None:
    ids, mask = prompts(demo_model)
    sampled = sample(roles.step(), ids, mask, noise(2, 12), temperature, pad_id=0)
    with torch.no_grad():
        logits = roles.logits(
            "policy",
            torch.cat([ids, sampled.completion_ids], 1),
            torch.cat([mask, sampled.mask], 1),
            12,
        )
    again = Categorical(logits=logits / temperature).log_prob(sampled.completion_ids)
    assert (again - sampled.logprobs).abs().max() < 2e-5


def test_a_model_with_pefts_wrapper_is_sampled_at_its_tokens_positions() -> None:
    """Learned positions are wrong by the padding unless they are given, past peft's own pass."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32)
    model = get_peft_model(GPT2LMHeadModel(config).eval(), LoraConfig(task_type="CAUSAL_LM"))
    rows = [[5, 6, 7, 8, 9], [10, 11]]
    sampled = sample(step_of(model), *pad(rows, 0, "left"), noise(2, 4), 1.0, 0)
    with torch.no_grad():
        for row, completion, logprobs in zip(rows, *sampled[::2], strict=True):
            ids = torch.tensor([row + completion.tolist()])
            logits = model(input_ids=ids).logits[:, len(row) - 1 : -1]
            expected = Categorical(logits=logits).log_prob(completion.unsqueeze(0))
            assert torch.allclose(logprobs, expected[0], atol=1e-5)


def test_equal_seeds_give_equal_samples(roles: Roles, demo_model: str) -> None:
    ids, mask = prompts(demo_model)
    first, second, other = (
        sample(roles.step(), ids, mask, noise(2, 12, s), 1.0, 0).completion_ids.tolist()
        for s in (0, 0, 1)
    )
    assert first == second != other


@pytest.mark.slow
def test_end_of_text_is_sampled_as_often_as_the_model_says(roles: Roles, demo_model: str) -> None:
    """transformers' generate bans it when min_new_tokens is set; here it is one token of many."""
    tokenizer = load_tokenizer(demo_model)
    end = tokenizer.eos_token_id
    text = "We went to the market." + 4 * " The honey was good."
    ids, mask = pad([tokenizer(text)["input_ids"]] * 2000, 0, "left")
    with torch.no_grad():
        logits = roles.act_as("reference")(ids[:1]).logits[0, -1]
    expected = torch.softmax(logits / 0.7, -1)[end].item()
    assert 0.02 < expected < 0.98
    drawn = sample(roles.step("reference"), ids, mask, noise(2000, 1), 0.7, 0).completion_ids
    share = (drawn == end).float().mean().item()
    assert abs(share - expected) < 5 * (expected * (1 - expected) / 2000) ** 0.5


def test_a_stop_token_ends_a_completion_and_padding_follows(roles: Roles, demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    stop = tokenizer(".")["input_ids"][0]
    ids, mask = prompts(demo_model, copies=8)
    sampled = sample(roles.step(), ids, mask, noise(16, 20), 0.7, 0, stop_ids=(stop,))
    lengths = sampled.mask.sum(1)
    assert lengths.min() >= 1 and lengths.min() < lengths.max()
    for row, keep in zip(sampled.completion_ids, sampled.mask, strict=True):
        assert (row[~keep] == 0).all()
        assert row[keep][-1] == stop or keep.all()
        assert stop not in row[keep][:-1]
    assert not sampled.logprobs[~sampled.mask].any()


def test_a_completion_depends_on_its_own_noise_and_on_nothing_else(
    roles: Roles, demo_model: str
) -> None:
    """Neither on the rest of the batch, nor on its order, nor on how far it is padded."""
    ids, mask = prompts(demo_model, copies=3)
    uniforms = noise(6, 12)
    whole = sample(roles.step(), ids, mask, uniforms, 0.7, 0)
    backwards = sample(roles.step(), ids.flip(0), mask.flip(0), uniforms.flip(0), 0.7, 0)
    assert torch.equal(whole.completion_ids, backwards.completion_ids.flip(0))
    start = int((~mask[0]).sum())
    alone = sample(roles.step(), ids[:1, start:], mask[:1, start:], uniforms[:1], 0.7, 0)
    assert torch.equal(alone.completion_ids[0], whole.completion_ids[0])


def test_a_plain_model_samples_as_the_roles_do(roles: Roles, demo_model: str) -> None:
    ids, mask = prompts(demo_model)
    plain = load_base(demo_model, "fp32")
    ours = sample(roles.step("reference"), ids, mask, noise(2, 12), 0.7, 0)
    theirs = sample(step_of(plain), ids, mask, noise(2, 12), 0.7, 0)
    assert torch.equal(ours.completion_ids, theirs.completion_ids)
    assert torch.allclose(ours.logprobs, theirs.logprobs, atol=1e-5)
    assert theirs.values is None


def test_values_are_captured_where_they_share_the_policys_trunk(demo_model: str) -> None:
    shared = Roles(load_base(demo_model, "fp32"), value="trunk")
    torch.nn.init.normal_(shared.value_head.weight)
    ids, mask = prompts(demo_model)
    sampled = sample(shared.step(), ids, mask, noise(2, 12), 0.7, 0)
    whole = torch.cat([ids, sampled.completion_ids], 1), torch.cat([mask, sampled.mask], 1)
    with torch.no_grad():
        assert torch.allclose(sampled.values, shared.values(*whole, 12), atol=1e-4)
    assert sample(shared.step("reference"), ids, mask, noise(2, 12), 0.7, 0).values is None
