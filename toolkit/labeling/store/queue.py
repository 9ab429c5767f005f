"""Choose a labeler's next item, and keep leases so that others do not get the same item.

Each labeler sees the completions in another order (``shown_order``), so nobody learns that the
first one is usually the best. Events hold both index and position.

The system clock may be set by hand or by the network. A lease that begins in the future is
therefore ignored, and the seconds of an answer are measured by a monotonic clock or not at all.
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
from toolkit.labeling.store.answers import Asked
from toolkit.labeling.store.labels import Labeler, Place, count_taken

# Selects the leases that are valid at the time ?1. A lease that begins further in the future than
# it lasts was made before the clock was set back.
HOLDS = "(expires > ?1 AND since <= ?1 + (expires - since))"
REMEMBERED = 10_000  # last forms whose time is remembered
steady = time.monotonic


@dataclass(frozen=True)
class Settings:
    """How items are handed out.

    Attributes:
        overlap: share of the items that two labelers label.
        repeats: share of hidden repeats among a person's items.
        gold: share of gold items among a person's items, if there are any.
        lease: seconds for which an item is reserved for a labeler.
        spacing: least number of labels between an item and its repeat.
        seed: seed for the order of items and the choice of those that overlap.
        votes: people who label each item; more than one leaves ``overlap`` without effect.
    """

    overlap: float = 0.15
    repeats: float = 0.05
    gold: float = 0.05
    lease: float = 1800.0
    spacing: int = 10
    seed: int = 0
    votes: int = 1


class Said(NamedTuple):
    """An answer that was just taken back: places by position (1 is the best), and its details."""

    places: dict[int, int]
    details: Row


class Task(NamedTuple):
    """An item for a labeler: ``order[position]`` is the index of the completion shown there.

    ``extra`` holds the row's further fields, which a script's function may ask for. ``asked`` is
    what a person is asked for, and ``said`` what they said before they took it back just now.
    """

    form: str
    item: int
    turn: int
    kind: str
    prompt: Prompt
    completions: list[str]
    order: list[int]
    extra: Row
    asked: Asked
    said: Said


def draw(*parts: object) -> random.Random:
    """Return a random generator seeded with these parts."""
    return random.Random(hashlib.sha256(repr(parts).encode("utf-8", "replace")).digest())


def shown_order(item: int, labeler: int, turn: int, count: int) -> list[int]:
    """Return the completions' indices in the order shown to this labeler in this turn."""
    order = list(range(count))
    draw("order", item, labeler, turn).shuffle(order)
    return order


class HandedOut:
    """Remembers when this process handed out its last forms, by the monotonic clock."""

    def __init__(self) -> None:
        self._when: OrderedDict[str, float] = OrderedDict()

    def add(self, form: str) -> None:
        """Note that a form was handed out now."""
        self._when[form] = steady()
        while len(self._when) > REMEMBERED:
            self._when.popitem(last=False)

    def seconds(self, lease: sqlite3.Row, now: float) -> float | None:
        """Return how many seconds ago a form was handed out; None if the clock was set."""
        begun = self._when.pop(lease["form"], None)
        if begun is not None:
            return max(0.0, steady() - begun)

        # Another process handed it out, and the clock may have been set since.
        seconds = now - lease["since"]
        return seconds if 0 <= seconds <= lease["expires"] - lease["since"] else None


def held_task(db: sqlite3.Connection, labeler: Labeler, now: float, asked: Asked) -> Task | None:
    """Return the last item that this labeler got and has not answered; None if there is none."""
    row = db.execute(
        f"SELECT form, item, turn FROM leases WHERE {HOLDS} AND labeller = ?2 "
        "ORDER BY since DESC LIMIT 1",
        (now, labeler.id),
    ).fetchone()
    if row is None:
        return None
    return task_of(db, Place(row["item"], labeler.id, row["turn"]), row["form"], asked)


def task_of(db: sqlite3.Connection, place: Place, form: str, asked: Asked) -> Task:
    """Return the item of a form, in a store that asks people for ``asked``."""
    row = db.execute(
        "SELECT kind, prompt, completions, extra FROM items WHERE id = ?", (place.item,)
    ).fetchone()
    completions = json.loads(row["completions"])
    order = shown_order(*place, len(completions))
    return Task(
        form,
        place.item,
        place.turn,
        row["kind"],
        json.loads(row["prompt"]),
        completions,
        order,
        json.loads(row["extra"]),
        asked_for(db, place.item, asked),
        _taken_back(db, place, order),
    )


def _taken_back(db: sqlite3.Connection, place: Place, order: list[int]) -> Said:
    """Return what the labeler said of this item, if the last thing they did was to take it back."""
    last = db.execute(
        "SELECT form, item, turn, action FROM events WHERE labeller = ? ORDER BY id DESC LIMIT 1",
        (place.labeler,),
    ).fetchone()
    if last is None or (last["action"], last["item"], last["turn"]) != (
        "undo",
        place.item,
        place.turn,
    ):
        return Said({}, {})

    event = db.execute(
        "SELECT choice, details FROM events WHERE id = ?", (last["form"].removeprefix("undo "),)
    ).fetchone()
    details = json.loads(event["details"] or "{}")
    ranking = details.get("ranking") or [k for k in (event["choice"],) if k is not None]
    places = {order.index(k): n for n, k in enumerate(ranking, start=1)}
    if "worst" in details:
        places[order.index(details["worst"])] = len(order)
    return Said(places, details)


def completions_of(db: sqlite3.Connection, item: int) -> list[str]:
    """Return an item's completions."""
    stored = db.execute("SELECT completions FROM items WHERE id = ?", (item,))
    return json.loads(stored.fetchone()[0])


def asked_for(db: sqlite3.Connection, item: int, asked: Asked) -> Asked:
    """Return what is asked for an item: of a match between two contenders only who won."""
    kind = db.execute("SELECT kind FROM items WHERE id = ?", (item,)).fetchone()[0]
    return Asked() if kind == "match" else asked


def lease(db: sqlite3.Connection, place: Place, now: float, seconds: float) -> str:
    """Reserve an item for a labeler for ``seconds``; return the number of the form."""
    form = secrets.token_urlsafe(16)
    db.execute("INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?)", (form, *place, now, now + seconds))
    count_taken(db, place, 1)
    return form


def end_expired_leases(db: sqlite3.Connection, now: float) -> None:
    """Delete the leases that ran out, which frees their items."""
    db.execute(
        "UPDATE items SET taken = taken - (SELECT count(*) FROM leases WHERE item = items.id "
        f"AND turn = 0 AND NOT {HOLDS}) WHERE gold IS NULL AND id IN "
        f"(SELECT item FROM leases WHERE NOT {HOLDS})",
        (now,),
    )
    db.execute(f"DELETE FROM leases WHERE NOT {HOLDS}", (now,))


def choose(db: sqlite3.Connection, labeler: Labeler, settings: Settings) -> Place | None:
    """Choose this labeler's next item; None if all is done.

    A person sometimes gets a hidden repeat or a gold item. All others get new items.
    """
    # The draw depends on the labeler's number of labels, so that it is the same after an undo or
    # in another process.
    seen = db.execute("SELECT count(*) FROM labels WHERE labeller = ?", (labeler.id,)).fetchone()[0]
    luck = draw("turn", settings.seed, labeler.id, seen).random()

    # A script gives the same answer each time, so repeats would show nothing.
    place = None
    if labeler.kind == "person" and luck < settings.repeats:
        place = _choose_repeat(db, labeler, settings.spacing)
    elif labeler.kind == "person" and luck < settings.repeats + settings.gold:
        place = _choose_gold(db, labeler)

    return place or _choose_new(db, labeler)


def _choose_repeat(db: sqlite3.Connection, labeler: Labeler, spacing: int) -> Place | None:
    """Return the newest item that this labeler picked before the last ``spacing`` picks.

    Gold items and items that were repeated before are left out.
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
    """Return the first gold item that this labeler has not seen; everybody may get each one."""
    row = db.execute(
        "SELECT id FROM items i WHERE gold IS NOT NULL AND NOT EXISTS (SELECT 1 FROM "
        "labels l WHERE l.item = i.id AND l.labeller = ? AND l.turn = 0) "
        "ORDER BY place LIMIT 1",
        (labeler.id,),
    ).fetchone()
    return None if row is None else Place(row["id"], labeler.id, 0)


def _choose_new(db: sqlite3.Connection, labeler: Labeler) -> Place | None:
    """Return the next open item in the random order of all items that this labeler has not seen.

    The search begins at the labeler's cursor, because the items before it are done or seen, and
    searching them again would cost more with every label. If nothing is left after the cursor, the
    search starts from the beginning: items before the cursor become free when a lease runs out, a
    label is taken back, or items are added.
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
