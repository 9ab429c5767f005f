"""The baselines' trainers: TRL's losses are the papers', RLOO samples as PPO, the base stays."""

import gc
import math
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
import transformers as tf
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import GPT2Config, GPT2LMHeadModel

from tests.training.baselines.conftest import EOS, QUIET, data_of, first_batch, new_lora, preference
from toolkit.data.prompts import Prompts
from toolkit.data.tokens import decode_pair
from toolkit.errors import InputError
from toolkit.maths.kl import penalized_rewards
from toolkit.maths.masking import here
from toolkit.models.actors import TokenOutputs
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.models.sampling import SamplingRule, sampling_rule
from toolkit.scoring.functions import as_scorer
from toolkit.scoring.scorer import WeightedSum
from toolkit.training.baselines.config import RLOOBaselineConfig, SFTBaselineConfig
from toolkit.training.baselines.data import BaselineData
from toolkit.training.baselines.trainers import (
    VisibleReward,
    preference_trainer,
    rloo_trainer,
    sft_trainer,
)
from toolkit.training.ppo.algorithms import Before, algorithm_of, kl_loss_of
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.ppo.rollouts import Rollout

pytestmark = pytest.mark.slow  # trains


# What reaches the losses, and the losses.


def made(
    method: str, tokenizer: Any, demo_model: str, comparisons: str, folder: Path, **kwargs: Any
) -> tuple[Any, BaselineData]:
    """A trainer on the 4-bit base whose adapter is not zero, and its data."""
    base = load_base(demo_model, "4bit")
    if method == "sft":
        config: Any = SFTBaselineConfig(output_dir=str(folder / "run"), **(QUIET | kwargs))
        data = data_of(tokenizer, comparisons, folder, config)
        trainer: Any = sft_trainer(base, config, tokenizer, data, new_lora())
    else:
        config = preference(folder, method, **kwargs)
        data = data_of(tokenizer, comparisons, folder, config)
        trainer = preference_trainer(base, config, tokenizer, data, new_lora())
    stir(trainer)
    return trainer, data


def stir(trainer: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, p in trainer.model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.1, generator=generator)


def roles_of(trainer: Any, demo_model: str, folder: Path) -> Roles:
    """The trainer's policy, through a saved adapter."""
    trainer.model.save_pretrained(str(folder / "adapter"))
    return Roles(load_base(demo_model, "4bit"), policy_adapter=folder / "adapter")


def sums(roles: Roles, rows: list[tuple[list[int], list[int]]], role: str = "policy") -> Tensor:
    """Log-probs of whole completions, by the roles' own path."""
    found = []
    for prompt, completion in rows:
        ids, target = torch.tensor([prompt + completion]), torch.tensor([completion])
        mask = torch.ones_like(ids, dtype=torch.bool)
        if role == "policy":
            found.append(roles.policy_outputs(ids, mask, target, 1.0).logprobs.sum())
        else:
            found.append(roles.reference_logprobs(ids, mask, target, 1.0).sum())
    return torch.stack(found)


def test_sft_learns_the_picks_tokens_and_its_loss_is_their_mean_nll(
    tokenizer: Any, demo_model: str, comparisons: str, tmp_path: Path
) -> None:
    trainer, data = made("sft", tokenizer, demo_model, comparisons, tmp_path)
    batch = first_batch(trainer)
    rows = {tuple(r["input_ids"]): r["labels"] for r in data.train}
    total, count = torch.tensor(0.0), 0
    roles = roles_of(trainer, demo_model, tmp_path)
    for ids, mask, labels in zip(
        batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True
    ):
        assert labels[mask].tolist() == rows[tuple(ids[mask].tolist())]
        assert (labels[~mask] == -100).all() and EOS not in ids
        learned = int((labels != -100).sum())
        whole = ids[mask].tolist()
        total, count = total - sums(roles, [(whole[:-learned], whole[-learned:])]), count + learned
    loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss, (total / count)[0], rtol=1e-5, atol=1e-5)


def by_hand(method: str, roles: Roles, batch: list[dict[str, list[int]]], beta: float) -> Tensor:
    """The papers' losses of some pairs."""
    chosen = [(r["prompt_ids"], r["chosen_ids"]) for r in batch]
    rejected = [(r["prompt_ids"], r["rejected_ids"]) for r in batch]
    lengths = [torch.tensor([len(c) for _, c in side]) for side in (chosen, rejected)]
    policy = [sums(roles, side) for side in (chosen, rejected)]
    ratios = [
        p - sums(roles, s, "reference") for p, s in zip(policy, (chosen, rejected), strict=True)
    ]
    if method == "dpo":  # arXiv 2305.18290, equation 7
        return -logsigmoid(beta * (ratios[0] - ratios[1])).mean()
    if method == "ipo":  # arXiv 2310.12036, equation 17, of mean log-probs as TRL has it
        h = ratios[0] / lengths[0] - ratios[1] / lengths[1]
        return ((h - 1 / (2 * beta)) ** 2).mean()
    if method == "cpo":  # arXiv 2401.08417, equation 5 and its NLL over the batch's tokens
        return (
            -logsigmoid(beta * (policy[0] - policy[1])).mean() - policy[0].sum() / lengths[0].sum()
        )
    means = [p / n for p, n in zip(policy, lengths, strict=True)]  # arXiv 2403.07691, equation 6
    odds = [m - torch.log1p(-m.exp()) for m in means]
    whole = sums(roles, [(p[:1], p[1:] + c) for p, c in chosen]).sum()  # the prompt's too
    tokens = sum(len(p) + len(c) - 1 for p, c in chosen)
    return -whole / tokens - beta * logsigmoid(odds[0] - odds[1]).mean()


@pytest.mark.parametrize("method", ["dpo", "ipo", "orpo", "cpo"])
def test_pairs_reach_the_loss_token_for_token_and_it_is_the_papers(
    tokenizer: Any, demo_model: str, comparisons: str, tmp_path: Path, method: str
) -> None:
    name, loss_type = ("dpo", "ipo") if method == "ipo" else (method, None)
    trainer, data = made(
        name, tokenizer, demo_model, comparisons, tmp_path, loss_type=loss_type, beta=0.3
    )
    batch = first_batch(trainer)
    pairs = {
        (tuple(r["prompt_ids"] + r["chosen_ids"]), tuple(r["prompt_ids"] + r["rejected_ids"])): r
        for r in data.train
    }
    if name == "dpo":
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        learned = batch["completion_mask"].bool()
    else:
        table = trainer.concatenated_inputs(batch, padding_value=0)
        ids, mask = table["concatenated_input_ids"], table["concatenated_attention_mask"].bool()
        learned = table["concatenated_labels"] != -100
    rows = [tuple(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)]
    chosen = [
        pairs[pair] for pair in zip(rows[: len(rows) // 2], rows[len(rows) // 2 :], strict=True)
    ]
    for side, offset in (("chosen_ids", 0), ("rejected_ids", len(chosen))):
        for i, row in enumerate(chosen):
            assert ids[offset + i][learned[offset + i]].tolist() == row[side]
    assert not (ids == EOS).any()

    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    roles = roles_of(trainer, demo_model, tmp_path)
    expected = by_hand(method, roles, chosen, 0.3)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    expected.backward()  # the reference's pass in between must not cut the policy's gradient
    ours = dict(roles.model.named_parameters())
    for key, p in trainer.model.named_parameters():
        if p.requires_grad:
            grad = ours[key.replace(".default.", ".policy.")].grad
            torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-5)


def test_ktos_loss_is_the_papers_with_both_sides_weighing_the_same(
    tokenizer: Any, demo_model: str, comparisons: str, tmp_path: Path
) -> None:
    """arXiv 2402.01306, equation 7; the KL is the mean of the mismatched pairs, at least 0."""
    trainer, data = made("kto", tokenizer, demo_model, comparisons, tmp_path, beta=0.3)
    rows = trainer.train_dataset[:4]
    loss = trainer.compute_loss(trainer.model, first_batch(trainer))
    roles = roles_of(trainer, demo_model, tmp_path)

    def ratios(name: str) -> Tensor:
        side = list(zip(rows["prompt_ids"], rows[name], strict=True))
        return (sums(roles, side) - sums(roles, side, "reference")).detach()

    z = ratios("KL_completion_ids").mean().clamp(min=0)
    label = torch.tensor(rows["label"])
    wanted = sum(data.train["label"])
    weight = torch.where(label, (len(data.train) - wanted) / wanted, 1.0)
    signed = torch.where(label, 1.0, -1.0) * (ratios("completion_ids") - z)
    expected = (weight * (1 - torch.sigmoid(0.3 * signed))).mean()
    assert 0 < label.sum() < 4
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-5)


# What is left alone.


def four_bit_layers() -> dict[int, Any]:
    """All that are in memory, by identity."""
    return {id(t): t for t in gc.get_objects() if type(t) is bnb.nn.Linear4bit}


def frozen(model: Any) -> dict[str, Tensor]:
    return {
        n.removeprefix("base_model.model.").replace(".base_layer", ""): p.detach().clone()
        for n, p in model.named_parameters()
        if "lora_" not in n
    }


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo", "cpo"])
def test_adapters_are_fp32_the_base_is_held_once_and_training_leaves_it_bit_for_bit(
    tokenizer: Any, demo_model: str, comparisons: str, tmp_path: Path, method: str
) -> None:
    clean = frozen(load_base(demo_model, "4bit"))
    before = four_bit_layers()
    trainer, _ = made(method, tokenizer, demo_model, comparisons, tmp_path)
    assert getattr(trainer, "ref_model", None) is None
    held = {id(m) for m in trainer.model.modules() if type(m) is bnb.nn.Linear4bit}
    assert held and four_bit_layers().keys() - before.keys() == held
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n and p.dtype == torch.float32 for n, p in trained.items())
    start = {n: p.detach().clone() for n, p in trained.items()}
    trainer.train()
    assert any(not torch.equal(p, start[n]) for n, p in trained.items())
    after = frozen(trainer.model)
    assert clean.keys() == after.keys()
    assert all(torch.equal(clean[name], after[name]) for name in clean)
    assert trainer.model.is_loaded_in_4bit  # shown to TRL as none only while it was built


# RLOO.


class Heard:
    """A reward function that remembers what it was asked; the score is the text's length."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.completions: list[str] = []
        self.tags: list[int] = []

    def __call__(self, prompts: list[str], completions: list[str], tag: list[int]) -> list[float]:
        self.prompts, self.completions, self.tags = prompts, completions, tag
        return [float(len(c)) for c in completions]


def sum_of(parts: list[Any], weights: list[float]) -> WeightedSum:
    return WeightedSum([as_scorer(part) for part in parts], weights, torch.float64)


def rloo(
    tokenizer: Any, base: Any, folder: Path, rule: SamplingRule, **kwargs: Any
) -> tuple[Any, Heard, Prompts]:
    texts = ["I met my aunt at the cafe.", "Last Sunday I tried the round museum.", "He ran."]
    prompts = Prompts([tokenizer(t)["input_ids"] for t in texts], {"tag": [7, 8, 9]})
    config = RLOOBaselineConfig(
        output_dir=str(folder / "rloo"),
        response_length=rule.response_length,
        temperature=rule.temperature,
        **(QUIET | {"max_steps": 1, "num_generations": 2} | kwargs),
    )
    heard = Heard()
    reward = VisibleReward(sum_of([heard], [0.5]), rule, tokenizer, prompts)
    trainer = rloo_trainer(base, config, tokenizer, prompts, None, reward, new_lora())
    stir(trainer)
    return trainer, heard, prompts


def test_rloo_samples_as_ppo_does_shows_the_visible_text_and_leaves_one_out(
    tokenizer: Any, demo_model: str, tmp_path: Path
) -> None:
    rule = sampling_rule(tokenizer, 12, 0.7, truncate_token=".", truncate_after=6, penalty=-1.0)
    trainer, heard, prompts = rloo(
        tokenizer, load_base(demo_model, "4bit"), tmp_path, rule, beta=0.1
    )
    inputs = [{"prompt": list(prompts[i]), "row": i} for i in (0, 0, 1, 1, 2, 2)]
    out = trainer._generate_and_score_completions(inputs)

    roles = roles_of(trainer, demo_model, tmp_path)
    asked = [row["prompt"] for row in inputs]
    noise = torch.Generator().manual_seed(trainer.args.seed)
    mask, sampled = rule.sample(roles.step(), asked, noise, roles.device)
    assert torch.equal(out["completion_ids"], sampled.completion_ids)  # PPO's sampler, its tokens
    assert out["completion_mask"].all() and out["completion_ids"].shape == (6, 12)

    visible, valid = rule.visible(sampled)
    texts = [
        decode_pair(tokenizer, p, ids[keep].tolist())
        for p, ids, keep in zip(asked, sampled.completion_ids, visible, strict=True)
    ]
    assert heard.prompts == [p for p, _ in texts] and heard.completions == [c for _, c in texts]
    assert heard.tags == [7, 7, 8, 8, 9, 9]
    assert valid.any() and all(
        c.endswith(".") for c, ok in zip(heard.completions, valid, strict=True) if ok
    )

    passage = (
        torch.cat([out["prompt_ids"], out["completion_ids"]], 1),
        torch.cat([mask, sampled.mask], 1),
        sampled.completion_ids,
        0.7,
    )
    with torch.no_grad():
        kl = roles.policy_outputs(*passage).logprobs - roles.reference_logprobs(*passage)
    scores = torch.where(valid, torch.tensor([0.5 * len(c) for c in heard.completions]), -1.0)
    rewards = (scores - 0.1 * kl.sum(1)).view(3, 2)
    expected = (rewards - rewards.flip(1)).flatten()  # of two, the other one is the baseline
    torch.testing.assert_close(out["advantages"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("trl", "algorithm"),
    [
        (
            {"method": "rloo", "beta": 0.1},
            {"algorithm": "rloo", "ratio_of": "completion", "length_mean": "completions"},
        ),
        ({"method": "grpo", "beta": 0.04}, {"algorithm": "grpo"}),
        ({"method": "grpo", "beta": 0.04}, {"algorithm": "grpo", "kl_loss": "k3_weighted"}),
        (
            {"method": "grpo", "beta": 0.04, "loss_type": "bnpo"},
            {"algorithm": "grpo", "length_mean": "tokens"},
        ),
        (
            {"method": "grpo", "beta": 0.04, "loss_type": "dr_grpo"},
            {"algorithm": "dr_grpo"},
        ),
        (
            {"method": "grpo", "beta": 0.04, "importance_sampling_level": "sequence"},
            {"algorithm": "grpo", "ratio_of": "completion_mean"},
        ),
    ],
    ids=["rloo", "grpo", "grpo with a weighted KL", "bnpo", "dr_grpo", "gspo"],
)
def test_the_own_loop_has_trls_losses_and_gradients_on_one_batch(
    tokenizer: Any, demo_model: str, tmp_path: Path, trl: dict, algorithm: dict
) -> None:
    """Away from the reference, and from where the completions were sampled, so that clips act."""
    flags = PPOConfig(use_cpu=True, **algorithm)  # first: it resets accelerate
    own = algorithm_of(flags)
    level = trl.pop("importance_sampling_level", "token")
    rule = sampling_rule(tokenizer, 12, 0.7, stop_token=" the")
    trainer, heard, prompts = rloo(
        tokenizer, load_base(demo_model, "fp32"), tmp_path, rule, **trl, num_generations=4
    )
    trainer.importance_sampling_level = level
    trainer.args.use_bias_correction_kl = flags.kl_loss == "k3_weighted"  # True in TRL
    trainer.current_gradient_accumulation_steps = 1
    rows = [{"prompt": list(prompts[i]), "row": i} for i in range(3) for _ in range(4)]
    out = trainer._generate_and_score_completions(rows)
    mask = out["completion_mask"].bool()
    lengths = mask.sum(1)
    assert mask.shape[1] == 12 and lengths.min() < 12

    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
    attention = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)

    def logprobs() -> Tensor:
        return trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, 12)[0]

    with torch.no_grad():
        then = logprobs() * mask
        with trainer.model.disable_adapter():
            reference = logprobs() * mask
    out["old_per_token_logps"] = then
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(2)
    for p in trained:
        p.data += 0.02 * torch.randn(p.shape, generator=generator)
    theirs = trainer._compute_loss(trainer.model, out)
    expected = torch.autograd.grad(theirs, trained)

    # The same batch through the own loop's steps 2 and 3, and its loss.
    scores = torch.tensor([0.5 * len(c) for c in heard.completions])
    everything = torch.ones(12, dtype=torch.bool)
    rollout = Rollout(
        prompt_ids=out["prompt_ids"],
        prompt_mask=out["prompt_mask"].bool(),
        completion_ids=out["completion_ids"],
        mask=mask,
        logprobs=then,
        ref_logprobs=reference,
        values=None,
        scores=scores,
        valid=everything,
        scored=everything,
    )
    penalty = 0.0 if kl_loss_of(flags) else trl["beta"]
    rewards = penalized_rewards(scores, then - reference, penalty, mask)
    credit = own.credit(rewards, rollout, here)
    weights = credit.weights
    before = Before(
        logprobs=then,
        values=None,
        advantages=credit.advantages,
        returns=credit.returns,
        mask=mask,
        ref_logprobs=reference,
        kl_coef=trl["beta"],
        weights=None if weights is None else weights * lengths.sum() / 12,
    )
    current = logprobs()
    (term,) = own.loss(TokenOutputs(current, torch.zeros_like(current), None), None, before)
    assert ((current - then) * mask).abs().max() > 0.2 and term.statistics["clipfrac"] > 0
    torch.testing.assert_close(term.loss, theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(torch.autograd.grad(term.loss, trained), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_rloo_trains_fp32_adapters_and_sampling_leaves_the_base_bit_for_bit(
    tokenizer: Any, demo_model: str, tmp_path: Path
) -> None:
    """bitsandbytes may repack a 4-bit base at its first pass in eval mode (models.loading)."""
    clean = frozen(load_base(demo_model, "4bit"))
    rule = sampling_rule(tokenizer, 6, 0.7)
    trainer, _, _ = rloo(tokenizer, load_base(demo_model, "4bit"), tmp_path, rule)
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(after[n].dtype == torch.float32 for n in start)
    assert any(not torch.equal(after[n], p) for n, p in start.items())
    assert all(torch.equal(p, clean[n]) for n, p in frozen(trainer.model).items())
    assert trainer.ref_model is None


def test_rloo_ends_at_the_stop_token_and_counts_it_as_sampled(
    tokenizer: Any, demo_model: str, tmp_path: Path
) -> None:
    stop = tokenizer(" the")["input_ids"][-1]
    rule = sampling_rule(tokenizer, 12, 1.0, stop_token=" the")
    trainer, heard, prompts = rloo(tokenizer, load_base(demo_model, "fp32"), tmp_path, rule)
    inputs = [{"prompt": list(prompts[0]), "row": 0} for _ in range(8)]
    out = trainer._generate_and_score_completions(inputs)
    lengths = out["completion_mask"].sum(1).tolist()
    assert min(lengths) < 12
    for ids, length, text in zip(out["completion_ids"], lengths, heard.completions, strict=True):
        assert (ids[length - 1] == stop) == (length < 12 or stop in ids)
        assert stop not in ids[: length - 1] and not text.endswith(" the")


def test_rloos_logprobs_do_not_depend_on_padding_where_positions_are_learned(
    tokenizer: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = (
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=1024, n_positions=64))
        .requires_grad_(False)
        .eval()
    )
    rule = sampling_rule(tokenizer, 4, 1.0)
    trainer, _, _ = rloo(tokenizer, base, tmp_path, rule)
    ids = torch.randint(2, 1000, (1, 9))
    alone, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model, ids, torch.ones_like(ids), 4
    )
    padding = torch.zeros(1, 5, dtype=torch.long)
    padded, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([padding, ids], 1),
        torch.cat([padding, torch.ones_like(ids)], 1),
        4,
    )
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)


SMALL: dict[str, Any] = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        tf.MixtralConfig(**SMALL),
        tf.GraniteMoeSharedConfig(**SMALL, shared_intermediate_size=32),  # no num_experts
        tf.Llama4TextConfig(**SMALL, intermediate_size_mlp=32, moe_layers=[1]),  # nor base_model
    ],
)
def test_rloo_balances_the_experts_of_a_mixture_as_trl_does(
    tokenizer: Any, tmp_path: Path, config: Any
) -> None:
    torch.manual_seed(0)
    base = tf.AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    trainer, _, _ = rloo(tokenizer, base, tmp_path, sampling_rule(tokenizer, 4, 1.0))
    trainer.train()
    (logged,) = [row["aux_loss"] for row in trainer.state.log_history if "aux_loss" in row]
    assert logged > 0


def test_a_model_that_could_not_be_loaded_as_a_policy_is_refused_before_it_is_trained(
    tokenizer: Any, tmp_path: Path
) -> None:
    config = tf.MiniMaxConfig(**SMALL, layer_types=["linear_attention", "full_attention"])
    base = tf.AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    with pytest.raises(InputError, match="MiniMaxForCausalLM: a pass .* fails"):
        rloo(tokenizer, base, tmp_path, sampling_rule(tokenizer, 4, 1.0))


def test_rloo_does_not_read_padding_as_the_padding_token(tokenizer: Any, tmp_path: Path) -> None:
    """Its embedding is zeros, of which Gemma 3n takes a root: the gradients were NaN."""
    config = tf.LlamaConfig(**SMALL, pad_token_id=0)
    base = tf.AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()
    trainer, _, _ = rloo(tokenizer, base, tmp_path, sampling_rule(tokenizer, 4, 1.0))
    seen: list[torch.Tensor] = []
    base.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ids = torch.tensor([[0, 0, 5, 6, 7, 8]])
    trainer._get_per_token_logps_and_entropies(trainer.model, ids, (ids != 0).long(), 2)
    assert seen and all((read != 0).all() for read in seen)


def test_what_cannot_be_scored_is_not_learned_from(tokenizer: Any) -> None:
    rule = sampling_rule(tokenizer, 4, 1.0)

    def function(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [None, 2.0]

    prompts = Prompts([[5]], {"tag": [1]}), Prompts([[6]], {"tag": [2]})  # train, held out
    scorer = sum_of([function, heard := Heard()], [1.0, 1.0])
    reward = VisibleReward(scorer, rule, tokenizer, *prompts)
    scores = reward([[5], [6]], [[15], [15, 15]], [0, 1])
    assert math.isnan(scores[0]) and scores[1] == 4.0 and heard.tags == [1, 2]
