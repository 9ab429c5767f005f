"""One base, four roles."""

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors.torch import load_file

from tests.models.conftest import LORA, perturb, saved
from toolkit.errors import InputError
from toolkit.maths.sequences import pad
from toolkit.models.fast import last_states, use_fast_passes
from toolkit.models.loading import ValueHead, load_base
from toolkit.models.roles import Roles

IDS, MASK = pad([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15]], pad_id=0, side="left")
C = 3


def both(roles: Roles) -> tuple[torch.Tensor, torch.Tensor]:
    """Policy's logits and values, without a backward pass between them."""
    return roles.logits("policy", IDS, MASK, C), roles.values(IDS, MASK, C)


@pytest.mark.parametrize("precision", ["4bit", "bf16", "fp32"])
def test_adapters_off_equals_the_base_bit_for_bit(demo_model: str, precision: str) -> None:
    base = load_base(demo_model, precision)
    use_fast_passes(base)
    ids, mask = IDS[:, :-1], MASK[:, :-1]
    with torch.no_grad():
        hidden = last_states(
            base.model,
            C,
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp(0),
        )
        alone = base.lm_head(hidden)
    roles = Roles(base, value="adapter")
    for adapter in ("policy", "value"):
        perturb(roles, adapter)
    with torch.no_grad():
        assert torch.equal(roles.logits("reference", IDS, MASK, C), alone)
        assert not torch.equal(roles.logits("policy", IDS, MASK, C), alone)
        assert torch.equal(roles.logits("reference", IDS, MASK, C), alone)


def test_a_new_policy_is_the_reference_bit_for_bit(demo_model: str) -> None:
    roles = Roles(load_base(demo_model, "4bit"), LORA)
    with torch.no_grad():
        policy, reference = (roles.logits(r, IDS, MASK, C) for r in ("policy", "reference"))
    assert torch.equal(policy, reference)


def test_every_family_trains_on_a_four_bit_base(family_model: str) -> None:
    roles = Roles(load_base(family_model, "4bit"), value="adapter")
    logits, values = both(roles)
    (logits.logsumexp(-1).sum() + values.sum()).backward()
    gradients = [p.grad for n, p in roles.named_parameters() if "lora_B.policy" in n]
    assert gradients and all(g is not None and g.isfinite().all() and g.any() for g in gradients)


def test_each_role_trains_its_own_adapter_and_no_other(demo_model: str) -> None:
    roles = Roles(load_base(demo_model, "4bit"), value="adapter")
    logits, values = both(roles)
    logits.logsumexp(-1).sum().backward(retain_graph=True)
    touched = {n for n, p in roles.named_parameters() if p.grad is not None}
    assert touched and all(".policy." in name for name in touched)
    roles.zero_grad()
    torch.nn.init.ones_(roles.value_head.weight)  # at its start of zero nothing flows through
    roles.values(IDS, MASK, C).sum().backward()
    touched = {n for n, p in roles.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(".value." in name or "value_head" in name for name in touched)
    assert {"value_head.weight", "value_head.bias"} < touched


def test_policy_and_value_keep_their_gradients_when_one_backward_serves_both(
    demo_model: str,
) -> None:
    """peft's set_adapter between forward and backward would lose the policy's gradient."""
    roles = Roles(load_base(demo_model, "fp32"), value="adapter")
    torch.nn.init.ones_(roles.value_head.weight)
    logits, values = both(roles)
    (logits.logsumexp(-1).sum() + values.sum()).backward()
    for adapter in ("policy", "value"):
        gradients = [p.grad for n, p in roles.named_parameters() if f"lora_B.{adapter}." in n]
        assert gradients and all(g is not None and g.any() for g in gradients)


def test_value_starts_at_zero_and_heads_and_adapters_are_fp32(demo_model: str) -> None:
    for value in ("adapter", "trunk"):
        roles = Roles(load_base(demo_model, "bf16"), value=value)
        assert not roles.values(IDS, MASK, C).any()
        assert {p.dtype for _, p in roles.trainable()} == {torch.float32}
        assert roles.shares_trunk is (value == "trunk")


@pytest.mark.parametrize("value", ["adapter", "trunk"])
@pytest.mark.parametrize("widths", [[], [6, 5]])
def test_a_value_head_of_any_depth_starts_at_zero_and_comes_back_from_its_file(
    demo_model: str, tmp_path: Path, value: str, widths: list[int]
) -> None:
    roles = Roles(load_base(demo_model, "bf16"), value=value, value_hidden=widths)
    assert not roles.values(IDS, MASK, C).any()
    head = roles.value_head
    assert head is not None and sum(p.dim() == 2 for p in head.parameters()) == len(widths) + 1
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.3)
    roles.save(tmp_path)

    state = load_file(tmp_path / "value" / "value_head.safetensors")
    assert ValueHead.widths_of(state) == widths
    again = Roles(load_base(demo_model, "bf16"), value=value, value_hidden=widths)
    assert again.value_head is not None
    again.value_head.load_state_dict(state)
    states = torch.randn(2, 5, 128)
    assert torch.equal(again.read_values(states), roles.read_values(states))
    assert roles.read_values(states).std() > 0.01


@pytest.fixture(scope="module")
def saved_adapters(demo_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy adapter and a reward adapter, as the recipes leave them."""
    folder = tmp_path_factory.mktemp("adapters")
    Roles(load_base(demo_model, "fp32"), LORA).save(folder)
    classifier = load_base(demo_model, "fp32", score_head=True)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")
    get_peft_model(classifier, config).save_pretrained(str(folder / "reward"))
    return folder


@pytest.mark.parametrize("precision", ["4bit", "bf16", "fp32"])
@pytest.mark.parametrize("value", ["trunk", "adapter"])
def test_the_base_is_held_once_whatever_the_roles(
    demo_model: str, saved_adapters: Path, precision: str, value: str
) -> None:
    """Counted by storage: what all four roles hold beside adapters and heads is the base's own."""
    base = load_base(demo_model, precision)
    before = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in base.parameters()
    }
    roles = Roles(
        base,
        value=value,
        reward_adapter=saved_adapters / "reward",
        policy_adapter=saved_adapters / "policy",
        reference="policy_adapter",
    )
    with torch.no_grad():  # every role has spoken
        roles.policy_outputs(IDS, MASK, IDS[:, -C:], 1.0)
        roles.reference_logprobs(IDS, MASK, IDS[:, -C:], 1.0)
        roles.values(IDS, MASK, C)
        roles.scores(IDS, MASK)
    own = ("lora_", "value_head", "reward_head")
    after = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for name, p in roles.named_parameters()
        if not any(part in name for part in own)
    }
    assert after == before
    names = {
        n.split(".lora_A.")[1].split(".")[0] for n, _ in roles.named_parameters() if ".lora_A." in n
    }
    assert names == {"policy", "reference", "reward"} | ({"value"} if value == "adapter" else set())


def test_a_value_may_start_as_the_reward(demo_model: str, saved_adapters: Path) -> None:
    roles = Roles(
        load_base(demo_model, "fp32"),
        value="adapter",
        value_init="reward",
        reward_adapter=saved_adapters / "reward",
    )
    with torch.no_grad():
        scores = roles.scores(IDS, MASK)
        values = roles.values(
            torch.cat([IDS, IDS[:, :1]], 1), torch.cat([MASK, MASK[:, 1:2]], 1), 1
        )
    trained = {n.split(".")[-2] for n, _ in roles.trainable() if "lora_A" in n}
    assert trained == {"policy", "value"}
    assert torch.allclose(values[0, 0], scores[0], atol=1e-5)


@pytest.mark.parametrize("precision", ["4bit", "fp32"])
def test_plain_peft_loads_the_policy(demo_model: str, tmp_path: Path, precision: str) -> None:
    roles = Roles(load_base(demo_model, precision), value="adapter")
    perturb(roles, "policy")
    roles.save(tmp_path / "out", kl_coef=0.1)
    assert sorted(p.name for p in (tmp_path / "out" / "policy").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "toolkit.json",
    ]
    assert (tmp_path / "out" / "value" / "value_head.safetensors").is_file()
    if precision == "fp32":
        plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "policy")
    else:
        from peft import PeftModel

        plain = PeftModel.from_pretrained(
            load_base(demo_model, precision), tmp_path / "out" / "policy"
        )
    short = IDS[:1]
    with torch.no_grad():
        theirs = plain(input_ids=short).logits[:, -C - 1 : -1]
        ours = roles.logits("policy", short, MASK[:1], C)
        again = Roles(
            load_base(demo_model, precision), policy_adapter=tmp_path / "out" / "policy"
        ).logits("policy", short, MASK[:1], C)
    assert torch.equal(again, ours)
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_a_policy_adapter_that_is_loaded_does_not_disturb_the_reference(
    demo_model: str, tmp_path: Path
) -> None:
    roles = Roles(load_base(demo_model, "fp32"), LORA)
    perturb(roles, "policy")
    roles.save(tmp_path / "out")
    loaded = Roles(load_base(demo_model, "fp32"), policy_adapter=tmp_path / "out" / "policy")
    with torch.no_grad():
        for role in ("policy", "reference"):
            assert torch.equal(loaded.logits(role, IDS, MASK, C), roles.logits(role, IDS, MASK, C))


# A reference that follows the policy.


def layer_of(roles: Roles, role: str, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """B and A of a role's adapter in one layer."""
    module = roles.language_model(role).get_submodule(f"model.layers.{layer}.self_attn.q_proj")
    return module.lora_B[role].weight, module.lora_A[role].weight


@torch.no_grad()
def fill(weight: torch.Tensor, corner: list[list[float]]) -> None:
    """Set a matrix to zero but for its first rows and columns."""
    values = torch.tensor(corner)
    weight.zero_()
    weight[: values.shape[0], : values.shape[1]] = values


def test_a_moving_reference_averages_the_factors_and_not_the_changes(demo_model: str) -> None:
    """Half of the way from B (1, 0)', A (1, 1) to B (2, 1)', A (1, 3), worked by hand."""
    lora = LoraConfig(r=1, lora_alpha=1, target_modules=["q_proj"], task_type="CAUSAL_LM")
    roles = Roles(load_base(demo_model, "fp32"), lora, reference="moving")
    b, a = layer_of(roles, "policy")
    fill(b, [[1.0], [0.0]]), fill(a, [[1.0, 1.0]])
    roles.move_reference(1.0)
    fill(b, [[2.0], [1.0]]), fill(a, [[1.0, 3.0]])
    roles.move_reference(0.5)
    held_b, held_a = layer_of(roles, "reference")
    assert (held_b @ held_a)[0, :2].tolist() == [1.5, 3.0]  # of the changes: 1.5, 3.5

    # What is left of the start: WARP's 0.01 after 100 and 500 steps, InstructGPT's 0.992 after 10,
    # 100 and 500.
    fill(b, [[0.0]])
    for share, course in (
        (0.01, ((0.366032, 100), (0.006570, 400))),
        (0.008, ((0.922819, 10), (0.447886, 90), (0.018023, 400))),
    ):
        fill(held_b, [[1.0]])
        for left, steps in course:
            for _ in range(steps):
                roles.move_reference(share)
            assert held_b[0, 0].item() == pytest.approx(left, abs=2e-6)


@pytest.mark.parametrize("started", [False, True])
def test_a_moving_reference_starts_as_the_policy_and_is_not_trained(
    demo_model: str, saved_adapters: Path, started: bool
) -> None:
    start = saved_adapters / "policy" if started else None
    roles = Roles(
        load_base(demo_model, "fp32"), LORA, "trunk", policy_adapter=start, reference="moving"
    )
    with torch.no_grad():
        policy, reference = (roles.logits(r, IDS, MASK, C) for r in ("policy", "reference"))
    assert torch.equal(policy, reference)

    trained = {name for name, _ in roles.trainable()}
    changing = {name for name, _ in roles.changing()}
    assert not any(".reference" in name for name in trained)
    assert {n.replace(".reference.", ".policy.") for n in changing - trained} == {
        name for name in trained if ".policy." in name
    }
    before = roles.identity()
    perturb(roles, "policy")
    roles.move_reference(0.5)
    assert roles.identity() == before  # what moves does not tell one run from another
    with torch.no_grad():
        assert not torch.equal(roles.logits("reference", IDS, MASK, C), reference)


def test_a_reference_that_stays_cannot_be_moved(demo_model: str) -> None:
    roles = Roles(load_base(demo_model, "fp32"), LORA)
    with pytest.raises(ValueError, match="the reference cannot move"):
        roles.move_reference(0.1)
    assert roles.changing() == roles.trainable()


def test_only_the_last_ranks_get_a_gradient(demo_model: str, saved_adapters: Path) -> None:
    start = saved_adapters / "policy"
    whole, last = (
        Roles(load_base(demo_model, "fp32"), value="trunk", policy_adapter=start, last_ranks=ranks)
        for ranks in (None, 1)
    )
    for roles in (whole, last):
        logits, values = both(roles)
        (logits.logsumexp(-1).sum() + values.sum()).backward()
    for (name, one), (_, other) in zip(whole.trainable(), last.trainable(), strict=True):
        assert one.grad is not None and other.grad is not None
        expected = one.grad.clone()
        if ".lora_A." in name:
            expected[:-1] = 0
        elif ".lora_B." in name:
            expected[:, :-1] = 0
        assert torch.equal(other.grad, expected), name


def test_parts_that_belong_to_no_rank_cannot_stay_or_follow(
    demo_model: str, tmp_path: Path
) -> None:
    dora = saved(demo_model, tmp_path / "dora", use_dora=True)
    biases = saved(demo_model, tmp_path / "norms", modules_to_save=["norm"])
    for folder, told, said in (
        (dora, {"last_ranks": 1}, "lora_magnitude_vector.* does not belong to single ranks"),
        (biases, {"last_ranks": 1}, "train_last_ranks: .* trains weights besides LoRA"),
        (biases, {"reference": "moving"}, "reference_ema: .* trains weights besides LoRA"),
    ):
        with pytest.raises(InputError, match=said):
            Roles(load_base(demo_model, "fp32"), None, "trunk", policy_adapter=folder, **told)
