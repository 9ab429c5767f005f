"""Read the store: progress, picks and events."""

import json
import math
from collections.abc import Iterator

from toolkit.data.records import Row
from toolkit.labeling.store.answers import Asked, fields_of
from toolkit.labeling.store.database import Database
from toolkit.labeling.store.labels import REFUSED, Labeler

# The further fields of a row that hold for an edited answer as well.
WITH_EDITED = ("source", "id", "tools", "chat_template_kwargs")


class StoreReader(Database):
    """The reading half of the store."""

    def asked(self) -> Asked:
        """Return what the page asks of people."""
        row = self.db.execute("SELECT value FROM settings WHERE name = 'ask'").fetchone()
        return Asked() if row is None else Asked.of(row[0])

    def has_chats(self) -> bool:
        """Whether an item's prompt is messages."""
        query = "SELECT 1 FROM items WHERE substr(prompt, 1, 1) = '[' LIMIT 1"
        return self.db.execute(query).fetchone() is not None

    # Progress

    def progress(self) -> dict[str, float]:
        """Return the number of items, labels wanted, and labels left (without a lease)."""
        wanted, left, items = self.db.execute(
            "SELECT coalesce(sum(wanted), 0), coalesce(sum(max(wanted - taken, 0)), 0), count(*) "
            "FROM items WHERE gold IS NULL"
        ).fetchone()
        return {"items": items, "wanted": wanted, "left": left}

    def unanswered(self) -> int:
        """Return the number of items that nobody has answered, also of those on a screen now."""
        return int(
            self.db.execute(
                "SELECT count(*) FROM items WHERE gold IS NULL "
                "AND id NOT IN (SELECT item FROM labels)"
            ).fetchone()[0]
        )

    def answered(self) -> dict[str, bool]:
        """Whether each item of a comparison has an answer, by its digest; without gold items."""
        query = (
            "SELECT digest, id IN (SELECT item FROM labels) FROM items "
            "WHERE gold IS NULL AND kind = 'comparison'"
        )
        return {digest: bool(said) for digest, said in self.db.execute(query)}

    def own_progress(self, labeler: Labeler) -> dict[str, float]:
        """Return a labeler's number of labels and median seconds of the last 25 (NaN if none)."""
        own = self.db.execute(
            "SELECT count(*) FROM labels WHERE labeller = ?", (labeler.id,)
        ).fetchone()[0]
        # An older version wrote negative seconds when the clock was set back.
        late = self.db.execute(
            "SELECT seconds FROM events WHERE labeller = ? AND seconds >= 0 "
            "ORDER BY id DESC LIMIT 25",
            (labeler.id,),
        ).fetchall()
        times = sorted(row[0] for row in late)
        return {"own": own, "seconds": times[len(times) // 2] if times else math.nan}

    # One labeler

    def last_event(self, labeler: Labeler) -> int | None:
        """Return the event that ``undo`` would take back."""
        return self.db.execute(
            "SELECT max(event) FROM labels WHERE labeller = ?", (labeler.id,)
        ).fetchone()[0]

    def refusals(self, labeler: Labeler) -> list[int]:
        """Return the events of items that a script skipped because its judge gave no answer."""
        rows = self.db.execute(
            "SELECT e.id FROM labels l JOIN events e ON e.id = l.event WHERE l.labeller = ? AND "
            "l.action = 'skip' AND e.reason = ?",
            (labeler.id, REFUSED),
        )
        return [row[0] for row in rows]

    def has_picked(self, labeler: Labeler) -> bool:
        """Whether this labeler has a valid pick."""
        query = "SELECT 1 FROM labels WHERE labeller = ? AND action = 'pick' LIMIT 1"
        return self.db.execute(query, (labeler.id,)).fetchone() is not None

    def last_answer(self, labeler: Labeler) -> Row | None:
        """Return the answer that ``undo`` would take back; None if there is none.

        It has ``action, seconds``, the prompt, and the texts of the completions that were named,
        from best to worst.
        """
        row = self.db.execute(
            "SELECT e.action, e.choice, e.seconds, e.details, i.prompt, i.completions "
            "FROM labels l JOIN events e ON e.id = l.event JOIN items i ON i.id = l.item "
            "WHERE l.labeller = ? ORDER BY l.event DESC LIMIT 1",
            (labeler.id,),
        ).fetchone()
        if row is None:
            return None
        details = json.loads(row["details"] or "{}")
        named = details.get("ranking") or [row["choice"], details.get("worst")]
        completions = json.loads(row["completions"])
        return {
            "action": row["action"],
            "seconds": row["seconds"],
            "prompt": json.loads(row["prompt"]),
            "texts": [completions[k] for k in named if k is not None],
        }

    # Exports, one row at a time

    def said_beside(self) -> list[Row]:
        """Return what ``picks`` yields beside the item and its best: a ranking, a margin and so on.

        There is one row for each pick, in the same order, without reading the items.
        """
        query = (
            "SELECT e.details FROM labels l JOIN items i ON i.id = l.item "
            "JOIN events e ON e.id = l.event WHERE l.action = 'pick' AND l.turn = 0 "
            "AND i.gold IS NULL AND i.kind = 'comparison' ORDER BY l.event"
        )
        return [fields_of(json.loads(row[0] or "{}")) for row in self.db.execute(query)]

    def picks(
        self, repeats: bool = False, gold: bool = False, kind: str = "comparison"
    ) -> Iterator[Row]:
        """Yield picks as comparisons: ``prompt, completions, best, labeler`` and further fields.

        They come in the order in which they were made. Items without a pick are left out. A pick
        may have ``ranking`` or ``worst``, ``margin``, ``labeler_comment`` and ``labeler_edit``.

        Args:
            repeats: include hidden repeats, marked ``turn: 1``.
            gold: include gold items.
            kind: "comparison", or "match" (which nothing trains on).
        """
        query = (
            "SELECT i.prompt, i.completions, i.extra, l.choice, l.turn, w.name, e.details "
            "FROM labels l JOIN items i ON i.id = l.item JOIN labellers w ON w.id = l.labeller "
            "JOIN events e ON e.id = l.event "
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
            pick |= json.loads(row["extra"]) | fields_of(json.loads(row["details"] or "{}"))
            yield pick | ({"turn": 1} if row["turn"] else {})

    def edited(self) -> Iterator[Row]:
        """Yield edited answers as comparisons: the edited answer is the best, and comes last.

        These are the answers that labelers wrote because none was good enough: ``sft`` learns to
        write them. Hidden repeats and gold items are left out.
        """
        query = (
            "SELECT i.prompt, i.completions, i.extra, w.name, "
            "json_extract(e.details, '$.edited') AS edited FROM labels l "
            "JOIN items i ON i.id = l.item JOIN labellers w ON w.id = l.labeller "
            "JOIN events e ON e.id = l.event WHERE edited IS NOT NULL "
            "AND l.turn = 0 AND i.gold IS NULL AND i.kind = 'comparison' ORDER BY l.event"
        )
        for row in self.rows(query):
            completions = [*json.loads(row["completions"]), row["edited"]]
            extra = json.loads(row["extra"])
            yield {
                "prompt": json.loads(row["prompt"]),
                "completions": completions,
                "best": len(completions) - 1,
                "labeler": row["name"],
                # What stands for each completion knows nothing of the new one.
                **{name: extra[name] for name in WITH_EDITED if name in extra},
            }

    def said(self, kind: str) -> Iterator[Row]:
        """Yield labels of one kind of items: a pick's index, or None for a tie or all bad.

        Skips, hidden repeats and gold items are left out.
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
        """Yield all events in order, undone or not, each with its details if it has any."""
        query = (
            "SELECT e.id, i.digest AS item, w.name AS labeler, e.turn, e.action, e.choice, "
            "e.position, e.reason, e.seconds, e.at, e.details FROM events e "
            "JOIN items i ON i.id = e.item JOIN labellers w ON w.id = e.labeller ORDER BY e.id"
        )
        for row in self.rows(query):
            event = dict(row)
            yield event | json.loads(event.pop("details") or "{}")
