"""PPO from human preferences: collect, penalize, give credit, optimize, adapt, log.

TRL removed its PPOTrainer in 1.13. This one is the toolkit's own, with the same names, metrics and
methods. The semantics are those of arXiv 1909.08593 and of openai/lm-human-preferences
lm_human_preferences/train_policy.py:145-371. This is the loop; the algorithm (``algorithms.py``)
decides what is learned from a batch.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed

from toolkit.data.files import atomic_directory
from toolkit.data.leftovers import clear_leftovers
from toolkit.data.locks import letting_go, lock_folder
from toolkit.data.prompts import Prompts
from toolkit.data.tokens import decode_pair
from toolkit.errors import InputError, Interrupted, RunStopped, check_range
from toolkit.maths.kl import kl_estimate, penalized_rewards
from toolkit.maths.schedules import linear_decay, num_updates, updates_between
from toolkit.maths.sequences import length_sorted_batches, pad
from toolkit.models.actors import POLICY, Actors
from toolkit.models.fast import rounded_once
from toolkit.models.generation import Sampled, draw_uniforms
from toolkit.models.peft_wrappers import head_weights
from toolkit.models.sharding import shard_base
from toolkit.scoring.ensembles import RewardEnsemble
from toolkit.scoring.guests import set_guests_state
from toolkit.scoring.lengths import LengthPriced
from toolkit.terminal import counted
from toolkit.training.determinism import only_deterministic
from toolkit.training.distributed import Ranks
from toolkit.training.log_rows import ShownSample, read_rows
from toolkit.training.optimizers import optimizers_of
from toolkit.training.ppo.algorithms import (
    Algorithm,
    Before,
    Credit,
    algorithm_of,
    kl_loss_of,
    kl_unit_of,
)
from toolkit.training.ppo.checkpoints import (
    check_same,
    checkpoints,
    choose_checkpoint,
    load_checkpoint,
    newest_good,
    save_checkpoint,
)
from toolkit.training.ppo.coefficient import estimate_of, prompts_for
from toolkit.training.ppo.config import PUBLISH, PPOConfig
from toolkit.training.ppo.evaluation import evaluate, near_greedy_completions, show_completions
from toolkit.training.ppo.guards import Guards, Watch, check_signs
from toolkit.training.ppo.inputs import (
    as_eval_prompts,
    as_prompts,
    as_rewards,
    check_actors,
    check_credit,
    check_term,
    digest_of,
    hash_of,
    identity_of,
    own_algorithm,
)
from toolkit.training.ppo.metrics import batch_row, mean_statistics, step_row
from toolkit.training.ppo.outputs import save_adapters, save_best, worth
from toolkit.training.ppo.pretraining import (
    add_gradients,
    as_pretraining_text,
    text_loss,
    total_norm,
)
from toolkit.training.ppo.reference import AtStart, measure, said_of
from toolkit.training.ppo.rollouts import (
    Clock,
    Rollout,
    Sampler,
    collect,
    no_clock,
    samples_for_estimate,
)
from toolkit.training.ppo.signals import Signals
from toolkit.training.ppo.state import PPOState
from toolkit.training.run_log import Row, RunLog

# Settings that may change when a run is resumed, but by which processes wait for each other.
IN_STEP = (
    "save_strategy",
    "save_steps",
    "eval_every",
    "num_sample_generations",
    "per_device_eval_batch_size",
    "stop_at_update",
    "vllm_server_base_url",
)


class PPOTrainer:
    """Tunes the policy on ``train_dataset``'s prompts.

    Args:
        args: the configuration.
        processing_class: the tokenizer.
        model: ``Roles``, all four on one base.
        reward_model: None for the reward adapter in the roles; functions
            ``fn(prompts, completions, **columns) -> scores``; ``Scorer``s; or a list of these (None
            in the list is the reward adapter), whose weighted sum is the score.
        train_dataset: prompts as token ids: lists, ``Prompts``, or a dataset of ``input_ids``, read
            by their ``attention_mask`` if there is one; its other columns go to the reward
            functions. Prompts are repeated in a new random order.
        eval_dataset: held-out prompts, evaluated every ``eval_every`` updates; or several sets by
            name, each of which also has its own metrics.
        optimizers: an optimizer for what is trained, and a schedule that is stepped once an update;
            by default those that ``args`` name.
        callbacks: transformers' TrainerCallbacks.
        reward_weights: weights of the reward functions, in their order.
        algorithm: an own one, with the two hooks of ``algorithms.Algorithm``; by default the one
            that ``args`` name. What it holds must be constant, and is noted with its class.
        ptx_dataset: rows of token ids for the pretraining mix (``args.ptx_coef``), two or more
            each, taken in order.

    Raises:
        InputError: there is no reward, the roles do not fit the algorithm, the number of processes
            is not the expected one, or ``ptx_dataset`` and ``args.ptx_coef`` do not go together.
    """

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: Actors,
        reward_model: object = None,
        train_dataset: object = None,
        eval_dataset: object = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        reward_weights: list[float] | None = None,
        algorithm: Algorithm | None = None,
        ptx_dataset: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.args, self.processing_class = args, processing_class
        self.ranks = Ranks(args.world_size, args.ddp_timeout)
        self.accelerator = Accelerator()
        self.own_algorithm = algorithm is not None
        self.algorithm = algorithm_of(args) if algorithm is None else own_algorithm(algorithm, args)

        # The roles, the data, and the scorers.
        self.model = check_actors(model, self.algorithm, args)
        summed = as_rewards(reward_model, reward_weights, self.model)
        summed.prepare(self.model, processing_class)
        self.rewards = LengthPriced(summed, args.length_penalty)
        self.several_rewards = any(isinstance(part, RewardEnsemble) for part in summed.parts)
        if self.several_rewards and args.online:
            raise InputError("online: only a single reward adapter can change", "online")
        self.train_dataset = as_prompts(train_dataset, processing_class)
        self.eval_dataset, self.eval_parts = as_eval_prompts(eval_dataset, processing_class)
        self.text = as_pretraining_text(ptx_dataset, args)
        self.rule = args.rule(processing_class, show_stop=self.model.scores_stop)
        self.model.keep_only(processing_class)

        # The number of updates, and when something is due.
        group = self.algorithm.group_size
        self.batch_size = args.local_batch_size * self.ranks.world
        if args.kl_controller in ("adaptive", "adaptive_pi"):
            check_range("kl_horizon", args.kl_horizon, low=self.batch_size)
        if (
            args.total_episodes is None
        ):  # recorded now, because a run is resumed with the same number
            epochs = args.num_train_epochs * len(self.train_dataset)
            args.total_episodes = max(1, int(epochs)) * group
        self.num_updates = num_updates(args.total_episodes, self.batch_size)
        if args.value_warmup >= self.num_updates:
            raise InputError(
                f"value_warmup is {args.value_warmup}, but the run has "
                f"{counted(self.num_updates, 'update')}, so the policy would not learn (take "
                "fewer)",
                "value_warmup",
            )
        self.save_every = updates_between(args.save_steps, self.num_updates)
        if args.save_strategy == "epoch":
            self.save_every = math.ceil(len(self.train_dataset) * group / self.batch_size)
        self.eval_every = updates_between(args.eval_every, self.num_updates)

        # What changes while it learns; all of it is in a checkpoint (``PPOState``).
        self.kl = args.kl_state()
        self.guards = Guards(args.on_fault, args.max_skipped, args.max_kl, args.max_score_drop)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.best: float | None = None
        self.recomputes = args.recompute_logprobs
        self.at_start = AtStart()
        # In an online run the reward model may change between stretches, so its digest is recorded
        # with all that it scores.
        self.reward_digest = digest_of(self.model, reward=True) if args.online else None
        self.parameters = [p for _, p in self.model.trainable()]
        self.value_parameters = [
            p for name, p in self.model.trainable() if self.model.of_value(name)
        ]
        self.lr_factor = 1.0  # of the present update, if no schedule gives its rate
        self.warms_up = False  # whether the present update trains the value alone
        self.ranks.same_start([p for _, p in self.model.changing()])
        if self.ranks.sharded:
            if args.unpack_base:
                raise InputError(
                    "unpack_base: a base that is shared by several GPUs cannot be unpacked "
                    "(leave it out)",
                    "unpack_base",
                )
            shard_base(self.model.language_models())
        self.model.unpacks = args.unpack_base
        self.optimizer, self.lr_scheduler = optimizers_of(
            args, optimizers, self.model, self.num_updates, self._rates()
        )

        # The log.
        self.run_log = RunLog(
            args,
            self.num_updates,
            self.ranks.is_main,
            callbacks or [],
            model=self.model,
            processing_class=processing_class,
            optimizer=self.optimizer,
        )
        self.state = self.run_log.state
        self.state.save_steps, self.state.eval_steps = self.save_every, self.eval_every
        self.signals = Signals(self.ranks.is_main)
        self.server = args.vllm_server()
        self.served_gap: float | None = None  # of the server's log-probs, in the current update
        if self.server is not None:
            longest = max(len(prompt) for prompt in self.train_dataset)
            check = partial(self.server.check_can_serve, self.model, self.rule, longest)
            self.ranks.from_main(check)
        self.watch = Watch(in_fp32=self.model.in_fp32)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.args.folder

    def train(self, resume_from_checkpoint: str | bool | None = None) -> list[Row]:
        """Run all updates; return the rows of ``log.jsonl``, one for each update.

        Args:
            resume_from_checkpoint: True or "auto" for the newest good checkpoint, or a folder; by
                default what ``args.resume`` says.

        Raises:
            RunStopped: a guard stopped the run.
            Interrupted: SIGTERM or Ctrl-C came; the update was finished and saved.
            InputError: the checkpoint was made under other settings.
        """
        # With kl_coef: auto the coefficient is not known yet; any other one has the same signs.
        kl_coef = 1.0 if math.isnan(self.kl.value) else self.kl.value
        check_signs(gain=self.model.gain, kl_coef=kl_coef)
        for update in self.updates(resume_from_checkpoint):
            lr = self._learning_rate(update)
            self.warms_up = update <= self.args.value_warmup

            # 1. Collect: sample, then run the four roles.
            rollout = self.collect(update)

            # 2. Penalize: subtract the KL from the rewards, unless it acts in the loss. The score
            # is on the last token.
            kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, self.args.kl_estimator)
            penalty = 0.0 if kl_loss_of(self.args) else self.kl.value
            rewards = penalized_rewards(rollout.scores, kl, penalty, rollout.mask)

            # 3. Give credit: the algorithm computes advantages and returns from the rewards.
            credit = check_credit(self.algorithm.credit(rewards, rollout, self.ranks.total))

            # 4. Optimize: several epochs over the batch, unless a guard finds it faulty.
            row = self._row(update, lr, rollout, kl, credit)
            with self.run_log.clock("optimize"):
                row |= self.guarded(self.optimize, rollout, credit, lr, row)

            # 5. Adapt the KL coefficient to the KL of this batch, if the policy learns; a moving
            # reference follows.
            if math.isfinite(row["objective/kl"]) and not self.warms_up:
                self.kl.update(row["objective/kl"], self.batch_size)
            if self.args.reference_ema is not None:
                self.model.move_reference(self.args.reference_ema)

            # 6. Log, with the coefficient that made these rewards; evaluate; save.
            self.finish(update, row, rollout)
        return self.close()

    def updates(self, resume: str | bool | None) -> Iterator[int]:
        """Yield the numbers of the remaining updates, and handle signals.

        The run's folder is locked meanwhile.
        """
        with letting_go(), self._served():
            lock_folder(self.folder, "output_dir")
            done = self._start(resume)
            self.run_log.start(done)
            last = min(self.num_updates, self.args.stop_at_update or self.num_updates)
            with self.signals.heard(), only_deterministic(self.args.full_determinism):
                for update in range(done + 1, last + 1):
                    yield update
                    if self.run_log.control.should_training_stop:  # a callback asked to stop
                        return

    @contextmanager
    def _served(self) -> Iterator[None]:
        """Leave nothing at a server that samples, however the run ends."""
        try:
            yield
        finally:
            if self.server is not None and self.ranks.is_main:
                self.server.clear()

    def _start(self, resume: str | bool | None) -> int:
        """Start, or continue from a checkpoint; return the number of updates already done."""
        wish = "auto" if resume is True else resume or self.args.resume
        identity = self.identity()
        held_out = [list(prompt) for prompt in self.eval_dataset or ()]
        in_step = {name: getattr(self.args, name) for name in IN_STEP}
        self.ranks.check_same(identity | in_step | {"eval_prompts": hash_of(held_out)})
        state = self.ranks.from_main(lambda: self._found(wish, identity))

        # For callbacks and functions that draw; sampling has its own generator.
        set_seed(self.args.seed + 100_003 * self.ranks.rank)
        set_guests_state(None)
        if state is None:
            self._measure_reference()
            self._estimate_coefficient()
            return 0

        state.restore(self, self.ranks, self.folder / f"checkpoint-{state.update:06d}")
        self.rewards.line = self.at_start.line
        if self.reward_digest not in (None, state.reward):
            self._measure_reference()
            self.run_log.say(
                f"the reward model has changed from {state.reward} to {self.reward_digest}"
            )
            self._estimate_coefficient()
        return state.update

    def _measure_reference(self) -> None:
        """Measure on the reference's samples what the run needs to know of its rewards."""
        with_line = self.args.regress_length
        if not with_line and not self.several_rewards:
            return
        with rounded_once():
            found = measure(
                self.model,
                self.train_dataset,
                self.rule,
                self.processing_class,
                self.rewards.scorer,
                self.args.reference_samples,
                self.args.seed + 2,
                self.args.local_rollout_forward_batch_size,
                with_line,
            )
        self.at_start = self.ranks.gather(found)[0]  # the main process's, in all of them
        self.rewards.line = self.at_start.line

        for line in said_of(self.at_start, self.args.reference_samples):
            self.run_log.say(line)

    def _estimate_coefficient(self) -> None:
        """Let the KL controller start at an estimate, if kl_coef is auto.

        Once the policy has learned, the estimate rests on its samples, too: those of the reference
        alone say little of what another reward pays where the policy is.
        """
        if self.args.kl_coef != "auto":
            return
        unit = kl_unit_of(self.args)
        with_policy = self.kl.estimate is not None and unit == "score"
        prompts = prompts_for(self.train_dataset)
        with rounded_once():
            scores, log_ratios = samples_for_estimate(
                self.model,
                prompts,
                self.args.kl_coef_samples // len(prompts),
                self.args.seed,
                self.rule,
                self.processing_class,
                self.rewards,
                self.args.local_rollout_forward_batch_size,
                in_step=self.ranks.sharded,
                with_policy=with_policy,
            )
        # All processes have computed the same, apart from rounding: the main one's counts.
        found = estimate_of(scores, self.args.kl_target, unit, log_ratios)
        kl_coef, line = self.ranks.gather(found)[0]
        self.run_log.say(line)
        highest = self.args.kl_coef_max or math.inf
        self.kl.start_at(min(max(kl_coef, self.args.kl_coef_min), highest), anew=with_policy)

    def _found(self, wish: str | None, identity: Row) -> PPOState | None:
        """Load the checkpoint to go on from, in the main process; None to start anew."""
        clear_leftovers(self.folder)
        if not wish:
            if checkpoints(self.folder):
                raise InputError(
                    f"output_dir: {self.folder} has checkpoints of an earlier run (pass --resume "
                    "auto, --overwrite, or another folder)",
                    "output_dir",
                )
            return None

        path, passed_over = choose_checkpoint(wish, self.folder)
        for line in passed_over:
            self.run_log.say(f"skipped {line}")
        if path is None and (self.folder / "adapters").exists():
            raise InputError(
                f"resume: {self.folder} has finished adapters, but no good checkpoint (pass "
                "--overwrite, or another output_dir)",
                "resume",
            )
        if path is None:
            self.run_log.say(
                f"{self.folder} has no checkpoint to resume; starting at the beginning"
            )
            return None

        state = load_checkpoint(path)
        check_same(state.settings, identity, path)
        self.run_log.say(f"resumed from {path} after update {state.update} of {self.num_updates}")
        if self.server is not None:
            self.run_log.say(
                "note: completions are sampled by a vLLM server, which may draw others than "
                "before: the run goes on, but not bit for bit as it would have without the stop"
            )
        return state

    def identity(self) -> Row:
        """The settings under which a checkpoint must have been made to be resumed."""
        whole = self.args.identity() | self.model.identity()
        # Only the whole batch counts, not how it is divided into processes and passes.
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            whole.pop(name)
        if self.args.online:  # the reward model may change; other frozen weights may not
            whole |= {"online": True, "frozen": digest_of(self.model, reward=False)}
        if self.own_algorithm:
            whole |= {"own_algorithm": identity_of(self.algorithm)}
        if self.text is not None:
            whole["ptx_rows"] = self.text.digest
        return whole | {
            "batch_size": self.batch_size,
            "prompts": hash_of([list(prompt) for prompt in self.train_dataset]),
            "rewards": self.rewards.identity,
        }

    def collect(self, update: int) -> Rollout:
        """Collect this process's share of an update's batch of experience."""
        mine = self.ranks.share(self.batch_size)
        uniforms = draw_uniforms(self.batch_size, self.rule.response_length, self.generator)
        rollout = self._episodes(
            self.prompts_of(update),
            uniforms[mine],
            self.recomputes,
            self.run_log.clock,
            self._sampler(update),
        )
        if self.server is not None:
            self.served_gap = self.server.check(rollout, self.ranks.total)
        return rollout

    def _sampler(self, update: int) -> Sampler | None:
        """Hand the policy to the server that samples, if there is one."""
        server = self.server
        if server is None:
            return None
        with self.run_log.clock("push"):
            name = self.ranks.from_main(lambda: server.push(self.model, update))
        vocabulary = head_weights(self.model.output_head(POLICY))[0].shape[0]
        return server.sampler(name, self.rule, self.model.banned, vocabulary)

    def _episodes(
        self,
        prompts: Prompts,
        uniforms: Tensor,
        recompute: bool = False,
        clock: Clock = no_clock,
        sampler: Sampler | None = None,
    ) -> Rollout:
        with rounded_once():
            return collect(
                self.model,
                prompts,
                uniforms,
                self.rule,
                self.processing_class,
                self.rewards,
                self.args.local_rollout_forward_batch_size,
                recompute,
                clock,
                in_step=self.ranks.sharded,
                sampler=sampler,
            )

    def prompts_of(self, update: int) -> Prompts:
        """Return this process's prompts of an update: each comes once before any comes twice.

        For an algorithm with groups, each comes ``group_size`` times in a row, in one process.
        """
        group, count = self.algorithm.group_size, len(self.train_dataset)
        first = ((update - 1) * self.batch_size + self.ranks.share(self.batch_size).start) // group
        places = range(first, first + self.args.local_batch_size // group)
        orders = {
            turn: random.Random(f"{self.args.seed} {turn}").sample(range(count), count)
            for turn in range(places[0] // count, places[-1] // count + 1)
        }
        chosen = [orders[place // count][place % count] for place in places]
        return self.train_dataset.pick([index for index in chosen for _ in range(group)])

    def optimize(self, rollout: Rollout, credit: Credit, lr: float) -> dict[str, float]:
        """Make ``num_ppo_epochs`` passes; return statistics averaged over all optimizer steps."""
        self._set_learning_rate(lr)
        mine = self.ranks.share(self.batch_size)
        steps: list[dict[str, float]] = []
        count = self.args.num_ppo_epochs * self.args.num_mini_batches
        texts = [] if self.text is None else self.text.take(self.batch_size, count)[::-1]
        with self.model.optimizing():
            for _ in range(self.args.num_ppo_epochs):
                # All processes draw the same order, and each uses its own rows of a minibatch.
                order = torch.randperm(self.batch_size, generator=self.generator)
                for minibatch in order.chunk(self.args.num_mini_batches):
                    here = minibatch[(minibatch >= mine.start) & (minibatch < mine.stop)]
                    text = texts.pop() if texts else []
                    steps.append(self._step(rollout, credit, here - mine.start, text))
        return mean_statistics(steps)

    def _step(
        self, rollout: Rollout, credit: Credit, minibatch: Tensor, text: Sequence[list[int]] = ()
    ) -> dict[str, float]:
        """Make one optimizer step, with gradients summed over micro-batches.

        Args:
            rollout, credit: this process's share of the batch.
            minibatch: indices of its episodes to learn from.
            text: rows of the pretraining mix, the same in all processes.
        """
        counts, lengths = rollout.learned_counts, rollout.prompt_lengths
        learned = counts[minibatch]
        sizes = torch.stack([learned.sum(), (learned > 0).sum()]).float()
        tokens, completions = self.ranks.total_on_host(sizes)
        if not tokens:
            return {}
        self.optimizer.zero_grad()

        # Micro-batches of similar length; those without anything to learn are left out. What is
        # decided by lengths is decided on the host, which then need not wait for the device.
        pieces = length_sorted_batches(lengths[minibatch], self.args.per_device_train_batch_size)
        indices = [minibatch[piece] for piece in pieces]
        indices = [index for index in indices if counts[index].any()]
        for _ in range(self.ranks.idle_passes(len(indices))):
            self._idle_pass(rollout)

        sums: dict[str, Tensor] = {}
        largest = torch.zeros((), device=self.model.device)
        with rounded_once():  # the weights change only after all micro-batches
            for index in indices:
                # Each token of the minibatch has the same weight, in every place and process; or
                # each completion, where the algorithm weighs tokens.
                weight = counts[index].sum() / tokens
                per_completion = tokens / completions
                found = self._gradients(rollout, credit, index, weight, per_completion)
                for name, part in found.items():
                    if name == "max_log_ratio":
                        largest = torch.maximum(largest, part)
                    else:
                        sums[name] = sums[name] + weight * part if name in sums else weight * part

        # In a warm-up of the value nothing else gets a gradient, not even one of zeros.
        learning = self.value_parameters if self.warms_up else self.parameters
        self.ranks.sum_gradients(learning)
        mixed = self._mix_in(text) if text and not self.warms_up else {}
        gradients = [p.grad for p in learning if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)

        # The host waits for the device here, once a step.
        seen = [norm.to(largest.device), self.ranks.largest(largest), *mixed.values()]
        seen += self._totals(sums)
        numbers = torch.stack([number.float() for number in seen]).tolist()
        length, farthest = numbers[:2]
        stats = dict(zip([*mixed, *self.algorithm.statistics], numbers[2:], strict=True))
        loss = stats["policy"] + stats.get("value", 0.0) + stats.get("ptx/loss", 0.0)
        self._check_finite(loss, "the loss is {}")
        self._check_finite(length, "a gradient is not finite")

        if self.args.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(learning, self.args.max_grad_norm, norm)
        self.optimizer.step()
        return stats | {"max_log_ratio": farthest}

    def _gradients(
        self,
        rollout: Rollout,
        credit: Credit,
        index: Tensor,
        weight: Tensor,
        per_completion: Tensor,
    ) -> dict[str, Tensor]:
        """Add a micro-batch's gradients to the present ones; return its statistics.

        Args:
            rollout, credit: this process's share of the batch.
            index: int (n,), on the CPU: the micro-batch.
            weight: its share of the minibatch's tokens.
            per_completion: the minibatch's tokens per completion.
        """
        passage = rollout.passage(index)
        index = index.to(self.model.device, non_blocking=True)
        completion_ids = rollout.completion_ids[index]
        with torch.set_grad_enabled(not self.warms_up):
            outputs = self.model.policy_outputs(*passage, completion_ids, self.rule.temperature)

        def values() -> Tensor:
            return self.model.values(*passage, completion_ids.shape[1])

        before = Before(
            logprobs=rollout.logprobs[index],
            values=None if rollout.values is None else rollout.values[index],
            advantages=credit.advantages[index],
            returns=credit.returns[index],
            mask=rollout.learned[index],
            ref_logprobs=rollout.ref_logprobs[index],
            kl_coef=self.kl.value,
            weights=None if credit.weights is None else credit.weights[index] * per_completion,
        )
        found: dict[str, Tensor] = {}
        for term in self.algorithm.loss(outputs, values, before):
            check_term(term, self.algorithm)
            # One role's activations at a time: they are freed before the next term is made.
            if term.loss.requires_grad:
                (weight * term.loss).backward()
            found |= {name: part.detach() for name, part in term.statistics.items()}
        return found

    def _mix_in(self, rows: Sequence[list[int]]) -> dict[str, Tensor]:
        """Add ``ptx_coef`` times the gradient of the language model's loss to the present ones.

        The loss is a mean over the tokens of all rows; each process runs its share of the rows.

        Returns:
            the loss in nats a token, both gradients' norms on the weights that text reaches (the
            policy's), and their ratio.
        """
        before = [p.grad for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        tokens = sum(len(row) - 1 for row in rows)
        mine = list(rows[self.ranks.rank :: self.ranks.world])
        size = self.args.per_device_train_batch_size
        pieces = [
            [mine[i] for i in piece] for piece in length_sorted_batches(list(map(len, mine)), size)
        ]

        loss = torch.zeros((), device=self.model.device)
        with rounded_once():
            for piece in pieces:
                part = self._text_loss(piece, tokens)
                part.backward()
                loss = loss + part.detach()
            # Each process must reach the same weights, and make as many passes under FSDP.
            idle = max(self.ranks.idle_passes(len(pieces)), 0 if pieces else 1)
            for _ in range(idle):
                (0.0 * self._text_loss(list(rows[:1]), tokens)).backward()

        reached = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        self.ranks.sum_gradients([self.parameters[i] for i in reached])
        texts = [self.parameters[i].grad for i in reached]
        device, coefficient = loss.device, self.args.ptx_coef
        own = total_norm([before[i] for i in reached], device)
        added = coefficient * total_norm(texts, device)

        for parameter, gradient in zip(self.parameters, before, strict=True):
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad = add_gradients(gradient, parameter.grad, coefficient)
        return {
            "ptx/loss": self.ranks.total(loss),
            "ptx/ppo_gradient_norm": own,
            "ptx/gradient_norm": added,
            "ptx/gradient_ratio": torch.where(own > 0, added / own, math.nan),
        }

    def _text_loss(self, rows: list[list[int]], tokens: int) -> Tensor:
        """Return these rows' part of the mean loss over ``tokens``, at temperature 1."""
        ids, mask = (tensor.to(self.model.device) for tensor in pad(rows, self.rule.pad_id))
        logprobs = self.model.logprobs(POLICY, ids, mask, ids[:, 1:], 1.0)
        return text_loss(logprobs, mask[:, 1:], tokens)

    def _totals(self, sums: dict[str, Tensor]) -> Tensor:
        """Average statistics over all processes in one message; some may have no rows."""
        zero = torch.zeros((), device=self.model.device)
        together = [sums.get(name, zero) for name in self.algorithm.statistics]
        return self.ranks.total(torch.stack(together))

    def _check_finite(self, number: float, problem: str) -> None:
        if not math.isfinite(number):
            self.optimizer.zero_grad()
            raise FloatingPointError(problem.format(number))

    def _idle_pass(self, rollout: Rollout) -> None:
        """Make a micro-batch's passes with zero gradients, since other processes have one more."""
        index = torch.zeros(1, dtype=torch.long)
        passage, completion_ids = rollout.passage(index), rollout.completion_ids[:1]
        with torch.set_grad_enabled(not self.warms_up):
            outputs = self.model.policy_outputs(*passage, completion_ids, self.rule.temperature)
        if outputs.values is not None:
            (0.0 * (outputs.values.sum() + outputs.logprobs.sum())).backward()
            return
        if not self.warms_up:
            (0.0 * outputs.logprobs.sum()).backward()
        if self.algorithm.uses_value:
            (0.0 * self.model.values(*passage, completion_ids.shape[1]).sum()).backward()

    def guarded(
        self,
        optimize: Callable[[Rollout, Credit, float], dict[str, float]],
        rollout: Rollout,
        credit: Credit,
        lr: float,
        row: Row,
    ) -> Row:
        """Optimize unless a guard objects; return its part of the log's row.

        Raises:
            RunStopped: the scores have collapsed, or the guards stop the run at a fault.
        """
        fault = self._fault(rollout, credit, row)
        collapse = self.guards.collapsed(row["objective/scores"], row["objective/scores_std"])
        if collapse is not None:
            raise RunStopped(f"{collapse}; {self.last_good()}")

        stats: dict[str, float] = {}
        if fault is None:
            try:
                stats = optimize(rollout, credit, lr)
                self.guards.went_well()
            except FloatingPointError as nonfinite:
                fault = str(nonfinite)

        if fault is not None:
            halt = self.guards.skip(fault)
            if halt is not None:
                raise RunStopped(f"{halt}; {self.last_good()}")
            self.run_log.say(f"update {row['update']} skipped: {fault}")
        return step_row(stats, row["val/returns_var"]) | {"guard/skipped": self.guards.skipped}

    def _fault(self, rollout: Rollout, credit: Credit, row: Row) -> str | None:
        """Return what is wrong with a batch in any process, or None."""
        scored = int(self.ranks.total(rollout.scored.sum().float()))
        tensors = {"log-probs": rollout.logprobs, "reference log-probs": rollout.ref_logprobs}
        if rollout.values is not None:
            tensors["values"] = rollout.values
        if scored:  # otherwise the advantages are a mean over nothing
            tensors["advantages"] = credit.advantages
        mine = self.guards.fault(row["objective/kl"], scored, tensors)
        return next((fault for fault in self.ranks.gather(mine) if fault), None)

    def _learning_rate(self, update: int) -> float:
        if self.lr_scheduler is not None:
            return float(self.lr_scheduler.get_last_lr()[0])
        falls = self.args.lr_scheduler_type == "linear"
        self.lr_factor = linear_decay(update - 1, self.num_updates) if falls else 1.0
        group = self.optimizer.param_groups[0]
        return group.get("initial_lr", group["lr"]) * self.lr_factor

    def _rates(self) -> Callable[[str], float | None] | None:
        """Return what gives the learning rate of a parameter by its name; None if all have one."""
        rate = self.args.value_learning_rate
        if rate is None:
            return None
        return lambda name: rate if self.model.of_value(name) else None

    def _set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of each of the optimizer's groups, unless a schedule does."""
        if self.lr_scheduler is not None:
            return
        groups = self.optimizer.param_groups
        for group in groups:
            group.setdefault("initial_lr", group["lr"])
        first = groups[0]["initial_lr"]
        factor = lr / first if first else self.lr_factor
        for group in groups:
            group["lr"] = group["initial_lr"] * factor

    def _row(self, update: int, lr: float, rollout: Rollout, kl: Tensor, credit: Credit) -> Row:
        row: Row = {"update": update, "episode": update * self.batch_size, "lr": lr}
        row |= batch_row(rollout, kl, credit.returns, self.kl, self.rule.ends, self.ranks)
        if self.several_rewards:
            grown = self.at_start.grown(row["reward/disagreement"])
            row["reward/disagreement_grown"] = grown
            row["reward/alarm"] = grown is not None and grown > self.args.disagreement_alarm
        return row

    def finish(self, update: int, row: Row, rollout: Rollout) -> None:
        """Evaluate, write the row, show samples, save; then stop if a signal came."""
        args, last = self.args, update == self.num_updates
        if self.reward_digest is not None:
            row["reward"] = self.reward_digest
        if self.served_gap is not None:
            row["val/served_gap"] = self.served_gap

        # The schedule moves once an update, even if the batch was skipped.
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()

        # An evaluation is a part of the row, so it precedes writing the row.
        if self.eval_dataset is not None and (update % self.eval_every == 0 or last):
            with self.run_log.clock("evaluate"):
                row |= self.evaluate()
            self._keep_best(row)
        self.run_log.write({k: v if v == v else None for k, v in row.items()})

        if update % args.sample_every == 0 or last:
            self.show(update, rollout)
        every = max(1, self.num_updates // max(1, args.num_sample_generations))
        tables = args.num_sample_generations and self.eval_dataset is not None
        if tables and (update - 1) % every == 0:
            self.generate_completions(sampling=True)

        # An update that fails these checks is not saved.
        lines = self.watch.warnings(
            update, row, rollout, self.rule.ends, self.ranks, self.rule.should_end
        )
        for line in [*lines, *self.watch.alarms(row)]:
            self.run_log.say(line)
        if self.watch.must_recompute(update, row["val/first_max_log_ratio"], rollout, self.ranks):
            self._recompute_from_now_on(update)

        self._save_if_due(update)

    def _recompute_from_now_on(self, update: int) -> None:
        if not self.recomputes:
            self.run_log.say(
                f"update {update}: captured log-probs differ from recomputed ones by "
                f"{self.watch.gap:.2g}; from now on they are recomputed (--recompute_logprobs)"
            )
        self.recomputes = True

    def _save_if_due(self, update: int) -> None:
        """Save if it is due, a callback asked for it, or a signal came in any process.

        Raises:
            Interrupted: a signal came.
        """
        device, control = self.model.device, self.run_log.control
        signum = int(self.ranks.largest(torch.tensor(float(self.signals.came), device=device)))
        asked = torch.tensor(float(control.should_training_stop or control.should_save))
        wanted = bool(self.ranks.largest(asked.to(device)))
        # In every process; transformers' on_save, which does it, too, runs only in the main one.
        control.should_save = False

        ends = update in (self.num_updates, self.args.stop_at_update)
        due = update % self.save_every == 0 or ends or wanted or bool(signum)
        path = None
        if self.args.save_strategy != "no" and due:
            path = self.checkpoint(update)
        if signum:
            raise Interrupted(signum, path)

    def checkpoint(self, update: int) -> Path:
        """Write a checkpoint, in the main process; return its folder."""
        state = PPOState.capture(
            self, update, update * self.batch_size, self.identity(), self.ranks
        )
        if self.ranks.is_main:
            save_checkpoint(self.folder, state, self.args.save_total_limit)
            log = self.run_log
            log.handler.on_save(self.args, log.state, log.control)
        self.ranks.wait()
        return self.folder / f"checkpoint-{update:06d}"

    def _keep_best(self, row: Row) -> None:
        found = worth(row)
        if found is None or (self.best is not None and found <= self.best):
            return
        self.best = found
        if self.ranks.is_main:
            save_best(self.model, self.processing_class, self.folder / "best", row, self._facts())

    def _facts(self) -> Row:
        """Facts to record with saved adapters."""
        return {"kl_coef": self.kl.value, **self.train_dataset.rendering()}

    def close(self) -> list[Row]:
        """End the run; return all rows of the log."""
        self.run_log.close()
        return read_rows(self.folder / "log.jsonl")

    def last_good(self) -> str:
        """Say where a stopped run can be resumed."""
        path, _ = newest_good(self.folder)
        return f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"

    def evaluate(self) -> dict[str, float]:
        """Measure scores and KL on ``eval_dataset`` (``evaluation.evaluate``).

        Raises:
            InputError: there is no ``eval_dataset``.
        """
        if self.eval_dataset is None:
            raise InputError("evaluate needs an eval_dataset")
        return evaluate(
            self._episodes,
            self.eval_dataset,
            self.eval_parts,
            self.rule.response_length,
            self.args.seed,
            self.ranks,
            self.kl.value,
        )

    def generate_completions(self, sampling: bool = False) -> list[Row]:
        """Make near-greedy completions of ``eval_dataset``, print five and write all to a file.

        Args:
            sampling: use only the first ``per_device_eval_batch_size`` prompts (TRL's name for it).

        Returns:
            Rows of ``query``, ``model response`` and ``score``, also in ``completions.jsonl``.
        """
        if self.eval_dataset is None:
            return []
        count = len(self.eval_dataset)
        if sampling:
            count = min(count, self.args.per_device_eval_batch_size)
        rows = near_greedy_completions(
            self.model,
            self.eval_dataset.pick(range(count)),
            self.rule,
            self.processing_class,
            self.rewards,
            self.args.seed,
        )
        if self.ranks.is_main:
            show_completions(rows, self.folder / "completions.jsonl")
        return rows

    def save_model(self, output_dir: str | Path | None = None, **facts: object) -> Path:
        """Save the adapters under ``output_dir/adapters``; return the policy's folder."""
        target = Path(output_dir or self.folder) / "adapters"
        if self.ranks.is_main:
            with atomic_directory(target) as aside:
                save_adapters(self.model, self.processing_class, aside, self._facts() | facts)
        self.ranks.wait()
        return target / "policy"

    def push_to_hub(self, **kwargs: object) -> None:
        """Refuse, under TRL's name; recipes/publish.py shows, checks and sends an adapter."""
        raise InputError(PUBLISH)

    def show(self, update: int, rollout: Rollout, count: int = 3) -> None:
        """Show the first completions, as the scorer saw them: printed, in a file, to trackers."""
        sampled = Sampled(rollout.completion_ids, rollout.mask, rollout.logprobs)
        visible, _ = self.rule.visible(sampled)
        samples = []
        for i in range(min(count, len(rollout.scores))):
            prompt_ids = rollout.prompt_ids[i][rollout.prompt_mask[i]].tolist()
            completion_ids = rollout.completion_ids[i][visible[i]].tolist()
            prompt, completion = decode_pair(self.processing_class, prompt_ids, completion_ids)
            score = rollout.scores[i].item()
            known = score if math.isfinite(score) else None
            samples.append(ShownSample(update, known, prompt, completion))
        self.run_log.show(samples)
