"""What the store says: how far it is, and what was said of items."""

import json
import math
from collections.abc import Iterator

from toolkit.data.records import Row
from toolkit.labeling.store.database import Database
from toolkit.labeling.store.labels import REFUSED, Labeler


class StoreReader(Database):
    """A store as those see it who only read."""

    # How far it is

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
        # Negative ones are an older version's, made while the clock was set back.
        late = self.db.execute(
            "SELECT seconds FROM events WHERE labeller = ? AND seconds >= 0 "
            "ORDER BY id DESC LIMIT 25",
            (labeler.id,),
        ).fetchall()
        times = sorted(row[0] for row in late)
        return {"own": own, "seconds": times[len(times) // 2] if times else math.nan}

    # Of one labeler

    def last_event(self, labeler: Labeler) -> int | None:
        """The event that ``undo`` would take back."""
        return self.db.execute(
            "SELECT max(event) FROM labels WHERE labeller = ?", (labeler.id,)
        ).fetchone()[0]

    def refusals(self, labeler: Labeler) -> list[int]:
        """The events by which a script passed over items, as its judge gave no answer."""
        rows = self.db.execute(
            "SELECT e.id FROM labels l JOIN events e ON e.id = l.event WHERE l.labeller = ? AND "
            "l.action = 'skip' AND e.reason = ?",
            (labeler.id, REFUSED),
        )
        return [row[0] for row in rows]

    def has_picked(self, labeler: Labeler) -> bool:
        """Whether a pick of this labeler holds."""
        query = "SELECT 1 FROM labels WHERE labeller = ? AND action = 'pick' LIMIT 1"
        return self.db.execute(query, (labeler.id,)).fetchone() is not None

    # Exports, a row at a time

    def picks(
        self, repeats: bool = False, gold: bool = False, kind: str = "comparison"
    ) -> Iterator[Row]:
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
        for row in self.rows(query, repeats, gold, kind):
            pick = {
                "prompt": json.loads(row["prompt"]),
                "completions": json.loads(row["completions"]),
                "best": row["choice"],
                "labeler": row["name"],
            }
            yield pick | json.loads(row["extra"]) | ({"turn": 1} if row["turn"] else {})

    def said(self, kind: str) -> Iterator[Row]:
        """Labels of one kind of items that say which is better: a pick's index, or None.

        None: a tie, or all bad. Skips, hidden repeats and gold are left out.
        """
        query = (
            "SELECT i.prompt, i.completions, l.choice, w.name FROM labels l "
            "JOIN items i ON i.id = l.item JOIN labellers w ON w.id = l.labeller "
            "WHERE l.action != 'skip' AND l.turn = 0 AND i.gold IS NULL AND i.kind = ? "
            "ORDER BY l.event"
        )
        for row in self.rows(query, kind):
            yield {
                "prompt": json.loads(row["prompt"]),
                "completions": json.loads(row["completions"]),
                "choice": row["choice"],
                "labeler": row["name"],
            }

    def events(self) -> Iterator[Row]:
        """Everything that was said, undone or not, in order: an audit's rows."""
        query = (
            "SELECT e.id, i.digest AS item, w.name AS labeler, e.turn, e.action, e.choice, "
            "e.position, e.reason, e.seconds, e.at FROM events e JOIN items i ON i.id = e.item "
            "JOIN labellers w ON w.id = e.labeller ORDER BY e.id"
        )
        for row in self.rows(query):
            yield dict(row)
