"""What the store says of its labels."""

import math
from pathlib import Path
from typing import Any

from toolkit.labeling.store import Labeler, Store


def label_one(store: Store, who: Labeler) -> None:
    task = store.next_task(who)
    assert task is not None and store.record(who, task.form, "pick", 0)


def test_matches_are_no_comparisons_to_train_on(
    new: Any, rows: Any, label_all: Any, tmp_path: Path
) -> None:
    store, ann, _ = new(tmp_path, 2)
    store.add_items([row | {"side": "x"} for row in rows(3, k=2)], kind="match")
    label_all(store, ann)
    assert len(list(store.picks())) == 2
    assert len(list(store.picks(kind="match"))) == 3


def test_negative_times_of_an_older_version_are_not_counted(new: Any, tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path)
    label_one(store, ann)
    store.db.execute(
        "INSERT INTO events (form, item, labeller, turn, action, seconds, at) "
        "VALUES ('old', 1, ?, 0, 'skip', ?, 0)",
        (ann.id, -86_400.0),
    )
    assert 0 <= store.own_progress(ann)["seconds"] < 60


def test_progress_is_of_labels_wanted_and_of_those_that_nobody_holds(
    new: Any, tmp_path: Path
) -> None:
    store, ann, bob = new(tmp_path, 4)
    assert store.progress() == {"items": 4, "wanted": 4, "left": 4}
    label_one(store, ann)
    store.next_task(bob)  # on his screen
    assert store.progress() == {"items": 4, "wanted": 4, "left": 2}
    assert store.unanswered() == 3  # the one on his screen has no answer either


def test_the_time_of_a_label_is_the_median_of_the_last_twenty_five(
    new: Any, tmp_path: Path
) -> None:
    store, ann, _ = new(tmp_path, 1)
    assert math.isnan(store.own_progress(ann)["seconds"])
    for n in range(30):  # the last are 5 to 29 seconds, in whatever order
        store.db.execute(
            "INSERT INTO events (form, item, labeller, turn, action, seconds, at) "
            "VALUES (?, 1, ?, 0, 'skip', ?, 0)",
            (str(n), ann.id, float(n)),
        )
    assert store.own_progress(ann)["seconds"] == 17


def test_what_was_said_is_a_pick_or_none_for_a_tie_and_a_skip_is_nothing(
    new: Any, tmp_path: Path
) -> None:
    store, ann, _ = new(tmp_path, 4)
    for action in ("pick", "tie", "bad", "skip"):
        task = store.next_task(ann)
        assert store.record(ann, task.form, action, 0 if action == "pick" else None)
    said = list(store.said("comparison"))
    assert [row["choice"] is None for row in said] == [False, True, True]
    assert {row["labeler"] for row in said} == {"ann"} and list(store.said("match")) == []
    assert store.has_picked(ann) and [e["action"] for e in store.events()][-1] == "skip"
