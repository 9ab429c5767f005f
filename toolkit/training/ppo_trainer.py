"""PPO from human preferences: collect, penalise, advantages, optimise, adapt, log.

TRL took its PPOTrainer out in 1.13; this one is the toolkit's own, and takes its place: the same
constructor, configuration, metrics and methods. The semantics are those of arXiv 1909.08593 and of
openai/lm-human-preferences lm_human_preferences/train_policy.py:145-371.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from toolkit.data.prompts import Prompts
from toolkit.data.text import decode_pair, printable
from toolkit.errors import InputError, check_range
from toolkit.maths.advantages import gae
from toolkit.maths.kl import kl_estimate, penalized_rewards
from toolkit.maths.losses import policy_loss, value_loss
from toolkit.maths.masking import masked_mean, masked_var, whiten
from toolkit.maths.schedules import linear_decay, num_updates, updates_between
from toolkit.maths.sequences import is_any
from toolkit.models.actors import Actors
from toolkit.models.generation import Sampled, draw_uniforms
from toolkit.models.sharding import shard_base
from toolkit.scoring.functions import RewardFunction
from toolkit.training.guards import Guards, RunStopped, check_signs
from toolkit.training.journal import Journal, Row
from toolkit.training.optimizers import optimizers_of
from toolkit.training.ppo_config import PUBLISH, PPOConfig
from toolkit.training.ppo_run import Run, as_actors, as_eval_prompts, as_prompts, as_rewards
from toolkit.training.ranks import Ranks
from toolkit.training.rollouts import Rollout, by_length, collect


class PPOTrainer:
    """Tunes the policy on ``train_dataset``'s prompts.

    Args:
        args: the configuration.
        processing_class: the tokenizer.
        model: ``Roles`` (all four on one base: the better way), or a causal language model.
        ref_model: with a plain ``model``, the reference; None copies it, or, where ``model`` has an
            adapter, switches that off.
        reward_model: None for the reward adapter in the roles; a sequence classifier; functions
            ``fn(prompts, completions, **columns) -> scores``; ``Scorer``s; or a list of these (None
            in the list is the reward adapter), whose weighted sum counts.
        train_dataset: prompts as token ids: lists, ``Prompts``, or a dataset of ``input_ids``, read
            by their ``attention_mask`` where there is one; its other columns go to the reward
            functions. They come round again, shuffled anew.
        value_model: with a plain ``model``, a sequence classifier that learns the values.
        data_collator: TRL's only pads, which is done here; None or that one.
        eval_dataset: held-out prompts, for evaluation every ``eval_every`` updates; or several
            sets by name, each of which has its own metrics besides those of all.
        optimizers: an optimizer over what is trained and a schedule that is stepped once an update;
            by default those that ``args`` name.
        callbacks: transformers' TrainerCallbacks.
        peft_config: with a plain ``model``, the adapter to put on it.
        reward_weights: of the reward functions, in their order.

    Raises:
        InputError: no reward, no value, models that do not go together, or another number of
            processes than was asked for.
    """

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: Actors | PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        reward_model: Any = None,
        train_dataset: Any = None,
        value_model: PreTrainedModel | None = None,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        reward_weights: list[float] | None = None,
    ) -> None:
        self.args, self.processing_class = args, processing_class
        self.ranks = Ranks(args.world_size)
        self.accelerator = Accelerator()
        self.model = as_actors(model, ref_model, reward_model, value_model, peft_config, args)
        self.rewards = as_rewards(reward_model, reward_weights, self.model)
        self.train_dataset = as_prompts(train_dataset, data_collator, processing_class)
        self.eval_dataset, self.eval_parts = as_eval_prompts(eval_dataset, processing_class)
        self.rule = args.rule(processing_class)
        self.rule.show_stop = self.model.scores_stop
        self.model.keep_only(processing_class)
        self.kl = args.kl_state()
        self.guards = Guards(args.on_fault, args.max_skipped, args.max_kl, args.max_score_drop)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.batch_size = args.local_batch_size * self.ranks.world
        if args.kl_controller == "adaptive":
            check_range("kl_horizon", args.kl_horizon, low=self.batch_size)
        if args.total_episodes is None:  # from here on it is noted: a run is resumed with the same
            args.total_episodes = max(1, int(args.num_train_epochs * len(self.train_dataset)))
        self.num_updates = num_updates(args.total_episodes, self.batch_size)
        self.save_every = updates_between(args.save_steps, self.num_updates)
        if args.save_strategy == "epoch":
            self.save_every = math.ceil(len(self.train_dataset) / self.batch_size)
        self.eval_every = updates_between(args.eval_every, self.num_updates)
        self.parameters = [p for _, p in self.model.trainable()]
        self.ranks.same_start(self.parameters)
        if self.ranks.sharded:
            shard_base(self.model.language_models())
        self.optimizer, self.lr_scheduler = optimizers_of(
            args, optimizers, self.model, self.num_updates
        )
        self.journal = Journal(
            args, self.num_updates, self.ranks.is_main, callbacks or [], model=self.model,
            processing_class=processing_class, optimizer=self.optimizer,
        )  # fmt: skip
        self.state = self.journal.state
        self.state.save_steps, self.state.eval_steps = self.save_every, self.eval_every
        self.run = Run(self)

    def train(self, resume_from_checkpoint: str | bool | None = None) -> list[Row]:
        """Run all updates; returns what ``log.jsonl`` holds, one row an update.

        Args:
            resume_from_checkpoint: True or "auto" for the newest good checkpoint, or a folder; by
                default what ``args.resume`` says.

        Raises:
            RunStopped: a guard ended the run.
            Interrupted: SIGTERM or Ctrl-C came; the update was finished and saved.
            InputError: the checkpoint was made under other settings.
        """
        check_signs(gain=self.model.gain, kl_coef=self.kl.value)
        for update in self.run.updates(resume_from_checkpoint):
            lr = self._learning_rate(update)

            # 1. Collect: sample, then ask the four roles.
            rollout = self.collect(update)
            # 2. Penalise: the KL enters the rewards here, the score on the last token.
            kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, self.args.kl_estimator)
            rewards = penalized_rewards(rollout.scores, kl, self.kl.value, rollout.mask)
            # 3. Advantages, from whitened rewards, whitened in turn.
            advantages, returns = self.advantages(rewards, rollout)
            # 4. Optimise: some epochs over the batch, unless a guard finds it at fault.
            row = self._row(update, lr, rollout, kl, returns)
            with self.journal.clock("optimize"):
                row |= self.guarded(self.optimize, rollout, advantages, returns, lr, row=row)
            # 5. Adapt the coefficient by the KL of this batch.
            if math.isfinite(row["objective/kl"]):
                self.kl.update(row["objective/kl"], self.batch_size)
            # 6. Log, with the coefficient that these rewards were made with; evaluate; save.
            self.run.finish(update, row, rollout)
        return self.run.close()

    def collect(self, update: int) -> Rollout:
        """This process's share of an update's batch of experience."""
        mine = self.ranks.share(self.batch_size)
        uniforms = draw_uniforms(self.batch_size, self.rule.response_length, self.generator)
        return collect(
            self.model, self.prompts_of(update), uniforms[mine], self.rule, self.processing_class,
            self.rewards, self.args.local_rollout_forward_batch_size, self.run.recomputes,
            self.journal.clock, self.ranks.sharded,
        )  # fmt: skip

    def prompts_of(self, update: int) -> Any:
        """This process's prompts of an update: each comes once before any comes twice."""
        count = len(self.train_dataset)
        first = (update - 1) * self.batch_size + self.ranks.share(self.batch_size).start
        places = range(first, first + self.args.local_batch_size)
        orders = {
            turn: random.Random(f"{self.args.seed} {turn}").sample(range(count), count)
            for turn in range(places[0] // count, places[-1] // count + 1)
        }
        return self.train_dataset.pick([orders[p // count][p % count] for p in places])

    def advantages(self, rewards: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantages and returns (B, C) of rewards (B, C), whitened over all processes' batch."""
        mask, total = rollout.learned, self.ranks.total
        if self.args.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False, total=total)
        advantages, returns = gae(rewards, rollout.values, self.args.gamma, self.args.lam, mask)
        return whiten(advantages, mask, total=total), returns

    def optimize(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, lr: float
    ) -> dict[str, float]:
        """``num_ppo_epochs`` passes; statistics averaged over all optimizer steps.

        Args:
            rollout, advantages (B, C), returns (B, C): this process's share of the batch.
            lr: the learning rate of this update.
        """
        if self.lr_scheduler is None:
            groups = self.optimizer.param_groups
            for group in groups:
                group.setdefault("initial_lr", group["lr"])
            factor = lr / groups[0]["initial_lr"] if groups[0]["initial_lr"] else 0.0
            for group in groups:
                group["lr"] = group["initial_lr"] * factor
        mine = self.ranks.share(self.batch_size)
        steps: list[dict[str, float]] = []
        with self.model.optimizing():
            for _ in range(self.args.num_ppo_epochs):
                order = torch.randperm(self.batch_size, generator=self.generator)
                for minibatch in order.chunk(self.args.num_mini_batches):
                    here = minibatch[(minibatch >= mine.start) & (minibatch < mine.stop)]
                    steps.append(self._step(rollout, advantages, returns, here - mine.start))
        steps = [step for step in steps if step]  # minibatches in which something was scored
        names = steps[0].keys() - {"max_log_ratio"}
        means = {name: sum(s[name] for s in steps) / len(steps) for name in names}
        ratios = torch.tensor([s["ratio"] for s in steps])
        means["ratio_var"] = ratios.var(correction=0).item()
        return means | {"first_max_log_ratio": steps[0]["max_log_ratio"]}

    def _step(
        self, rollout: Rollout, advantages: Tensor, returns: Tensor, minibatch: Tensor
    ) -> dict[str, float]:
        """One optimizer step, its gradient gathered over passes of the micro-batch size."""
        args = self.args
        tokens = self.ranks.total(rollout.learned[minibatch].sum().float())
        if not tokens:
            return {}
        sums = torch.zeros(len(STATISTICS), device=self.model.device)
        largest = torch.zeros((), device=self.model.device)
        self.optimizer.zero_grad()
        pieces = by_length(
            rollout.prompt_mask[minibatch].sum(dim=1).cpu(), args.per_device_train_batch_size
        )
        indices = [minibatch[piece].to(self.model.device) for piece in pieces]
        indices = [index for index in indices if bool(rollout.learned[index].any())]
        for _ in range(self.ranks.idle_passes(len(indices))):
            self._idle_pass(rollout)
        for index in indices:
            mask = rollout.learned[index]
            weight = mask.sum() / tokens
            passage, completion_ids = rollout.passage(index), rollout.completion_ids[index]
            outputs = self.model.policy_outputs(*passage, completion_ids, self.rule.temperature)
            pg_loss, pg = policy_loss(
                outputs.logprobs, rollout.logprobs[index], advantages[index], args.cliprange, mask
            )
            loss, values = weight * pg_loss, outputs.values
            if values is None:  # one role's activations at a time
                loss.backward()
                loss = torch.zeros_like(loss)
                values = self.model.values(*passage, completion_ids.shape[1])
            vf_loss, vf = value_loss(
                values, rollout.values[index], returns[index], args.cliprange_value, mask
            )
            (loss + weight * args.vf_coef * vf_loss).backward()
            entropy = masked_mean(outputs.entropies, mask)
            parts = (
                pg_loss, vf_loss, pg["approxkl"], pg["clipfrac"], pg["ratio"], vf["clipfrac"],
                vf["error"], entropy,
            )  # fmt: skip
            sums += weight * torch.stack([part.detach() for part in parts])
            largest = torch.maximum(largest, pg["max_log_ratio"])
        stats = dict(zip(STATISTICS, self.ranks.total(sums).tolist(), strict=True))
        if not math.isfinite(stats["policy"] + stats["value"]):
            self.optimizer.zero_grad()
            raise FloatingPointError(f"the loss is {stats['policy'] + stats['value']}")
        self.ranks.sum_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not math.isfinite(torch.nn.utils.get_total_norm(gradients).item()):
            self.optimizer.zero_grad()
            raise FloatingPointError("a gradient is not finite")
        if args.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, args.max_grad_norm)
        self.optimizer.step()
        return stats | {"max_log_ratio": self.ranks.largest(largest).item()}

    def _idle_pass(self, rollout: Rollout) -> None:
        """The passes of a micro-batch, with gradients of zero: other processes have one more."""
        index = torch.zeros(1, dtype=torch.long, device=self.model.device)
        passage, completion_ids = rollout.passage(index), rollout.completion_ids[index]
        outputs = self.model.policy_outputs(*passage, completion_ids, self.rule.temperature)
        values = outputs.values
        if values is None:
            (0.0 * outputs.logprobs.sum()).backward()
            values = self.model.values(*passage, completion_ids.shape[1])
        (0.0 * (values.sum() + outputs.logprobs.detach().sum())).backward()

    def guarded(
        self, optimize: Callable[..., dict[str, float]], rollout: Rollout, advantages: Tensor,
        returns: Tensor, lr: float, row: Row,
    ) -> Row:  # fmt: skip
        """``optimize``'s part of the log's row; empty where a guard had the batch skipped."""
        scored = int(self.ranks.total(rollout.scored.sum().float()))
        tensors = {"log-probs": rollout.logprobs, "reference log-probs": rollout.ref_logprobs,
                   "values": rollout.values, "advantages": advantages}  # fmt: skip
        if not scored:
            del tensors["advantages"]  # a mean over nothing
        fault = next((f for f in self.ranks.gather(
            self.guards.fault(row["objective/kl"], scored, tensors)) if f), None)  # fmt: skip
        collapse = self.guards.collapsed(row["objective/scores"], row["objective/scores_std"])
        if collapse is not None:
            raise RunStopped(f"{collapse}; {self.run.last_good()}")
        stats: dict[str, Any] = {}
        if fault is None:
            try:
                stats = optimize(rollout, advantages, returns, lr)
                self.guards.went_well()
            except FloatingPointError as nonfinite:
                fault = str(nonfinite)
        if fault is not None:
            halt = self.guards.skip(fault)
            if halt is not None:
                raise RunStopped(f"{halt}; {self.run.last_good()}")
            self.journal.say(f"update {row['update']} skipped: {fault}")
        variance = max(row["val/returns_var"], 1e-12)
        error = stats.get("value_error")
        return {name: stats.get(key) for name, key in NAMES.items()} | {
            "val/var_explained": None if error is None else 1 - error / variance,
            "guard/skipped": self.guards.skipped,
        }

    def _learning_rate(self, update: int) -> float:
        if self.lr_scheduler is not None:
            return float(self.lr_scheduler.get_last_lr()[0])
        falls = self.args.lr_scheduler_type == "linear"
        factor = linear_decay(update - 1, self.num_updates) if falls else 1.0
        group = self.optimizer.param_groups[0]
        return group.get("initial_lr", group["lr"]) * factor

    def _row(self, update: int, lr: float, rollout: Rollout, kl: Tensor, returns: Tensor) -> Row:
        """What the log's row says of the batch; the names are TRL 1.12's, and ours besides."""
        total = self.ranks.total
        kl_sum = masked_mean((kl * rollout.mask).sum(dim=1), total=total).item()
        scores = masked_mean(rollout.scores, rollout.scored, total).item()
        non_score = -self.kl.value * kl_sum
        ended = is_any(rollout.completion_ids, self.rule.ends) & rollout.mask
        return {
            "update": update,
            "episode": update * self.batch_size,
            "lr": lr,
            "objective/kl": kl_sum,
            "objective/kl_coef": self.kl.value,
            "objective/kl_target": getattr(self.kl, "kl_target", None),
            "objective/scores": scores,
            "objective/scores_std": masked_var(rollout.scores, rollout.scored, total).item() ** 0.5,
            "objective/non_score_reward": non_score,
            "objective/rlhf_reward": scores + non_score,
            "objective/entropy": masked_mean(-rollout.logprobs.sum(dim=1), total=total).item(),
            "objective/valid": masked_mean(rollout.valid.float(), total=total).item(),
            "objective/scored": masked_mean(rollout.scored.float(), total=total).item(),
            "val/num_eos_tokens": int(total(ended.sum().float())),
            "val/returns_var": masked_var(returns, rollout.learned, total).item(),
        }

    def evaluate(self) -> dict[str, float]:
        """Scores and KL on ``eval_dataset``, one completion for each prompt, always the same noise.

        Returns:
            eval/scores, eval/scores_error (standard error), eval/kl, eval/rlhf_reward. Of several
            datasets each has its own besides, as eval/NAME/scores and so on: what it would get as
            the only one.
        """
        if self.eval_dataset is None:
            raise InputError("evaluate needs an eval_dataset")
        if not self.eval_parts:
            return self._evaluation("eval", *self._evaluate(self.eval_dataset))
        row: dict[str, float] = {}
        sums, count = torch.zeros(4, dtype=torch.float64), 0
        for name, prompts in self.eval_parts.items():
            part, number = self._evaluate(prompts)
            row |= self._evaluation(f"eval/{name}", part, number)
            sums, count = sums + part, count + number
        return self._evaluation("eval", sums, count) | row

    def _evaluate(self, prompts: Prompts) -> tuple[Tensor, int]:
        """Sums (4,) over these prompts: scores, their squares, KL, how many were scored; and B."""
        rank, world, count = self.ranks.rank, self.ranks.world, len(prompts)
        noise = torch.Generator().manual_seed(self.args.seed + 1)
        uniforms = draw_uniforms(count, self.rule.response_length, noise)
        mine = list(range(rank, count, world))
        filled = mine + [0] * (math.ceil(count / world) - len(mine))
        rollout = collect(
            self.model, prompts.pick(filled), uniforms[filled], self.rule,
            self.processing_class, self.rewards, self.args.local_rollout_forward_batch_size,
            in_step=self.ranks.sharded,
        )  # fmt: skip
        own = slice(0, len(mine))
        kl = (rollout.logprobs - rollout.ref_logprobs).sum(dim=1)[own]
        scored = rollout.scored[own]
        scores = rollout.scores[own][scored].double()
        sums = torch.stack([scores.sum(), scores.square().sum(), kl.double().sum(), scored.sum()])
        return self.ranks.total(sums).cpu(), count

    def _evaluation(self, prefix: str, sums: Tensor, count: int) -> dict[str, float]:
        """The metrics of ``_evaluate``'s sums over ``count`` prompts."""
        score, square, kl_sum, number = sums.tolist()
        mean = score / number if number else math.nan
        spread = max(square - number * mean**2, 0.0)
        error = (spread / (number - 1) / number) ** 0.5 if number > 1 else math.nan
        return {
            f"{prefix}/scores": mean,
            f"{prefix}/scores_error": error,
            f"{prefix}/kl": kl_sum / count,
            f"{prefix}/rlhf_reward": mean - self.kl.value * kl_sum / count,
        }

    def generate_completions(self, sampling: bool = False) -> list[Row]:
        """Near-greedy completions of ``eval_dataset``, as a table of five and in a file.

        Args:
            sampling: only the first ``per_device_eval_batch_size`` prompts (TRL's name for it).

        Returns:
            Rows of ``query``, ``model response`` and ``score``, also in ``completions.jsonl``.
        """
        return self.run.generate_completions(sampling)

    def save_model(self, output_dir: str | Path | None = None, **facts: Any) -> Path:
        """Save what others load; returns its folder.

        Of roles: the adapters under ``output_dir/adapters``, the policy's folder being returned. Of
        a plain model: that model or its adapter, and the tokenizer, in ``output_dir``.

        Args:
            output_dir: by default the configuration's.
            facts: noted in the policy's ``toolkit.json``.
        """
        return self.run.save_model(Path(output_dir or self.args.folder), facts)

    def push_to_hub(self, **kwargs: Any) -> None:
        """TRL's name. Refused: recipes/publish.py shows what would go, checks it, and sends it."""
        raise InputError(PUBLISH)

    def show(self, update: int, rollout: Rollout, count: int = 3) -> None:
        """Write the first few completions, as the scorer saw them, above the progress bar."""
        sampled = Sampled(rollout.completion_ids, rollout.mask, rollout.logprobs)
        visible, _ = self.rule.visible(sampled)
        for i in range(min(count, len(rollout.scores))):
            prompt_ids = rollout.prompt_ids[i][rollout.prompt_mask[i]].tolist()
            completion_ids = rollout.completion_ids[i][visible[i]].tolist()
            prompt, completion = decode_pair(self.processing_class, prompt_ids, completion_ids)
            shown = printable(" ".join(f"{prompt} >>>{completion}".split()))
            self.journal.say(f"  [{update}] {rollout.scores[i].item():+.2f}  {shown}")


STATISTICS = ("policy", "value", "approxkl", "clipfrac", "ratio", "value_clipfrac", "value_error",
              "entropy")  # fmt: skip
# The log's names of what optimize returns.
NAMES = {
    "policy/approxkl_avg": "approxkl",
    "policy/clipfrac_avg": "clipfrac",
    "policy/entropy_avg": "entropy",
    "loss/policy_avg": "policy",
    "loss/value_avg": "value",
    "val/clipfrac_avg": "value_clipfrac",
    "val/ratio": "ratio",
    "val/ratio_var": "ratio_var",
    "val/first_max_log_ratio": "first_max_log_ratio",
}

__all__ = ["PPOTrainer", "RewardFunction", "Row"]
