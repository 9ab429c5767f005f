"""peft's wrappers, switched all at once, and the head's weights as the active adapter has them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models.conftest import IDS, MASK, by_roles, perturb, plain, saved
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base
from toolkit.models.peft_wrappers import Overrides, filler
from toolkit.models.roles import Roles


# peft says this of adapters as other tools save them; it saves and loads them all the same.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`, but no tied")
# peft says this of adapters as other tools save them; it saves and loads them all the same.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`, but no tied")
def test_copies_that_were_tied_stay_one_weight_and_are_saved_as_peft_reads_them(
    demo_model: str, tmp_path: Path
) -> None:
    folder = saved(
        demo_model, tmp_path / "adapter", modules_to_save=["embed_tokens"], ensure_weight_tying=True
    )
    roles = Roles(load_base(demo_model, "fp32"), policy_adapter=folder, reference="policy_adapter")
    trained = dict(roles.trainable())
    assert len([name for name in trained if "modules_to_save" in name]) == 1
    (-roles.policy_outputs(IDS, MASK, IDS[:, 4:], 1.0).logprobs.sum()).backward()
    torch.optim.SGD(trained.values(), lr=0.05).step()
    roles.save(tmp_path / "saved")
    after = by_roles(roles, "policy")
    assert (after - plain(demo_model, folder)).abs().max() > 1e-3
    torch.testing.assert_close(
        plain(demo_model, tmp_path / "saved" / "policy"), after, rtol=0, atol=1e-4
    )


def test_lora_on_the_head_is_trained_and_the_value_has_none_of_it(untied: str) -> None:
    lora = lora_config(4, 8, "q_proj,lm_head", "CAUSAL_LM")
    roles = Roles(load_base(untied, "fp32"), lora, value="adapter")
    (-roles.policy_outputs(IDS, MASK, IDS[:, 4:], 1.0).logprobs.sum()).backward()
    head = dict(roles.trainable())
    gradient = head["model.base_model.model.lm_head.lora_B.policy.weight"].grad
    assert gradient is not None and gradient.abs().max() > 0
    assert not [name for name in head if "lm_head" in name and ".value." in name]


def plain_pass(roles: Roles) -> torch.Tensor:
    return roles.model(input_ids=IDS, attention_mask=MASK.long()).logits


def test_switching_does_what_pefts_set_adapter_does(demo_model: str) -> None:
    roles = Roles(load_base(demo_model, "fp32"), value="adapter")
    for adapter in ("policy", "value"):
        perturb(roles, adapter)
    with torch.no_grad():
        for adapter in ("policy", "value"):
            roles.act_as(adapter)
            ours = plain_pass(roles)
            roles.model.set_adapter(adapter)
            assert torch.equal(plain_pass(roles), ours)
        roles.act_as("reference")
        off = plain_pass(roles)
        roles.act_as("value")
        with roles.model.disable_adapter():
            assert torch.equal(plain_pass(roles), off)


def test_padding_reads_a_token_that_is_not_the_embeddings_padding() -> None:
    assert filler(nn.Embedding(8, 4, padding_idx=0)) == 1  # row 0 is zeros
    assert filler(nn.Embedding(8, 4, padding_idx=3)) == 0
    assert filler(nn.Embedding(8, 4)) == 0


def test_weights_are_laid_over_the_bases_while_their_adapter_is_active_and_taken_away() -> None:
    base = nn.Linear(2, 2)
    own = base.bias
    overrides = Overrides()
    overrides.add("policy", {"bias": (base, "bias")}, {"bias": torch.tensor([5.0, 6.0])})

    overrides.lay("policy")
    assert torch.equal(base(torch.zeros(2)), torch.tensor([5.0, 6.0]))
    for other in ("value", None):
        overrides.lay(other)
        assert base.bias is own and torch.equal(base(torch.zeros(2)), own)
