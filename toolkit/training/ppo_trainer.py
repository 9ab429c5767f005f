"""PPO from human preferences on one base: collect, penalise, advantages, optimise, adapt, log.

TRL took its PPOTrainer out in 1.13; this one is the toolkit's own. It keeps TRL 1.12's names for
configuration, metrics and public methods. The semantics are those of arXiv 1909.08593 and of
openai/lm-human-preferences lm_human_preferences/train_policy.py:145-371.
"""

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from toolkit.data.files import atomic_directory
from toolkit.data.text import decode_pair, printable
from toolkit.errors import InputError
from toolkit.maths.advantages import gae
from toolkit.maths.distributions import entropy, token_logprobs
from toolkit.maths.kl import (
    AdaptiveKLController,
    FixedKLController,
    kl_estimate,
    penalized_rewards,
)
from toolkit.maths.losses import policy_loss, value_loss
from toolkit.maths.masking import masked_mean, masked_var, whiten
from toolkit.maths.optimizers import AdamTFStyle
from toolkit.maths.schedules import linear_decay, num_updates
from toolkit.models.generation import Sampled
from toolkit.models.roles import Roles
from toolkit.training.ppo_config import PPOConfig
from toolkit.training.rollouts import RewardFunction, Rollout, collect, join

Row = dict[str, Any]


class PPOTrainer:
    """Tunes the policy of ``model`` on ``train_dataset``'s prompts.

    Args:
        args: the configuration.
        processing_class: the tokenizer.
        model: the roles on their base; policy, value and reward adapters are in it, and the
            reference is the base without them.
        train_dataset: prompts as lists of token ids; they come round again, shuffled anew.
        reward_model: None for the reward adapter in ``model``, or a function
            ``fn(prompts, completions) -> scores``.

    Raises:
        InputError: neither a reward adapter nor a function, or more than one process.
    """

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: Roles,
        train_dataset: list[list[int]],
        reward_model: RewardFunction | None = None,
    ) -> None:
        if model.reward_head is None and reward_model is None:
            raise InputError("PPO needs a reward: a reward adapter, or a reward function")
        if model.value_head is None:
            raise ValueError("the roles have no value: build them with value='adapter' or 'trunk'")
        self.args, self.processing_class, self.model = args, processing_class, model
        self.train_dataset, self.reward_function = train_dataset, reward_model
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            raise InputError("PPO runs in one process (launch it with --num_processes 1)")
        self.rule = args.rule(processing_class)
        self.kl: FixedKLController = (
            AdaptiveKLController(args.kl_coef, args.kl_target, args.kl_horizon)
            if args.kl_controller == "adaptive"
            else FixedKLController(args.kl_coef)
        )
        parameters = [p for _, p in model.trainable()]
        adam = AdamTFStyle if args.adam_tf_style else torch.optim.Adam
        betas = (args.adam_beta1, args.adam_beta2)
        self.optimizer = adam(parameters, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon)
        self.generator = torch.Generator(model.device).manual_seed(args.seed)
        self.num_updates = num_updates(args.total_episodes, args.batch_size)

    def train(self) -> list[Row]:
        """Run all updates; returns what ``log.jsonl`` holds, one row an update."""
        args, rows = self.args, []
        args.folder.mkdir(parents=True, exist_ok=True)
        (args.folder / "log.jsonl").write_text("")
        batches = self._batches()
        started = time.monotonic()
        progress = tqdm(range(1, self.num_updates + 1), desc="PPO", unit="update")
        for update in progress:
            lr = args.learning_rate * linear_decay(update - 1, self.num_updates)

            # 1. Collect: sample, then ask the four roles.
            rollout = self.collect(next(batches))
            # 2. Penalise: the KL enters the rewards here, the score on the last token.
            kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator)
            rewards = penalized_rewards(rollout.scores, kl, self.kl.value, rollout.mask)
            # 3. Advantages, from whitened rewards, whitened in turn.
            if args.whiten_rewards:
                rewards = whiten(rewards, rollout.mask, shift_mean=False)
            advantages, returns = gae(rewards, rollout.values, args.gamma, args.lam, rollout.mask)
            advantages = whiten(advantages, rollout.mask)
            # 4. Optimise: some epochs over the batch.
            stats = self.optimize(rollout, advantages, returns, lr)
            # 5. Log, with the coefficient that these rewards were made with.
            row = self._row(update, lr, rollout, kl, returns, stats, time.monotonic() - started)
            # 6. Adapt the coefficient by the KL of this batch.
            self.kl.update(row["objective/kl"], args.batch_size)

            rows.append(row)
            self._log(row)
            progress.set_postfix(
                score=f"{row['objective/scores']:.2f}",
                kl=f"{row['objective/kl']:.2f}",
                kl_coef=f"{row['objective/kl_coef']:.3f}",
                eps_per_s=f"{row['episode'] / row['time']:.0f}",
            )
            if update % args.sample_every == 0 or update == self.num_updates:
                self._show(update, rollout, progress)
        return rows

    def collect(self, prompts: list[list[int]]) -> Rollout:
        """A batch of experience, in pieces of ``local_rollout_forward_batch_size``."""
        size = self.args.local_rollout_forward_batch_size
        pieces = [
            collect(
                self.model, prompts[i : i + size], self.rule, self.processing_class,
                self.reward_function, self.generator,
            )
            for i in range(0, len(prompts), size)
        ]  # fmt: skip
        return join(pieces, self.rule.pad_id)

    def optimize(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, lr: float
    ) -> dict[str, float]:
        """``num_ppo_epochs`` passes; statistics averaged over all optimizer steps.

        Args:
            rollout, advantages (B, C), returns (B, C): the batch.
            lr: the learning rate of this update.
        """
        args = self.args
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        steps: list[dict[str, float]] = []
        for _ in range(args.num_ppo_epochs):
            order = torch.randperm(
                len(advantages), generator=self.generator, device=self.generator.device
            )
            for minibatch in order.chunk(args.num_mini_batches):
                steps.append(self._step(rollout, advantages, returns, minibatch))
        means = {name: sum(s[name] for s in steps) / len(steps) for name in steps[0]}
        return means | {"first_max_log_ratio": steps[0]["max_log_ratio"]}

    def _step(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, minibatch: Tensor
    ) -> dict[str, float]:
        """One optimizer step, its gradient gathered over passes of the micro-batch size."""
        args, rule = self.args, self.rule
        tokens = rollout.mask[minibatch].sum()
        totals: dict[str, float] = {}
        self.optimizer.zero_grad()
        for index in minibatch.split(args.per_device_train_batch_size):
            mask = rollout.mask[index]
            weight = mask.sum() / tokens
            ids, attention = rollout.ids[index], rollout.attention_mask[index]
            logits, values = self.model.policy_logits_and_values(
                ids, attention, rule.response_length
            )
            logprobs = token_logprobs(logits, rollout.completion_ids[index], rule.temperature)
            pg_loss, pg = policy_loss(
                logprobs, rollout.logprobs[index], advantages[index], args.cliprange, mask
            )
            vf_loss, vf = value_loss(
                values, rollout.values[index], returns[index], args.cliprange_value, mask
            )
            loss = weight * (pg_loss + args.vf_coef * vf_loss)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"PPO: the loss is {loss.item()}; nothing was updated")
            loss.backward()
            stats = {
                "policy": pg_loss, "value": vf_loss, "approxkl": pg["approxkl"],
                "clipfrac": pg["clipfrac"], "ratio": pg["ratio"],
                "value_clipfrac": vf["clipfrac"], "value_error": vf["error"],
                "entropy": masked_mean(entropy(logits.detach(), rule.temperature), mask),
            }  # fmt: skip
            for name, value in stats.items():
                totals[name] = totals.get(name, 0.0) + (weight * value.detach()).item()
            largest = pg["max_log_ratio"].item()
            totals["max_log_ratio"] = max(totals.get("max_log_ratio", 0.0), largest)
        if args.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(
                [p for _, p in self.model.trainable()], args.max_grad_norm
            )
        self.optimizer.step()
        return totals

    def save_model(self, output_dir: str | Path | None = None, **facts: Any) -> Path:
        """Save the adapters under ``output_dir/adapters``; returns the policy's folder.

        Args:
            output_dir: by default the configuration's.
            facts: noted in the policy's ``toolkit.json``.
        """
        target = Path(output_dir or self.args.folder) / "adapters"
        with atomic_directory(target) as folder:
            self.model.save_adapters(folder, kl_coef=self.kl.value, **facts)
        return target / "policy"

    def _batches(self) -> Iterator[list[list[int]]]:
        """Prompts in random order without end; each comes once before any comes twice."""
        rng = random.Random(self.args.seed)
        waiting: list[list[int]] = []
        while True:
            while len(waiting) < self.args.batch_size:
                waiting += rng.sample(self.train_dataset, len(self.train_dataset))
            yield waiting[: self.args.batch_size]
            waiting = waiting[self.args.batch_size :]

    def _row(
        self, update: int, lr: float, rollout: Rollout, kl: Tensor, returns: Tensor,
        stats: dict[str, float], elapsed: float,
    ) -> Row:  # fmt: skip
        """One row of the log; the names are TRL 1.12's, and ours where it had none."""
        kl_sum = kl.sum(dim=1).mean().item()
        scores = rollout.scores.mean().item()
        non_score = -self.kl.value * kl_sum
        returns_var = masked_var(returns, rollout.mask).item()
        return {
            "update": update,
            "episode": update * self.args.batch_size,
            "time": round(elapsed, 3),
            "lr": lr,
            "objective/kl": kl_sum,
            "objective/kl_coef": self.kl.value,
            "objective/kl_target": getattr(self.kl, "kl_target", None),
            "objective/scores": scores,
            "objective/scores_std": rollout.scores.std(correction=0).item(),
            "objective/non_score_reward": non_score,
            "objective/rlhf_reward": scores + non_score,
            "objective/entropy": -rollout.logprobs.sum(dim=1).mean().item(),
            "objective/valid": rollout.valid.float().mean().item(),
            "policy/approxkl_avg": stats["approxkl"],
            "policy/clipfrac_avg": stats["clipfrac"],
            "policy/entropy_avg": stats["entropy"],
            "loss/policy_avg": stats["policy"],
            "loss/value_avg": stats["value"],
            "val/clipfrac_avg": stats["value_clipfrac"],
            "val/ratio": stats["ratio"],
            "val/first_max_log_ratio": stats["first_max_log_ratio"],
            "val/var_explained": 1 - stats["value_error"] / max(returns_var, 1e-12),
        }

    def _log(self, row: Row) -> None:
        with open(self.args.folder / "log.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def _show(self, update: int, rollout: Rollout, progress: tqdm, count: int = 3) -> None:
        """Write the first few completions, as the scorer saw them, above the progress bar."""
        sampled = Sampled(rollout.completion_ids, rollout.mask, rollout.logprobs)
        visible, _ = self.rule.visible(sampled)
        for i in range(min(count, len(rollout.scores))):
            prompt_ids = rollout.prompt_ids[i][rollout.prompt_mask[i]].tolist()
            completion_ids = rollout.completion_ids[i][visible[i]].tolist()
            prompt, completion = decode_pair(self.processing_class, prompt_ids, completion_ids)
            shown = printable(" ".join(f"{prompt} >>>{completion}".split()))
            progress.write(f"  [{update}] {rollout.scores[i].item():+.2f}  {shown}")
