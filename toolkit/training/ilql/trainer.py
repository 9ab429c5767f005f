"""ILQLTrainer: a policy and its critic from completions with rewards, without sampling.

    part       adapter     learns by                                            gradients reach
    critic     "critic"    L_Q + L_V + cql_scale L_CQL, and its heads           the critic alone
    policy     "policy"    awac_scale L_LM, the likelihood of the completions   the policy alone
    targets    none        after an update, alpha of the way to the heads of Q  nothing

Two passes through one frozen base, each with its own adapter and its own backward pass. What is
learned is a pure function of rows, settings and seed: dropout is off and each epoch's order comes
from seed and epoch, so a run that was killed ends with the same bits as one that was not.
Source: arXiv 2206.11871; see ``toolkit.maths.ilql`` for the equations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from toolkit.data.files import write_jsonl
from toolkit.data.records import Row
from toolkit.errors import InputError, Interrupted, RunStopped
from toolkit.maths.ilql import (
    advantages,
    cql_loss,
    expectile_loss,
    final_rewards,
    likelihood_loss,
    q_loss,
    td_targets,
)
from toolkit.maths.schedules import linear_decay
from toolkit.models.actors import CRITIC, POLICY
from toolkit.models.peft_wrappers import head_weights
from toolkit.models.roles import Roles
from toolkit.random_state import torch_random_state
from toolkit.training.ilql.config import ILQLConfig
from toolkit.training.ilql.data import Batch, collate, order_of
from toolkit.training.log_rows import LOG
from toolkit.training.optimizers import optimizer_state, restore_optimizer, to_host
from toolkit.training.ppo.checkpoints import (
    check_same,
    choose_checkpoint,
    newest_good,
    read_checkpoint,
    save_checkpoint,
)
from toolkit.training.ppo.signals import Signals

Json = dict[str, Any]
EARLY = 0.5  # a run in which the targets come less far than this is warned of


@dataclass
class ILQLState:
    """A run after ``update`` updates, in the files of a checkpoint.

    Attributes:
        update: how many were made.
        settings: the run's; it can only be resumed under the same.
        optimizer: the optimizer's numbers; its tensors are ``moments``.
        history: the rows of the log so far.
        weights: both adapters, the heads and their targets.
        torch_random: nothing is drawn from it while training; it is there for whoever reads it.
    """

    update: int
    settings: Json
    optimizer: Json
    history: list[Row]
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    torch_random: dict[str, Tensor] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Return the keys of state.json."""
        return {name: getattr(self, name) for name in KEYS}


KEYS = ("update", "settings", "optimizer", "history")


class ILQLTrainer:
    """Trains policy and critic.

    Args:
        config: the settings.
        roles: with a policy that is trained, and a critic (``Roles.add_critic``).
        rows: of ``data.SCHEMA``, with the rewards that are to be learned.
        held_out: the same, to evaluate on; may be empty.
        pad_id: id of the padding.
        identity: further facts on which the result depends, such as a digest of the rows.

    Attributes:
        updates: of the whole run.
        history: the rows of the log.
    """

    def __init__(
        self,
        config: ILQLConfig,
        roles: Roles,
        rows: Sequence[Row],
        held_out: Sequence[Row],
        pad_id: int,
        identity: Json | None = None,
    ) -> None:
        if roles.critic is None:
            raise ValueError("ILQLTrainer: the roles have no critic (add_critic)")
        self.config, self.roles, self.heads = config, roles, roles.critic
        self.rows, self.held_out, self.pad_id = rows, held_out, pad_id
        self.identity: Json = {**config.identity(), **roles.identity(), **(identity or {})}

        self.per_epoch = math.ceil(len(rows) / config.batch_size)
        self.updates = config.max_steps or math.ceil(config.num_train_epochs * self.per_epoch)
        if config.gradient_checkpointing:
            roles.use_checkpointing()

        named = roles.trainable()
        policy = [(name, p) for name, p in named if f".{POLICY}." in f"{name}."]
        critic = [(name, p) for name, p in named if f".{POLICY}." not in f"{name}."]
        self.names = [name for name, _ in policy + critic]
        self.parts = {POLICY: [p for _, p in policy], CRITIC: [p for _, p in critic]}
        self.rates = {
            POLICY: config.learning_rate,
            CRITIC: config.critic_learning_rate or config.learning_rate,
        }
        self.optimizer = torch.optim.AdamW(
            [{"params": self.parts[part], "lr": self.rates[part]} for part in self.parts],
            betas=(0.9, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        self.history: list[Row] = []
        self.signals = Signals(is_main=True)

    def targets_share(self) -> float:
        """How far the targets come from their start towards heads that stand still, 0 to 1."""
        syncs = self.updates // self.config.sync_every
        return 1 - (1 - self.config.alpha) ** syncs

    def train(self, begun: Callable[[], None] = lambda: None) -> list[Row]:
        """Make all updates that are left; return the log's rows.

        Args:
            begun: called once the checkpoint to resume, if any, is accepted.

        Raises:
            InputError: the checkpoint was made under other settings.
            Interrupted: SIGTERM or Ctrl-C came; the update was finished and saved.
            RunStopped: a loss or a gradient is not finite.
        """
        config, done = self.config, self._resume()
        begun()
        last = min(self.updates, config.stop_at_update or self.updates)
        bar = tqdm(
            range(done + 1, last + 1), initial=done, total=self.updates, desc="ILQL", unit="update"
        )
        with self.signals.heard():
            for update in bar:
                row = self.update(update)
                tested = update == self.updates or (
                    config.eval_steps and update % config.eval_steps == 0
                )
                if tested:
                    row |= self.evaluate()
                self._check(row, update)
                if tested or update % config.logging_steps == 0 or update == 1:
                    self.history.append(row)
                    bar.set_postfix(q=f"{row['loss/q']:.3f}", v=f"{row['loss/v']:.4f}")
                self._save_if_due(update, last)
        write_jsonl(config.folder / LOG, self.history)
        return self.history

    def let_go(self) -> None:
        """Give up models and optimizer, so that their memory is free."""
        del self.roles, self.heads, self.optimizer, self.parts

    def update(self, number: int) -> Row:
        """Make one update; return its row for the log."""
        config = self.config
        batch = self.batch(number)
        size = config.per_device_train_batch_size
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        count = sum(len(row["completion_ids"]) for row in batch)

        sums: Row = {}
        for part in parts:
            # One part's backward pass comes before another's forward pass, which would switch the
            # adapter that a recomputation reads.
            told = self.backward(collate(part, self.pad_id, self.roles.device), count)
            sums = {name: sums.get(name, 0.0) + value for name, value in told.items()}

        factor = 1.0
        if config.lr_scheduler_type == "linear":
            factor = linear_decay(number - 1, self.updates)
        for group, rate in zip(self.optimizer.param_groups, self.rates.values(), strict=True):
            group["lr"] = factor * rate
        # A loss may be finite whose gradient is not, and its step would be saved.
        most = config.max_grad_norm or math.inf
        norms = {
            f"the gradient of the {name}": nn.utils.clip_grad_norm_(weights, most).item()
            for name, weights in self.parts.items()
        }
        self._check(sums | norms, number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        if number % config.sync_every == 0:
            self.heads.sync(config.alpha)
        return {"update": number, "epoch": round(number / self.per_epoch, 4)} | sums

    def batch(self, number: int) -> list[Row]:
        """Return the rows of an update, from 1 on; an epoch's last may be smaller."""
        epoch, place = divmod(number - 1, self.per_epoch)
        order = order_of(epoch, len(self.rows), self.config.seed)
        size = self.config.batch_size
        return [self.rows[i] for i in order[place * size : (place + 1) * size]]

    def backward(self, batch: Batch, count: int) -> Row:
        """Add the gradients of both parts; return the losses.

        Args:
            batch: some or all rows of an update.
            count: tokens of all completions of the update.
        """
        config, roles = self.config, self.roles
        with roles.optimizing():
            losses, u = self.critic_losses(batch, count)
            critic = losses["q"] + losses["v"] + config.cql_scale * losses["cql"]
            critic.backward()
        if config.awac_scale:
            with roles.optimizing():
                losses["lm"] = self.policy_loss(batch, u, count)
                (config.awac_scale * losses["lm"]).backward()
        return {f"loss/{name}": loss.item() for name, loss in losses.items()}

    def critic_losses(self, batch: Batch, count: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return L_Q, L_V and L_CQL, and u = min Q' - V (B, C) of the tokens."""
        config, roles, mask = self.config, self.roles, batch.completion_mask
        length = batch.completion_ids.shape[1]
        states = roles.states(CRITIC, batch.ids, batch.mask, length)
        weight, _ = head_weights(roles.output_head(CRITIC))
        tokens = batch.completion_ids.masked_fill(~mask, 0)  # the pad id may be no token
        taken = self.heads.taken(states, tokens, weight.detach(), config.cql_temperature)

        rewards = final_rewards(batch.rewards, mask)
        aims = td_targets(rewards, taken.values, mask, config.gamma)
        u = advantages(taken.targets, taken.values)
        return {
            "q": q_loss(taken.q, aims, mask, count),
            "v": expectile_loss(u, config.tau, mask, count),
            "cql": cql_loss(taken.logprobs, mask, count),
        }, u.detach()

    def policy_loss(self, batch: Batch, u: Tensor, count: int) -> Tensor:
        """Return L_LM, the weighted likelihood of the completions at temperature 1."""
        logprobs = self.roles.logprobs(POLICY, batch.ids, batch.mask, batch.completion_ids, 1.0)
        mask = batch.completion_mask
        return likelihood_loss(logprobs, u, self.config.awac_beta, mask, count)

    @torch.no_grad()
    def evaluate(self) -> Row:
        """Return the losses on held-out rows, and how min Q' of the last token follows rewards.

        ``eval/correlation`` is over completions: 1 if Q knows the reward once all is written.
        """
        if not self.held_out:
            return {}
        size = self.config.per_device_eval_batch_size
        count = sum(len(row["completion_ids"]) for row in self.held_out)
        sums: dict[str, float] = {}
        ends: list[Tensor] = []
        for start in range(0, len(self.held_out), size):
            batch = collate(self.held_out[start : start + size], self.pad_id, self.roles.device)
            losses, u = self.critic_losses(batch, count)
            losses["lm"] = self.policy_loss(batch, u, count)
            for name, loss in losses.items():
                sums[f"eval/{name}"] = sums.get(f"eval/{name}", 0.0) + loss.item()
            ends.append(self._at_the_end(batch))
        known = torch.cat(ends).double()
        given = torch.tensor([row["reward"] for row in self.held_out], dtype=torch.float64)
        found = _correlation(known, given)
        return sums if found is None else sums | {"eval/correlation": found}

    def _at_the_end(self, batch: Batch) -> Tensor:
        """min Q' (B,) of each completion's last token, on the CPU."""
        length, mask = batch.completion_ids.shape[1], batch.completion_mask
        states = self.roles.states(CRITIC, batch.ids, batch.mask, length)
        weight, _ = head_weights(self.roles.output_head(CRITIC))
        tokens = batch.completion_ids.masked_fill(~mask, 0)
        targets = self.heads.taken(states, tokens, weight).targets
        last = mask.sum(dim=1, keepdim=True) - 1
        return torch.stack(targets).amin(dim=0).gather(1, last).squeeze(1).cpu()

    def _check(self, row: Row, update: int) -> None:
        """Raise RunStopped if a figure is not finite; such an update is not saved."""
        odd = next((name for name, value in row.items() if not math.isfinite(value)), None)
        if odd is None:
            return
        path, _ = newest_good(self.config.folder)
        where = f"the last good checkpoint is {path}" if path else "there is no checkpoint"
        raise RunStopped(
            f"{odd} is not finite at update {update} (lower --learning_rate or --awac_beta); "
            f"{where}"
        )

    def _resume(self) -> int:
        """Continue from the checkpoint that ``resume`` names; return the updates already made."""
        if self.config.resume is None:
            return 0
        path, passed_over = choose_checkpoint(self.config.resume, self.config.folder)
        for line in passed_over:
            print(f"note: passed over {line}")
        if path is None:
            print("no checkpoint yet: the run starts anew")
            return 0
        return self.restore(path)

    def restore(self, path: Path) -> int:
        """Take weights, optimizer and log from a checkpoint; return its number of updates.

        Raises:
            InputError: it belongs to another kind of run, or to one with other settings.
        """
        state, tensors = read_checkpoint(path)
        if set(state) != set(KEYS):
            raise InputError(f"resume: {path}: is no checkpoint of preftune ilql", "resume")
        check_same(state["settings"], self.identity, path)
        weights = dict(self.roles.changing())
        if weights.keys() != tensors["weights"].keys():
            odd = sorted(weights.keys() ^ tensors["weights"].keys())
            raise InputError(
                f"{path} has another run's weights ({len(odd)} differ, for example {odd[0]})"
            )
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(tensors["weights"][name])
        restore_optimizer(self.optimizer, self.names, state["optimizer"], tensors["moments"])
        self.history = state["history"]
        return int(state["update"])

    def _save_if_due(self, update: int, last: int) -> None:
        """Save a checkpoint if it is due, or a signal came.

        Raises:
            Interrupted: a signal came.
        """
        config, signum = self.config, self.signals.came
        due = bool(config.save_steps) and (
            update % config.save_steps == 0 or update == last or bool(signum)
        )
        path = None
        if due:
            scalars, moments = optimizer_state(self.optimizer, self.names)
            state = ILQLState(
                update,
                self.identity,
                scalars,
                self.history,
                {name: to_host(weight) for name, weight in self.roles.changing()},
                moments,
                torch_random_state(),
            )
            path = save_checkpoint(config.folder, state, config.save_total_limit)
        if signum:
            raise Interrupted(signum, path)


def _correlation(a: Tensor, b: Tensor) -> float | None:
    """Pearson's correlation; None if one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().sum() * b.square().sum()).sqrt().item()
    return None if scale == 0 else (a * b).sum().item() / scale
