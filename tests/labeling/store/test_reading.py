"""What the store says of its labels."""

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
