"""The labels: an SQLite file in which nothing that was acknowledged is lost, or is there twice.

    item      a prompt with K completions and where they came from; a comparison, or a match between
              two contenders; perhaps gold: its best completion is known
    labeler  a person, who comes with a token, or a script
    lease     who is looking at which item, and the number of the form that was handed out
    event     what a labeler said of an item: pick, tie, bad (all of them), skip, or undo. Events
              are only ever added; a form makes at most one
    label     what holds of an item, a labeler and a turn (0, or 1 for a hidden repeat): the last
              event that was not undone. Derived, and checked against the events at every start

Completions are shown in an order of their own for each labeler (``shown_order``), so nobody learns
that the first is usually the best; events hold both index and position.

Clocks are set, by hand or by a network: a lease or a session that begins in the future is none, and
how long an answer took is told by a clock that nobody sets, or not at all.
"""

import hashlib
import json
import math
import os
import random
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.data.numbering import TIMES, label_time
from toolkit.data.outputs import try_to_write
from toolkit.data.text import printable
from toolkit.errors import InputError

ACTIONS = ("pick", "tie", "bad", "skip", "undo")
DECIDED = ("pick", "tie", "bad")  # after these an item needs one labeler less
REFUSED = "refused"  # a script's reason for a skip: its judge gave no answer
# How the forms of imported picks begin; the second of such as did not say when they were made.
IMPORT, UNDATED = "import dated", "import undated"

SCHEMA = """
CREATE TABLE items (
  id INTEGER PRIMARY KEY,
  digest TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('comparison', 'match')),
  prompt TEXT NOT NULL,
  completions TEXT NOT NULL,
  extra TEXT NOT NULL,
  gold INTEGER,
  place INTEGER NOT NULL,
  wanted INTEGER NOT NULL,
  taken INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX items_open ON items (place) WHERE taken < wanted;
CREATE INDEX items_gold ON items (place) WHERE gold IS NOT NULL;
CREATE TABLE labellers (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('person', 'script', 'admin')),
  token TEXT UNIQUE,
  cursor INTEGER NOT NULL DEFAULT -1,
  created REAL NOT NULL
);
CREATE TABLE sessions (
  hash TEXT PRIMARY KEY,
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  created REAL NOT NULL
);
CREATE TABLE leases (
  form TEXT PRIMARY KEY,
  item INTEGER NOT NULL REFERENCES items (id),
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  turn INTEGER NOT NULL,
  since REAL NOT NULL,
  expires REAL NOT NULL,
  UNIQUE (labeller, item, turn)
);
CREATE INDEX leases_item ON leases (item);
CREATE INDEX leases_expires ON leases (expires);
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  form TEXT NOT NULL UNIQUE,
  item INTEGER NOT NULL REFERENCES items (id),
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  turn INTEGER NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('pick', 'tie', 'bad', 'skip', 'undo')),
  choice INTEGER,
  position INTEGER,
  reason TEXT,
  seconds REAL,
  at REAL NOT NULL,
  CHECK ((action = 'pick') = (choice IS NOT NULL))
);
CREATE INDEX events_labeller ON events (labeller, id);
CREATE TRIGGER events_stay BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are only ever added'); END;
CREATE TRIGGER events_last BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are only ever added'); END;
CREATE TABLE labels (
  item INTEGER NOT NULL REFERENCES items (id),
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  turn INTEGER NOT NULL,
  event INTEGER NOT NULL UNIQUE REFERENCES events (id),
  action TEXT NOT NULL,
  choice INTEGER,
  PRIMARY KEY (item, labeller, turn)
) WITHOUT ROWID;
CREATE INDEX labels_labeller ON labels (labeller, event);
"""
# A lease that holds at the time ?1. One that begins further in the future than it lasts was made
# before the clock was set back.
HOLDS = "(expires > ?1 AND since <= ?1 + (expires - since))"
HANDED_OUT = 10_000  # forms of which it is remembered when they were handed out
steady = time.monotonic  # a clock that nobody sets
# Each brings a file from its index to the next version; PRAGMA user_version says where it is.
MIGRATIONS = (SCHEMA,)


class Refused(Exception):
    """A label that can not be recorded; nothing was written. ``status`` is HTTP's word for it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


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
    prompt: Any
    completions: list[str]
    order: list[int]
    extra: dict[str, Any]


class Labeler(NamedTuple):
    """Who labels."""

    id: int
    name: str
    kind: str


def hashed(secret: str) -> str:
    """How tokens are kept: random ones of 256 bits need no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def person_name(text: str) -> str:
    """A person's name as it is kept: spaces one at a time, letters composed.

    Raises:
        InputError: none of 1 to 60 printable characters.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if not 1 <= len(name) <= 60 or not name.isprintable():
        raise InputError(
            f"invite: {printable(name)!r:.80}: a name of 1 to 60 printable characters is wanted",
            "invite",
        )
    return name


def draw(*parts: Any) -> random.Random:
    """A generator that these parts decide."""
    return random.Random(hashlib.sha256(repr(parts).encode("utf-8", "replace")).digest())


def shown_order(item: int, labeler: int, turn: int, count: int) -> list[int]:
    """The completions' indices as they are shown: another order for each labeler and turn."""
    order = list(range(count))
    draw("order", item, labeler, turn).shuffle(order)
    return order


class Store:
    """The file of labels; any number of threads and processes may hold it open.

    Args:
        path: made if it is not there.
        settings: how items are handed out.

    Raises:
        InputError: no store, a newer version's, a damaged one, or one that can not be written.
    """

    def __init__(self, path: str | Path, settings: Settings | None = None) -> None:
        self.path, self.settings = Path(path), settings or Settings()
        self._local, self._turn = threading.local(), threading.Lock()
        self._connections: dict[threading.Thread, sqlite3.Connection] = {}
        self._handed: OrderedDict[str, float] = OrderedDict()  # forms: ``steady`` when handed out
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._migrate()
            self.check()
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: {cure(error)}") from None

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
            for thread in [t for t in self._connections.copy() if not t.is_alive()]:
                self._connections.pop(thread).close()  # a server's threads come and go
            self._connections[threading.current_thread()] = connection
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, timeout=10.0, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON",
                       "busy_timeout=10000", "trusted_schema=OFF"):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def _reading(self, query: str, *values: Any) -> Iterator[sqlite3.Row]:
        """Rows on a connection of their own, as of one moment, from whatever threads they are read.

        Long answers go out while others write.
        """
        connection = self._connect()
        try:
            yield from connection.execute(query, values)
        finally:
            connection.close()

    def close(self) -> None:
        """Close every thread's connection."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        self._local = threading.local()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk when the block ends, or nothing is."""
        with self._turn:  # SQLite's own queue is a sleep and another try
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    def _migrate(self) -> None:
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise InputError(
                f"{self.path}: made by a newer version of the toolkit (schema {version}, this one "
                f"knows {len(MIGRATIONS)}): update the toolkit"
            )
        if version == len(MIGRATIONS):
            return
        with self._writing() as db:  # another process may be at the same
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone() is not None:
                raise InputError(f"{self.path}: an SQLite file, but not a store of labels")
            for script in MIGRATIONS[version:]:
                for statement in _statements(script):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def check(self) -> None:
        """Raise InputError if the file is damaged, or labels are not what the events say."""
        self.db.execute("BEGIN")  # one moment, whoever is writing
        try:
            problem = self._damage(self.db)
        finally:
            self.db.execute("COMMIT")
        if problem:
            raise InputError(f"{self.path}: damaged ({problem}); take a copy made before")

    @staticmethod
    def _damage(db: sqlite3.Connection) -> str | None:
        problem = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            return " ".join(problem.replace("*", " ").split())
        if db.execute("PRAGMA foreign_key_check").fetchone() is not None:
            return "a label of an item that is not there"
        others = db.execute(
            "SELECT count(*) FROM labels l JOIN events e ON e.id = l.event WHERE e.item != l.item "
            "OR e.labeller != l.labeller OR e.turn != l.turn OR e.action != l.action"
        ).fetchone()[0]
        counts = dict(db.execute("SELECT action = 'undo', count(*) FROM events GROUP BY 1"))
        held = db.execute("SELECT count(*) FROM labels").fetchone()[0]
        if others or held != counts.get(0, 0) - counts.get(1, 0):
            return "labels are not what the events say"
        miscounted = db.execute(
            "SELECT count(*) FROM items i LEFT JOIN (SELECT item, count(*) AS n FROM (SELECT item "
            "FROM labels WHERE turn = 0 AND action != 'skip' UNION ALL SELECT item FROM leases "
            "WHERE turn = 0) GROUP BY item) t ON t.item = i.id "
            "WHERE i.gold IS NULL AND i.taken != coalesce(t.n, 0)"
        ).fetchone()[0]
        return f"{miscounted} items miscounted" if miscounted else None

    # Items

    def add_items(
        self, rows: Iterable[dict[str, Any]], kind: str = "comparison", gold: bool = False
    ) -> tuple[int, int]:
        """Add rows of ``prompt, completions`` (and anything else, kept with them).

        Args:
            rows: checked ones (``data.comparisons``).
            kind: "comparison" or "match".
            gold: their ``best`` is the answer.

        Returns:
            How many were added, and how many were there already.
        """
        added = known = 0
        with self._writing() as db:
            for row in rows:
                _, new = self._add_item(db, row, kind, gold)
                added, known = added + new, known + (not new)
        return added, known

    def _add_item(
        self, db: sqlite3.Connection, row: dict[str, Any], kind: str, gold: bool
    ) -> tuple[int, bool]:
        said = ("prompt", "completions", "best", "labeler", "scores", "ranking", "margin", "turn")
        extra = {k: v for k, v in row.items() if k not in said}
        try:  # NaN is no JSON, to SQLite or to others
            kept = json.dumps(extra, allow_nan=False)
        except ValueError:
            raise InputError(f"a field of {list(extra)} holds NaN or infinity") from None
        content = (json.dumps(row["prompt"], sort_keys=True), json.dumps(row["completions"]))
        digest = hashed(json.dumps([*content, extra.get("source"), kind, gold], sort_keys=True))
        found = db.execute("SELECT id FROM items WHERE digest = ?", (digest,)).fetchone()
        if found is not None:
            if gold:  # its answer may have been corrected
                db.execute("UPDATE items SET gold = ? WHERE id = ?", (row["best"], found[0]))
            return found[0], False
        luck = draw(self.settings.seed, digest)
        place, twice = luck.getrandbits(62), luck.random() < self.settings.overlap
        cursor = db.execute(
            "INSERT INTO items (digest, kind, prompt, completions, extra, gold, place, wanted) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (digest, kind, *content, kept, row["best"] if gold else None, place,
             0 if gold else 1 + twice),
        )  # fmt: skip
        assert cursor.lastrowid is not None
        return cursor.lastrowid, True

    # Labelers

    def invite(
        self, name: str, kind: str = "person", end_sessions: bool = True,
        replaces: str | None = None,
    ) -> str:  # fmt: skip
        """A new token for this name, kept hashed; the earlier one ends, and sessions too.

        Args:
            name: of a new labeler, or of one who gets another token.
            kind: person or admin.
            end_sessions: sessions end with the earlier token.
            replaces: what ``invitation`` says of the token that is to end, so that none ends by
                mistake; None where there is none yet.

        Raises:
            Refused: the name has another token than that.
            InputError: the name is that of another kind of labeler.
        """
        token = secrets.token_urlsafe(32)
        with self._writing() as db:
            labeler = self._labeler(db, name, kind)
            if self._invitation(db, name) != replaces:
                raise Refused(f"{name} has a link already, which a new one would end", 409)
            db.execute("UPDATE labellers SET token = ? WHERE id = ?", (hashed(token), labeler.id))
            if end_sessions:
                db.execute("DELETE FROM sessions WHERE labeller = ?", (labeler.id,))
        return token

    def script(self, name: str) -> Labeler:
        """The scripted labeler of this name."""
        with self._writing() as db:
            return self._labeler(db, name, "script")

    def _labeler(self, db: sqlite3.Connection, name: str, kind: str) -> Labeler:
        row = db.execute("SELECT id, name, kind FROM labellers WHERE name = ?", (name,)).fetchone()
        if row is None:
            cursor = db.execute(
                "INSERT INTO labellers (name, kind, created) VALUES (?, ?, ?)",
                (name, kind, time.time()),
            )
            assert cursor.lastrowid is not None
            return Labeler(cursor.lastrowid, name, kind)
        if row["kind"] == "script" and kind == "person" and not self._worked(db, row["id"]):
            db.execute("UPDATE labellers SET kind = 'person' WHERE id = ?", (row["id"],))
            return Labeler(row["id"], name, kind)
        if row["kind"] != kind:
            raise InputError(
                f"labeler {name!r} is a {row['kind']}, not a {kind}: take another name"
            )
        return Labeler(*row)

    @staticmethod
    def _worked(db: sqlite3.Connection, labeler: int) -> bool:
        """Whether this one has labeled here, beside what was imported under the name."""
        query = "SELECT 1 FROM events WHERE labeller = ? AND form NOT LIKE 'import %' LIMIT 1"
        return db.execute(query, (labeler,)).fetchone() is not None

    def invitation(self, name: str) -> str | None:
        """What this name's token is told from others by; it opens nothing. None for no token."""
        return self._invitation(self.db, name)

    @staticmethod
    def _invitation(db: sqlite3.Connection, name: str) -> str | None:
        row = db.execute("SELECT token FROM labellers WHERE name = ?", (name,)).fetchone()
        return None if row is None or row[0] is None else hashed(row[0])[:16]

    def kind_of(self, name: str) -> str | None:
        """What kind of labeler has this name; None for nobody, and for imported labels' names."""
        row = self.db.execute("SELECT id, kind FROM labellers WHERE name = ?", (name,)).fetchone()
        if row is None or (row["kind"] == "script" and not self._worked(self.db, row["id"])):
            return None
        return row["kind"]

    def by_token(self, token: str) -> Labeler | None:
        """Whose token it is."""
        row = self.db.execute(
            "SELECT id, name, kind FROM labellers WHERE token = ?", (hashed(token),)
        ).fetchone()
        return None if row is None else Labeler(*row)

    def start_session(self, labeler: Labeler) -> str:
        """A new session's secret, for a cookie."""
        secret = secrets.token_urlsafe(32)
        with self._writing() as db:
            db.execute(
                "INSERT INTO sessions VALUES (?, ?, ?)", (hashed(secret), labeler.id, time.time())
            )
        return secret

    def by_session(self, secret: str, longest: float = math.inf) -> Labeler | None:
        """Whose session it is, unless it began more than ``longest`` seconds ago, or from now."""
        row = self.db.execute(
            "SELECT l.id, l.name, l.kind FROM sessions s JOIN labellers l ON l.id = s.labeller "
            "WHERE s.hash = ? AND abs(? - s.created) < ?", (hashed(secret), time.time(), longest),
        ).fetchone()  # fmt: skip
        return None if row is None else Labeler(*row)

    def end_session(self, secret: str) -> None:
        """Sign out."""
        with self._writing() as db:
            db.execute("DELETE FROM sessions WHERE hash = ?", (hashed(secret),))

    # Labeling

    def next_task(self, labeler: Labeler) -> Task | None:
        """What this labeler is asked now: the same until it is answered; None if all is done."""
        now = time.time()
        held = self._held(self.db, labeler, now)
        if held is not None:
            return held
        with self._writing() as db:
            held = self._held(db, labeler, now)  # another tab may have been faster
            if held is not None:
                return held
            self._reap(db, now)
            chosen = self._choose(db, labeler)
            if chosen is None:
                return None
            item, turn = chosen
            form = self._lease(db, labeler, item, turn, now)
        return self._task(self.db, labeler, item, turn, form)

    def _held(self, db: sqlite3.Connection, labeler: Labeler, now: float) -> Task | None:
        row = db.execute(
            f"SELECT form, item, turn FROM leases WHERE {HOLDS} AND labeller = ?2 "
            "ORDER BY since DESC LIMIT 1", (now, labeler.id),
        ).fetchone()  # fmt: skip
        return None if row is None else self._task(db, labeler, row[1], row[2], row[0])

    def _task(
        self, db: sqlite3.Connection, labeler: Labeler, item: int, turn: int, form: str
    ) -> Task:
        row = db.execute(
            "SELECT kind, prompt, completions, extra FROM items WHERE id = ?", (item,)
        ).fetchone()
        completions = json.loads(row["completions"])
        order = shown_order(item, labeler.id, turn, len(completions))
        prompt, extra = json.loads(row["prompt"]), json.loads(row["extra"])
        return Task(form, item, turn, row["kind"], prompt, completions, order, extra)

    def _reap(self, db: sqlite3.Connection, now: float) -> None:
        """Leases that ran out: their items are free again."""
        db.execute(
            "UPDATE items SET taken = taken - (SELECT count(*) FROM leases WHERE item = items.id "
            f"AND turn = 0 AND NOT {HOLDS}) WHERE gold IS NULL AND id IN "
            f"(SELECT item FROM leases WHERE NOT {HOLDS})", (now,),
        )  # fmt: skip
        db.execute(f"DELETE FROM leases WHERE NOT {HOLDS}", (now,))

    def _choose(self, db: sqlite3.Connection, labeler: Labeler) -> tuple[int, int] | None:
        """An item and a turn: now and then a hidden repeat or a gold item, else a new one."""
        seen = db.execute(
            "SELECT count(*) FROM labels WHERE labeller = ?", (labeler.id,)
        ).fetchone()[0]
        luck = draw("turn", self.settings.seed, labeler.id, seen).random()
        if labeler.kind == "person" and luck < self.settings.repeats:
            repeat = db.execute(
                "SELECT item FROM (SELECT item, turn FROM labels WHERE labeller = ?1 AND action = "
                "'pick' ORDER BY event DESC LIMIT -1 OFFSET ?2) o WHERE turn = 0 AND NOT EXISTS "
                "(SELECT 1 FROM labels r WHERE r.labeller = ?1 AND r.item = o.item AND r.turn = 1) "
                "AND NOT EXISTS (SELECT 1 FROM items i WHERE i.id = o.item AND i.gold IS NOT NULL) "
                "LIMIT 1", (labeler.id, self.settings.spacing),
            ).fetchone()  # fmt: skip
            if repeat is not None:
                return repeat[0], 1
        elif labeler.kind == "person" and luck < self.settings.repeats + self.settings.gold:
            gold = db.execute(
                "SELECT id FROM items i WHERE gold IS NOT NULL AND NOT EXISTS (SELECT 1 FROM "
                "labels l WHERE l.item = i.id AND l.labeller = ? AND l.turn = 0) "
                "ORDER BY place LIMIT 1", (labeler.id,),
            ).fetchone()  # fmt: skip
            if gold is not None:
                return gold[0], 0
        # From where this labeler was last: what lies before is done, or was seen already.
        cursor = db.execute("SELECT cursor FROM labellers WHERE id = ?", (labeler.id,)).fetchone()[
            0
        ]
        for start in (cursor, -1):
            new = db.execute(
                "SELECT id, place FROM items i WHERE taken < wanted AND place > ?1 AND NOT EXISTS "
                "(SELECT 1 FROM labels l WHERE l.item = i.id AND l.labeller = ?2 AND l.turn = 0) "
                "AND NOT EXISTS (SELECT 1 FROM leases h WHERE h.item = i.id AND h.labeller = ?2) "
                "ORDER BY place LIMIT 1", (start, labeler.id),
            ).fetchone()  # fmt: skip
            if new is not None:
                db.execute(
                    "UPDATE labellers SET cursor = ? WHERE id = ?", (new["place"], labeler.id)
                )
                return new["id"], 0
        return None

    def _lease(
        self, db: sqlite3.Connection, labeler: Labeler, item: int, turn: int, now: float
    ) -> str:
        form = secrets.token_urlsafe(16)
        db.execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?)",
            (form, item, labeler.id, turn, now, now + self.settings.lease),
        )
        self._count(db, item, turn, 1)
        self._handed[form] = steady()
        while len(self._handed) > HANDED_OUT:
            self._handed.popitem(last=False)
        return form

    def _seconds(self, lease: sqlite3.Row, now: float) -> float | None:
        """How long ago a form was handed out; None where clocks do not tell."""
        begun = self._handed.pop(lease["form"], None)
        if begun is not None:
            return max(0.0, steady() - begun)
        # Handed out by another process, or by one before this: the clock may have been set.
        seconds = now - lease["since"]
        return seconds if 0 <= seconds <= lease["expires"] - lease["since"] else None

    def _count(self, db: sqlite3.Connection, item: int, turn: int, by: int) -> None:
        """An item is taken by one labeler more, or fewer; repeats and gold items never are."""
        if turn == 0:
            db.execute(
                "UPDATE items SET taken = taken + ? WHERE id = ? AND gold IS NULL", (by, item)
            )

    def record(
        self, labeler: Labeler, form: str, action: str, position: int | None = None,
        reason: str | None = None,
    ) -> bool:  # fmt: skip
        """Record what a labeler says of the item whose form they hold.

        Args:
            labeler: who.
            form: the task's.
            action: pick, tie, bad or skip.
            position: of a pick, as shown, from 0.
            reason: of a skip.

        Returns:
            False if that form was answered before: what it said then stands.

        Raises:
            Refused: the form is somebody else's, or ran out, or the position is none.
        """
        if action not in ACTIONS[:-1] or (action == "pick") != (position is not None):
            raise Refused(f"{action!r} is no answer", 400)
        now = time.time()
        with self._writing() as db:
            before = db.execute("SELECT labeller FROM events WHERE form = ?", (form,)).fetchone()
            lease = db.execute("SELECT * FROM leases WHERE form = ?", (form,)).fetchone()
            owner = before or lease
            if owner is None:
                raise Refused("this form has run out: somebody else may have the item now", 409)
            if owner["labeller"] != labeler.id:
                raise Refused("this form is somebody else's", 403)
            if before is not None:
                return False
            item, turn, choice = lease["item"], lease["turn"], None
            if position is not None:
                stored = db.execute("SELECT completions FROM items WHERE id = ?", (item,))
                count = len(json.loads(stored.fetchone()[0]))
                if not 0 <= position < count:
                    raise Refused(f"there is no completion {position + 1} of {count}", 400)
                choice = shown_order(item, labeler.id, turn, count)[position]
            event = self._event(
                db, form, item, labeler, turn, action, choice, position, reason,
                self._seconds(lease, now), now,
            )  # fmt: skip
            db.execute(
                "INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?)",
                (item, labeler.id, turn, event, action, choice),
            )
            db.execute("DELETE FROM leases WHERE form = ?", (form,))
            if action not in DECIDED:
                self._count(db, item, turn, -1)
        return True

    def _event(self, db: sqlite3.Connection, form: str, item: int, labeler: Labeler,
               *values: Any) -> int:  # fmt: skip
        cursor = db.execute(
            "INSERT INTO events (form, item, labeller, turn, action, choice, position, reason, "
            "seconds, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (form, item, labeler.id, *values)
        )  # fmt: skip
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def undo(self, labeler: Labeler, after: int | None = None) -> bool:
        """Take back the labeler's last label; its item is asked again at once.

        Args:
            labeler: who.
            after: the event to be taken back, as the page knew it; another one is left alone, so
                that a second click takes back nothing more. None for whichever is last.

        Returns:
            Whether something was taken back.
        """
        now = time.time()
        with self._writing() as db:
            last = db.execute(
                "SELECT item, turn, event, action FROM labels WHERE labeller = ? "
                "ORDER BY event DESC LIMIT 1", (labeler.id,),
            ).fetchone()  # fmt: skip
            if last is None or after not in (None, last["event"]):
                return False
            self._void(db, labeler, last["event"], last["item"], last["turn"], last["action"], now)
            self._lease(db, labeler, last["item"], last["turn"], now)
        return True

    def take_back(self, labeler: Labeler, events: Iterable[int]) -> int:
        """Take back these labels of a labeler, so that their items are to be asked again.

        Returns:
            How many still held.
        """
        taken, now = 0, time.time()
        with self._writing() as db:
            for event in events:
                label = db.execute(
                    "SELECT item, turn, action FROM labels WHERE event = ? AND labeller = ?",
                    (event, labeler.id),
                ).fetchone()
                if label is not None:
                    item, turn, action = label
                    self._void(db, labeler, event, item, turn, action, now)
                    taken += 1
        return taken

    def ask_again(self, labeler: Labeler) -> int:
        """Take back all refusals of a script; how many there were."""
        return self.take_back(labeler, self.refusals(labeler))

    def refusals(self, labeler: Labeler) -> list[int]:
        """The events by which a script passed over items, as its judge gave no answer."""
        rows = self.db.execute(
            "SELECT e.id FROM labels l JOIN events e ON e.id = l.event WHERE l.labeller = ? AND "
            "l.action = 'skip' AND e.reason = ?", (labeler.id, REFUSED),
        )  # fmt: skip
        return [row[0] for row in rows]

    def has_picked(self, labeler: Labeler) -> bool:
        """Whether a pick of this labeler holds."""
        query = "SELECT 1 FROM labels WHERE labeller = ? AND action = 'pick' LIMIT 1"
        return self.db.execute(query, (labeler.id,)).fetchone() is not None

    def release(self, labeler: Labeler) -> None:
        """Let go of the items that a script was handed and will not answer."""
        with self._writing() as db:
            for item, turn in db.execute(
                "SELECT item, turn FROM leases WHERE labeller = ?", (labeler.id,)
            ).fetchall():
                self._count(db, item, turn, -1)
            db.execute("DELETE FROM leases WHERE labeller = ?", (labeler.id,))

    def _void(
        self, db: sqlite3.Connection, labeler: Labeler, event: int, item: int, turn: int,
        action: str, now: float,
    ) -> None:  # fmt: skip
        """Add the event that undoes a label, and drop the label."""
        self._event(db, f"undo {event}", item, labeler, turn, "undo", None, None, None, None, now)
        db.execute(
            "DELETE FROM labels WHERE item = ? AND labeller = ? AND turn = ?",
            (item, labeler.id, turn),
        )
        if action in DECIDED:
            self._count(db, item, turn, -1)

    def last_event(self, labeler: Labeler) -> int | None:
        """The event that ``undo`` would take back."""
        row = self.db.execute(
            "SELECT max(event) FROM labels WHERE labeller = ?", (labeler.id,)
        ).fetchone()
        return row[0]

    # What was said

    def progress(self) -> dict[str, float]:
        """Items, labels wanted of them, and labels left (that nobody holds a lease on)."""
        wanted, left, items = self.db.execute(
            "SELECT coalesce(sum(wanted), 0), coalesce(sum(max(wanted - taken, 0)), 0), count(*) "
            "FROM items WHERE gold IS NULL"
        ).fetchone()
        return {"items": items, "wanted": wanted, "left": left}

    def own_progress(self, labeler: Labeler) -> dict[str, float]:
        """A labeler's labels (own), and the median seconds of the last 25 (NaN where none is)."""
        own = self.db.execute(
            "SELECT count(*) FROM labels WHERE labeller = ?", (labeler.id,)
        ).fetchone()[0]
        late = self.db.execute(
            "SELECT seconds FROM events WHERE labeller = ? AND seconds >= 0 "
            "ORDER BY id DESC LIMIT 25", (labeler.id,),
        ).fetchall()  # fmt: skip
        times = sorted(row[0] for row in late)
        return {"own": own, "seconds": times[len(times) // 2] if times else math.nan}

    def picks(
        self, repeats: bool = False, gold: bool = False, kind: str = "comparison"
    ) -> Iterator[dict[str, Any]]:
        """The picks as comparisons: ``prompt, completions, best, labeler`` and what was kept.

        In the order in which they were made. Items on which nobody picked are not there.

        Args:
            repeats: hidden repeats too, marked ``turn: 1``.
            gold: gold items too.
            kind: of items: comparisons are trained on, matches are not.
        """
        query = (
            "SELECT i.prompt, i.completions, i.extra, l.choice, l.turn, w.name FROM labels l "
            "JOIN items i ON i.id = l.item JOIN labellers w ON w.id = l.labeller "
            "WHERE l.action = 'pick' AND (l.turn = 0 OR ?) AND (i.gold IS NULL OR ?) "
            "AND i.kind = ? ORDER BY l.event"
        )
        for row in self._reading(query, repeats, gold, kind):
            extra = json.loads(row["extra"]) | ({"turn": 1} if row["turn"] else {})
            yield {
                "prompt": json.loads(row["prompt"]), "completions": json.loads(row["completions"]),
                "best": row["choice"], "labeler": row["name"],
            } | extra  # fmt: skip

    def said(self, kind: str) -> Iterator[dict[str, Any]]:
        """Labels of one kind of items that say which is better: a pick's index, or None.

        None: a tie, or all bad. Skips, hidden repeats and gold are left out.
        """
        query = (
            "SELECT i.prompt, i.completions, l.choice, w.name FROM labels l "
            "JOIN items i ON i.id = l.item JOIN labellers w ON w.id = l.labeller "
            "WHERE l.action != 'skip' AND l.turn = 0 AND i.gold IS NULL AND i.kind = ? "
            "ORDER BY l.event"
        )
        for row in self._reading(query, kind):
            yield {
                "prompt": json.loads(row["prompt"]), "completions": json.loads(row["completions"]),
                "choice": row["choice"], "labeler": row["name"],
            }  # fmt: skip

    def events(self) -> Iterator[dict[str, Any]]:
        """Everything that was said, undone or not, in order: an audit's rows."""
        query = (
            "SELECT e.id, i.digest AS item, w.name AS labeler, e.turn, e.action, e.choice, "
            "e.position, e.reason, e.seconds, e.at FROM events e JOIN items i ON i.id = e.item "
            "JOIN labellers w ON w.id = e.labeller ORDER BY e.id"
        )
        for row in self._reading(query):
            yield dict(row)

    def add_picks(self, rows: Iterable[dict[str, Any]]) -> tuple[int, int]:
        """Add comparisons that were picked elsewhere, under the names of those who did.

        A person has one label of an item. Of several in these rows, the one that was made last
        counts (``updated_at`` or ``created_at``), or the last in order where one does not say. It
        replaces what the store holds of that person, unless that was made later, or was made here
        and the row does not say when; what it replaces is undone among the events. A label that
        came in before changes nothing when it comes in again.

        Args:
            rows: ``prompt, completions, best``, perhaps ``labeler``. Those without are one person,
                "imported".

        Returns:
            How many were added or took the place of others, and how many changed nothing.

        Raises:
            InputError: a pick of a completion that is not there, or a time that is none.
        """
        given = added = 0
        last: dict[tuple[int, int, int], tuple[int, float | None]] = {}
        with self._writing() as db:
            people: dict[int, Labeler] = {}
            for row in rows:
                given += 1
                choice, turn = row["best"], row.get("turn", 0)
                if choice not in range(len(row["completions"])) or turn not in (0, 1):
                    raise InputError(f"best {choice!r:.20}, turn {turn!r:.20}: there is no such")
                when = label_time(row)
                row = {name: value for name, value in row.items() if name not in TIMES}
                item, _ = self._add_item(db, row, "comparison", False)
                who = self._by_name(db, printable(str(row.get("labeler") or "imported"))[:200])
                people[who.id] = who
                place = (item, who.id, turn)
                before = last.get(place, (choice, None))[1]
                if when is None or before is None or when >= before:
                    last[place] = (choice, when)
            for (item, labeler, turn), (choice, when) in last.items():
                added += self._take_pick(db, item, people[labeler], turn, choice, when)
        return added, given - added

    def _take_pick(
        self, db: sqlite3.Connection, item: int, who: Labeler, turn: int, choice: int,
        when: float | None,
    ) -> bool:  # fmt: skip
        """Let an imported pick hold, unless it is known or an older one; whether it does now."""
        place, where = (item, who.id, turn), "WHERE item = ? AND labeller = ? AND turn = ?"
        form = f"{IMPORT if when is not None else UNDATED} {hashed(repr((*place, choice, when)))}"
        if db.execute("SELECT 1 FROM events WHERE form = ?", (form,)).fetchone() is not None:
            return False

        old = db.execute(
            "SELECT l.event, l.action, l.choice, e.form, e.at FROM labels l JOIN events e "
            "ON e.id = l.event WHERE l.item = ? AND l.labeller = ? AND l.turn = ?", place,
        ).fetchone()  # fmt: skip
        now = time.time()
        if old is not None:
            undated = old["form"].startswith(UNDATED)
            later = undated or (when is not None and when >= old["at"])
            if old["choice"] == choice or not later:
                return False
            self._void(db, who, old["event"], item, turn, old["action"], now)

        if db.execute(f"DELETE FROM leases {where}", place).rowcount:
            self._count(db, item, turn, -1)
        event = self._event(
            db, form, item, who, turn, "pick", choice, None, None, None,
            now if when is None else when,
        )  # fmt: skip
        db.execute("INSERT INTO labels VALUES (?, ?, ?, ?, 'pick', ?)", (*place, event, choice))
        self._count(db, item, turn, 1)
        return True

    def _by_name(self, db: sqlite3.Connection, name: str) -> Labeler:
        row = db.execute("SELECT id, name, kind FROM labellers WHERE name = ?", (name,)).fetchone()
        return self._labeler(db, name, "script") if row is None else Labeler(*row)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, triggers whole."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def cure(error: sqlite3.Error) -> str:
    """What SQLite says, and how to mend it."""
    text = str(error)
    cures = {
        "unable to open": "can not be opened (is the folder there, and yours?)",
        "readonly": "can not be written (is it yours?)",
        "locked": "another program holds it (close that one)",
        "not a database": "not an SQLite file (take another path)",
        "malformed": "damaged; take a copy made before",
        "full": "the disk is full",
    }
    return next((cure for word, cure in cures.items() if word in text), text)


def check_writable(path: str | Path, field: str) -> None:
    """Raise InputError unless a store is there that can be written, or could be made there."""
    path = Path(path)
    if not os.path.exists(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try_to_write(path, field, beside=True)
        return
    with Store(path) as store:
        try:
            with store._writing():
                pass
        except sqlite3.Error as error:
            raise InputError(f"{field}: {path}: {cure(error)}") from None
