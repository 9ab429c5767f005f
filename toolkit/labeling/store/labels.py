"""Write one label, its event and its item's count, within the caller's transaction."""

import hashlib
import json
import sqlite3
import time
from typing import NamedTuple

from toolkit.data.records import Row

ACTIONS = ("pick", "tie", "bad", "skip", "undo")
DECIDED = ("pick", "tie", "bad")  # after these an item needs one labeler less
REFUSED = "refused"  # a script's reason for a skip: its judge gave no answer
# Prefixes of the form numbers of imported picks, with and without a time.
IMPORT = "import dated"
UNDATED = "import undated"


class Refused(Exception):
    """A label cannot be recorded, and nothing was written; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Labeler(NamedTuple):
    """A labeler; ``kind`` is person, script or admin."""

    id: int
    name: str
    kind: str


class Place(NamedTuple):
    """The key of a label: item, labeler's id, and turn (1 for a hidden repeat)."""

    item: int
    labeler: int
    turn: int


def hashed(secret: str) -> str:
    """Return the SHA-256 of a text; random tokens of 256 bits need no slow hash."""
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
    details: Row | None = None,
) -> None:
    """Add an event and its label. The caller updates the item's count, if no lease did."""
    event = _add_event(db, form, place, action, choice, position, reason, seconds, at, details)
    db.execute("INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?)", (*place, event, action, choice))


def void_label(db: sqlite3.Connection, place: Place, event: int, action: str, now: float) -> None:
    """Add an undo event, and delete the label."""
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
    details: Row | None = None,
) -> int:
    more = json.dumps(details) if details else None
    cursor = db.execute(
        "INSERT INTO events (form, item, labeller, turn, action, choice, position, reason, "
        "seconds, at, details) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (form, *place, action, choice, position, reason, seconds, at, more),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def count_taken(db: sqlite3.Connection, place: Place, by: int) -> None:
    """Add to the number of labelers who took an item; repeats and gold items do not count."""
    if place.turn == 0:
        db.execute(
            "UPDATE items SET taken = taken + ? WHERE id = ? AND gold IS NULL", (by, place.item)
        )


class Imported(NamedTuple):
    """A pick that was made elsewhere.

    Attributes:
        choice: index of the picked completion.
        when: when it was made, in seconds since 1970; None if unknown.
        details: what it holds besides, as it is stored (``answers.details_of``).
    """

    choice: int
    when: float | None
    details: Row


def import_pick(db: sqlite3.Connection, place: Place, pick: Imported) -> bool:
    """Add an imported pick, unless the store has it or has a newer one.

    Args:
        db: within a transaction.
        place: the pick's key.
        pick: the pick.

    Returns:
        Whether the pick is now the label.
    """
    choice, when, details = pick

    # The same pick has the same form number each time it is imported. An older version knew no
    # details, so a pick without any keeps its number.
    same = (*place, choice, when) + ((json.dumps(details, sort_keys=True),) if details else ())
    form = f"{IMPORT if when is not None else UNDATED} {hashed(repr(same))}"
    if db.execute("SELECT 1 FROM events WHERE form = ?", (form,)).fetchone() is not None:
        return False

    now = time.time()
    old = db.execute(
        "SELECT l.event, l.action, l.choice, e.form, e.at, e.details FROM labels l JOIN events e "
        "ON e.id = l.event WHERE l.item = ? AND l.labeller = ? AND l.turn = ?",
        place,
    ).fetchone()
    if old is not None:
        undated = old["form"].startswith(UNDATED)
        later = undated or (when is not None and when >= old["at"])
        before = json.loads(old["details"] or "{}")

        # Other tools' files cannot say a ranking, a comment and the like, so their absence does not
        # mean that somebody took them back.
        unchanged = old["choice"] == choice and (not details or details == before)
        if not later or unchanged:
            return False
        void_label(db, place, old["event"], old["action"], now)

    # The item may be on this labeler's screen; end that form.
    where = "WHERE item = ? AND labeller = ? AND turn = ?"
    if db.execute(f"DELETE FROM leases {where}", place).rowcount:
        count_taken(db, place, -1)

    at = now if when is None else when
    add_label(db, form, place, "pick", choice, at, details=details)
    count_taken(db, place, 1)
    return True
