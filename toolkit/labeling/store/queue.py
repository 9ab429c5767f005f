"""Which item a labeler is asked next, and the leases by which others are not asked it meanwhile.

Completions are shown in an order of their own for each labeler (``shown_order``), so nobody learns
that the first is usually the best; events hold both index and position.

Clocks are set, by hand or by a network: a lease that begins in the future is none, and how long an
answer took is told by a clock that nobody sets, or not at all.
"""

import hashlib
import json
import random
import secrets
import sqlite3
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.data.records import Prompt, Row
from toolkit.labeling.store.labels import Labeler, Place, count_taken

# A lease that holds at the time ?1. One that begins further in the future than it lasts was made
# before the clock was set back.
HOLDS = "(expires > ?1 AND since <= ?1 + (expires - since))"
REMEMBERED = 10_000  # forms of which it is remembered when they were handed out
steady = time.monotonic  # a clock that nobody sets


@dataclass(frozen=True)
class Settings:
    """How items are handed out.

    Attributes:
        overlap: share of items that two labelers see.
        repeats: share of hidden repeats among what a person sees.
        gold: share of gold items, where there are any.
        lease: seconds for which an item waits for its labeler.
        spacing: labels between an item and its repeat, at least.
        seed: of the order of items, and of which of them overlap.
    """

    overlap: float = 0.15
    repeats: float = 0.05
    gold: float = 0.05
    lease: float = 1800.0
    spacing: int = 10
    seed: int = 0


class Task(NamedTuple):
    """What a labeler is asked: ``order[position]`` is the index of the completion shown there.

    ``extra`` holds the row's further fields, which a script's function may ask for.
    """

    form: str
    item: int
    turn: int
    kind: str
    prompt: Prompt
    completions: list[str]
    order: list[int]
    extra: Row


def draw(*parts: object) -> random.Random:
    """A generator that these parts decide."""
    return random.Random(hashlib.sha256(repr(parts).encode("utf-8", "replace")).digest())


def shown_order(item: int, labeler: int, turn: int, count: int) -> list[int]:
    """The completions' indices as they are shown: another order for each labeler and turn."""
    order = list(range(count))
    draw("order", item, labeler, turn).shuffle(order)
    return order


class HandedOut:
    """Remembers when this process handed out its last forms, by a clock that nobody sets."""

    def __init__(self) -> None:
        self._when: OrderedDict[str, float] = OrderedDict()

    def add(self, form: str) -> None:
        """Note that a form is handed out now."""
        self._when[form] = steady()
        while len(self._when) > REMEMBERED:
            self._when.popitem(last=False)

    def seconds(self, lease: sqlite3.Row, now: float) -> float | None:
        """How long ago a lease's form was handed out; None where clocks do not tell."""
        begun = self._when.pop(lease["form"], None)
        if begun is not None:
            return max(0.0, steady() - begun)

        # Handed out by another process, or by one before this: the clock may have been set.
        seconds = now - lease["since"]
        return seconds if 0 <= seconds <= lease["expires"] - lease["since"] else None


def held_task(db: sqlite3.Connection, labeler: Labeler, now: float) -> Task | None:
    """The item that this labeler was handed last and has not answered; None if there is none."""
    row = db.execute(
        f"SELECT form, item, turn FROM leases WHERE {HOLDS} AND labeller = ?2 "
        "ORDER BY since DESC LIMIT 1",
        (now, labeler.id),
    ).fetchone()
    if row is None:
        return None
    return task_of(db, Place(row["item"], labeler.id, row["turn"]), row["form"])


def task_of(db: sqlite3.Connection, place: Place, form: str) -> Task:
    """What a form asks."""
    row = db.execute(
        "SELECT kind, prompt, completions, extra FROM items WHERE id = ?", (place.item,)
    ).fetchone()
    completions = json.loads(row["completions"])
    return Task(
        form,
        place.item,
        place.turn,
        row["kind"],
        json.loads(row["prompt"]),
        completions,
        shown_order(*place, len(completions)),
        json.loads(row["extra"]),
    )


def lease(db: sqlite3.Connection, place: Place, now: float, seconds: float) -> str:
    """Keep an item for a labeler for so many seconds; returns the number of the form."""
    form = secrets.token_urlsafe(16)
    db.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?)", (form, *place, now, now + seconds))
    count_taken(db, place, 1)
    return form


def end_expired_leases(db: sqlite3.Connection, now: float) -> None:
    """Delete the leases that ran out: their items are free again."""
    db.execute(
        "UPDATE items SET taken = taken - (SELECT count(*) FROM leases WHERE item = items.id "
        f"AND turn = 0 AND NOT {HOLDS}) WHERE gold IS NULL AND id IN "
        f"(SELECT item FROM leases WHERE NOT {HOLDS})",
        (now,),
    )
    db.execute(f"DELETE FROM leases WHERE NOT {HOLDS}", (now,))


def choose(db: sqlite3.Connection, labeler: Labeler, settings: Settings) -> Place | None:
    """What to ask this labeler now; None if all is done.

    A person is asked a hidden repeat or a gold item now and then; everybody else, and a person the
    rest of the time, a new item.
    """
    # The lot depends on how many labels this labeler has, so that asking again (after an undo, or
    # in another process) draws the same.
    seen = db.execute("SELECT count(*) FROM labels WHERE labeller = ?", (labeler.id,)).fetchone()[0]
    luck = draw("turn", settings.seed, labeler.id, seen).random()

    # A script says the same of an item each time, so it would tell nothing to check it so.
    place = None
    if labeler.kind == "person" and luck < settings.repeats:
        place = _choose_repeat(db, labeler, settings.spacing)
    elif labeler.kind == "person" and luck < settings.repeats + settings.gold:
        place = _choose_gold(db, labeler)

    return place or _choose_new(db, labeler)


def _choose_repeat(db: sqlite3.Connection, labeler: Labeler, spacing: int) -> Place | None:
    """The item that this labeler picked on last but for so many, if it was not repeated before.

    Of items picked before the last ``spacing``, the newest that has no second turn; never a gold
    one, of which the answer is known anyway.
    """
    row = db.execute(
        "SELECT item FROM (SELECT item, turn FROM labels WHERE labeller = ?1 AND action = "
        "'pick' ORDER BY event DESC LIMIT -1 OFFSET ?2) o WHERE turn = 0 AND NOT EXISTS "
        "(SELECT 1 FROM labels r WHERE r.labeller = ?1 AND r.item = o.item AND r.turn = 1) "
        "AND NOT EXISTS (SELECT 1 FROM items i WHERE i.id = o.item AND i.gold IS NOT NULL) "
        "LIMIT 1",
        (labeler.id, spacing),
    ).fetchone()
    return None if row is None else Place(row["item"], labeler.id, 1)


def _choose_gold(db: sqlite3.Connection, labeler: Labeler) -> Place | None:
    """The first gold item that this labeler has not seen; each may be asked of everybody."""
    row = db.execute(
        "SELECT id FROM items i WHERE gold IS NOT NULL AND NOT EXISTS (SELECT 1 FROM "
        "labels l WHERE l.item = i.id AND l.labeller = ? AND l.turn = 0) "
        "ORDER BY place LIMIT 1",
        (labeler.id,),
    ).fetchone()
    return None if row is None else Place(row["id"], labeler.id, 0)


def _choose_new(db: sqlite3.Connection, labeler: Labeler) -> Place | None:
    """The next open item, in the drawn order of all, that this labeler has not seen.

    The search begins at the labeler's cursor: what lies before is done, or was seen already, and to
    look through it again would cost more with every label. It begins anew from the start where
    nothing is left behind, for items before the cursor come free when a lease runs out, a label is
    taken back, or more items come in.
    """
    cursor = db.execute("SELECT cursor FROM labellers WHERE id = ?", (labeler.id,)).fetchone()[0]
    for start in (cursor, -1):
        row = db.execute(
            "SELECT id, place FROM items i WHERE taken < wanted AND place > ?1 AND NOT EXISTS "
            "(SELECT 1 FROM labels l WHERE l.item = i.id AND l.labeller = ?2 AND l.turn = 0) "
            "AND NOT EXISTS (SELECT 1 FROM leases h WHERE h.item = i.id AND h.labeller = ?2) "
            "ORDER BY place LIMIT 1",
            (start, labeler.id),
        ).fetchone()
        if row is not None:
            db.execute("UPDATE labellers SET cursor = ? WHERE id = ?", (row["place"], labeler.id))
            return Place(row["id"], labeler.id, 0)
    return None
