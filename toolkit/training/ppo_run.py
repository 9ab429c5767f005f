"""What surrounds PPO's algorithm: its models and data made ready, checkpoints, evaluation, signals.

``ppo_trainer.py`` is the algorithm; nothing here decides what is learned.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import DataCollatorWithPadding, set_seed

from toolkit.data.files import atomic_directory, write_json, write_jsonl
from toolkit.data.leftovers import clear_leftovers, part_folder
from toolkit.data.locks import letting_go, lock_folder
from toolkit.data.prompts import TAKEN, Prompts
from toolkit.data.text import decode_pair, printable
from toolkit.endings import SIGNALS, Stopped, call_out
from toolkit.errors import InputError
from toolkit.maths.masking import masked_mean
from toolkit.maths.sequences import is_any
from toolkit.models.actors import POLICY, REWARD, Actors
from toolkit.models.roles import Roles
from toolkit.models.separate import SeparateModels
from toolkit.random_state import (
    python_random_state,
    restore_python_random_state,
    restore_torch_random_state,
    torch_random_state,
)
from toolkit.scoring.functions import as_scorer
from toolkit.scoring.guests import guests_state, set_guests_state
from toolkit.scoring.reward_models import RewardAdapter
from toolkit.scoring.scorer import TokenCompletions, WeightedSum
from toolkit.training.checkpoints import (
    check_same,
    checkpoints,
    choose_checkpoint,
    load_checkpoint,
    newest_good,
    read_state,
    save_checkpoint,
)
from toolkit.training.guards import RunStopped
from toolkit.training.journal import Row, read_rows
from toolkit.training.ppo_config import PPOConfig
from toolkit.training.rollouts import Rollout

if TYPE_CHECKING:
    from toolkit.training.ppo_trainer import PPOTrainer

# Captured log-probs may differ from recomputed ones by rounding: 2e-6 in fp32, 6e-3 under bf16
# autocast, 2e-2 in pure bf16 (measured). Beyond this they are recomputed where the arithmetic
# rounds (a router of experts may flip there); in fp32, or beyond the second, sampling and training
# do not run the same model, and nothing that is learned would be right.
CAPTURE_TOLERANCE = 0.1
CAPTURE_LIMIT = 2.0


class Interrupted(Exception):
    """A signal came; the update was finished and saved. ``code`` is 128 + the signal's number."""

    def __init__(self, signum: int, checkpoint: Path | None) -> None:
        where = "nothing was to be saved" if checkpoint is None else f"saved {checkpoint}"
        super().__init__(f"{signal.Signals(signum).name}: {where} (--resume auto goes on)")
        self.code = 128 + signum


def as_actors(
    model: Any, ref_model: Any, reward_model: Any, value_model: Any, peft_config: Any,
    args: PPOConfig,
) -> Actors:  # fmt: skip
    """``Roles`` as they are; separate models as TRL 1.12 took them, in one object.

    Raises:
        InputError: a role is missing, or roles and separate models are mixed.
    """
    autocast = torch.bfloat16 if args.bf16 else None
    if isinstance(model, Actors):
        if any(m is not None for m in (ref_model, value_model, peft_config)):
            raise InputError(
                "ref_model, value_model and peft_config belong to a plain model; Roles have their "
                "own"
            )
        actors = model
        if actors.autocast_dtype != autocast:
            raise InputError(f"bf16 is {args.bf16}, but the roles were built otherwise", "bf16")
    else:
        listed = reward_model if isinstance(reward_model, list | tuple) else [reward_model]
        classifiers = [part for part in listed if isinstance(part, nn.Module)]
        if len(classifiers) > 1:
            raise InputError("reward_model: one sequence classifier, and functions beside it")
        classifier = classifiers[0] if classifiers else None
        actors = SeparateModels(
            model, ref_model, classifier, value_model, peft_config, autocast,
            getattr(args, "model_adapter_name", None), getattr(args, "ref_adapter_name", None),
        )  # fmt: skip
    if not actors.has_value:
        raise ValueError("no value among the roles: build them with value='adapter' or 'trunk'")
    if not actors.trainable():
        raise InputError("nothing to train: every parameter is frozen")
    if args.gradient_checkpointing:
        options: Any = args.activation_checkpointing_kwargs  # a dictionary by now, not JSON
        actors.use_checkpointing(options)
    return actors


def as_rewards(reward_model: Any, weights: list[float] | None, actors: Actors) -> WeightedSum:
    """The scorers: one, a function, a classifier, None for the roles' own, or a list of these.

    A classifier in a list stands for the reward model among the actors, as None does.

    Raises:
        InputError: there is none, or weights do not go with them.
    """
    listed = reward_model if isinstance(reward_model, list | tuple) else [reward_model]
    unfit = next((part for part in listed if part is not None and not callable(part)), None)
    if unfit is not None:
        raise InputError(f"reward_model: {unfit!r:.60} is neither a model nor a function")
    parts = [
        RewardAdapter() if part is None or isinstance(part, nn.Module) else as_scorer(part)
        for part in listed
    ]
    uses_adapter = any(isinstance(part, RewardAdapter) for part in parts)
    if not parts or (uses_adapter and not actors.has_reward):
        raise InputError("PPO needs a reward: a reward adapter, or a reward function")
    weights = [1.0] * len(parts) if weights is None else list(weights)
    if len(weights) != len(parts):
        raise InputError(
            f"{len(weights)} reward_weights for {len(parts)} rewards", "reward_weights"
        )
    return WeightedSum(parts, weights)


def as_prompts(
    dataset: Any, data_collator: Any = None, tokenizer: Any = None, name: str = "train_dataset"
) -> Prompts:
    """Prompts of lists of ids, or of a dataset with ``input_ids``; other columns are kept.

    Rows that come padded are read by their ``attention_mask``. Rows without one are read as TRL
    1.12 read them, which took every pad token for padding: those at the ends are left out.

    Args:
        dataset: lists of ids, ``Prompts``, or a dataset whose rows have ``input_ids``.
        data_collator: None, or one that pads.
        tokenizer: for its pad token.
        name: what to call the dataset in messages.

    Raises:
        InputError: no prompts, an empty one, or a collator that does more than pad.
    """
    if data_collator is not None and type(data_collator) is not DataCollatorWithPadding:
        raise InputError(
            f"data_collator: {type(data_collator).__name__} is not used: prompts are padded here "
            "(pass them as input_ids, ready)"
        )
    if isinstance(dataset, Prompts):
        prompts = dataset
    elif dataset is None or (hasattr(dataset, "__len__") and not len(dataset)):
        raise InputError(f"{name}: no prompts")
    elif isinstance(dataset, Mapping) or not hasattr(dataset, "__len__"):
        raise InputError(
            f"{name}: a {type(dataset).__name__}, but prompts are counted and shuffled: pass one "
            "split, a Dataset with input_ids"
        )
    elif isinstance(dataset[0], Mapping):
        rows = list(dataset)
        columns = [n for n in rows[0] if n not in ("input_ids", "attention_mask", *TAKEN)]
        ids = [_unpadded(row, tokenizer, f"{name}: row {i}") for i, row in enumerate(rows)]
        prompts = Prompts(ids, {column: [row[column] for row in rows] for column in columns})
    else:
        prompts = Prompts([[int(i) for i in row] for row in dataset])
    if not len(prompts) or not all(prompts):
        raise InputError(f"{name}: no prompts, or one without tokens")
    return prompts


def _unpadded(row: Any, tokenizer: Any, place: str) -> list[int]:
    """The real tokens of a row's ``input_ids``."""
    if row.get("input_ids") is None:
        raise InputError(f"{place}: no input_ids (tokenize the prompts first)")
    ids = [int(i) for i in row["input_ids"]]
    if row.get("attention_mask") is not None:
        mask = [int(i) for i in row["attention_mask"]]
        if len(mask) != len(ids):
            raise InputError(f"{place}: {len(ids)} input_ids, but {len(mask)} in attention_mask")
        return [i for i, real in zip(ids, mask, strict=True) if real]
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None or pad == tokenizer.unk_token_id:
        return ids
    start, stop = 0, len(ids)
    while start < stop and ids[start] == pad:
        start += 1
    while stop > start and ids[stop - 1] == pad and pad != tokenizer.eos_token_id:
        stop -= 1
    return ids[start:stop]


def as_eval_prompts(dataset: Any, tokenizer: Any) -> tuple[Prompts | None, dict[str, Prompts]]:
    """Held-out prompts, all of them; and by name, where several datasets came in a dictionary."""
    if dataset is None or (isinstance(dataset, Mapping) and not dataset):
        return None, {}
    if not isinstance(dataset, Mapping):
        return as_prompts(dataset, None, tokenizer, "eval_dataset"), {}
    parts = {
        str(name): as_prompts(part, None, tokenizer, f"eval_dataset {name}")
        for name, part in dataset.items()
    }
    names = sorted({column for part in parts.values() for column in part.columns})
    columns = {
        column: [
            value
            for part in parts.values()
            for value in part.columns.get(column, [None] * len(part))
        ]
        for column in names
    }
    whole = Prompts([ids for part in parts.values() for ids in part], columns)
    start = 0
    for part in parts.values():
        whole.given |= {start + i: given for i, given in part.given.items()}
        whole.chat = part.chat if part.messages else whole.chat
        start += len(part)
    return whole, parts


class Run:
    """A run of a trainer: where it starts, what is kept after each update, how it ends."""

    def __init__(self, trainer: "PPOTrainer") -> None:
        self.trainer = trainer
        self.best: float | None = None
        self.recomputes = trainer.args.recompute_logprobs
        self._signal = 0
        self._warned: set[str] = set()
        # Of an online run: which reward model it has now, noted with all that it scores.
        self.reward = digest_of(trainer.model, reward=True) if trainer.args.online else None

    @property
    def folder(self) -> Path:
        return self.trainer.args.folder

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made under for the run to go on from it."""
        t = self.trainer
        digest = hash_of([list(prompt) for prompt in t.train_dataset])
        whole = t.args.identity() | t.model.identity()
        # The batch as a whole counts, not how it is cut up into processes and passes.
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
            whole.pop(name)
        rewards = t.rewards.identity
        if t.args.online:  # the reward model may change; what else is frozen may not
            whole |= {"online": True, "frozen": digest_of(t.model, reward=False)}
        return whole | {"batch_size": t.batch_size, "prompts": digest, "rewards": rewards}

    def updates(self, resume: str | bool | None) -> Iterator[int]:
        """The updates still to be made, by number, from the checkpoint on; signals are heard.

        The run's folder is locked meanwhile.
        """
        with letting_go():
            lock_folder(self.folder, "output_dir")
            yield from self._updates(resume)

    def _updates(self, resume: str | bool | None) -> Iterator[int]:
        t = self.trainer
        wish = "auto" if resume is True else resume or t.args.resume
        clear_leftovers(self.folder)
        if not wish and checkpoints(self.folder):
            raise InputError(
                f"output_dir: {self.folder} has checkpoints of an earlier run (pass --resume auto, "
                "--overwrite, or another folder)", "output_dir",
            )  # fmt: skip
        set_seed(t.args.seed + 100_003 * t.ranks.rank)  # for callbacks and functions that draw
        set_guests_state(None)
        done = self._resume(str(wish)) if wish else 0
        t.journal.start(done)
        self._signal = 0
        with self._listening():
            for update in range(done + 1, min(t.num_updates, t.args.stop_at_update or 1 << 60) + 1):
                yield update
                if t.journal.control.should_training_stop:  # a callback's wish
                    return

    def _resume(self, wish: str) -> int:
        t = self.trainer
        path, passed_over = choose_checkpoint(wish, self.folder)
        for line in passed_over:
            t.journal.say(f"passed over {line}")
        if path is None and (self.folder / "adapters").exists():
            raise InputError(
                f"resume: no good checkpoint in {self.folder}, but finished adapters (pass "
                "--overwrite, or another output_dir)", "resume",
            )  # fmt: skip
        if path is None:
            t.journal.say(f"{self.folder}: no checkpoint to resume from; starting at the beginning")
            return 0
        check_same(read_state(path)["settings"], self.identity(), path)
        trained: dict[str, torch.Tensor] = dict(t.model.trainable())
        state = load_checkpoint(path, trained, t.optimizer, self._optimized())
        t.kl.load_state_dict(state["kl"])
        t.guards.load_state_dict(state["guards"])
        t.generator.set_state(_from_hex(state["generator"]))
        if t.lr_scheduler is not None:
            t.lr_scheduler.load_state_dict(state["lr_scheduler"])
            rates = t.lr_scheduler.get_last_lr()  # its state holds them, the optimizer's does not
            for group, rate in zip(t.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self.best, self.recomputes = state["best"], state["recomputes"]
        if self.reward is None or self.reward == state["reward"]:
            t.model.gain, t.model.bias = state["gain"], state["bias"]
        else:  # nothing that was measured by the old reward model says anything of the new one
            t.journal.say(f"the reward model has changed: {state['reward']} to {self.reward}")
            t.guards.forget_scores()
            self.best = None
        guests, others = state.get("guests"), state["other_ranks"]
        if t.ranks.rank and t.ranks.rank <= len(others):
            mine = others[t.ranks.rank - 1]
            restore_python_random_state(mine["python"])
            restore_torch_random_state({"cpu": _from_hex(mine["torch"])})
            guests = mine.get("guests")
        set_guests_state(guests)
        t.journal.say(f"resumed from {path} after update {state['update']} of {t.num_updates}")
        return state["update"]

    def _optimized(self) -> list[str]:
        """The names of the optimizer's parameters, in its order."""
        names = {id(p): name for name, p in self.trainer.model.named_parameters()}
        groups = self.trainer.optimizer.param_groups
        return [names[id(p)] for group in groups for p in group["params"]]

    def checkpoint(self, update: int) -> Path:
        """Write one, from the main process."""
        t = self.trainer
        mine = {
            "python": python_random_state(),
            "torch": _to_hex(torch_random_state()["cpu"]),
            "guests": guests_state(),
        }
        everyone = t.ranks.gather(mine)
        state = {
            "settings": self.identity(),
            "episodes": update * t.batch_size,
            "kl": t.kl.state_dict(),
            "guards": t.guards.state_dict(),
            "gain": t.model.gain,
            "bias": t.model.bias,
            "generator": _to_hex(t.generator.get_state()),
            "lr_scheduler": None if t.lr_scheduler is None else t.lr_scheduler.state_dict(),
            "best": self.best,
            "recomputes": self.recomputes,
            "guests": everyone[0]["guests"],
            "other_ranks": everyone[1:],
        }
        if isinstance(t.model, Roles):
            state["policy"] = t.model.policy_facts()
        if self.reward is not None:
            state["reward"] = self.reward
        path = self.folder / f"checkpoint-{update:06d}"
        if t.ranks.is_main:
            save_checkpoint(
                self.folder, update, dict(t.model.trainable()), t.optimizer, self._optimized(),
                state, t.args.save_total_limit,
            )  # fmt: skip
            t.journal.handler.on_save(t.args, t.journal.state, t.journal.control)
        t.ranks.wait()
        return path

    def finish(self, update: int, row: Row, rollout: Rollout) -> None:
        """Evaluate, write the row, show samples, save; then stop if a signal has come."""
        t, args = self.trainer, self.trainer.args
        last, pause = update == t.num_updates, update == args.stop_at_update
        if self.reward is not None:
            row["reward"] = self.reward
        if t.lr_scheduler is not None:
            t.lr_scheduler.step()
        if t.eval_dataset is not None and (update % t.eval_every == 0 or last):
            with t.journal.clock("evaluate"):
                row |= t.evaluate()
            self._keep_best(update, row)
        t.journal.write({k: v if v == v else None for k, v in row.items()})
        if update % args.sample_every == 0 or last:
            t.show(update, rollout)
        every = max(1, t.num_updates // max(1, args.num_sample_generations))
        if args.num_sample_generations and t.eval_dataset is not None and (update - 1) % every == 0:
            self.generate_completions(sampling=True)
        self._warn_of_nothing(update, row, rollout)
        self._check_capture(update, row["val/first_max_log_ratio"], rollout.capture_gap)
        stop = int(t.ranks.largest(torch.tensor(float(self._signal), device=t.model.device)))
        control = t.journal.control
        asked = torch.tensor(float(control.should_training_stop or control.should_save))
        wanted = bool(t.ranks.largest(asked.to(t.model.device)))
        control.should_save = False  # in every process: on_save, which does it too, is the main's
        due = update % t.save_every == 0 or last or pause or stop or wanted
        if args.save_strategy != "no" and due:
            path = self.checkpoint(update)
            if stop:
                raise Interrupted(stop, path)
        elif stop:
            raise Interrupted(stop, None)

    def _warn_of_nothing(self, update: int, row: Row, rollout: Rollout) -> None:
        """Say, once a run, that completions are empty or that scores do not differ."""
        t = self.trainer
        ends = is_any(rollout.completion_ids[:, 0], t.rule.ends).float()
        empty = masked_mean(ends, total=t.ranks.total).item()
        if empty > 0.5 and "empty" not in self._warned:
            self._warned.add("empty")
            t.journal.say(
                f"warning: update {update}: {empty:.0%} of the completions are empty: the model "
                "ends at once (are the prompts in the form that it was trained on?)"
            )
        if row["objective/scored"] and not row["objective/scores_std"] and not self._warned:
            self._warned.add("equal")
            t.journal.say(
                f"warning: update {update}: all scores are {row['objective/scores']:.3g}, so there "
                "is nothing to learn from but the KL"
            )

    def _check_capture(self, update: int, ratio: float | None, gap: float) -> None:
        """Recompute log-probs from here on where rounding moved them; stop where more did.

        Args:
            update: its number.
            ratio: the largest difference between log-probs and those of the first training pass.
            gap: between captured and recomputed ones, where these were recomputed.
        """
        t = self.trainer
        shared = t.ranks.largest(torch.tensor(gap, device=t.model.device)).item()
        error = max(ratio or 0.0, shared)
        limit = CAPTURE_TOLERANCE if t.model.in_fp32 else CAPTURE_LIMIT
        if error > limit:
            raise RunStopped(
                f"update {update}: log-probs captured while sampling differ from recomputed ones "
                f"by {error:.2g} nats, far more than rounding: sampling and training do not run "
                "the same model (does its cached step give what a whole pass gives?); nothing was "
                "saved"
            )
        if error > CAPTURE_TOLERANCE and not self.recomputes:
            t.journal.say(
                f"update {update}: captured log-probs differ from recomputed ones by {error:.2g}; "
                "from here on they are recomputed (--recompute_logprobs)"
            )
            self.recomputes = True

    def _save(self, folder: Path, **facts: Any) -> None:
        """What was trained, with the tokenizer where that is not the base's own."""
        t = self.trainer
        t.model.save(folder, kl_coef=t.kl.value, **t.train_dataset.rendering(), **facts)
        if getattr(t.processing_class, "beside_base", False):
            t.processing_class.save_pretrained(folder / POLICY)

    def _keep_best(self, update: int, row: Row) -> None:
        t = self.trainer
        if row["eval/scores"] != row["eval/scores"]:  # nothing could be scored
            return
        worth, target = row["eval/rlhf_reward"], row["objective/kl_target"]
        if target is not None:  # the coefficient moves, so a price in it would compare nothing
            worth = row["eval/scores"]
            if row["eval/kl"] > 1.1 * target:
                return
        if not math.isfinite(worth) or (self.best is not None and worth <= self.best):
            return
        self.best = worth
        if t.ranks.is_main:
            with atomic_directory(self.folder / "best") as aside:
                self._save(aside)
                facts = {k: v for k, v in row.items() if k.startswith("eval/")}
                write_json(aside / "evaluation.json", facts | {"update": update})

    def close(self) -> list[Row]:
        """All rows of the log, the run being over."""
        self.trainer.journal.close()
        return read_rows(self.folder / "log.jsonl")

    def last_good(self) -> str:
        """Where a stopped run can be taken up again, in words."""
        path, _ = newest_good(self.folder)
        return f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """A signal is noted, and obeyed after the update; a second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(signum: int, frame: Any) -> None:
            if self._signal:
                raise Stopped(signum)
            self._signal = signum
            if self.trainer.ranks.is_main:
                call_out("\nfinishing this update, then saving (once more to stop now)")

        heeded = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]  # nohup's
        before = {s: signal.signal(s, note) for s in heeded}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @torch.no_grad()
    def generate_completions(self, sampling: bool) -> list[Row]:
        """``PPOTrainer.generate_completions``."""
        t = self.trainer
        if t.eval_dataset is None:
            return []
        count = len(t.eval_dataset)
        if sampling:
            count = min(count, t.args.per_device_eval_batch_size)
        prompts = t.eval_dataset.pick(range(count))
        rule = type(t.rule)(**(vars(t.rule) | {"temperature": 0.01}))
        noise = torch.Generator().manual_seed(t.args.seed)
        _, sampled = rule.sample(t.model.step(POLICY), list(prompts), noise, t.model.device)
        visible, _ = rule.visible(sampled)
        seen = TokenCompletions.seen(
            prompts, sampled.completion_ids, visible, t.processing_class, t.model
        )
        scores = t.rewards(seen)
        rows: list[Row] = []
        for i, prompt in enumerate(prompts):
            kept = sampled.completion_ids[i][visible[i]].tolist()
            query, response = decode_pair(t.processing_class, prompt, kept)
            value = scores[i].item()
            score = value if value == value else None
            rows.append({"query": query, "model response": response, "score": score})
        if t.ranks.is_main:
            write_jsonl(self.folder / "completions.jsonl", rows)
            _print_table(rows[:5])
        return rows

    def save_model(self, output_dir: Path, facts: dict[str, Any]) -> Path:
        """``PPOTrainer.save_model``."""
        t = self.trainer
        whole = isinstance(t.model, SeparateModels)
        target = output_dir if whole else output_dir / "adapters"
        if t.ranks.is_main and not whole:
            with atomic_directory(target) as aside:
                self._save(aside, **facts)
        elif t.ranks.is_main:  # the folder holds the run's own files too: file by file
            target.mkdir(parents=True, exist_ok=True)
            aside = part_folder(target / "model")
            try:
                t.model.save(aside)
                t.processing_class.save_pretrained(aside)
                for file in aside.iterdir():
                    if (target / file.name).is_dir():  # a named adapter's
                        shutil.rmtree(target / file.name)
                    os.replace(file, target / file.name)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        t.ranks.wait()
        return target if whole else target / "policy"


def _to_hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def digest_of(model: Actors, reward: bool) -> str:
    """A hash of the reward model (adapter, head, gain and bias), or of what else is frozen."""
    digest = hashlib.sha256(repr((model.gain, model.bias) if reward else None).encode())
    for name, parameter in model.named_parameters():
        of_reward = f".{REWARD}." in name or name.startswith("reward")
        frozen = model.is_frozen_adapter(name, parameter)
        if of_reward == reward and (of_reward or frozen):
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_of(value: Any) -> str:
    """The first 16 digits of the SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for name in rows[0] if rows else ():
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(printable(str(value))) for value in row.values()))
    Console().print(table)
