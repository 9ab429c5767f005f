"""Everything that a run needs to continue as if it had never stopped: ``PPOState``.

It is captured and restored only here. ``checkpoints.py`` writes it to files; the table in
docs/checkpoints.md explains each key.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from toolkit.errors import InputError
from toolkit.maths.kl_controllers import FixedKLController
from toolkit.models.actors import Actors
from toolkit.random_state import (
    PythonState,
    StoredState,
    python_random_state,
    restore_python_random_state,
    restore_torch_random_state,
    torch_random_state,
)
from toolkit.scoring.guests import guests_state, set_guests_state
from toolkit.training.distributed import Ranks
from toolkit.training.optimizers import optimizer_state, restore_optimizer, to_host
from toolkit.training.ppo.guards import Guards
from toolkit.training.ppo.pretraining import PretrainingText
from toolkit.training.ppo.reference import AtStart

Json = dict[str, Any]  # what JSON can hold


class Moving(Protocol):
    """What changes while a run learns; all of it is in a checkpoint.

    Attributes:
        model: the four roles, with what is trained in them, and a reference that follows.
        optimizer, lr_scheduler: for what is trained; the schedule is None if the rate needs no
            state.
        kl: the controller of the KL coefficient.
        guards: their counts, and the scores that they remember.
        generator: draws the sampling's noise and the order of minibatches.
        best: the best evaluation so far, or None.
        recomputes: whether log-probs are recomputed after sampling.
        reward_digest: hash of the reward model; None for a run in which it cannot change.
        text: the rows of the pretraining mix; None without one.
        at_start: what was measured on the reference's samples before the first update.
    """

    model: Actors
    optimizer: Optimizer
    lr_scheduler: LRScheduler | None
    kl: FixedKLController
    guards: Guards
    generator: torch.Generator
    best: float | None
    recomputes: bool
    reward_digest: str | None
    text: PretrainingText | None
    at_start: AtStart


@dataclass
class PPOState:
    """A run after ``update`` updates.

    Attributes: see docs/checkpoints.md, which has a row for each. Tensors are in their own files
    (``TENSORS``); all others are keys of state.json.
    """

    update: int
    episodes: int
    settings: Json
    kl: Json
    guards: Json
    gain: float
    bias: float
    generator: str
    lr_scheduler: Json | None
    best: float | None
    recomputes: bool
    optimizer: Json
    random: PythonState
    other_ranks: list[Json]
    # Keys that checkpoints of earlier versions may lack.
    guests: StoredState | None = None
    policy: Json | None = None
    reward: str | None = None
    text_rows: int | None = None
    at_start: Json | None = None
    # Tensors by name.
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    torch_random: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def capture(
        cls, run: Moving, update: int, episodes: int, settings: Json, ranks: Ranks
    ) -> "PPOState":
        """Capture the current state; every process must call this, the main one's is written.

        Args:
            run: what changes while the run learns.
            update, episodes: how far the run has come.
            settings: the run's settings; it can only be resumed under the same.
            ranks: the processes, whose own random states are gathered.
        """
        mine = {
            "python": python_random_state(),
            "torch": _to_hex(torch_random_state()["cpu"]),
            "guests": guests_state(),
        }

        everyone = ranks.gather(mine)
        scalars, moments = optimizer_state(run.optimizer, _optimized(run))
        return cls(
            update=update,
            episodes=episodes,
            settings=settings,
            kl=run.kl.state_dict(),
            guards=run.guards.state_dict(),
            gain=run.model.gain,
            bias=run.model.bias,
            generator=_to_hex(run.generator.get_state()),
            lr_scheduler=None if run.lr_scheduler is None else run.lr_scheduler.state_dict(),
            best=run.best,
            recomputes=run.recomputes,
            optimizer=scalars,
            random=python_random_state(),
            other_ranks=everyone[1:],
            guests=everyone[0]["guests"],
            policy=run.model.policy_facts(),
            reward=run.reward_digest,
            text_rows=None if run.text is None else run.text.used,
            at_start=run.at_start.to_json(),
            weights={name: to_host(p) for name, p in run.model.changing()},
            moments=moments,
            torch_random=torch_random_state(),
        )

    def restore(self, run: Moving, ranks: Ranks, folder: object) -> None:
        """Restore everything; tensors are copied into existing memory.

        What another reward model than ``run``'s current one measured is forgotten, because it says
        nothing about the new one's scores.

        Args:
            run: what changes while the run learns.
            ranks: the processes; each gets back its own random state.
            folder: of the checkpoint, for messages.

        Raises:
            InputError: the weights belong to another run.
        """
        weights = dict(run.model.changing())
        if self.weights.keys() != weights.keys():
            odd = sorted(self.weights.keys() ^ weights.keys())
            raise InputError(
                f"{folder} has another run's weights ({len(odd)} differ, for example {odd[0]})"
            )
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(self.weights[name])
        restore_optimizer(run.optimizer, _optimized(run), self.optimizer, self.moments)

        run.kl.load_state_dict(self.kl)
        run.guards.load_state_dict(self.guards)
        run.generator.set_state(_from_hex(self.generator))
        if run.lr_scheduler is not None:
            run.lr_scheduler.load_state_dict(self.lr_scheduler or {})
            # The schedule's state holds the rates; the optimizer's does not.
            rates = run.lr_scheduler.get_last_lr()
            for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

        run.recomputes = self.recomputes
        if run.text is not None:
            run.text.used = self.text_rows or 0
        run.at_start = AtStart.from_json(self.at_start)
        if run.reward_digest == self.reward or run.reward_digest is None:
            run.best = self.best
            run.model.gain, run.model.bias = self.gain, self.bias
        else:
            run.best = None
            run.guards.forget_scores()

        self._restore_random_states(ranks)

    def _restore_random_states(self, ranks: Ranks) -> None:
        """Restore the random states of process and users' functions; GPU states are the main's."""
        restore_torch_random_state(self.torch_random)
        restore_python_random_state(self.random)
        guests = self.guests

        # A run may be resumed with more processes; additional ones begin like the main one.
        if 0 < ranks.rank <= len(self.other_ranks):
            mine = self.other_ranks[ranks.rank - 1]
            restore_python_random_state(mine["python"])
            restore_torch_random_state({"cpu": _from_hex(mine["torch"])})
            guests = mine.get("guests")
        set_guests_state(guests)

    def to_json(self) -> Json:
        """Return the keys of state.json."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in TENSORS}

    @classmethod
    def from_json(
        cls, state: Json, folder: object, tensors: dict[str, dict[str, Tensor]]
    ) -> "PPOState":
        """Make a state from state.json's keys and the tensors of the other files.

        Raises:
            InputError: keys are missing, or unknown to this version.
        """
        known = {f.name for f in fields(cls)} - set(TENSORS)
        strange = sorted(state.keys() - known)
        if strange:
            raise InputError(
                f"{folder}: state.json has {strange[0]}, which this version does not know (resume "
                "with the version that wrote it)"
            )
        try:
            return cls(**(state | tensors))
        except TypeError as error:
            missing = str(error).partition("missing")[2].strip()
            raise InputError(f"{folder}: state.json lacks {missing or error}") from None


# The files of the fields that hold tensors.
TENSORS = {
    "weights": "weights.safetensors",
    "moments": "optimizer.safetensors",
    "torch_random": "random.safetensors",
}


def _optimized(run: Moving) -> list[str]:
    """List the names of the optimizer's parameters, in its order."""
    names = {id(p): name for name, p in run.model.named_parameters()}
    return [names[id(p)] for group in run.optimizer.param_groups for p in group["params"]]


def _to_hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
