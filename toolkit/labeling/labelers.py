"""Scripted labelers: they label the same items as people, into the same store.

    with HTTPJudge("http://localhost:8000/v1", "qwen3") as judge:
        counts = ScriptedLabeler("qwen3", judge).work(store, limit=500)

A script's answer depends only on the item, the labeler's name and the seed. A labeler that was
killed and is started again therefore labels the rest as if nothing had happened.
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

REMEMBERED = 1000  # last answers kept; more than it takes to call a judge useless


@dataclass
class Counts:
    """A labeler's picks and ties, the items that the judge refused, and the cost."""

    picked: int = 0
    ties: int = 0
    refused: int = 0
    cost: float = 0.0

    @property
    def items(self) -> int:
        """The number of items that the labeler answered."""
        return self.picked + self.ties + self.refused

    def __str__(self) -> str:
        cost = f"; cost {self.cost:.4g}" if self.cost else ""
        return f"{self.picked} picks, {self.ties} ties, {self.refused} refused{cost}"


class ScriptedLabeler:
    """A labeler whose answers come from a picker.

    Args:
        name: the labeler's name in the store, which no person has.
        picker: chooses the best completion.
        noise: probability of picking a random completion instead.
        ties: "drop" records a tie; "random" picks one of the best at random.
        seed: seed for noise and ties.

    Raises:
        InputError: a value is out of range.
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
        # The last events that the picker decided, and whether it refused.
        self._last: deque[tuple[int, bool]] = deque(maxlen=REMEMBERED)

    def decide(
        self, prompt: Prompt, completions: list[str], fields: Fields | None = None
    ) -> tuple[str, int | None]:
        """Return the answer for an item: ("pick", index), ("tie", None) or ("skip", None)."""
        if len(set(completions)) == 1:  # all are the same
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

        Each label is on the disk before the next item is taken. The name is locked, because two
        processes would get the same items and ask the judge twice. If the judge turns out to be
        useless, its last answers are taken back, so that their items are asked again.

        Args:
            store: holds the items.
            limit: stop after this many items; None for all.
            progress: show a progress bar.

        Returns:
            The counts of this call.

        Raises:
            UselessJudge: the judge's last answers say nothing; earlier labels stay.
            InputError: the name belongs to a person or is in use by another process, or the picker
                failed; earlier labels stay, but its last refusals do not.
        """
        check_range("limit", limit, low=0)
        with letting_go():
            lock_part(store.path, self.name, "labeler")
            return self._work(store, limit, progress)

    def _work(self, store: Store, limit: int | None, progress: bool) -> Counts:
        labeler = store.script(self.name)
        counts = Counts()
        before = self.picker.cost
        left = store.progress()  # an item may need two labels, but this labeler gives only one
        total = int(min(left["left"], left["items"], math.inf if limit is None else limit))
        with tqdm(
            total=total, desc=f"Labeling by {self.name}", unit="item", disable=not progress
        ) as bar:
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
                        continue  # another process answered this form
                except Refused as problem:
                    if problem.status != 409:
                        raise
                    continue  # the lease ended meanwhile, and the item was handed out again

                if len(set(task.completions)) > 1:  # the picker was asked
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
        """Undo the last answers: all that a useless judge gave, or a failing judge's refusals."""
        if isinstance(problem, UselessJudge):
            void = list(self._last)[1 - problem.count :] if problem.count > 1 else []
        else:
            void = list(itertools.takewhile(lambda said: said[1], reversed(self._last)))
        self._last.clear()
        taken = store.take_back(labeler, [event for event, _ in void])
        store.release(labeler)
        if taken:
            problem.args = (f"{problem} ({taken} of its labels were taken back)",)

    def check(self, store: Store) -> None:
        """Raise InputError, and take the refusals back, if this labeler has refused every item."""
        labeler = store.script(self.name)
        if store.refusals(labeler) and not store.has_picked(labeler):
            taken = store.ask_again(labeler)
            raise InputError(
                f"labeler {self.name!r}: refused all {taken} items, so there are no labels; its "
                f"last answer begins {self.picker.refusal} (its refusals were taken back)"
            )
