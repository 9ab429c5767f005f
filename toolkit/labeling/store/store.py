"""Write to the store: add items, people and labels, and take labels back."""

import json
import math
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from toolkit.data.records import Row
from toolkit.data.text import printable
from toolkit.errors import InputError
from toolkit.labeling.store import queue
from toolkit.labeling.store.answers import (
    MOST_RANKED,
    Asked,
    Details,
    as_following,
    details_of,
    stored,
)
from toolkit.labeling.store.labels import (
    ACTIONS,
    DECIDED,
    Imported,
    Labeler,
    Place,
    Refused,
    add_label,
    count_taken,
    hashed,
    import_pick,
    void_label,
)
from toolkit.labeling.store.queue import HandedOut, Settings, Task, draw, shown_order
from toolkit.labeling.store.reading import StoreReader
from toolkit.labeling.times import TIMES, label_time

# Fields of a row that are not part of its item.
NOT_KEPT = (
    *("prompt", "completions", "best", "labeler", "scores", "ranking", "margin", "turn"),
    *("worst", "labeler_comment", "labeler_edit"),
)


def item_digest(row: Row, kind: str = "comparison", gold: bool = False) -> str:
    """The digest by which a store knows the item of a row: its texts and its ``source``.

    The same texts from another source make another item.
    """
    content = (json.dumps(row["prompt"], sort_keys=True), json.dumps(row["completions"]))
    return hashed(json.dumps([*content, row.get("source"), kind, gold], sort_keys=True))


def person_name(text: str) -> str:
    """Normalize a person's name: single spaces, composed letters.

    Raises:
        InputError: the name does not have 1 to 60 printable characters.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not 1 <= len(name) <= 60 or not name.isprintable():
        raise InputError(
            f"invite: {printable(name)!r:.80}: a name must have 1 to 60 printable characters",
            "invite",
        )
    return name


class Store(StoreReader):
    """The label store, which any number of threads and processes may hold open.

    Args:
        path: the file, which is made if it does not exist.
        settings: how items are handed out.

    Raises:
        InputError: the file is not a store, is damaged, cannot be written, or was made by a newer
            version.
    """

    def __init__(self, path: str | Path, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._handed_out = HandedOut()
        super().__init__(path)

    # Items

    def add_items(
        self, rows: Iterable[Row], kind: str = "comparison", gold: bool = False
    ) -> tuple[int, int]:
        """Add items from rows of ``prompt, completions``; further fields are kept.

        Args:
            rows: checked rows (``data.comparisons``).
            kind: "comparison" or "match".
            gold: whether ``best`` is the known answer.

        Returns:
            How many items were added, and how many were there already.
        """
        added = known = 0
        with self.writing() as db:
            for row in rows:
                _, new = self._add_item(db, row, kind, gold)
                added += new
                known += not new
            _check_countable(db, self.asked())
        return added, known

    def _add_item(
        self, db: sqlite3.Connection, row: Row, kind: str, gold: bool
    ) -> tuple[int, bool]:
        """Return an item's id, and whether it is new."""
        extra = {name: value for name, value in row.items() if name not in NOT_KEPT}
        try:  # NaN is not JSON for SQLite or for other tools
            kept = json.dumps(extra, allow_nan=False)
        except ValueError:
            raise InputError(f"a field of {list(extra)} holds NaN or infinity") from None

        content = (json.dumps(row["prompt"], sort_keys=True), json.dumps(row["completions"]))
        digest = item_digest(row, kind, gold)
        found = db.execute("SELECT id FROM items WHERE digest = ?", (digest,)).fetchone()
        if found is not None:
            if gold:  # the answer may have been corrected
                db.execute("UPDATE items SET gold = ? WHERE id = ?", (row["best"], found[0]))
            return found[0], False

        # The item's content decides its place in the order and whether two people label it, so
        # both are the same whenever it is added.
        luck = draw(self.settings.seed, digest)
        place = luck.getrandbits(62)
        twice = luck.random() < self.settings.overlap
        answer, wanted = (row["best"], 0) if gold else (None, max(self.settings.votes, 1 + twice))
        cursor = db.execute(
            "INSERT INTO items (digest, kind, prompt, completions, extra, gold, place, wanted) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (digest, kind, *content, kept, answer, place, wanted),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid, True

    # What people are asked

    def settle(self, given: Asked | None) -> Asked:
        """Store what the page asks of people, and return it.

        It may change until a person has answered here: later, labels of two kinds would be mixed.

        Args:
            given: what to ask; None for what is stored, and the best alone in a new store.

        Raises:
            InputError: people have answered what is stored, or an item has too many completions to
                be put in order.
        """
        with self.writing() as db:
            before = self.asked()
            if given is None or given == before:
                return before

            answered = db.execute(
                "SELECT count(*) FROM events e JOIN labellers w ON w.id = e.labeller "
                "WHERE w.kind = 'person' AND e.form NOT LIKE 'import %'"
            ).fetchone()[0]
            if answered:
                raise InputError(
                    f"ask: {self.path} asks people for {before}, and holds {answered} of their "
                    f"answers (pass --ask {before}, or leave it out, or name another --store)",
                    "ask",
                )
            _check_countable(db, given)
            db.execute("INSERT OR REPLACE INTO settings VALUES ('ask', ?)", (str(given),))
        return given

    # Labelers

    def invite(
        self,
        name: str,
        kind: str = "person",
        end_sessions: bool = True,
        replaces: str | None = None,
    ) -> str:
        """Make a new token for a name; the old token ends, and by default sessions end too.

        Args:
            name: a new labeler, or one who gets a new token.
            kind: person or admin.
            end_sessions: end the labeler's sessions.
            replaces: what ``invitation`` returned for the old token, so that none ends by mistake;
                None if there was no token.

        Raises:
            Refused: the name has another token than ``replaces``.
            InputError: the name belongs to another kind of labeler.
        """
        token = secrets.token_urlsafe(32)
        with self.writing() as db:
            labeler = _labeler(db, name, kind)
            if _invitation(db, name) != replaces:
                raise Refused(f"{name} already has a link, which a new one would end", 409)
            db.execute("UPDATE labellers SET token = ? WHERE id = ?", (hashed(token), labeler.id))
            if end_sessions:
                db.execute("DELETE FROM sessions WHERE labeller = ?", (labeler.id,))
        return token

    def script(self, name: str) -> Labeler:
        """Return the scripted labeler of this name, and add it if it is new."""
        with self.writing() as db:
            return _labeler(db, name, "script")

    def invitation(self, name: str) -> str | None:
        """Return an identifier of this name's token (it opens nothing); None without a token."""
        return _invitation(self.db, name)

    def kind_of(self, name: str) -> str | None:
        """Return the kind of the labeler of this name; None for unknown and imported names."""
        row = self.db.execute("SELECT id, kind FROM labellers WHERE name = ?", (name,)).fetchone()
        if row is None or (row["kind"] == "script" and not _has_worked(self.db, row["id"])):
            return None
        return row["kind"]

    def by_token(self, token: str) -> Labeler | None:
        """Return the labeler who has this token."""
        row = self.db.execute(
            "SELECT id, name, kind FROM labellers WHERE token = ?", (hashed(token),)
        ).fetchone()
        return None if row is None else Labeler(*row)

    def start_session(self, labeler: Labeler) -> str:
        """Start a session, and return its secret for the cookie."""
        secret = secrets.token_urlsafe(32)
        with self.writing() as db:
            db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?)", (hashed(secret), labeler.id, time.time())
            )
        return secret

    def by_session(self, secret: str, longest: float = math.inf) -> Labeler | None:
        """Return a session's labeler; None if it began over ``longest`` seconds from now."""
        row = self.db.execute(
            "SELECT l.id, l.name, l.kind FROM sessions s JOIN labellers l ON l.id = s.labeller "
            "WHERE s.hash = ? AND abs(? - s.created) < ?",
            (hashed(secret), time.time(), longest),
        ).fetchone()
        return None if row is None else Labeler(*row)

    def end_session(self, secret: str) -> None:
        """End a session."""
        with self.writing() as db:
            db.execute("DELETE FROM sessions WHERE hash = ?", (hashed(secret),))

    # Labeling

    def next_task(self, labeler: Labeler) -> Task | None:
        """Return this labeler's current item until it is answered; None if all is done."""
        now = time.time()
        held = queue.held_task(self.db, labeler, now, self.asked())
        if held is not None:
            return held

        with self.writing() as db:
            held = queue.held_task(
                db, labeler, now, self.asked()
            )  # another tab may have been faster
            if held is not None:
                return held
            queue.end_expired_leases(db, now)
            place = queue.choose(db, labeler, self.settings)
            if place is None:
                return None
            form = self._lease(db, place, now)
        return queue.task_of(self.db, place, form, self.asked())

    def _lease(self, db: sqlite3.Connection, place: Place, now: float) -> str:
        form = queue.lease(db, place, now, self.settings.lease)
        self._handed_out.add(form)
        return form

    def record(
        self,
        labeler: Labeler,
        form: str,
        action: str,
        position: int | None = None,
        reason: str | None = None,
        details: Details | None = None,
    ) -> bool:
        """Record a labeler's answer to an item.

        Args:
            labeler: the labeler.
            form: the task's form.
            action: pick, tie, bad or skip.
            position: for a pick, the position on the page, from 0.
            reason: for a skip, the reason.
            details: what a person's answer holds besides; completions are meant by position.

        Returns:
            False if the form was answered before, in which case that answer stands.

        Raises:
            Refused: the form belongs to somebody else or ran out, the position is invalid, or a
                person's answer is not what the store asks for.
        """
        if action not in ACTIONS[:-1] or (action == "pick") != (position is not None):
            raise Refused(f"{action!r} is not a valid answer", 400)

        now = time.time()
        with self.writing() as db:
            # A lease that ran out still counts until somebody else gets the item.
            before = db.execute("SELECT labeller FROM events WHERE form = ?", (form,)).fetchone()
            lease = db.execute("SELECT * FROM leases WHERE form = ?", (form,)).fetchone()
            owner = before or lease
            if owner is None:
                raise Refused("this form ran out, and somebody else may have the item now", 409)
            if owner["labeller"] != labeler.id:
                raise Refused("this form belongs to somebody else", 403)
            if before is not None:
                return False

            place = Place(lease["item"], labeler.id, lease["turn"])
            completions = queue.completions_of(db, place.item)
            order = shown_order(*place, len(completions))
            if position is not None and not 0 <= position < len(order):
                raise Refused(f"there is no completion {position + 1} of {len(order)}", 400)
            choice = None if position is None else order[position]

            # A script only ever picks, whatever people are asked.
            more: Row = {}
            if details is not None or labeler.kind == "person":
                details = details or Details()
                asked = queue.asked_for(db, place.item, self.asked())
                details.check(asked, action, position, len(order))
                more = _stored(details.by_index(order), completions, choice)

            seconds = self._handed_out.seconds(lease, now)
            add_label(db, form, place, action, choice, now, position, reason, seconds, more)

            # The label takes the lease's place in the item's count, unless it is a skip.
            db.execute("DELETE FROM leases WHERE form = ?", (form,))
            if action not in DECIDED:
                count_taken(db, place, -1)
        return True

    def undo(self, labeler: Labeler, after: int | None = None) -> bool:
        """Take back the labeler's last label, and hand its item out again at once.

        Args:
            labeler: the labeler.
            after: the event that the page showed as the last one. If it no longer is, nothing is
                taken back, so a second click does no harm. None for whichever is last.

        Returns:
            Whether a label was taken back.
        """
        now = time.time()
        with self.writing() as db:
            last = db.execute(
                "SELECT item, turn, event, action FROM labels WHERE labeller = ? "
                "ORDER BY event DESC LIMIT 1",
                (labeler.id,),
            ).fetchone()
            if last is None or after not in (None, last["event"]):
                return False
            place = Place(last["item"], labeler.id, last["turn"])
            void_label(db, place, last["event"], last["action"], now)
            self._lease(db, place, now)
        return True

    def take_back(self, labeler: Labeler, events: Iterable[int]) -> int:
        """Take back these labels of a labeler, so that their items are asked again.

        Returns:
            How many of them were still valid.
        """
        taken = 0
        now = time.time()
        with self.writing() as db:
            for event in events:
                label = db.execute(
                    "SELECT item, turn, action FROM labels WHERE event = ? AND labeller = ?",
                    (event, labeler.id),
                ).fetchone()
                if label is not None:
                    place = Place(label["item"], labeler.id, label["turn"])
                    void_label(db, place, event, label["action"], now)
                    taken += 1
        return taken

    def ask_again(self, labeler: Labeler) -> int:
        """Take back all refusals of a script, and return their number."""
        return self.take_back(labeler, self.refusals(labeler))

    def release(self, labeler: Labeler) -> None:
        """Free the items that a script holds and will not answer."""
        with self.writing() as db:
            for item, turn in db.execute(
                "SELECT item, turn FROM leases WHERE labeller = ?", (labeler.id,)
            ).fetchall():
                count_taken(db, Place(item, labeler.id, turn), -1)
            db.execute("DELETE FROM leases WHERE labeller = ?", (labeler.id,))

    # Picks from elsewhere

    def add_picks(self, rows: Iterable[Row]) -> tuple[int, int]:
        """Add picks that were made elsewhere, under their labelers' names.

        A person has one label per item. Of several in these rows, the latest counts (by
        ``updated_at`` or ``created_at``), or the last one in the file if a time is missing. It
        replaces the person's label in the store (and adds an undo event), unless that label is
        newer, or was made here and the row has no time. Importing a label again changes nothing.

        Args:
            rows: ``prompt, completions, best``, and optionally ``labeler`` (else "imported"),
                ``ranking``, ``worst``, ``margin``, ``labeler_comment`` and ``labeler_edit``.

        Returns:
            How many picks were added or replaced others, and how many changed nothing.

        Raises:
            InputError: the picked completion does not exist, or a time cannot be read.
        """
        given = 0
        last: dict[Place, Imported] = {}
        with self.writing() as db:
            for row in rows:
                given += 1
                choice, turn = row["best"], row.get("turn", 0)
                if choice not in range(len(row["completions"])) or turn not in (0, 1):
                    raise InputError(f"best {choice!r:.20}, turn {turn!r:.20}: out of range")

                when = label_time(row)
                row = {name: value for name, value in row.items() if name not in TIMES}
                item, _ = self._add_item(db, row, "comparison", False)
                name = printable(str(row.get("labeler") or "imported"))[:200]
                place = Place(item, _anybody(db, name).id, turn)

                pick = Imported(choice, when, details_of(row))
                before = last.get(place, pick).when
                if when is None or before is None or when >= before:
                    last[place] = pick

            added = sum(import_pick(db, place, pick) for place, pick in last.items())
        return added, given - added


def _stored(details: Details, completions: list[str], choice: int | None) -> Row:
    """Return details as they are stored; an edited answer that changes nothing is left out."""
    if details.edited is None:
        return stored(details)
    edited = as_following(details.edited, completions[0 if choice is None else choice])
    return stored(replace(details, edited=None if edited in completions else edited))


def _check_countable(db: sqlite3.Connection, asked: Asked) -> None:
    """Raise InputError if an item has more completions than a person can put in order."""
    if asked.order == "best":
        return
    most = db.execute("SELECT max(json_array_length(completions)) FROM items").fetchone()[0]
    if most is not None and most > MOST_RANKED:
        raise InputError(
            f"ask: {asked.order} is for at most {MOST_RANKED} completions, but an item has {most} "
            "(leave some out, or ask for the best)",
            "ask",
        )


def _labeler(db: sqlite3.Connection, name: str, kind: str) -> Labeler:
    """Return the labeler of this name, and add it if it is new; the kind must not differ."""
    row = db.execute("SELECT id, name, kind FROM labellers WHERE name = ?", (name,)).fetchone()
    if row is None:
        cursor = db.execute(
            "INSERT INTO labellers (name, kind, created) VALUES (?, ?, ?)",
            (name, kind, time.time()),
        )
        assert cursor.lastrowid is not None
        return Labeler(cursor.lastrowid, name, kind)

    # A person with imported labels counts as a script until they sign in.
    if row["kind"] == "script" and kind == "person" and not _has_worked(db, row["id"]):
        db.execute("UPDATE labellers SET kind = 'person' WHERE id = ?", (row["id"],))
        return Labeler(row["id"], name, kind)
    if row["kind"] != kind:
        raise InputError(f"labeler {name!r} is a {row['kind']}, not a {kind} (choose another name)")
    return Labeler(*row)


def _anybody(db: sqlite3.Connection, name: str) -> Labeler:
    """Return the labeler of this name, of any kind; a new one is added as a script."""
    row = db.execute("SELECT id, name, kind FROM labellers WHERE name = ?", (name,)).fetchone()
    return _labeler(db, name, "script") if row is None else Labeler(*row)


def _has_worked(db: sqlite3.Connection, labeler: int) -> bool:
    """Whether this labeler has labeled here, apart from imported labels."""
    query = "SELECT 1 FROM events WHERE labeller = ? AND form NOT LIKE 'import %' LIMIT 1"
    return db.execute(query, (labeler,)).fetchone() is not None


def _invitation(db: sqlite3.Connection, name: str) -> str | None:
    row = db.execute("SELECT token FROM labellers WHERE name = ?", (name,)).fetchone()
    return None if row is None or row[0] is None else hashed(row[0])[:16]
