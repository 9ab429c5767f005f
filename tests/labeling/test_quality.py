"""What an administrator sees: small stores with known answers, and a larger one counted plainly."""

import dataclasses
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from toolkit.labeling.quality import LabelerQuality, Quality, Share, quality
from toolkit.labeling.store import Labeler, Settings, Store
from toolkit.maths.agreement import alpha_interval, krippendorff_alpha

HOUR = 3600.0


class Clock:
    """A time that stands still until it is told."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr("toolkit.labeling.store.queue.steady", clock)
    return clock


def rows(count: int, completions: int = 4, best: int = 0, name: str = "p") -> list[dict[str, Any]]:
    texts = [f"c{k}" for k in range(completions)]
    return [{"prompt": f"{name}{i}", "completions": texts, "best": best} for i in range(count)]


def opened(path: Path, **settings: Any) -> Store:
    """A store in which everything is seen by two, and nothing twice."""
    shares = {"overlap": 1.0, "repeats": 0.0, "gold": 0.0} | settings
    return Store(path / "labels.db", Settings(**shares))


def person(store: Store, name: str) -> Labeler:
    labeler = store.by_token(store.invite(name))
    assert labeler is not None
    return labeler


def answer(store: Store, labeler: Labeler, says: int | str) -> str:
    """Say this of the labeler's next item: a completion's index, or an action. Its prompt."""
    task = store.next_task(labeler)
    assert task is not None
    if isinstance(says, int):
        store.record(labeler, task.form, "pick", task.order.index(says))
    else:
        store.record(labeler, task.form, says, reason="too long" if says == "skip" else None)
    return str(task.prompt)


def answer_all(store: Store, labeler: Labeler, said: dict[str, int | str]) -> None:
    """Say of each prompt what is said of it."""
    for _ in said:
        task = store.next_task(labeler)
        assert task is not None
        answer(store, labeler, said[str(task.prompt)])
    assert store.next_task(labeler) is None


def named(found: Quality) -> dict[str, LabelerQuality]:
    return {labeler.name: labeler for labeler in found.labelers}


def test_nothing_said_is_nothing_counted(tmp_path: Path) -> None:
    found = quality(opened(tmp_path))
    assert found.labelers == [] and found.positions == [] and found.skips == {}
    assert (found.items, found.wanted, found.left, found.labels, found.done) == (0, 0, 0, 0, 0)
    assert found.alpha is None and found.alpha_interval is None and found.alpha_items == 0
    assert found.hourly == [0] * 24


def test_each_action_is_counted_while_it_holds(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add_items(rows(6))
    ann, ben = person(store, "Ann"), person(store, "Ben")
    person(store, "Cid")
    for says in (1, "tie", "bad", "skip", 3):
        answer(store, ann, says)
    assert store.undo(ann)
    answer(store, ben, 2)
    found = quality(store)
    assert [who.name for who in found.labelers] == ["Ann", "Ben", "Cid"]
    one, two, none = found.labelers
    assert (one.picks, one.ties, one.bad, one.skips, one.labels, one.undos) == (1, 1, 1, 1, 4, 1)
    assert (two.picks, two.ties, two.bad, two.skips, two.labels, two.undos) == (1, 0, 0, 0, 1, 0)
    assert none == LabelerQuality(
        "Cid", "person", 0, 0, 0, 0, 0, 0, 0, None, Share(None, 0), Share(None, 0), Share(None, 0)
    )
    assert (found.labels, found.done, found.skips) == (5, 4, {"too long": 1})
    # Of 12 wanted, four are there, and one is in Ann's hands again.
    assert (found.items, found.wanted, found.left) == (6, 12, 7)


def test_agreement_is_of_items_that_both_decided(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add_items(rows(6))
    ann: dict[str, int | str] = {"p0": 1, "p1": "tie", "p2": "bad", "p3": 0, "p4": "skip", "p5": 2}
    ben: dict[str, int | str] = {"p0": 1, "p1": "tie", "p2": "tie", "p3": 3, "p4": 2, "p5": 2}
    answer_all(store, person(store, "Ann"), ann)
    answer_all(store, person(store, "Ben"), ben)
    found = quality(store)
    assert [who.agreement for who in found.labelers] == [Share(3 / 5, 5)] * 2
    # Units p0 p1 p2 p3 p5; categories 0 1 2 3 tie bad: o_cc = 2 + 2 + 2 of 10, n_c = 1 2 2 1 3 1.
    assert found.alpha == pytest.approx(1 - 9 * 4 / (100 - (1 + 4 + 4 + 1 + 9 + 1)))
    assert found.alpha_items == 5
    assert found.alpha is not None and found.alpha_interval is not None
    assert found.alpha_interval[0] < found.alpha < found.alpha_interval[1]


def test_agreement_with_several_others_is_of_pairs(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for name, best in (("Ann", 0), ("Ben", 0), ("Cid", 1)):
        store.add_picks([row | {"labeler": name} for row in rows(3, best=best)])
    store.add_picks([row | {"labeler": "Dan"} for row in rows(3, name="alone")])
    found = named(quality(store))
    assert found["Ann"].agreement == found["Ben"].agreement == Share(0.5, 6)
    assert found["Cid"].agreement == Share(0.0, 6)
    assert found["Dan"].agreement == Share(None, 0)


def test_hidden_repeats_measure_agreement_with_oneself_only(tmp_path: Path) -> None:
    store = opened(tmp_path, overlap=0.0, repeats=1.0, spacing=0)
    store.add_items(rows(4))
    ann = person(store, "Ann")
    for says in (0, 0, 1, 2, 3, "skip", 3, 3):  # each item and its repeat
        answer(store, ann, says)
    assert store.next_task(ann) is None
    found = quality(store)
    assert found.labelers[0].self_agreement == Share(2 / 3, 3)
    assert found.labelers[0].agreement == Share(None, 0)
    assert (found.labels, found.done, found.left, found.alpha) == (8, 4, 0, None)


def test_gold_measures_accuracy_and_nothing_else(tmp_path: Path) -> None:
    store = opened(tmp_path, gold=1.0)
    store.add_items(rows(5, best=2, name="gold"), gold=True)
    store.add_items(rows(1))
    for name, said in (("Ann", (2, 2, 0, "tie", "skip")), ("Ben", (2, 2, 2, 2, "bad"))):
        labeler = person(store, name)
        for says in (*said, 1):
            answer(store, labeler, says)
    found = quality(store)
    ann, ben = found.labelers
    assert (ann.gold, ben.gold) == (Share(2 / 4, 4), Share(4 / 5, 5))
    assert ann.agreement == ben.agreement == Share(1.0, 1)
    assert (found.items, found.wanted, found.done, found.alpha_items) == (1, 2, 2, 1)


def test_seconds_are_the_median_of_timed_picks(tmp_path: Path, clock: Clock) -> None:
    store = opened(tmp_path)
    store.add_items(rows(8))
    ann, ben = person(store, "Ann"), person(store, "Ben")
    for labeler, times in ((ann, (2, 90, 4)), (ben, (1, 2, 7, 100))):
        for seconds in times:
            store.next_task(labeler)
            clock.now += seconds
            answer(store, labeler, 0)
    store.next_task(ann)
    clock.now += 500
    answer(store, ann, "tie")
    store.add_picks([row | {"labeler": "elsewhere"} for row in rows(2)])
    found = named(quality(store))
    assert found["Ann"].seconds == 4 and found["Ben"].seconds == 4.5
    assert found["elsewhere"].seconds is None and found["elsewhere"].picks == 2


def test_hours_are_counted_back_from_now(tmp_path: Path, clock: Clock) -> None:
    store = opened(tmp_path)
    store.add_items(rows(9))
    ann, start = person(store, "Ann"), clock.now
    for hours in (0, 0, 0.99, 1.01, 23.5):
        clock.now = start + hours * HOUR
        answer(store, ann, 0)
    store.undo(ann)
    answer(store, ann, 0)
    clock.now = start + 24 * HOUR
    found = quality(store)
    # The first two were exactly 24 hours ago: before the first hour that is shown.
    assert found.hourly == [1, 1] + [0] * 21 + [1]
    assert found.labelers[0].last_hour == 1
    earlier = quality(store, now=start + 1.5 * HOUR)
    assert earlier.hourly[-2:] == [2, 2]  # what is later than now is of no hour yet


def picked_at(store: Store, labeler: str, items: list[int], positions: list[int]) -> None:
    """Picks of these positions, put into the file at once."""
    who = store.script(labeler).id
    store.db.execute("BEGIN")
    for item, position in zip(items, positions, strict=True):
        event = store.db.execute(
            "INSERT INTO events (form, item, labeller, turn, action, choice, position, at) "
            "VALUES (?, ?, ?, 0, 'pick', 0, ?, 0)",
            (f"{item} {who}", item, who, position),
        ).lastrowid
        store.db.execute("INSERT INTO labels VALUES (?, ?, 0, ?, 'pick', 0)", (item, who, event))
    store.db.execute("COMMIT")


def test_positions_are_counted_for_each_number_of_completions(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add_items(rows(6, completions=2))
    store.add_items(rows(60, completions=4))
    positions = [0] * 30 + [1] * 12 + [2] * 10 + [3] * 8
    picked_at(store, "all", list(range(1, 67)), [0, 1, 1, 1, 1, 1] + positions)
    store.add_picks(rows(5, completions=4, name="elsewhere"))  # shown we do not know where
    four, two = quality(store).positions
    assert (four.completions, four.picked) == (4, [30, 12, 10, 8])
    assert four.p_value == pytest.approx(chisquare([30, 12, 10, 8]).pvalue, rel=1e-9)
    assert (two.completions, two.picked, two.p_value) == (2, [1, 5], None)  # 3 expected of each


def test_who_clicks_the_first_is_seen_and_who_reads_is_not(tmp_path: Path) -> None:
    for name, share in (("reads", 0.0), ("clicks", 0.3)):
        store = Store(tmp_path / f"{name}.db")
        store.add_items(rows(400))
        rng = random.Random(0)
        positions = [0 if rng.random() < share else rng.randrange(4) for _ in range(400)]
        picked_at(store, name, list(range(1, 401)), positions)
        p = quality(store).positions[0].p_value
        assert p is not None and (p < 1e-6 if share else p > 0.01)


def test_positions_are_of_the_last_picks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.labeling.quality.LAST", 6)
    store = opened(tmp_path)
    store.add_items(rows(9, completions=2))
    picked_at(store, "all", list(range(9, 0, -1)), [0, 0, 0, 1, 0, 1, 1, 1, 1])
    assert quality(store).positions[0].picked == [1, 5]


def test_undone_picks_say_nothing_of_positions(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add_items(rows(2))
    ann = person(store, "Ann")
    answer(store, ann, 0)
    store.undo(ann)
    assert quality(store).positions == []


def test_what_is_written_meanwhile_is_not_half_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    store.add_picks(rows(3))
    other, progress = Store(tmp_path / "labels.db"), store.progress

    def meanwhile() -> dict[str, float]:
        before = progress()
        other.add_picks([row | {"labeler": "new"} for row in rows(5, name="new")])
        return before

    monkeypatch.setattr(store, "progress", meanwhile)
    found = quality(store)
    assert (found.items, found.labels) == (3, 3)
    assert [who.name for who in found.labelers] == ["imported"]
    monkeypatch.undo()
    assert (quality(store).items, quality(store).labels) == (8, 8)


def busy(path: Path, rng: random.Random) -> Store:
    """80 items of 2 to 5 completions, some gold, labeled by 7 with repeats, skips and undos."""
    store = Store(path / "busy.db", Settings(overlap=0.5))
    for i in range(80):
        k = rng.randrange(2, 6)
        store.add_items(rows(1, k, best=rng.randrange(k), name=f"{i} "), gold=i % 8 == 0)
    people = [store.script(name).id for name in "gfedcba"]
    store.db.execute("BEGIN")
    sizes = {
        row["id"]: len(json.loads(row["completions"]))
        for row in store.db.execute("SELECT id, completions FROM items").fetchall()
    }
    pairs = [(item, who) for item in sizes for who in people]
    for item, who in rng.sample(pairs, 300):
        for turn in range(rng.choice([1, 1, 2])):
            action = rng.choices(["pick", "tie", "bad", "skip"], [6, 1, 1, 1])[0]
            choice = rng.randrange(sizes[item]) * (rng.random() < 0.6) if action == "pick" else None
            known = action == "pick" and rng.random() < 0.8
            said = (item, who, turn, action, choice)
            event = store.db.execute(
                "INSERT INTO events (form, item, labeller, turn, action, choice, position, reason, "
                "seconds, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    str(rng.random()),
                    *said,
                    rng.randrange(sizes[item]) if known else None,
                    rng.choice(["too long", None]) if action == "skip" else None,
                    rng.uniform(1, 60) if known else None,
                    rng.uniform(0, 30 * HOUR),
                ),
            ).lastrowid
            if rng.random() < 0.1:
                store.db.execute(
                    "INSERT INTO events (form, item, labeller, turn, action, at) "
                    "VALUES (?, ?, ?, ?, 'undo', 0)",
                    (f"undo {event}", item, who, turn),
                )
                break
            store.db.execute(
                "INSERT INTO labels VALUES (?, ?, ?, ?, ?, ?)", (item, who, turn, event, *said[3:])
            )
    store.db.execute(
        "UPDATE items SET taken = (SELECT count(*) FROM labels WHERE item = items.id AND turn = 0 "
        "AND action != 'skip') WHERE gold IS NULL"
    )
    store.db.execute("COMMIT")
    return store


def share(outcomes: list[bool]) -> Share:
    return Share(sum(outcomes) / len(outcomes) if outcomes else None, len(outcomes))


@pytest.mark.parametrize("seed", range(5))
def test_all_is_as_counted_one_by_one(tmp_path: Path, seed: int) -> None:
    store, now = busy(tmp_path, random.Random(seed)), 30 * HOUR
    labels = store.db.execute(
        "SELECT l.*, i.gold, i.completions, e.position, e.reason, e.at FROM labels l "
        "JOIN items i ON i.id = l.item JOIN events e ON e.id = l.event"
    ).fetchall()
    events = store.db.execute("SELECT * FROM events").fetchall()
    says = {(x["item"], x["labeller"], x["turn"]): (x["action"], x["choice"]) for x in labels}
    decided = [x for x in labels if x["action"] != "skip" and x["turn"] == 0]
    gold = {x["item"]: x["gold"] for x in labels if x["gold"] is not None}
    found = quality(store, now)
    store.check()  # the store made here is a sound one
    assert [who.name for who in found.labelers] == list("abcdefg")
    for who in found.labelers:
        one = store.script(who.name).id
        own = [x for x in labels if x["labeller"] == one]
        actions = [x["action"] for x in own]
        assert (who.labels, who.last_hour) == (len(own), sum(now - x["at"] < HOUR for x in own))
        assert [who.picks, who.ties, who.bad, who.skips] == [
            actions.count(action) for action in ("pick", "tie", "bad", "skip")
        ]
        mine = [x for x in events if x["labeller"] == one]
        assert who.undos == sum(x["action"] == "undo" for x in mine)
        assert who.seconds == np.median([x["seconds"] for x in mine if x["seconds"] is not None])
        assert who.agreement == share(
            [
                says[x["item"], one, 0] == says[y["item"], y["labeller"], 0]
                for x, y in itertools.product(decided, decided)
                if x["labeller"] == one != y["labeller"] and x["item"] == y["item"] not in gold
            ]
        )
        assert who.self_agreement == share(
            [
                says[item, one, 0] == what
                for (item, labeler, turn), what in says.items()
                if labeler == one and turn == 1 and ("skip", None) not in (what, says[item, one, 0])
            ]
        )
        assert who.gold == share(
            [
                x["choice"] == gold[x["item"]]
                for x in decided
                if x["labeller"] == one and x["item"] in gold
            ]
        )
    counted = [x for x in decided if x["item"] not in gold]
    table = np.zeros((81, 7), int)
    for x in counted:
        table[x["item"], {"tie": 5, "bad": 6}.get(x["action"], x["choice"])] += 1
    assert found.alpha == pytest.approx(krippendorff_alpha(table), abs=1e-12)
    assert found.alpha_items == (table.sum(axis=1) > 1).sum()
    assert found.alpha_interval == pytest.approx(alpha_interval(table, seed=1), abs=0.02)
    assert (found.labels, found.done, found.items) == (len(labels), len(counted), 70)
    reasons = [x["reason"] or "no reason" for x in labels if x["action"] == "skip"]
    assert found.skips == {reason: reasons.count(reason) for reason in set(reasons)}
    ages = [int((now - x["at"]) // HOUR) for x in labels]
    assert found.hourly == [ages.count(23 - i) for i in range(24)]
    shown = [(len(json.loads(x["completions"])), x["position"]) for x in labels]
    assert len(found.positions) == 3
    for bias in found.positions:
        k = bias.completions
        assert bias.picked == [shown.count((k, position)) for position in range(k)]
        assert bias.p_value == pytest.approx(chisquare(bias.picked).pvalue, rel=1e-9)
    assert json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))["done"] == found.done
