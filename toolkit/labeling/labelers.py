"""Labelers that are scripts: beside people, on the same items, into the same store.

    with HTTPJudge("http://localhost:8000/v1", "qwen3") as judge:
        counts = ScriptedLabeler("qwen3", judge).work(store, limit=500)

What is said of an item depends on the item, the labeler's name and the seed, on nothing that came
before: a labeler that is killed and started again labels the rest as if nothing had happened.
"""

import itertools
import math
from collections import deque
from dataclasses import dataclass

from tqdm.auto import tqdm

from toolkit.data.locks import letting_go, lock_part
from toolkit.errors import InputError, check_choice, check_range, check_seed
from toolkit.labeling.store import Labeler, Refused, Store
from toolkit.labeling.store.labels import REFUSED
from toolkit.labeling.store.queue import draw
from toolkit.scoring.http_judge import UselessJudge
from toolkit.scoring.picker import Fields, Picker, pick_best
from toolkit.scoring.scorer import Prompt

REMEMBERED = 1000  # of the last answers; more than any row that finds a judge out


@dataclass
class Counts:
    """What a labeler did: picks, ties, items that the judge refused, and what it cost."""

    picked: int = 0
    ties: int = 0
    refused: int = 0
    cost: float = 0.0

    @property
    def items(self) -> int:
        """All of them."""
        return self.picked + self.ties + self.refused

    def __str__(self) -> str:
        cost = f"; cost {self.cost:.4g}" if self.cost else ""
        return f"{self.picked} picks, {self.ties} ties, {self.refused} refused{cost}"


class ScriptedLabeler:
    """A labeler that a picker decides for.

    Args:
        name: in the store; no person's.
        picker: who knows the best.
        noise: probability of picking one of all completions by lot instead.
        ties: "drop" records ties as such; "random" picks one of the best by lot.
        seed: of noise and ties.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self, name: str, picker: Picker, noise: float = 0.0, ties: str = "drop", seed: int = 0
    ) -> None:
        check_range("noise", noise, low=0, high=1)
        check_choice("ties", ties, ("drop", "random"))
        check_seed(seed)
        self.name = name
        self.picker = picker
        self.noise = noise
        self.ties = ties
        self.seed = seed
        # The last events that the picker was asked for, and whether it refused.
        self._last: deque[tuple[int, bool]] = deque(maxlen=REMEMBERED)

    def decide(
        self, prompt: Prompt, completions: list[str], fields: Fields | None = None
    ) -> tuple[str, int | None]:
        """What this labeler says of an item: ("pick", index), ("tie", None) or ("skip", None)."""
        if len(set(completions)) == 1:  # no pick could tell them apart
            return "tie", None
        best = self.picker.best(prompt, completions, fields)
        if not best:
            return "skip", None
        scores = [float(k in best) for k in range(len(completions))]
        luck = draw("scripted", self.seed, self.name, prompt, completions)
        index = pick_best(scores, self.ties, self.noise, luck)
        return ("tie", None) if index is None else ("pick", index)

    def work(self, store: Store, limit: int | None = None, progress: bool = True) -> Counts:
        """Label what the store hands out until nothing is left.

        Each label is on the disk before the next item is asked for. One process a name, which is
        locked: two would be handed the same items, and ask the judge twice. Where the judge turns
        out to be of no use, what it said last is taken back, and asked again by whoever labels
        next.

        Args:
            store: of the items.
            limit: stop after so many items; None for all.
            progress: show a bar.

        Returns:
            What was done in this call.

        Raises:
            UselessJudge: its last answers say nothing; labels made before these stay.
            InputError: the name is a person's, or at work elsewhere; or the picker failed; labels
                made before stay, but not refusals up to then.
        """
        check_range("limit", limit, low=0)
        with letting_go():
            lock_part(store.path, self.name, "labeler")
            return self._work(store, limit, progress)

    def _work(self, store: Store, limit: int | None, progress: bool) -> Counts:
        labeler = store.script(self.name)
        counts = Counts()
        before = self.picker.cost
        left = store.progress()  # of an item that two shall see, this one sees but one
        total = int(min(left["left"], left["items"], math.inf if limit is None else limit))
        with tqdm(total=total, desc=self.name, unit="item", disable=not progress) as bar:
            while limit is None or counts.items < limit:
                task = store.next_task(labeler)
                if task is None:
                    break

                try:
                    action, index = self.decide(task.prompt, task.completions, task.extra)
                except InputError as problem:
                    self._take_back(store, labeler, problem)
                    raise

                position = None if index is None else task.order.index(index)
                reason = REFUSED if action == "skip" else None
                try:
                    if not store.record(labeler, task.form, action, position, reason):
                        continue  # a process of the same name was faster
                except Refused as problem:
                    if problem.status != 409:
                        raise
                    continue  # it took longer than the lease: the item was handed out anew

                if len(set(task.completions)) > 1:  # else nobody was asked
                    event = store.last_event(labeler)
                    assert event is not None
                    self._last.append((event, action == "skip"))

                counts.picked += action == "pick"
                counts.ties += action == "tie"
                counts.refused += action == "skip"
                counts.cost = self.picker.cost - before
                bar.update()
        counts.cost = self.picker.cost - before
        return counts

    def _take_back(self, store: Store, labeler: Labeler, problem: InputError) -> None:
        """Void what was said last: all that a useless judge said, or a failing one's refusals."""
        if isinstance(problem, UselessJudge):
            void = list(self._last)[1 - problem.count :] if problem.count > 1 else []
        else:
            void = list(itertools.takewhile(lambda said: said[1], reversed(self._last)))
        self._last.clear()
        taken = store.take_back(labeler, [event for event, _ in void])
        store.release(labeler)
        if taken:
            problem.args = (f"{problem} ({taken} of its labels are taken back)",)

    def check(self, store: Store) -> None:
        """Raise InputError if all that this labeler ever did was to refuse; that is taken back."""
        labeler = store.script(self.name)
        if store.refusals(labeler) and not store.has_picked(labeler):
            taken = store.ask_again(labeler)
            raise InputError(
                f"labeler {self.name!r}: refused all {taken} items, so it has labeled none; its "
                f"last answer begins {self.picker.refusal} (its refusals are taken back)"
            )
