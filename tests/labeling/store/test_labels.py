"""Of a person's labels of one item, the one that was made last counts."""

from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.labeling.store import Refused, Store

ITEM = {
    "prompt": "Text 0.",
    "completions": [f" {letter}0" for letter in "abcd"],
    "source": {"model": "m", "update": 0},
}


def test_a_pick_that_comes_in_ends_the_lease_on_its_item(new: Any, tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path, 1)
    task = store.next_task(ann)
    row = ITEM | {"best": 1, "labeler": "ann"}
    assert store.add_picks([row]) == (1, 0)
    with pytest.raises(Refused, match="ran out"):
        store.record(ann, task.form, "pick", 0)
    assert store.undo(ann) and store.next_task(ann).item == task.item
    store.check()


EARLY, NOON, LATE = (f"2024-01-0{day}T12:00:00+00:00" for day in (1, 2, 3))


def said(best: int, when: str | None = None, who: str = "ann") -> dict[str, Any]:
    return ITEM | {"best": best, "labeler": who} | ({"updated_at": when} if when else {})


def held(store: Store) -> list[int]:
    store.check()
    return [row["best"] for row in store.picks()]


@pytest.mark.parametrize(
    ("labels", "best"),
    [
        ([said(1), said(2)], 2),
        ([said(1, EARLY), said(2, LATE)], 2),
        ([said(2, LATE), said(1, EARLY)], 2),
        ([said(1, "2024-01-02T12:00:00+02:00"), said(2, "2024-01-02T11:00:00Z")], 2),
        ([said(1, EARLY), said(3, LATE), said(2, NOON)], 3),
        ([said(1, EARLY) | {"created_at": LATE}, said(2, NOON)], 2),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_later_label_of_the_same_person_replaces_the_earlier(
    new: Any, tmp_path: Path, labels: list[dict[str, Any]], best: int, at_once: bool
) -> None:
    store, _, _ = new(tmp_path, 0)
    for some in [labels] if at_once else [[label] for label in labels]:
        store.add_picks(some)
    assert held(store) == [best]


def test_who_goes_back_to_the_first_choice_within_a_file_has_made_it_last(
    new: Any, tmp_path: Path
) -> None:
    store, _, _ = new(tmp_path, 0)
    store.add_picks([said(1), said(2), said(1)])
    assert held(store) == [1]


def test_a_file_that_comes_in_again_changes_nothing(new: Any, tmp_path: Path) -> None:
    for name, when in (("dated", (EARLY, LATE)), ("undated", (None, None))):
        (tmp_path / name).mkdir()
        store, _, _ = new(tmp_path / name, 0)
        first, second = [[said(k, t), said(0, t, "bob")] for k, t in zip((1, 2), when, strict=True)]
        assert store.add_picks(first) == (2, 0)
        assert store.add_picks(second) == (1, 1)
        events = len(list(store.events()))
        for again in (first, second, first + second, first):
            assert store.add_picks(again)[0] == 0
        assert sorted(held(store)) == [0, 2] and len(list(store.events())) == events


def test_what_was_labeled_here_yields_only_to_a_label_that_says_it_is_later(
    new: Any,
    tmp_path: Path,
) -> None:
    store, ann, _ = new(tmp_path, 1)
    task = store.next_task(ann)
    store.record(ann, task.form, "pick", task.order.index(0))
    assert store.add_picks([said(1)]) == (0, 1) and held(store) == [0]
    assert store.add_picks([said(2, EARLY)]) == (0, 1) and held(store) == [0]
    assert store.add_picks([said(3, "2999-01-01")]) == (1, 0) and held(store) == [3]
    assert [e["action"] for e in store.events()] == ["pick", "undo", "pick"]
    assert store.progress()["left"] == 0


def test_a_pick_takes_the_place_of_a_skip_and_the_item_is_done(new: Any, tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path, 1)
    store.record(ann, store.next_task(ann).form, "skip")
    assert store.add_picks([said(2, "2999-01-01")]) == (1, 0) and held(store) == [2]
    assert store.next_task(bob) is None


def test_two_people_and_two_items_keep_a_label_each(new: Any, tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    other = ITEM | {"prompt": "Text 1.", "best": 3, "labeler": "ann"}
    assert store.add_picks([said(1), said(2, None, "bob"), other]) == (3, 0)
    assert held(store) == [1, 2, 3]


def test_the_time_of_a_label_is_kept_and_is_no_part_of_the_item(new: Any, tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    store.add_picks([said(1, EARLY)])
    (event,), (pick,) = store.events(), store.picks()
    assert event["at"] == 1_704_110_400  # date -d 2024-01-01T12:00:00Z +%s
    assert "updated_at" not in pick
    with pytest.raises(InputError, match="updated_at: 'noon', but must be a time"):
        store.add_picks([said(1, "noon")])


def test_what_else_was_said_comes_in_with_the_pick_and_changes_with_it(
    new: Any, tmp_path: Path
) -> None:
    store, _, _ = new(tmp_path, 0)
    ranked = {"ranking": [1, 0, 2, 3], "margin": 0.5, "labeler_comment": "Short."}
    assert store.add_picks([said(1)]) == (1, 0)
    assert store.add_picks([said(1) | ranked]) == (1, 0)  # the same pick, and more
    (row,) = store.picks()
    assert {name: row[name] for name in ranked} == ranked
    assert store.add_picks([said(1) | ranked]) == store.add_picks([said(1)]) == (0, 1)

    # An export that comes in elsewhere goes out again as it was.
    (tmp_path / "elsewhere").mkdir()
    other, _, _ = new(tmp_path / "elsewhere", 0)
    assert other.add_picks(store.picks()) == (1, 0)
    assert list(other.picks()) == list(store.picks())
