"""What the admin pages show of single items and single labelers.

Everything is read from the store's tables at one moment. A page of 50 items takes about 0.1 s in a
store of 20,000 items and 200,000 labels.
"""

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from toolkit.data.records import Prompt, Row
from toolkit.labeling.quality import LAST, PositionBias, bias_of
from toolkit.labeling.store import StoreReader
from toolkit.labeling.store.answers import STRENGTHS

PAGE = 50  # items on a page of the list
LISTED = 100  # items in each list of a labeler's page
EXCERPT = 160  # characters of a prompt in a list
Show = Literal["disputed", "skipped", "gold", "all"]
SHOWS: tuple[str, ...] = get_args(Show)

# Answers that count: no hidden repeats and no skips.
COUNTED = "turn = 0 AND action != 'skip'"
# By item: m answers, of which n chose the same; the share of pairs of labelers that differ.
DISPUTED = (
    "SELECT item, 1.0 - 1.0 * sum(n * (n - 1)) / (sum(n) * (sum(n) - 1)) AS share, sum(n) AS m "
    f"FROM (SELECT item, count(*) AS n FROM labels WHERE {COUNTED} GROUP BY item, action, choice) "
    "GROUP BY item HAVING m >= 2"
)
# Each list: which items, as a subquery of (item, share), and their order.
LISTS: dict[str, tuple[str, str]] = {
    "disputed": (DISPUTED, "share DESC, m DESC, item"),
    "skipped": (
        "SELECT item, count(*) AS m FROM labels WHERE action = 'skip' GROUP BY item",
        "m DESC, item",
    ),
    "gold": (
        "SELECT i.id AS item, coalesce(sum(l.action != 'skip' AND l.choice IS NOT i.gold), 0) AS m "
        "FROM items i LEFT JOIN labels l ON l.item = i.id AND l.turn = 0 "
        "WHERE i.gold IS NOT NULL GROUP BY i.id",
        "m DESC, item",
    ),
    "all": ("SELECT id AS item FROM items", "item"),
}


@dataclass(frozen=True)
class Answers:
    """How many labelers gave one answer.

    Attributes:
        action: pick, tie or bad.
        choice: index of the picked completion; None if it is no pick.
        count: how many labelers said so.
    """

    action: str
    choice: int | None
    count: int


@dataclass(frozen=True)
class ItemLine:
    """One item in a list.

    Attributes:
        item: its id.
        prompt: the beginning of the prompt, or of a chat's last message.
        kind: comparison or match.
        gold: index of the completion that is known to be the best; None if it is no gold item.
        disagreement: share of the pairs of labelers whose answers differ: not the same completion,
            both ties, or both bad. None if fewer than two have answered.
        answers: the answers that count, the most frequent ones first.
        skips: how many labelers skipped it.
    """

    item: int
    prompt: str
    kind: str
    gold: int | None
    disagreement: float | None
    answers: list[Answers]
    skips: int

    @property
    def labels(self) -> int:
        """The number of answers that count."""
        return sum(answer.count for answer in self.answers)


@dataclass(frozen=True)
class ItemList:
    """One page of a list of items.

    Attributes:
        lines: the items of this page.
        count: items in the whole list.
        page: number of this page, from 1.
        pages: number of pages, 1 at least.
    """

    lines: list[ItemLine]
    count: int
    page: int
    pages: int


@dataclass(frozen=True)
class Said:
    """One event: what a labeler said of an item.

    Attributes:
        event: its number; later ones are larger.
        labeler: the labeler's id.
        name: the labeler's name.
        turn: 0, or 1 for a hidden repeat.
        action: pick, tie, bad, skip or undo.
        choice: index of the picked completion.
        position: where that completion stood on the labeler's page, from 0; None if unknown.
        reason: why it was skipped.
        seconds: how long the labeler looked at it; None if unknown.
        at: seconds since 1970.
        counts: whether it is the labeler's answer now: it was not taken back.
        imported: whether it came in with a file.
        more: what else was said, by name, as it is shown: a ranking, a comment and so on.
    """

    event: int
    labeler: int
    name: str
    turn: int
    action: str
    choice: int | None
    position: int | None
    reason: str | None
    seconds: float | None
    at: float
    counts: bool
    imported: bool
    more: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """An item with all that was said of it.

    Attributes:
        item: its id.
        kind: comparison or match.
        prompt: text or messages.
        completions: in the order of the file, which is not the order on anybody's page.
        gold: index of the completion that is known to be the best; None if it is no gold item.
        wanted: how many labelers are to answer it.
        extra: the row's further fields, such as its source.
        said: the events, in order.
        pickers: for each completion, the names of those whose pick it is now.
        looking: names of those who have it on their screen.
        line: its counts, as in the list.
    """

    item: int
    kind: str
    prompt: Prompt
    completions: list[str]
    gold: int | None
    wanted: int
    extra: Row
    said: list[Said]
    pickers: list[list[str]]
    looking: list[str]
    line: ItemLine


@dataclass(frozen=True)
class WithOther:
    """How far a labeler agrees with another one.

    Attributes:
        labeler: the other one's id.
        name: the other one's name.
        items: items that both answered, without skips, gold items and repeats.
        agreed: those on which both said the same.
    """

    labeler: int
    name: str
    items: int
    agreed: int


@dataclass(frozen=True)
class Work:
    """One labeler's answers.

    Attributes:
        labeler: the labeler's id.
        name: the labeler's name.
        others: agreement with each other labeler, those with most common items first.
        positions: where the picked completions stood, one entry for each number of completions.
        reasons: number of skips by reason.
        skipped: the last items that were skipped, the newest first.
        differing: the last items on which somebody else said something else.
        missed: the last gold items on which the labeler did not pick the known best.
        daily: (30,) answers of each of the last 30 days of 24 hours; the last one ends now.
        first: time of the first answer that counts, in seconds since 1970; None without one.
        last: time of the last one.
        recent_seconds: median seconds of the last 50 timed picks; None if none was timed.
    """

    labeler: int
    name: str
    others: list[WithOther]
    positions: list[PositionBias]
    reasons: dict[str, int]
    skipped: list[ItemLine]
    differing: list[ItemLine]
    missed: list[ItemLine]
    daily: list[int]
    first: float | None
    last: float | None
    recent_seconds: float | None


def items(store: StoreReader, show: str = "disputed", page: int = 1) -> ItemList:
    """Return one page of a list of items.

    Args:
        store: the labels.
        show: ``disputed`` are the items with two answers or more, those on which most pairs of
            labelers differ first, and among equals those with most answers. ``skipped`` are those
            that were skipped, the most skipped first. ``gold`` are the items whose best is known,
            those that most labelers missed first. ``all`` are all, in the order of their ids.
        page: the page's number, from 1; beyond the end the last page is returned.
    """
    which, order = LISTS[show]
    with store.at_one_moment() as db:
        count = db.execute(f"SELECT count(*) FROM ({which})").fetchone()[0]
        pages = max(1, math.ceil(count / PAGE))
        page = min(max(page, 1), pages)
        found = db.execute(
            f"SELECT item FROM ({which}) ORDER BY {order} LIMIT ? OFFSET ?",
            (PAGE, (page - 1) * PAGE),
        )
        return ItemList(_lines(db, [row[0] for row in found]), count, page, pages)


def _lines(db: sqlite3.Connection, wanted: Sequence[int]) -> list[ItemLine]:
    """Return these items' lines, in this order."""
    marks = ", ".join("?" * len(wanted))
    texts = {
        row["id"]: row
        for row in db.execute(
            f"SELECT id, kind, prompt, gold FROM items WHERE id IN ({marks})", wanted
        )
    }

    answers: dict[int, list[Answers]] = {item: [] for item in wanted}
    skips = dict.fromkeys(wanted, 0)
    for row in db.execute(
        f"SELECT item, action, choice, count(*) AS n FROM labels WHERE turn = 0 AND item IN "
        f"({marks}) GROUP BY item, action, choice ORDER BY n DESC, action, choice",
        wanted,
    ):
        if row["action"] == "skip":
            skips[row["item"]] = row["n"]
        else:
            answers[row["item"]].append(Answers(row["action"], row["choice"], row["n"]))

    return [
        ItemLine(
            item,
            _excerpt(json.loads(texts[item]["prompt"])),
            texts[item]["kind"],
            texts[item]["gold"],
            disagreement([answer.count for answer in answers[item]]),
            answers[item],
            skips[item],
        )
        for item in wanted
    ]


def disagreement(counts: Sequence[int]) -> float | None:
    """Return the share of pairs of labelers whose answers differ; None if there is no pair.

    With n_c labelers for each answer and m of them in all, it is
    1 - sum over c of n_c (n_c - 1) / (m (m - 1)): what one item adds to the observed disagreement
    of Krippendorff's alpha (``toolkit.maths.agreement``), divided by m.

    >>> disagreement([2, 1]), disagreement([3]), disagreement([1])
    (0.6666666666666667, 0.0, None)
    """
    m = sum(counts)
    if m < 2:
        return None
    return 1 - sum(n * (n - 1) for n in counts) / (m * (m - 1))


def _excerpt(prompt: Prompt) -> str:
    """Return the beginning of a prompt, or of a chat's last message, in one line."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    words = " ".join(text[: 4 * EXCERPT].split())
    whole = len(words) <= EXCERPT and len(text) <= 4 * EXCERPT
    return words if whole else f"{words[:EXCERPT].rstrip()}…"


def item_of(store: StoreReader, item: int, now: float) -> Item | None:
    """Return an item with all that was said of it; None if there is no such item.

    Args:
        store: the labels.
        item: the item's id.
        now: seconds since 1970, to tell which leases are valid.
    """
    with store.at_one_moment() as db:
        row = db.execute("SELECT * FROM items WHERE id = ?", (item,)).fetchone()
        if row is None:
            return None
        said = list(_said(db, item))
        looking = db.execute(
            "SELECT w.name FROM leases h JOIN labellers w ON w.id = h.labeller "
            "WHERE h.item = ? AND h.expires > ? ORDER BY w.name",
            (item, now),
        ).fetchall()
        (line,) = _lines(db, [item])

    completions = json.loads(row["completions"])
    pickers: list[list[str]] = [[] for _ in completions]
    for one in said:
        if one.counts and one.choice is not None and one.turn == 0:
            pickers[one.choice].append(one.name)
    return Item(
        item,
        row["kind"],
        json.loads(row["prompt"]),
        completions,
        row["gold"],
        row["wanted"],
        json.loads(row["extra"]),
        said,
        pickers,
        [name for (name,) in looking],
        line,
    )


def _said(db: sqlite3.Connection, item: int) -> Iterator[Said]:
    """Yield all events of an item, in order."""
    for row in db.execute(
        "SELECT e.*, w.name, l.event IS NOT NULL AS counts FROM events e "
        "JOIN labellers w ON w.id = e.labeller LEFT JOIN labels l ON l.event = e.id "
        "WHERE e.item = ? ORDER BY e.id",
        (item,),
    ):
        yield Said(
            row["id"],
            row["labeller"],
            row["name"],
            row["turn"],
            row["action"],
            row["choice"],
            row["position"],
            row["reason"],
            row["seconds"],
            row["at"],
            bool(row["counts"]),
            row["form"].startswith("import "),
            _more(json.loads(row["details"] or "{}")),
        )


def _more(details: Row) -> dict[str, str]:
    """Return the details of an answer (``answers.Details``) as they are shown, in their order.

    >>> _more({"ranking": [1, 0], "strength": 3, "comment": "Short.", "seen": "all"})
    {'order': '2, 1', 'strength': 'much better', 'comment': 'Short.', 'seen': 'all of each'}
    """
    shown: dict[str, str] = {}
    if "ranking" in details:
        shown["order"] = ", ".join(str(k + 1) for k in details["ranking"])
    if "worst" in details:
        shown["worst"] = f"completion {details['worst'] + 1}"
    if "strength" in details:
        shown["strength"] = STRENGTHS[details["strength"]]
    if "margin" in details:
        shown["margin"] = f"{details['margin']:g}"
    if "comment" in details:
        shown["comment"] = details["comment"]
    if "edited" in details:
        shown["better answer"] = details["edited"]
    if "seen" in details:
        shown["seen"] = {"all": "all of each", "enough": "“seen enough”"}[details["seen"]]
    return shown


def labeler_ids(store: StoreReader) -> dict[str, int]:
    """Return the id of each labeler by name, without the admins."""
    rows = store.db.execute("SELECT name, id FROM labellers WHERE kind != 'admin'")
    return dict(map(tuple, rows.fetchall()))


def work_of(store: StoreReader, labeler: int, now: float) -> Work | None:
    """Return one labeler's answers; None if there is no such labeler.

    Args:
        store: the labels.
        labeler: the labeler's id.
        now: seconds since 1970 from which days are counted back.
    """
    with store.at_one_moment() as db:
        row = db.execute(
            "SELECT name FROM labellers WHERE id = ? AND kind != 'admin'", (labeler,)
        ).fetchone()
        if row is None:
            return None

        # Answers per day; a time from the future belongs to no day.
        ago = [
            int((now - at) // 86_400)
            for (at,) in db.execute(
                "SELECT e.at FROM labels l JOIN events e ON e.id = l.event WHERE l.labeller = ?",
                (labeler,),
            )
        ]
        days = [29 - n for n in ago if 0 <= n < 30]
        first, last = db.execute(
            "SELECT min(e.at), max(e.at) FROM labels l JOIN events e ON e.id = l.event "
            "WHERE l.labeller = ?",
            (labeler,),
        ).fetchone()
        recent = db.execute(
            "SELECT seconds FROM events WHERE labeller = ? AND action = 'pick' AND seconds >= 0 "
            "ORDER BY id DESC LIMIT 50",
            (labeler,),
        ).fetchall()

        reasons = db.execute(
            "SELECT coalesce(e.reason, 'no reason'), count(*) FROM labels l JOIN events e "
            "ON e.id = l.event WHERE l.labeller = ? AND l.action = 'skip' "
            "GROUP BY 1 ORDER BY 2 DESC, 1",
            (labeler,),
        ).fetchall()
        return Work(
            labeler,
            row["name"],
            _others(db, labeler),
            _positions(db, labeler),
            dict(map(tuple, reasons)),
            _last(db, labeler, "l.action = 'skip' AND l.turn = 0"),
            _last(
                db,
                labeler,
                "l.action != 'skip' AND l.turn = 0 AND EXISTS (SELECT 1 FROM labels o WHERE "
                "o.item = l.item AND o.labeller != l.labeller AND o.turn = 0 AND "
                "o.action != 'skip' AND (o.action != l.action OR o.choice IS NOT l.choice))",
            ),
            _last(
                db,
                labeler,
                "l.action != 'skip' AND l.turn = 0 AND EXISTS (SELECT 1 FROM items i WHERE "
                "i.id = l.item AND i.gold IS NOT NULL AND l.choice IS NOT i.gold)",
            ),
            np.bincount(days, minlength=30).tolist() if days else [0] * 30,
            first,
            last,
            float(np.median([seconds for (seconds,) in recent])) if recent else None,
        )


def _last(db: sqlite3.Connection, labeler: int, condition: str) -> list[ItemLine]:
    """Return the last items of a labeler's labels ``l`` for which the condition holds."""
    found = db.execute(
        f"SELECT l.item FROM labels l WHERE l.labeller = ? AND {condition} "
        "ORDER BY l.event DESC LIMIT ?",
        (labeler, LISTED),
    )
    return _lines(db, [row[0] for row in found])


def _others(db: sqlite3.Connection, labeler: int) -> list[WithOther]:
    """Compare a labeler's answers with each other labeler's."""
    rows = db.execute(
        "SELECT o.labeller, w.name, count(*) AS n, "
        "sum(o.action = l.action AND o.choice IS l.choice) AS same "
        "FROM labels l JOIN labels o ON o.item = l.item AND o.labeller != l.labeller "
        "JOIN labellers w ON w.id = o.labeller JOIN items i ON i.id = l.item "
        "WHERE l.labeller = ? AND l.turn = 0 AND o.turn = 0 AND l.action != 'skip' "
        "AND o.action != 'skip' AND i.gold IS NULL GROUP BY o.labeller ORDER BY n DESC, w.name",
        (labeler,),
    )
    return [WithOther(*row) for row in rows]


def _positions(db: sqlite3.Connection, labeler: int) -> list[PositionBias]:
    """Count the positions of a labeler's last picks, by the number of completions."""
    rows = db.execute(
        "SELECT json_array_length(i.completions), position, count(*) FROM (SELECT e.item, "
        "e.position FROM labels l JOIN events e ON e.id = l.event WHERE l.labeller = ? AND "
        "e.position IS NOT NULL ORDER BY l.event DESC LIMIT ?) p JOIN items i ON i.id = p.item "
        "GROUP BY 1, 2",
        (labeler, LAST),
    )
    picked: dict[int, np.ndarray] = {}
    for size, position, count in rows:
        picked.setdefault(size, np.zeros(size, dtype=int))[position] = count
    return sorted(map(bias_of, picked.values()), key=lambda bias: -sum(bias.picked))
