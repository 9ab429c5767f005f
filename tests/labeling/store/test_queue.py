"""Who is asked what, in which order, and for how long an item waits."""

import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolkit.labeling.store import Refused, Settings, Store
from toolkit.labeling.store.queue import shown_order

PLAIN = Settings(overlap=0.0, repeats=0.0, gold=0.0)


def test_each_item_is_labeled_by_as_many_as_wanted(new: Any, tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path, 200, Settings(overlap=0.15, repeats=0.0))
    people, done = itertools.cycle([ann, bob]), Counter()
    for who in itertools.islice(people, 600):
        task = store.next_task(who)
        if task is not None:
            store.record(who, task.form, "pick", 0)
            done[task.item] += 1
    wanted = dict(store.db.execute("SELECT id, wanted FROM items").fetchall())
    assert dict(done) == wanted
    assert 0.08 < sum(n == 2 for n in wanted.values()) / 200 < 0.24
    assert store.progress() == {"items": 200, "wanted": sum(wanted.values()), "left": 0}


def test_what_one_skips_another_is_asked(new: Any, label_all: Any, tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path, 5)
    task = store.next_task(ann)
    store.record(ann, task.form, "skip", reason="other")
    assert task.item not in label_all(store, ann)
    assert label_all(store, bob) == [task.item]
    assert [e["reason"] for e in store.events() if e["action"] == "skip"] == ["other"]


def test_a_lease_that_ran_out_frees_the_item_and_its_form_is_refused(
    new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ann, bob = new(tmp_path, 1)
    task = store.next_task(ann)
    assert store.next_task(bob) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + PLAIN.lease + 1)
    theirs = store.next_task(bob)
    assert theirs.item == task.item and theirs.form != task.form
    with pytest.raises(Refused, match="ran out") as refused:
        store.record(ann, task.form, "pick", 0)
    assert refused.value.status == 409
    assert store.record(bob, theirs.form, "pick", 0)


def test_a_late_answer_counts_where_nobody_has_taken_the_item(
    new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ann, _ = new(tmp_path, 1)
    task = store.next_task(ann)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + PLAIN.lease + 1)
    assert store.record(ann, task.form, "pick", 0)


@pytest.mark.slow
def test_all_orders_are_as_likely_and_the_choice_is_what_stood_there(
    new: Any, tmp_path: Path
) -> None:
    """Whatever the order, who picks by content picks the same completion; places even out."""
    orders = Counter(tuple(shown_order(item, 1, 0, 4)) for item in range(24_000))
    assert set(orders) == set(itertools.permutations(range(4)))
    assert max(abs(n - 1000) for n in orders.values()) < 160  # five standard deviations
    store, ann, _ = new(tmp_path, 400)
    seen = set()
    while (task := store.next_task(ann)) is not None:
        seen.add(tuple(task.order))
        position = [task.completions[k] for k in task.order].index(task.completions[1])
        store.record(ann, task.form, "pick", position)
    assert len(seen) == 24
    assert {row["best"] for row in store.picks()} == {1}
    positions = Counter(e["position"] for e in store.events())
    assert all(60 < positions[place] < 140 for place in range(4))


def test_each_labeler_has_an_order_of_their_own() -> None:
    same = sum(shown_order(item, 1, 0, 4) == shown_order(item, 2, 0, 4) for item in range(2400))
    assert 50 < same < 150  # one in 24
    assert shown_order(5, 1, 0, 4) == shown_order(5, 1, 0, 4)


def test_repeats_come_later_unmarked_and_stay_out_of_the_comparisons(
    new: Any, label_all: Any, tmp_path: Path
) -> None:
    store, ann, _ = new(tmp_path, 300, Settings(overlap=0.0, repeats=0.1, spacing=10))
    items = label_all(store, ann)
    assert set(Counter(items).values()) == {1, 2}
    twice = [item for item, n in Counter(items).items() if n == 2]
    assert 15 <= len(twice) <= 50
    for item in twice:
        first = items.index(item)
        assert items.index(item, first + 1) - first > 10
    assert len(list(store.picks())) == 300
    assert len(list(store.picks(repeats=True))) == 300 + len(twice)


def test_gold_items_are_asked_of_everybody_and_are_no_work_done(
    new: Any, rows: Any, label_all: Any, tmp_path: Path
) -> None:
    store, ann, bob = new(tmp_path, 60, Settings(overlap=0.0, repeats=0.0, gold=0.3))
    store.add_items([row | {"best": 2} for row in rows(3, k=3)], gold=True)
    assert store.progress()["wanted"] == 60
    done = [label_all(store, ann), label_all(store, bob)]
    golden = {row[0] for row in store.db.execute("SELECT id FROM items WHERE gold = 2")}
    assert len(golden & set(done[0])) == 3
    assert len(list(store.picks())) == 60
    assert len(list(store.picks(gold=True))) == 60 + sum(len(golden & set(d)) for d in done)


def test_two_leases_that_ran_out_free_the_item_twice(
    new: Any, label_all: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ann, bob = new(tmp_path, 1, Settings(overlap=1.0))
    assert store.next_task(ann).item == store.next_task(bob).item
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + PLAIN.lease + 1)
    assert label_all(store, ann) == label_all(store, bob) != []
    store.check()


def held(store: Store) -> list[int]:
    store.check()
    return [row["best"] for row in store.picks()]


DAY = 86_400.0


def set_clock(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + by)


@pytest.mark.parametrize("by", [-DAY, -2 * PLAIN.lease, 365 * DAY])
@pytest.mark.parametrize("anew", [False, True])
def test_after_the_clock_was_set_leases_are_free_and_no_time_is_negative(
    new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float, anew: bool
) -> None:
    store, ann, bob = new(tmp_path, 2)
    held = [store.next_task(who) for who in (ann, bob)]
    set_clock(monkeypatch, by)
    if anew:  # the server is started again, too
        store.close()
        store = Store(store.path, PLAIN)
    assert store.record(bob, held[1].form, "pick", 0)  # hers is nobody else's yet
    theirs = store.next_task(bob)
    assert theirs is not None and theirs.item == held[0].item
    assert store.record(bob, theirs.form, "pick", 0)
    seconds = [event["seconds"] for event in store.events()]
    assert all(s is None or 0 <= s < 60 for s in seconds), seconds
    assert seconds[0] is not None or anew  # this store's own clock was not set
    store.check()
    assert store.progress()["left"] == 0


@pytest.mark.parametrize("by", [-60.0, 60.0])
def test_a_small_step_of_the_clock_changes_nothing(
    new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    store, ann, bob = new(tmp_path, 1)
    task = store.next_task(ann)
    set_clock(monkeypatch, by)
    assert store.next_task(ann) == task and store.next_task(bob) is None
