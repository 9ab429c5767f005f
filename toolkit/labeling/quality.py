"""What an administrator sees of the labels: who gives how many, how fast, and how far they agree.

All of it is counted anew from the store's tables, at one moment: about half a second at 200,000
labels. A label is of an item, a labeler and a turn, and holds until it is undone (``store.py``).
"""

import json
import math
import sqlite3
import time
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from scipy.special import chdtrc

from toolkit.labeling.store import StoreReader
from toolkit.maths.agreement import alpha_interval, krippendorff_alpha

HOUR, DAY = 3600.0, 24  # in seconds, in hours
SLACK = 60.0  # seconds by which two machines' clocks may differ
# What an event says, as one number: a pick's index, or one of these.
TIE, BAD, SKIP, UNDO = -1, -2, -3, -4
SAYS = (
    "CASE action WHEN 'pick' THEN choice WHEN 'tie' THEN -1 WHEN 'bad' THEN -2 "
    "WHEN 'skip' THEN -3 ELSE -4 END"
)
# Positions are counted of so many last picks: to count completions, their text must be read.
LAST = 10_000


@dataclass(frozen=True)
class Share:
    """A share, and of how many."""

    share: float | None  # None of nothing
    count: int


@dataclass(frozen=True)
class LabelerQuality:
    """One labeler.

    Attributes:
        name: their name.
        kind: person, script or admin.
        labels: what holds now; the sum of picks, ties, bad and skips.
        picks: labels that pick a completion.
        ties: labels that say it makes no difference.
        bad: labels that say that all are bad.
        skips: labels that say nothing of the completions.
        undos: labels taken back.
        last_hour: labels of the last hour that hold.
        seconds: median of the time for a pick, undone or not; None where none was timed.
        agreement: of pairs of their label and another's on the same item, those that say the same
            (the same completion, or both tie, or both bad). Skips, gold and repeats left out.
        self_agreement: of hidden repeats, those that say what they said first. Skips left out.
        gold: of labels on gold items, those that pick the known best. Skips left out.
    """

    name: str
    kind: str
    labels: int
    picks: int
    ties: int
    bad: int
    skips: int
    undos: int
    last_hour: int
    seconds: float | None
    agreement: Share
    self_agreement: Share
    gold: Share


@dataclass(frozen=True)
class PositionBias:
    """Where the picked completion stood, of items with equally many; of the last 10,000 picks.

    Attributes:
        completions: K, how many are shown.
        picked: (K,) picks of each position, first to last. The order is drawn for each labeler
            (``shown_order``), so for somebody who reads them all each is as likely.
        p_value: of counts at least so uneven, if each is (chi-square, K - 1 degrees of freedom);
            None where fewer than 5 are expected of each, which is too few for it.
    """

    completions: int
    picked: list[int]
    p_value: float | None


@dataclass(frozen=True)
class Quality:
    """All labels, and each labeler; ``dataclasses.asdict`` of it goes into JSON.

    Attributes:
        labelers: by name; those who have not begun too.
        items: without gold ones.
        wanted: labels of these that are wanted.
        left: of those, how many nobody has given or is giving.
        labels: all that hold now, with skips, repeats and gold.
        done: of those, what counts towards ``wanted``: no skips, repeats or gold.
        skips: how many skips there are, by reason.
        alpha: Krippendorff's, of what ``done`` counts: units are items, categories the picked
            completion's index, tie, and bad. None where it is not defined.
        alpha_interval: 95 %, by drawing items anew; None where alpha is, or rests on one item.
        alpha_items: how many items have two labels or more, on which alpha rests.
        positions: by K, the K with most picks first, at most three of them.
        hourly: (24,) labels of the last 24 hours that hold; the last is the hour until now.
    """

    labelers: list[LabelerQuality]
    items: int
    wanted: int
    left: int
    labels: int
    done: int
    skips: dict[str, int]
    alpha: float | None
    alpha_interval: tuple[float, float] | None
    alpha_items: int
    positions: list[PositionBias]
    hourly: list[int]


class _Events(NamedTuple):
    """Events in order, each column (N,); -1 where a position or a time is not known."""

    id: np.ndarray
    item: np.ndarray
    labeler: np.ndarray
    turn: np.ndarray
    says: np.ndarray
    position: np.ndarray
    seconds: np.ndarray
    at: np.ndarray

    def only(self, wanted: np.ndarray) -> "_Events":
        """Those of a mask (N,), or of indices."""
        return _Events(*(column[wanted] for column in self))


def quality(store: StoreReader, now: float | None = None) -> Quality:
    """Count everything that ``Quality`` holds.

    Args:
        store: the labels.
        now: seconds since 1970, from which hours are counted back; None for the clock's.
    """
    now = time.time() if now is None else now
    with store.at_one_moment() as db:
        progress = store.progress()
        people = db.execute("SELECT id, name, kind FROM labellers ORDER BY name").fetchall()
        skips = db.execute(
            "SELECT coalesce(e.reason, 'no reason'), count(*) FROM labels l JOIN events e "
            "ON e.id = l.event WHERE l.action = 'skip' GROUP BY 1 ORDER BY 2 DESC, 1"
        ).fetchall()
        events, labels = _said(db, [person["id"] for person in people])
        gold = _table(db, 2, "SELECT id, gold FROM items WHERE gold IS NOT NULL").astype(int)
        positions = _positions(db, labels)

    # Agreement is of labels that say something of the completions, and only of items whose answer
    # is not known.
    on_gold = np.isin(labels.item, gold[:, 0])
    decided = (labels.says > SKIP) & (labels.turn == 0)
    counted = labels.only(decided & ~on_gold)
    table, category = _counts(counted)
    alpha = krippendorff_alpha(table)
    ends = alpha_interval(table)

    # Labels of the future were made before the clock was set back, or are imported: of no hour.
    ahead = labels.at > now + SLACK
    ago = np.where(ahead, DAY, np.maximum((now - labels.at) // HOUR, 0)).astype(int)

    judged = [
        _agreement(counted, table, category),
        _self_agreement(labels, len(people)),
        _on_gold(labels.only(decided & on_gold), gold),
    ]
    return Quality(
        labelers=_labelers(people, events, labels, ago == 0, judged),
        items=int(progress["items"]),
        wanted=int(progress["wanted"]),
        left=int(progress["left"]),
        labels=len(labels.id),
        done=len(counted.id),
        skips=dict(map(tuple, skips)),
        alpha=None if math.isnan(alpha) else alpha,
        alpha_interval=None if math.isnan(ends[0]) else ends,
        alpha_items=int((table.sum(axis=1) >= 2).sum()),
        positions=positions,
        hourly=np.bincount(23 - ago[ago < DAY], minlength=24).tolist(),
    )


def _table(db: sqlite3.Connection, columns: int, query: str, *values: object) -> np.ndarray:
    """A query's rows of numbers, (N, columns); ids are exact to 2^53."""
    cursor = db.cursor()
    cursor.row_factory = None  # tuples: faster than the store's rows
    cells = chain.from_iterable(cursor.execute(query, values))
    return np.fromiter(cells, dtype=float).reshape(-1, columns)


def _said(db: sqlite3.Connection, people: list[int]) -> tuple[_Events, _Events]:
    """All events, and those that hold; labelers as indices into ``people``, their ids."""
    table = _table(
        db,
        8,
        f"SELECT id, item, labeller, turn, {SAYS}, coalesce(position, -1), coalesce(seconds, -1), "
        "at FROM events ORDER BY id",
    )
    numbers, times = table[:, :6].T.astype(int, order="C"), table[:, 6:].T.copy()
    index = np.zeros(max(people, default=0) + 1, dtype=int)
    index[people] = np.arange(len(people))
    numbers[2] = index[numbers[2]]
    events = _Events(*numbers, *times)
    held = _table(db, 1, "SELECT event FROM labels")[:, 0].astype(int)
    return events, events.only(np.isin(events.id, held))


def _counts(labels: _Events) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) of decided items: counts by item's id and category (U, C); categories (N,)."""
    names, category = np.unique(labels.says, return_inverse=True)
    items, c = int(labels.item.max(initial=0)) + 1, max(len(names), 1)
    table = np.bincount(labels.item * c + category, minlength=items * c).reshape(items, c)
    return table, category


# What is asked of each labeler: indices of labelers, of how many, and how many of these are
# right, each (N,).
Judged = tuple[np.ndarray, np.ndarray, np.ndarray]


def _agreement(labels: _Events, table: np.ndarray, category: np.ndarray) -> Judged:
    """Each label against all others of its item."""
    others = np.bincount(labels.item)[labels.item] - 1
    return labels.labeler, others, table[labels.item, category] - 1


def _self_agreement(labels: _Events, people: int) -> Judged:
    """Each hidden repeat against what its labeler said first."""
    first, again = (labels.only((labels.turn == t) & (labels.says > SKIP)) for t in (0, 1))
    _, i, j = np.intersect1d(
        first.item * people + first.labeler,
        again.item * people + again.labeler,
        assume_unique=True,
        return_indices=True,
    )
    first, again = first.only(i), again.only(j)
    return first.labeler, np.ones(len(i), dtype=int), first.says == again.says


def _on_gold(labels: _Events, gold: np.ndarray) -> Judged:
    """Each label on a gold item against the answer; ``gold`` (G, 2) holds ids and answers."""
    gold = gold[np.argsort(gold[:, 0])]
    answer = gold[np.searchsorted(gold[:, 0], labels.item), 1]
    return labels.labeler, np.ones(len(answer), dtype=int), labels.says == answer


def _labelers(
    people: list[sqlite3.Row],
    events: _Events,
    labels: _Events,
    late: np.ndarray,
    judged: list[Judged],
) -> list[LabelerQuality]:
    """One for each of ``people``; ``late`` (N,) are labels of the last hour."""

    def tally(who: np.ndarray, of: np.ndarray | None = None) -> list[int]:
        return np.bincount(who, of, minlength=len(people)).astype(int).tolist()

    said = [labels.says >= 0, labels.says == TIE, labels.says == BAD, labels.says == SKIP, late]
    picks, ties, bad, skips, last_hour = (tally(labels.labeler[mask]) for mask in said)
    undos = tally(events.labeler[events.says == UNDO])

    # Picks in order of their labeler, cut where the next one's begin.
    timed = events.only((events.says >= 0) & (events.seconds >= 0))
    order = np.argsort(timed.labeler, kind="stable")
    times = np.split(timed.seconds[order], np.cumsum(tally(timed.labeler))[:-1])

    agreement, self_agreement, gold = [
        [
            Share(r / n if n else None, n)
            for n, r in zip(tally(who, of), tally(who, right), strict=True)
        ]
        for who, of, right in judged
    ]
    return [
        LabelerQuality(
            name=person["name"],
            kind=person["kind"],
            labels=picks[i] + ties[i] + bad[i] + skips[i],
            picks=picks[i],
            ties=ties[i],
            bad=bad[i],
            skips=skips[i],
            undos=undos[i],
            last_hour=last_hour[i],
            seconds=float(np.median(times[i])) if len(times[i]) else None,
            agreement=agreement[i],
            self_agreement=self_agreement[i],
            gold=gold[i],
        )
        for i, person in enumerate(people)
    ]


def _positions(db: sqlite3.Connection, labels: _Events) -> list[PositionBias]:
    """Where the last picks stood, by how many completions there were."""
    shown = labels.only(np.flatnonzero(labels.position >= 0)[-LAST:])
    items, item = np.unique(shown.item, return_inverse=True)

    # Of each of these items, how many completions it has.
    sizes = _table(
        db,
        1,
        "SELECT json_array_length(completions) FROM items WHERE id IN "
        "(SELECT value FROM json_each(?)) ORDER BY id",
        json.dumps(items.tolist()),
    )[:, 0].astype(int)
    size = sizes[item]

    result = []
    for k in np.unique(size).tolist():
        picked = np.bincount(shown.position[size == k], minlength=k)
        expected = picked.sum() / k
        p = float(chdtrc(k - 1, ((picked - expected) ** 2).sum() / expected))
        result.append(PositionBias(k, picked.tolist(), p if expected >= 5 else None))
    return sorted(result, key=lambda bias: -sum(bias.picked))[:3]
