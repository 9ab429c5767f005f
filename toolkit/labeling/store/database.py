"""The store's file: one connection per thread, whole transactions, a check at every start."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from toolkit.data.outputs import try_to_write
from toolkit.errors import InputError

# Script i brings a file from version i to i + 1; PRAGMA user_version holds a file's version.
MIGRATIONS = tuple(
    Path(__file__).with_name(name).read_text(encoding="utf-8")
    for name in ("schema.sql", "schema_2.sql")
)
PRAGMAS = (
    "journal_mode=WAL",  # readers do not wait for writers
    "synchronous=FULL",  # a confirmed answer survives a power cut
    "foreign_keys=ON",
    "busy_timeout=10000",
    "trusted_schema=OFF",
)
CURES = {
    "unable to open": "cannot be opened (check that the folder exists and belongs to you)",
    "readonly": "cannot be written (check the permissions)",
    "locked": "is in use by another program (close that program)",
    "not a database": "is not an SQLite file (choose another path)",
    "malformed": "is damaged (use an earlier copy)",
    "full": "the disk is full",
}


class Database:
    """The store's file, which any number of threads and processes may hold open.

    Args:
        path: the file, which is made if it does not exist.

    Raises:
        InputError: the file is not a store, is damaged, cannot be written, or was made by a newer
            version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._local = threading.local()
        self._turn = threading.Lock()
        self._connections: dict[threading.Thread, sqlite3.Connection] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._migrate()
            self.check()
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: {explain(error)}") from None

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            self._local.connection = connection

            # Threads of the server end, and each would leave three files open.
            for thread in [t for t in self._connections.copy() if not t.is_alive()]:
                self._connections.pop(thread).close()
            self._connections[threading.current_thread()] = connection
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, isolation_level=None, timeout=10.0, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def rows(self, query: str, *values: object) -> Iterator[sqlite3.Row]:
        """Yield rows as of one moment, while others write; the reading threads may change."""
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run the block as a transaction: at its end all of it is on the disk, or nothing."""
        with self._turn:  # fairer than SQLite, which sleeps and tries again
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                raise

    @contextmanager
    def at_one_moment(self) -> Iterator[sqlite3.Connection]:
        """Let the block read the store as of one moment, while others write."""
        self.db.execute("BEGIN")
        try:
            yield self.db
        finally:
            self.db.execute("COMMIT")

    def _migrate(self) -> None:
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise InputError(
                f"{self.path}: was made by a newer version of the toolkit (schema {version}; this "
                f"version knows {len(MIGRATIONS)}): update the toolkit"
            )
        if version == len(MIGRATIONS):
            return

        with self.writing() as db:
            # Ask again, because another process may have migrated it meanwhile.
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone() is not None:
                raise InputError(f"{self.path}: is an SQLite file, but not a label store")
            for script in MIGRATIONS[version:]:
                for statement in _statements(script):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def check(self) -> None:
        """Raise InputError if the file is damaged or labels differ from the events."""
        with self.at_one_moment() as db:
            problem = _damage(db)
        if problem:
            raise InputError(f"{self.path}: is damaged: {problem} (use an earlier copy)")


def _damage(db: sqlite3.Connection) -> str | None:
    """Return what is wrong with the file, or None."""
    problem = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if problem != "ok":
        return " ".join(problem.replace("*", " ").split())
    if db.execute("PRAGMA foreign_key_check").fetchone() is not None:
        return "a label has no item"

    # Each label must equal its event, and each event that was not undone must have a label.
    others = db.execute(
        "SELECT count(*) FROM labels l JOIN events e ON e.id = l.event WHERE e.item != l.item "
        "OR e.labeller != l.labeller OR e.turn != l.turn OR e.action != l.action"
    ).fetchone()[0]
    counts = dict(db.execute("SELECT action = 'undo', count(*) FROM events GROUP BY 1"))
    held = db.execute("SELECT count(*) FROM labels").fetchone()[0]
    if others or held != counts.get(0, 0) - counts.get(1, 0):
        return "labels differ from the events"

    # An item is taken by its labels without skips, and by its leases.
    miscounted = db.execute(
        "SELECT count(*) FROM items i LEFT JOIN (SELECT item, count(*) AS n FROM (SELECT item "
        "FROM labels WHERE turn = 0 AND action != 'skip' UNION ALL SELECT item FROM leases "
        "WHERE turn = 0) GROUP BY item) t ON t.item = i.id "
        "WHERE i.gold IS NULL AND i.taken != coalesce(t.n, 0)"
    ).fetchone()[0]
    return f"the count of labels is wrong for {miscounted} items" if miscounted else None


def _statements(script: str) -> Iterator[str]:
    """Split a script into statements, and keep triggers whole."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def explain(error: sqlite3.Error) -> str:
    """Return what SQLite's error means and how to mend it."""
    text = str(error)
    return next((cure for word, cure in CURES.items() if word in text), text)


def check_writable(path: str | Path, field: str) -> None:
    """Raise InputError unless the store can be written, or made if it does not exist."""
    path = Path(path)
    if not os.path.exists(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try_to_write(path, field, beside=True)
        return

    with Database(path) as database:
        try:
            with database.writing():
                pass
        except sqlite3.Error as error:
            raise InputError(f"{field}: {path}: {explain(error)}") from None
