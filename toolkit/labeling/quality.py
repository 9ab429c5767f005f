"""The figures of the admin page: each labeler's number of labels, speed and agreement.

They are counted from the store's tables at one moment, which takes about half a second for 200,000
labels. A label belongs to an item, a labeler and a turn, and is valid until it is undone.
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

HOUR, DAY = 3600.0, 24  # an hour in seconds, a day in hours
SLACK = 60.0  # seconds by which two machines' clocks may differ
# An event's answer as one number: the index of a pick, or one of these.
TIE, BAD, SKIP, UNDO = -1, -2, -3, -4
SAYS = (
    "CASE action WHEN 'pick' THEN choice WHEN 'tie' THEN -1 WHEN 'bad' THEN -2 "
    "WHEN 'skip' THEN -3 ELSE -4 END"
)
# Positions are counted over this many last picks, because each needs its item's text.
LAST = 10_000


@dataclass(frozen=True)
class Share:
    """A share, and the number that it is a share of."""

    share: float | None  # None if count is 0
    count: int


@dataclass(frozen=True)
class LabelerQuality:
    """One labeler's figures.

    Attributes:
        name: the labeler's name.
        kind: person, script or admin.
        labels: valid labels; the sum of picks, ties, bad and skips.
        picks: labels that pick a completion.
        ties: labels that call the best completions equally good.
        bad: labels that call all completions bad.
        skips: labels that skip the item.
        undos: labels that were taken back.
        last_hour: valid labels of the last hour.
        seconds: median seconds per pick, undone picks included; None if none was timed.
        agreement: share of pairs (this label, another labeler's label of the same item) that are
            equal: the same completion, both ties, or both bad. Without skips, gold and repeats.
        self_agreement: share of hidden repeats with the same answer as at first, without skips.
        gold: share of labels on gold items that pick the known best, without skips.
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
    """Positions of the picked completions on the page, over the last 10,000 picks.

    Attributes:
        completions: K, the number of completions shown.
        picked: (K,) picks at each position. The order is random for each labeler
            (``shown_order``), so all positions are equally likely if labelers read everything.
        p_value: probability of counts at least this uneven if positions are equally likely
            (chi-square, K - 1 degrees of freedom); None if fewer than 5 are expected at each.
    """

    completions: int
    picked: list[int]
    p_value: float | None


@dataclass(frozen=True)
class Quality:
    """The figures of all labels and of each labeler; ``dataclasses.asdict`` makes JSON of it.

    Attributes:
        labelers: sorted by name, with those who have not begun.
        items: number of items without gold items.
        wanted: labels wanted of these items.
        left: wanted labels that nobody has given or is giving.
        labels: all valid labels, with skips, repeats and gold.
        done: valid labels that count towards ``wanted``: without skips, repeats and gold.
        skips: number of skips by reason.
        alpha: Krippendorff's alpha of the labels in ``done``: units are items; categories are the
            picked completion's index, tie, and bad. None if it is undefined.
        alpha_interval: 95 % interval by resampling items; None if alpha is None or has one item.
        alpha_items: number of items with two labels or more, which alpha is computed from.
        positions: one entry per K, for the three K with most picks.
        hourly: (24,) valid labels of each of the last 24 hours; the last one ends now.
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
    """Events in order, each column (N,); -1 for an unknown position or time."""

    id: np.ndarray
    item: np.ndarray
    labeler: np.ndarray
    turn: np.ndarray
    says: np.ndarray
    position: np.ndarray
    seconds: np.ndarray
    at: np.ndarray

    def only(self, wanted: np.ndarray) -> "_Events":
        """Select events by a mask (N,) or by indices."""
        return _Events(*(column[wanted] for column in self))


def quality(store: StoreReader, now: float | None = None) -> Quality:
    """Compute the figures of ``Quality``.

    Args:
        store: the labels.
        now: seconds since 1970 from which hours are counted back; None for the present.
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

    # Agreement leaves out skips, repeats and items whose answer is known.
    on_gold = np.isin(labels.item, gold[:, 0])
    decided = (labels.says > SKIP) & (labels.turn == 0)
    counted = labels.only(decided & ~on_gold)
    table, category = _counts(counted)
    alpha = krippendorff_alpha(table)
    ends = alpha_interval(table)

    # Labels from the future (imported, or made before the clock was set back) belong to no hour.
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
    """Return a query's rows of numbers, (N, columns); ids are exact to 2^53."""
    cursor = db.cursor()
    cursor.row_factory = None  # tuples are faster than the store's rows
    cells = chain.from_iterable(cursor.execute(query, values))
    return np.fromiter(cells, dtype=float).reshape(-1, columns)


def _said(db: sqlite3.Connection, people: list[int]) -> tuple[_Events, _Events]:
    """Return all events and the valid ones; labelers become indices into ``people``."""
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
    """Count labels (N,) by item's id and category (U, C); return these and the categories (N,)."""
    names, category = np.unique(labels.says, return_inverse=True)
    items, c = int(labels.item.max(initial=0)) + 1, max(len(names), 1)
    table = np.bincount(labels.item * c + category, minlength=items * c).reshape(items, c)
    return table, category


# Indices of labelers, how many answers are compared, and how many of these agree, each (N,).
Judged = tuple[np.ndarray, np.ndarray, np.ndarray]


def _agreement(labels: _Events, table: np.ndarray, category: np.ndarray) -> Judged:
    """Compare each label with all others of its item."""
    others = np.bincount(labels.item)[labels.item] - 1
    return labels.labeler, others, table[labels.item, category] - 1


def _self_agreement(labels: _Events, people: int) -> Judged:
    """Compare each hidden repeat with its labeler's first answer."""
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
    """Compare each label of a gold item with the answer; ``gold`` (G, 2) holds ids and answers."""
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
    """Compute the figures of each labeler; ``late`` (N,) marks labels of the last hour."""

    def tally(who: np.ndarray, of: np.ndarray | None = None) -> list[int]:
        return np.bincount(who, of, minlength=len(people)).astype(int).tolist()

    said = [labels.says >= 0, labels.says == TIE, labels.says == BAD, labels.says == SKIP, late]
    picks, ties, bad, skips, last_hour = (tally(labels.labeler[mask]) for mask in said)
    undos = tally(events.labeler[events.says == UNDO])

    # Picks sorted by labeler, and split into one part each.
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
    """Count the positions of the last picks, by the number of completions."""
    shown = labels.only(np.flatnonzero(labels.position >= 0)[-LAST:])
    items, item = np.unique(shown.item, return_inverse=True)

    # The number of completions of each of these items.
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
        result.append(bias_of(np.bincount(shown.position[size == k], minlength=k)))
    return sorted(result, key=lambda bias: -sum(bias.picked))[:3]


def bias_of(picked: np.ndarray) -> PositionBias:
    """Test whether positions are picked equally often; ``picked`` (K,) counts at least one pick."""
    expected = picked.sum() / len(picked)
    p = float(chdtrc(len(picked) - 1, ((picked - expected) ** 2).sum() / expected))
    return PositionBias(len(picked), picked.tolist(), p if expected >= 5 else None)
