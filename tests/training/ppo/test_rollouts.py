"""One batch of experience: who sees which tokens, and what a completion scores."""

import pytest
import torch
from peft import LoraConfig

from toolkit.data.prompts import Prompts
from toolkit.models.generation import draw_uniforms
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles
from toolkit.models.sampling import sampling_rule
from toolkit.scoring.functions import as_scorer
from toolkit.training.ppo.rollouts import Rollout, collect, samples_for_estimate


@pytest.fixture(scope="module")
def roles(demo_model: str) -> Roles:
    return Roles(load_base(demo_model, "fp32"), value="adapter")


def rollout_of(  # noqa: ANN201
    roles: Roles, demo_model: str, function: object, batch_size: int = 256, **rule: object
):
    tokenizer = load_tokenizer(demo_model)
    prompts = tokenizer(["We went to the market.", "I met my aunt at the cafe by the lake."] * 8)
    uniforms = draw_uniforms(16, 16, torch.Generator().manual_seed(0))
    return collect(
        roles,
        Prompts(prompts["input_ids"]),
        uniforms,
        sampling_rule(tokenizer, 16, 0.7, **rule),
        tokenizer,
        as_scorer(function),
        batch_size,
    )


def test_a_reward_function_reads_the_texts_that_the_scorer_may_see(
    roles: Roles, demo_model: str
) -> None:
    seen: list[str] = []

    def length(prompts: list[str], completions: list[str]) -> list[float]:
        assert prompts[:2] == ["We went to the market.", "I met my aunt at the cafe by the lake."]
        seen.extend(completions)
        return [float(len(text)) for text in completions]

    rollout = rollout_of(roles, demo_model, length, truncate_token=".", truncate_after=4)
    assert all(
        text.endswith(".") for text, ok in zip(seen, rollout.valid.tolist(), strict=True) if ok
    )
    expected = [float(len(t)) if ok else -1.0 for t, ok in zip(seen, rollout.valid, strict=True)]
    assert rollout.scores.tolist() == expected


def test_completions_that_break_the_rule_score_the_penalty(roles: Roles, demo_model: str) -> None:
    rollout = rollout_of(
        roles,
        demo_model,
        lambda prompts, completions: [9.0] * 16,
        truncate_token=".",
        truncate_after=13,
        penalty=-3.0,
    )
    assert set(rollout.scores.tolist()) == {9.0, -3.0}
    assert rollout.mask.all()  # PPO's own terms run over all tokens all the same


def test_a_missing_end_is_taken_off_the_score(roles: Roles, demo_model: str) -> None:
    rollout = rollout_of(
        roles,
        demo_model,
        lambda prompts, completions: [9.0] * 16,
        stop_token=".",
        missing_eos_penalty=2.5,
    )
    stop = load_tokenizer(demo_model)(".")["input_ids"][0]
    ended = (rollout.completion_ids == stop).any(1)
    assert rollout.scores.tolist() == [9.0 if e else 6.5 for e in ended.tolist()]
    assert not rollout.logprobs[~rollout.mask].any()


def test_a_batch_in_pieces_is_the_batch_as_a_whole(roles: Roles, demo_model: str) -> None:
    """Pieces are of like length whatever the prompts' order; the result is in their order."""

    def function(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(p) + 100 * len(c)) for p, c in zip(prompts, completions, strict=True)]

    torch.nn.init.normal_(roles.value_head.weight)
    whole = rollout_of(roles, demo_model, function, truncate_token=".", truncate_after=3)
    pieces = rollout_of(roles, demo_model, function, 3, truncate_token=".", truncate_after=3)
    for name in Rollout.__dataclass_fields__:
        one, other = getattr(whole, name), getattr(pieces, name)
        if name == "served_logprobs":  # of a server; here the policy sampled itself
            assert one is None and other is None
            continue
        if name == "noted":  # by scorers that measure more than scores
            assert one == other == {}
            continue
        one, other = torch.as_tensor(one).float(), torch.as_tensor(other).float()
        assert torch.allclose(one, other, atol=1e-4), name


def test_a_passage_has_no_column_of_padding_alone(roles: Roles, demo_model: str) -> None:
    whole = rollout_of(roles, demo_model, lambda prompts, completions: [1.0] * 16)
    short = torch.arange(0, 16, 2)
    ids, mask = whole.passage(short)
    assert mask.all() and ids.shape[1] < whole.prompt_ids.shape[1] + 16
    assert ids[0].tolist() == (
        whole.prompt_ids[0][whole.prompt_mask[0]].tolist() + whole.completion_ids[0].tolist()
    )


def test_captured_logprobs_and_values_are_those_of_a_whole_pass(
    roles: Roles, demo_model: str
) -> None:
    torch.nn.init.normal_(roles.value_head.weight)
    rollout = rollout_of(roles, demo_model, lambda prompts, completions: [1.0] * 16)
    everything = rollout.passage(torch.arange(16))
    with torch.no_grad():
        outputs = roles.policy_outputs(*everything, rollout.completion_ids, 0.7)
        values = roles.values(*everything, 16)
    assert torch.allclose(outputs.logprobs, rollout.logprobs, atol=2e-5)
    assert torch.allclose(values, rollout.values, atol=1e-4)


def test_a_completion_without_a_score_is_left_out_of_learning(
    roles: Roles, demo_model: str
) -> None:
    def picky(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [None if i == 3 else float("nan") if i == 5 else 1.0 for i in range(16)]

    rollout = rollout_of(roles, demo_model, picky)
    assert torch.nonzero(~rollout.scored).flatten().tolist() == [3, 5]
    assert not rollout.learned[3].any() and rollout.learned[4].all() and rollout.mask.all()
    assert rollout.scores[[3, 5]].tolist() == [0.0, 0.0]


def test_samples_of_reference_and_policy_know_how_probable_each_is_to_both(demo_model: str) -> None:
    """E_rho[pi / rho] = E_pi[rho / pi] = 1: a ratio that is turned around or shifted breaks it."""
    lora = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    roles = Roles(load_base(demo_model, "fp32"), lora)
    torch.manual_seed(0)
    for name, parameter in roles.named_parameters():
        if ".policy." in name and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    tokenizer = load_tokenizer(demo_model)
    prompts = Prompts(
        tokenizer(["We went to the market.", "I met my aunt by the lake."])["input_ids"]
    )
    arguments = {
        "each": 401,
        "seed": 3,
        "rule": sampling_rule(tokenizer, 12, 0.7),
        "tokenizer": tokenizer,
        "rewards": as_scorer(lambda prompts, completions: [float(len(c)) for c in completions]),
    }

    scores, log_ratios = samples_for_estimate(roles, prompts, with_policy=True, **arguments)
    assert scores.shape == log_ratios.shape == (2, 401)
    references, policies = log_ratios[:, :201], log_ratios[:, 201:]
    assert references.mean() < -0.05 and policies.mean() > 0.05
    assert references.exp().mean().item() == pytest.approx(1, abs=0.1)
    assert (-policies).exp().mean().item() == pytest.approx(1, abs=0.1)

    alone = samples_for_estimate(roles, prompts, **arguments | {"each": 201})
    assert alone.log_ratios is None
    assert torch.equal(alone.scores[0], scores[0, :201])
