"""Write one label: the event that says it, what then holds, and how often its item is taken.

All of it within the caller's transaction.
"""

import hashlib
import sqlite3
import time
from typing import NamedTuple

ACTIONS = ("pick", "tie", "bad", "skip", "undo")
DECIDED = ("pick", "tie", "bad")  # after these an item needs one labeler less
REFUSED = "refused"  # a script's reason for a skip: its judge gave no answer
# How the forms of imported picks begin; the second of such as did not say when they were made.
IMPORT = "import dated"
UNDATED = "import undated"


class Refused(Exception):
    """A label that can not be recorded; nothing was written. ``status`` is HTTP's word for it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Labeler(NamedTuple):
    """Who labels: ``kind`` is person, script or admin."""

    id: int
    name: str
    kind: str


class Place(NamedTuple):
    """What a label is of: an item, a labeler's id, and the turn (1 for a hidden repeat)."""

    item: int
    labeler: int
    turn: int


def hashed(secret: str) -> str:
    """The SHA-256 of a text: random tokens of 256 bits need no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def add_label(
    db: sqlite3.Connection,
    form: str,
    place: Place,
    action: str,
    choice: int | None,
    at: float,
    position: int | None = None,
    reason: str | None = None,
    seconds: float | None = None,
) -> None:
    """Add an event, and let it hold.

    How often the item is taken is left to the caller: a lease has counted already.
    """
    event = _add_event(db, form, place, action, choice, position, reason, seconds, at)
    db.execute("INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?)", (*place, event, action, choice))


def void_label(db: sqlite3.Connection, place: Place, event: int, action: str, now: float) -> None:
    """Add the event that undoes a label, and drop the label."""
    _add_event(db, f"undo {event}", place, "undo", None, None, None, None, now)
    db.execute("DELETE FROM labels WHERE item = ? AND labeller = ? AND turn = ?", place)
    if action in DECIDED:
        count_taken(db, place, -1)


def _add_event(
    db: sqlite3.Connection,
    form: str,
    place: Place,
    action: str,
    choice: int | None,
    position: int | None,
    reason: str | None,
    seconds: float | None,
    at: float,
) -> int:
    cursor = db.execute(
        "INSERT INTO events (form, item, labeller, turn, action, choice, position, reason, "
        "seconds, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (form, *place, action, choice, position, reason, seconds, at),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def count_taken(db: sqlite3.Connection, place: Place, by: int) -> None:
    """Count an item as taken by one labeler more, or fewer; repeats and gold items never are."""
    if place.turn == 0:
        db.execute(
            "UPDATE items SET taken = taken + ? WHERE id = ? AND gold IS NULL", (by, place.item)
        )


def import_pick(db: sqlite3.Connection, place: Place, choice: int, when: float | None) -> bool:
    """Let a pick that was made elsewhere hold, unless it is known or an older one.

    Args:
        db: within a transaction.
        place: of the pick.
        choice: index of the picked completion.
        when: it was made, in seconds since 1970; None where it does not say.

    Returns:
        Whether it is now what holds.
    """
    # A pick that comes in again has the same form.
    form = f"{IMPORT if when is not None else UNDATED} {hashed(repr((*place, choice, when)))}"
    if db.execute("SELECT 1 FROM events WHERE form = ?", (form,)).fetchone() is not None:
        return False

    now = time.time()
    old = db.execute(
        "SELECT l.event, l.action, l.choice, e.form, e.at FROM labels l JOIN events e "
        "ON e.id = l.event WHERE l.item = ? AND l.labeller = ? AND l.turn = ?",
        place,
    ).fetchone()
    if old is not None:
        undated = old["form"].startswith(UNDATED)
        later = undated or (when is not None and when >= old["at"])
        if old["choice"] == choice or not later:
            return False
        void_label(db, place, old["event"], old["action"], now)

    # The item may be on this labeler's screen: that form has run out.
    where = "WHERE item = ? AND labeller = ? AND turn = ?"
    if db.execute(f"DELETE FROM leases {where}", place).rowcount:
        count_taken(db, place, -1)

    add_label(db, form, place, "pick", choice, now if when is None else when)
    count_taken(db, place, 1)
    return True
