"""Passes of the roles: what is read of which position."""

import copy
from functools import partial

import pytest
import torch

from tests.models.conftest import roles_of
from toolkit.errors import InputError
from toolkit.maths.sequences import pad
from toolkit.models.actors import NEVER, banned_of
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles

IDS, MASK = pad([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15]], pad_id=0, side="left")
C = 3


def test_trunk_and_head_are_the_whole_model_in_each_family(family_model: str) -> None:
    base = load_base(family_model, "fp32")
    with torch.no_grad():
        whole = copy.deepcopy(base)(
            input_ids=IDS, attention_mask=MASK.long(), position_ids=(MASK.cumsum(1) - 1).clamp(0)
        ).logits[:, -C - 1 : -1]
        roles = Roles(base, value="trunk")
        assert torch.allclose(roles.logits("reference", IDS, MASK, C), whole, atol=1e-6)
        assert roles.values(IDS, MASK, C).shape == (2, C)
    trained = {name.split(".")[-3] for name, _ in roles.trainable() if "lora" in name}
    assert trained == {"lora_A", "lora_B"}


def test_padding_on_the_left_changes_no_logits_and_no_scores(demo_model: str) -> None:
    roles = Roles(load_base(demo_model, "fp32"), value="trunk")
    roles.reward_head, roles.has_reward = torch.nn.Linear(128, 1), True
    roles.model.add_adapter("reward", lora_config(4, 8, "all-linear", "CAUSAL_LM"))
    short, short_mask = IDS[1:, 3:], MASK[1:, 3:]
    with torch.no_grad():
        for role in (partial(roles.logits, "policy"), roles.values):
            padded, compact = role(IDS, MASK, C)[1:], role(short, short_mask, C)
            assert torch.allclose(padded, compact, atol=1e-4)
        right, right_mask = pad([[12, 13, 14, 15], [1] * 9], 0)
        for ids, mask in ((IDS[1:], MASK[1:]), (right[:1], right_mask[:1])):
            assert torch.allclose(
                roles.scores(ids, mask), roles.scores(short, short_mask), atol=1e-4
            )


def test_a_value_is_of_the_state_before_its_token(demo_model: str) -> None:
    """V of a token must not know the token; it must know all that stands before it."""
    roles = Roles(load_base(demo_model, "fp32"), value="trunk")
    torch.nn.init.normal_(roles.value_head.weight)
    changed = IDS.clone()
    changed[:, -2] += 1  # the second of three completion tokens
    with torch.no_grad():
        before, after = (roles.values(ids, MASK, C) for ids in (IDS, changed))
        same = [torch.equal(before[:, t], after[:, t]) for t in range(C)]
        assert same == [True, True, False]
        policy = [roles.logits("policy", ids, MASK, C) for ids in (IDS, changed)]
    assert [torch.equal(policy[0][:, t], policy[1][:, t]) for t in range(C)] == same


def test_ids_that_are_no_token_are_banned_and_no_others(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    tokens = set(tokenizer.get_vocab().values())
    rows = max(tokens) + 4  # an embedding with rows to spare
    banned = banned_of(tokenizer, rows)
    assert banned is not None and banned.dtype == torch.float32
    assert {i for i in range(rows) if banned[i] == 0} == tokens
    assert set(banned.tolist()) == {0.0, torch.tensor(NEVER).item()}
    assert not (0 * banned).isnan().any()
    assert banned_of(tokenizer, max(tokens) + 1) is None


def test_a_family_that_recomputes_nothing_is_refused_in_a_line(demo_model: str) -> None:
    roles = roles_of(demo_model, supports_gradient_checkpointing=False)
    with pytest.raises(InputError, match="OddForCausalLM cannot recompute its activations"):
        roles.use_checkpointing()


@pytest.mark.parametrize("targets", ["v_proj", "v_proj,lm_head"])
def test_entropy_and_whole_kl_of_the_policy_are_those_of_its_logits(
    untied: str, targets: str
) -> None:
    """Also with LoRA on the output head, which the reference reads without it."""
    roles = Roles(load_base(untied, "fp32"), lora_config(4, 8, targets, "CAUSAL_LM"))
    trained = [p for _, p in roles.trainable()]
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.3 * torch.randn(parameter.shape)
    roles.entropy_gradient = roles.full_kl = True
    found = roles.policy_outputs(IDS, MASK, IDS[:, -C:], 0.7)
    assert found.kl is not None
    ours = torch.autograd.grad((found.entropies + 2 * found.kl).sum(), trained)

    with torch.no_grad():
        log_q = (roles.logits("reference", IDS, MASK, C).double() / 0.7).log_softmax(-1)
    log_p = (roles.logits("policy", IDS, MASK, C).double() / 0.7).log_softmax(-1)
    p = log_p.exp()
    entropies, kl = -(p * log_p).sum(-1), (p * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(found.entropies.double(), entropies, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.kl.double(), kl, atol=1e-5, rtol=1e-5)
    assert kl.mean() > 1e-3
    expected = torch.autograd.grad((entropies + 2 * kl).sum(), trained)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)

    with torch.no_grad():  # sampling needs neither
        assert roles.policy_outputs(IDS, MASK, IDS[:, -C:], 0.7).kl is None
