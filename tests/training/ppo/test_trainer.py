"""PPO: what must hold at the first step, that it learns, and that a run can be repeated."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from toolkit.errors import InputError, RunStopped
from toolkit.models.adapters import lora_config
from toolkit.models.loading import load_base, load_tokenizer
from toolkit.models.roles import Roles
from toolkit.scoring.functions import Lexicon
from toolkit.training.distributed import Ranks
from toolkit.training.ppo.algorithms import Credit
from toolkit.training.ppo.config import PPOConfig
from toolkit.training.ppo.trainer import PPOTrainer


def trainer_of(
    demo_model: str,
    tmp_path: Path,
    value: str = "adapter",
    precision: str = "fp32",
    name: str = "run",
    **kwargs: object,
) -> PPOTrainer:
    tokenizer = load_tokenizer(demo_model)
    lines = (Path(demo_model).parent / "prompts.jsonl").read_text().splitlines()[:64]
    prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    defaults: dict = {
        "per_device_train_batch_size": 16,
        "total_episodes": 32,
        "response_length": 12,
        "learning_rate": 1e-3,
        "value": value,
        "use_cpu": True,
        "seed": 0,
        "disable_tqdm": True,
    }
    torch.manual_seed(0)
    config = PPOConfig(output_dir=str(tmp_path / name), **(defaults | kwargs))
    roles = Roles(
        load_base(demo_model, precision), lora_config(8, 16, "all-linear", "CAUSAL_LM"), value=value
    )
    lexicon = Lexicon(Path(demo_model).parent / "lexicon.txt")
    return PPOTrainer(config, tokenizer, roles, reward_model=lexicon, train_dataset=prompts)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["adapter", "trunk"])
@pytest.mark.parametrize("precision", ["fp32", "4bit"])
def test_captured_logprobs_put_the_ratio_at_one_but_for_rounding(
    demo_model: str, tmp_path: Path, value: str, precision: str
) -> None:
    """Sampling token by token rounds otherwise than a whole pass: 2e-6 a token in fp32."""
    rows = trainer_of(demo_model, tmp_path, value, precision).train()
    for row in rows:
        assert row["val/first_max_log_ratio"] < 5e-5
    assert abs(rows[0]["objective/kl"]) < 5e-5 < 1e-4 < abs(rows[1]["objective/kl"])


@pytest.mark.slow
@pytest.mark.parametrize("value", ["adapter", "trunk"])
@pytest.mark.parametrize("precision", ["fp32", "4bit"])
def test_recomputed_ratio_is_one_and_kl_is_zero_at_the_start(
    demo_model: str, tmp_path: Path, value: str, precision: str
) -> None:
    trainer = trainer_of(demo_model, tmp_path, value, precision, recompute_logprobs=True)
    rows = trainer.train()
    assert rows[0]["val/first_max_log_ratio"] < 1e-5
    assert abs(rows[0]["objective/kl"]) < 1e-6
    assert rows[1]["val/first_max_log_ratio"] < 1e-5  # of the policy that has moved since
    assert abs(rows[1]["objective/kl"]) > 1e-4


@pytest.mark.slow
def test_micro_batches_keep_the_ratio_at_one(demo_model: str, tmp_path: Path) -> None:
    rows = trainer_of(
        demo_model,
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        local_rollout_forward_batch_size=6,
        num_mini_batches=2,
        recompute_logprobs=True,
    ).train()
    assert rows[0]["val/first_max_log_ratio"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_without_a_learning_rate_nothing_moves(demo_model: str, tmp_path: Path, value: str) -> None:
    trainer = trainer_of(demo_model, tmp_path, value, learning_rate=0.0, recompute_logprobs=True)
    before = copy.deepcopy(trainer.model.state_dict())
    rows = trainer.train()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(abs(row["objective/kl"]) < 1e-6 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_training_moves_adapters_and_value_head_and_never_the_base(
    demo_model: str, tmp_path: Path, value: str
) -> None:
    trainer = trainer_of(demo_model, tmp_path, value, precision="4bit")
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    moved = {
        name
        for name, tensor in trainer.model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert all(".policy." in n or ".value." in n or "value_head" in n for n in moved)
    assert "value_head.weight" in moved and any("lora_B.policy" in n for n in moved)
    assert any("lora_B.value" in n for n in moved) is (value == "adapter")


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_whole_batch(demo_model: str, tmp_path: Path) -> None:
    def after(name: str, **kwargs: object) -> dict[str, torch.Tensor]:
        trainer = trainer_of(
            demo_model, tmp_path, name=name, total_episodes=16, stop_token=".", **kwargs
        )
        row = trainer.train()[0]
        state = {n: p.detach() for n, p in trainer.model.trainable()}
        return state | {"loss": torch.tensor(row["loss/policy_avg"])}

    whole = after("whole")
    parts = after("parts", per_device_train_batch_size=4, gradient_accumulation_steps=4)
    for name, tensor in whole.items():
        assert torch.allclose(tensor, parts[name], atol=2e-5), name


@pytest.mark.slow
def test_a_run_repeats_itself_to_the_last_bit_and_another_seed_does_not(
    demo_model: str, tmp_path: Path
) -> None:
    def run(name: str, seed: int) -> list[dict]:
        return trainer_of(demo_model, tmp_path, name=name, seed=seed).train()

    assert run("a", 3) == run("b", 3)
    assert run("c", 4) != run("d", 3)


@pytest.mark.slow
def test_the_log_has_a_row_per_update_under_the_fields_own_names(
    demo_model: str, tmp_path: Path
) -> None:
    trainer = trainer_of(demo_model, tmp_path, total_episodes=40)
    rows = trainer.train()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert len(rows) == math.ceil(40 / 16)
    names = {"objective/kl", "objective/kl_coef", "objective/kl_target", "objective/scores",
             "objective/rlhf_reward", "objective/non_score_reward", "objective/entropy",
             "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg",
             "val/clipfrac_avg", "val/ratio", "val/var_explained", "episode", "lr"}  # fmt: skip
    assert names <= rows[0].keys()
    for row in rows:
        total = row["objective/scores"] - row["objective/kl_coef"] * row["objective/kl"]
        assert row["objective/rlhf_reward"] == pytest.approx(total)
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3])


@pytest.mark.slow
def test_the_coefficient_falls_while_the_kl_is_below_its_target(
    demo_model: str, tmp_path: Path
) -> None:
    rows = trainer_of(demo_model, tmp_path, kl_horizon=160, kl_coef=0.15).train()
    assert [r["objective/kl_coef"] for r in rows] == pytest.approx([0.15, 0.15 * 0.98])
    rows = trainer_of(demo_model, tmp_path, name="fixed", kl_controller="fixed").train()
    assert [r["objective/kl_coef"] for r in rows] == [0.15, 0.15]
    assert rows[0]["objective/kl_target"] is None


@pytest.mark.slow
def test_an_algorithm_handed_over_learns_as_the_flags_do_and_is_resumed_alone(
    new_trainer: Any,
) -> None:
    by_flags = new_trainer("flags")
    rows = by_flags.train()
    handed = by_flags.algorithm
    assert new_trainer("handed", algorithm=handed, stop_at_update=1).train() == rows[:1]
    for other in (replace(handed, lam=0.5), None):
        with pytest.raises(InputError, match="made under other settings, own_algorithm"):
            new_trainer("handed", algorithm=other, resume="auto").train()
    assert new_trainer("handed", algorithm=handed, resume="auto").train() == rows


@pytest.mark.slow
def test_it_learns_to_praise(demo_model: str, tmp_path: Path) -> None:
    rows = trainer_of(
        demo_model,
        tmp_path,
        value="trunk",
        per_device_train_batch_size=64,
        total_episodes=960,
        learning_rate=2e-3,
        kl_coef=0.02,
        kl_controller="fixed",
    ).train()
    first, last = rows[0]["objective/scores"], rows[-1]["objective/scores"]
    assert last > first + rows[0]["objective/scores_std"]


@pytest.mark.slow
def test_a_stop_token_masks_what_follows_and_training_goes_on(
    demo_model: str, tmp_path: Path
) -> None:
    rows = trainer_of(demo_model, tmp_path, stop_token=".", missing_eos_penalty=1.0).train()
    assert all(math.isfinite(v) for row in rows for v in row.values() if v is not None)
    # Either pass is 1e-5 from the same pass in fp64, so their difference may be a little more.
    assert rows[0]["val/first_max_log_ratio"] < 3e-5


@pytest.mark.slow
def test_clipping_and_tf_style_adam_are_options(demo_model: str, tmp_path: Path) -> None:
    plain, clipped, tf_style = (
        trainer_of(demo_model, tmp_path, name=str(i), **kwargs).train()[1]["objective/kl"]
        for i, kwargs in enumerate([{}, {"max_grad_norm": 1e-3}, {"adam_tf_style": True}])
    )
    assert len({plain, clipped, tf_style}) == 3
    assert abs(tf_style) < abs(plain)  # a larger epsilon makes smaller first steps


@pytest.mark.slow
def test_the_saved_adapter_is_found_where_the_trainer_says(demo_model: str, tmp_path: Path) -> None:
    trainer = trainer_of(demo_model, tmp_path)
    trainer.train()
    folder = trainer.save_model()
    assert folder == tmp_path / "run" / "adapters" / "policy"
    assert (folder / "adapter_model.safetensors").is_file()
    assert not list(tmp_path.rglob("*.bin"))  # nothing pickled, no arguments with tokens in them


def test_a_base_that_several_gpus_share_is_not_unpacked(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = property(lambda ranks: True, lambda ranks, value: None)
    monkeypatch.setattr(Ranks, "sharded", shares, raising=False)
    with pytest.raises(InputError, match="unpack_base: a base that is shared"):
        trainer_of(demo_model, tmp_path, unpack_base=True)


def test_no_reward_is_a_mistake_of_the_user(demo_model: str, tmp_path: Path) -> None:
    trainer = trainer_of(demo_model, tmp_path)
    with pytest.raises(InputError, match="PPO needs a reward"):
        PPOTrainer(
            trainer.args,
            trainer.processing_class,
            trainer.model,
            train_dataset=trainer.train_dataset,
        )


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(
    demo_model: str, tmp_path: Path
) -> None:
    trainer = trainer_of(demo_model, tmp_path)
    with torch.no_grad():
        trainer.model.value_head.bias.fill_(float("nan"))
    before = {n: p.detach().clone() for n, p in trainer.model.trainable()}
    with pytest.raises(RunStopped, match="values are not finite"):
        trainer.train()
    for name, parameter in trainer.model.trainable():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num()), name


@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_a_step_follows_the_gradient_of_the_published_objective(
    demo_model: str, tmp_path: Path, value: str
) -> None:
    """mean max(-A r, -A clip r) + vf_coef / 2 mean max((V - R)^2, (clip V - R)^2), written anew."""
    trainer = trainer_of(
        demo_model,
        tmp_path,
        value,
        learning_rate=1e-2,
        num_ppo_epochs=1,
        vf_coef=0.3,
        cliprange_value=0.1,
    )
    rollout = trainer.collect(1)
    generator = torch.Generator().manual_seed(1)
    advantages, returns = torch.randn((2, 16, 12), generator=generator)
    everything = torch.arange(16)
    for _ in range(2):  # away from where the rollout was made, so that the clips are at work
        trainer._step(rollout, Credit(advantages, returns), everything)
    trainer.optimizer.zero_grad()
    passage = rollout.passage(everything)
    logits, values = (
        trainer.model.logits("policy", *passage, 12),
        trainer.model.values(*passage, 12),
    )
    logprobs = (logits / 0.7).log_softmax(-1).gather(-1, rollout.completion_ids[..., None])[..., 0]
    ratio = (logprobs - rollout.logprobs).exp()
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clip(0.8, 1.2)).mean()
    near = rollout.values + (values - rollout.values).clip(-0.1, 0.1)
    critic = torch.maximum((values - returns) ** 2, (near - returns) ** 2).mean() / 2
    (policy + 0.3 * critic).backward()
    expected = {n: p.grad.clone() for n, p in trainer.model.trainable() if p.grad is not None}
    trainer._step(rollout, Credit(advantages, returns), everything)
    gradients = {n: p.grad.clone() for n, p in trainer.model.trainable() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    assert (ratio - 1).abs().max() > 0.2  # the clip is at work
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], atol=1e-5, rtol=1e-3), name


def whitened(x: np.ndarray, mask: np.ndarray, shift: bool) -> np.ndarray:
    mean, std = x[mask].mean(), np.sqrt(x[mask].var() + 1e-8)
    return ((x - mean) / std + (0.0 if shift else mean)) * mask


@pytest.mark.parametrize("stop_token", [None, "."])
def test_an_update_feeds_the_optimizer_what_the_paper_says(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_token: str | None
) -> None:
    """Rewards whitened without shift, GAE, advantages whitened with it: written anew in numpy."""
    trainer = trainer_of(
        demo_model, tmp_path, kl_coef=0.5, kl_horizon=160, gamma=0.9, stop_token=stop_token
    )
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.03)
    torch.nn.init.normal_(trainer.model.value_head.weight, std=0.3)
    seen: list[tuple] = []

    def spy(rollout: Any, credit: Credit, lr: float) -> dict[str, float]:
        seen.append((rollout, credit.advantages, credit.returns))
        return dict.fromkeys(
            (
                "approxkl",
                "clipfrac",
                "entropy",
                "policy",
                "value",
                "value_clipfrac",
                "value_error",
                "ratio",
                "first_max_log_ratio",
            ),
            0.0,
        )

    monkeypatch.setattr(trainer, "optimize", spy)
    rows = trainer.train()
    assert rows[0]["objective/kl_coef"] == 0.5 != rows[1]["objective/kl_coef"]
    for row, (rollout, advantages, returns) in zip(rows, seen, strict=True):
        mask = rollout.mask.numpy()
        assert mask.all() == (stop_token is None)
        kl = (rollout.logprobs - rollout.ref_logprobs).double().numpy() * mask
        assert row["objective/kl"] == pytest.approx(kl.sum(1).mean(), abs=1e-4)
        rewards = -row["objective/kl_coef"] * kl
        rewards[np.arange(16), mask.sum(1) - 1] += rollout.scores.numpy()
        rewards = whitened(rewards, mask, shift=False)
        values = rollout.values.double().numpy() * mask
        expected, running = np.zeros_like(rewards), 0.0
        for t in reversed(range(12)):
            following = values[:, t + 1] if t < 11 else 0.0
            running = rewards[:, t] + 0.9 * following - values[:, t] + 0.9 * 0.95 * running
            expected[:, t] = running
        np.testing.assert_allclose(returns, expected + values, atol=1e-4)
        np.testing.assert_allclose(advantages, whitened(expected, mask, shift=True), atol=1e-4)


@pytest.mark.slow
def test_the_learning_rate_falls_in_the_optimizer_and_not_in_the_log_alone(
    demo_model: str, tmp_path: Path
) -> None:
    trainer = trainer_of(demo_model, tmp_path, total_episodes=64)
    trainer.train()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 4)


def test_each_epoch_takes_the_batch_in_another_order(
    demo_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(demo_model, tmp_path, num_mini_batches=2)
    orders: list[list[int]] = []

    def step(rollout: Any, credit: Any, minibatch: Any, text: Any) -> dict[str, float]:
        orders.append(minibatch.tolist())
        return {"max_log_ratio": 0.0, "ratio": 1.0}

    monkeypatch.setattr(trainer, "_step", step)
    trainer.optimize(None, None, 1e-3)  # type: ignore[arg-type]
    epochs = [orders[i] + orders[i + 1] for i in range(0, 8, 2)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.slow
def test_the_controller_counts_the_whole_batch_not_a_piece_of_it(
    demo_model: str, tmp_path: Path
) -> None:
    rows = trainer_of(
        demo_model,
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        kl_horizon=160,
        kl_coef=0.15,
    ).train()
    assert rows[1]["objective/kl_coef"] == pytest.approx(0.15 * (1 - 0.2 * 16 / 160))


def test_autocast_is_really_on(new_trainer: Any) -> None:
    """TRL 1.12's PPO ignored bf16: here every role's products are made in it."""
    seen: set[tuple[str, torch.dtype]] = set()
    trainer = new_trainer(autocast=True, value="adapter", total_episodes=8)
    trunk = trainer.model.trunk

    def spy(role: str, last: int, **inputs: Any) -> torch.Tensor:
        layer = trainer.model._causal.model.layers[0].mlp.up_proj
        hook = layer.register_forward_hook(lambda m, i, out: seen.add((role, out.dtype)))
        hidden = trunk(role, last, **inputs)
        hook.remove()
        return hidden

    trainer.model.trunk = spy
    row = trainer.train()[0]
    assert seen == {(role, torch.bfloat16) for role in ("policy", "reference", "value")}
    assert 0 < row["val/first_max_log_ratio"] < 0.1
    assert {p.dtype for p in trainer.parameters} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_checkpointing_changes_no_gradient_and_is_really_on(new_trainer: Any, value: str) -> None:
    results = []
    for checkpointing in (False, True):
        trainer = new_trainer(
            str(checkpointing), value=value, gradient_checkpointing=checkpointing, total_episodes=16
        )
        passes = []
        layer = trainer.model._causal.model.layers[0].mlp
        forward = layer.forward

        def counted(*args: Any, forward: Any = forward, passes: list = passes, **kw: Any) -> Any:
            passes.append(torch.is_grad_enabled())
            return forward(*args, **kw)

        layer.forward = counted
        rows = trainer.train()
        state = {n: p.detach().clone() for n, p in trainer.model.trainable()}
        results.append((rows, state, sum(passes)))
    (rows, state, once), (again, recomputed, twice) = results
    assert twice == 2 * once
    kl, kl_again = ([row["objective/kl"] for row in log] for log in (rows, again))
    assert kl == pytest.approx(kl_again, abs=5e-6)
    for name, tensor in state.items():
        assert torch.allclose(tensor, recomputed[name], atol=1e-6), name


@pytest.mark.slow
def test_a_policy_from_an_adapter_has_that_adapter_as_its_reference(
    new_trainer: Any, demo_model: str, tmp_path: Path
) -> None:
    """From supervised fine-tuning the KL starts at 0 against it, and not against the bare base."""
    tuned = new_trainer("first", total_episodes=64, learning_rate=5e-3, kl_coef=0.01)
    tuned.train()
    adapter = tuned.save_model()
    lora = lora_config(4, 8, "all-linear", "CAUSAL_LM")
    first_kl = {}
    for reference in ("policy_adapter", "base"):
        roles = Roles(
            load_base(demo_model, "fp32"),
            lora,
            value="trunk",
            policy_adapter=adapter,
            reference=reference,
        )
        frozen = {n: p.clone() for n, p in roles.named_parameters() if ".reference." in n}
        trainer = new_trainer(reference, model=roles)
        first_kl[reference] = trainer.train()[0]["objective/kl"]
        assert bool(frozen) is (reference == "policy_adapter")
        for name, tensor in frozen.items():
            assert torch.equal(tensor, dict(roles.named_parameters())[name]), name
    assert abs(first_kl["policy_adapter"]) < 1e-4 < 0.01 < abs(first_kl["base"])


@pytest.mark.slow
def test_evaluation_is_the_same_noise_each_time_and_the_best_is_kept(
    new_trainer: Any, tmp_path: Path
) -> None:
    trainer = new_trainer(eval_prompts=20, eval_every=2, total_episodes=48)
    assert trainer.evaluate() == trainer.evaluate()
    rows = trainer.train()
    evaluated = [row for row in rows if "eval/scores" in row]
    assert [row["update"] for row in evaluated] == [2, 4, 6]
    kept = json.loads((tmp_path / "run" / "best" / "evaluation.json").read_text())
    best = max((r for r in evaluated if r["eval/kl"] <= 1.1 * 6), key=lambda r: r["eval/scores"])
    assert kept["update"] == best["update"] and kept["eval/scores"] == best["eval/scores"]
    assert (tmp_path / "run" / "best" / "policy" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_empty_completions_and_equal_scores_are_said_once(
    new_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chat model that is given bare text ends at once, and nothing is learned."""
    trainer = new_trainer(total_episodes=24, stop_token="eos")
    honest = trainer.model.step

    def ending(role: str = "policy") -> Any:
        right = honest(role)

        def step(*inputs: Any) -> Any:
            logits, values = right.run(*inputs)
            logits[:, 1] += 1e3  # <|endoftext|>
            return logits, values

        return replace(right, run=step)

    trainer.model.step = ending
    trainer.watch.must_recompute = lambda *given: False
    trainer.train()
    said = capsys.readouterr().out
    assert said.count("100% of the completions are empty: the model ends at once") == 1
    trainer = new_trainer(
        "equal",
        total_episodes=24,
        reward_model=lambda prompts, completions: [1.0 for _ in completions],
    )
    trainer.train()
    assert capsys.readouterr().out.count("all scores are 1, so there is nothing to learn") == 1


def sampling_otherwise(trainer: Any) -> Any:
    """The trainer with a sampler whose logits are not those that are trained."""
    honest = trainer.model.step

    def wrong(role: str = "policy") -> Any:
        right = honest(role)

        def step(*inputs: Any) -> Any:
            logits, values = right.run(*inputs)
            return logits * 1.2, values

        return replace(right, run=step)

    trainer.model.step = wrong
    return trainer


def test_captured_logprobs_off_by_more_than_rounding_stop_a_run_in_fp32(new_trainer: Any) -> None:
    trainer = sampling_otherwise(new_trainer(total_episodes=24))
    with pytest.raises(RunStopped, match="do not run the same model"):
        trainer.train()
    # Nor does a wish to recompute hide it: what was sampled is not what would be learned from.
    again = sampling_otherwise(new_trainer("again", total_episodes=24, recompute_logprobs=True))
    with pytest.raises(RunStopped, match="do not run the same model"):
        again.train()


def test_captured_logprobs_that_rounding_moved_are_noticed_and_no_longer_used(
    new_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = sampling_otherwise(new_trainer(total_episodes=24, autocast=True))
    rows = trainer.train()
    assert rows[0]["val/first_max_log_ratio"] > 0.1
    assert "captured log-probs differ" in capsys.readouterr().out
    assert rows[1]["val/first_max_log_ratio"] < 1e-4


@pytest.mark.slow
def test_four_bits_learn_as_fp32_does_and_leave_the_base_as_it_was(new_trainer: Any) -> None:
    """Same seed: the same sign and size of improvement; the quantized weights bit for bit."""
    gains = {}
    for precision in ("fp32", "4bit"):
        trainer = new_trainer(
            precision,
            precision=precision,
            per_device_train_batch_size=128,
            total_episodes=1024,
            kl_coef=0.2,
            kl_controller="fixed",
            response_length=12,
        )
        frozen = {
            name: p.detach().clone()
            for name, p in trainer.model.named_parameters()
            if not p.requires_grad
        }
        rows = trainer.train()
        for name, parameter in trainer.model.named_parameters():
            if name in frozen:
                assert torch.equal(parameter, frozen[name]), name
        gain = rows[-1]["objective/scores"] - rows[0]["objective/scores"]
        gains[precision] = gain / rows[0]["objective/scores_std"]
    assert gains["fp32"] > 0.5
    assert gains["4bit"] == pytest.approx(gains["fp32"], rel=0.2)


@pytest.mark.slow
def test_a_warm_up_moves_the_value_alone_and_goes_on_exactly(new_trainer: Any) -> None:
    """In two of four updates the policy stays where it was, and the KL coefficient with it."""
    options = {"value": "adapter", "total_episodes": 32, "value_warmup": 2, "save_steps": 1}
    options |= {"value_hidden": [6], "kl_in": "loss", "entropy_coef": 0.01}
    whole = new_trainer("whole", **options)
    rows = whole.train()
    assert [row["objective/kl_coef"] == 0.15 for row in rows] == [True, True, True, False]
    assert all(abs(row["objective/kl"]) < 1e-4 for row in rows[:3])
    assert abs(rows[3]["objective/kl"]) > 1e-3

    half = new_trainer("half", **options, stop_at_update=2)
    start = copy.deepcopy(half.model.state_dict())
    half.train()
    moved = {n for n, t in half.model.state_dict().items() if not torch.equal(t, start[n])}
    assert moved and all(".value." in name or "value_head" in name for name in moved)

    again = new_trainer("half", **options, resume="auto")
    assert again.train() == rows
    for (name, one), (_, other) in zip(
        whole.model.trainable(), again.model.trainable(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_warm_up_needs_a_value_of_its_own(new_trainer: Any) -> None:
    with pytest.raises(InputError, match="shared trunk"):
        new_trainer(value="trunk", value_warmup=2)


@pytest.mark.slow
def test_the_value_can_have_a_learning_rate_of_its_own(new_trainer: Any) -> None:
    """Adam's first step moves each weight by about its rate: here 1e-3, and 1e-2 for the value."""
    trainer = new_trainer(
        value="adapter",
        total_episodes=8,
        num_ppo_epochs=1,
        **{
            "learning_rate": 1e-3,
            "value_learning_rate": 1e-2,
            "adam_epsilon": 1e-12,
        },
    )
    start = {name: p.detach().clone() for name, p in trainer.model.trainable()}
    trainer.train()
    farthest = {True: 0.0, False: 0.0}
    for name, p in trainer.model.trainable():
        moved = (p - start[name]).abs().max().item()
        of_value = ".value." in name or "value_head" in name
        farthest[of_value] = max(farthest[of_value], moved)
    assert farthest[False] == pytest.approx(1e-3, rel=1e-3)
    assert farthest[True] == pytest.approx(1e-2, rel=1e-3)


def test_a_warm_up_as_long_as_the_run_is_refused(new_trainer: Any) -> None:
    with pytest.raises(InputError, match="value_warmup is 2, but the run has 2 updates"):
        new_trainer(value="adapter", total_episodes=16, value_warmup=2)


def test_a_policy_that_stands_still_leaves_the_value_its_rate(new_trainer: Any) -> None:
    trainer = new_trainer(value="adapter", learning_rate=0.0, value_learning_rate=1e-3)
    trainer._set_learning_rate(trainer._learning_rate(2))  # the second of two updates
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.0, 0.5e-3]


def test_an_optimizer_of_ones_own_has_its_own_rates(new_trainer: Any) -> None:
    mine = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(InputError, match="give the value a parameter group"):
        new_trainer(value="adapter", value_learning_rate=1e-3, optimizers=(mine, None))


def test_an_estimate_stays_within_its_bounds_under_a_fixed_coefficient(new_trainer: Any) -> None:
    options = {"kl_coef": "auto", "kl_coef_samples": 1024, "kl_target": 0.1, "kl_coef_max": 0.01}
    trainer = new_trainer(kl_controller="fixed", **options)
    trainer._estimate_coefficient()
    assert trainer.kl.value == 0.01


def test_an_estimate_for_another_reward_rests_on_the_policys_samples_too(
    new_trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"kl_coef": "auto", "kl_coef_samples": 1024, "kl_target": 0.1}
    trainer = new_trainer(**options)
    for source in ("the reference", "reference and policy"):
        trainer._estimate_coefficient()
        assert f"estimated from 1,024 completions of {source}, " in capsys.readouterr().out
    assert trainer.kl.value == trainer.kl.estimate

    # Beside whitened advantages the coefficient is in units of a deviation, the reference's.
    whitened = new_trainer("whitened", kl_in="loss", whiten_rewards=False, **options)
    for _ in range(2):
        whitened._estimate_coefficient()
        assert "completions of the reference, " in capsys.readouterr().out
