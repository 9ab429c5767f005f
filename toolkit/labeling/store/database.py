"""The file of a store: a connection for each thread, whole transactions, a check at each start."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from toolkit.data.outputs import try_to_write
from toolkit.errors import InputError

# Each brings a file from its index to the next version; PRAGMA user_version says where it is.
MIGRATIONS = (Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"),)
PRAGMAS = (
    "journal_mode=WAL",  # whoever reads does not wait for who writes
    "synchronous=FULL",  # what was acknowledged outlives a power cut
    "foreign_keys=ON",
    "busy_timeout=10000",
    "trusted_schema=OFF",
)
CURES = {
    "unable to open": "can not be opened (is the folder there, and yours?)",
    "readonly": "can not be written (is it yours?)",
    "locked": "another program holds it (close that one)",
    "not a database": "not an SQLite file (take another path)",
    "malformed": "damaged; take a copy made before",
    "full": "the disk is full",
}


class Database:
    """The file of labels; any number of threads and processes may hold it open.

    Args:
        path: made if it is not there.

    Raises:
        InputError: no store, a newer version's, a damaged one, or one that can not be written.
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

            # A server's threads come and go; each would leave three files open.
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
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

    @contextmanager
    def at_one_moment(self) -> Iterator[sqlite3.Connection]:
        """Whatever is written meanwhile, what is read in the block belongs together."""
        self.db.execute("BEGIN")
        try:
            yield self.db
        finally:
            self.db.execute("COMMIT")

    def _migrate(self) -> None:
        version = self.db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise InputError(
                f"{self.path}: made by a newer version of the toolkit (schema {version}, this one "
                f"knows {len(MIGRATIONS)}): update the toolkit"
            )
        if version == len(MIGRATIONS):
            return

        with self.writing() as db:
            # Asked again: another process may have been at the same.
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone() is not None:
                raise InputError(f"{self.path}: an SQLite file, but not a store of labels")
            for script in MIGRATIONS[version:]:
                for statement in _statements(script):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def check(self) -> None:
        """Raise InputError if the file is damaged, or labels are not what the events say."""
        with self.at_one_moment() as db:
            problem = _damage(db)
        if problem:
            raise InputError(f"{self.path}: damaged ({problem}); take a copy made before")


def _damage(db: sqlite3.Connection) -> str | None:
    """What is wrong with the file, or None."""
    problem = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if problem != "ok":
        return " ".join(problem.replace("*", " ").split())
    if db.execute("PRAGMA foreign_key_check").fetchone() is not None:
        return "a label of an item that is not there"

    # Each label is as its event says, and each event that was not undone has one.
    others = db.execute(
        "SELECT count(*) FROM labels l JOIN events e ON e.id = l.event WHERE e.item != l.item "
        "OR e.labeller != l.labeller OR e.turn != l.turn OR e.action != l.action"
    ).fetchone()[0]
    counts = dict(db.execute("SELECT action = 'undo', count(*) FROM events GROUP BY 1"))
    held = db.execute("SELECT count(*) FROM labels").fetchone()[0]
    if others or held != counts.get(0, 0) - counts.get(1, 0):
        return "labels are not what the events say"

    # What an item is taken by: labels that decide, and those who are looking at it.
    miscounted = db.execute(
        "SELECT count(*) FROM items i LEFT JOIN (SELECT item, count(*) AS n FROM (SELECT item "
        "FROM labels WHERE turn = 0 AND action != 'skip' UNION ALL SELECT item FROM leases "
        "WHERE turn = 0) GROUP BY item) t ON t.item = i.id "
        "WHERE i.gold IS NULL AND i.taken != coalesce(t.n, 0)"
    ).fetchone()[0]
    return f"{miscounted} items miscounted" if miscounted else None


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, triggers whole."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def explain(error: sqlite3.Error) -> str:
    """Say what SQLite says, and how to mend it."""
    text = str(error)
    return next((cure for word, cure in CURES.items() if word in text), text)


def check_writable(path: str | Path, field: str) -> None:
    """Raise InputError unless a store is there that can be written, or could be made there."""
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
