"""Labels are given until there are enough, by a script or by people who are waited for."""

from pathlib import Path
from typing import Any

import pytest

from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Settings, Store
from toolkit.pipeline.alarm import win_rate
from toolkit.pipeline.picks import items_for, label_until, unanswered
from toolkit.scoring.picker import ScorePicker

SIDES = ["reference", "reference", "policy", "policy"]


def items(number: int, count: int, sides: bool) -> list[dict[str, Any]]:
    more: dict[str, Any] = {"source": {"round": number}} | ({"sides": SIDES} if sides else {})
    return [
        {"prompt": f"p{number}{sides}{i}", "completions": ["a", "bb", "ccc", "dddd"]} | more
        for i in range(count)
    ]


def longest(prompts: list[Any], completions: list[str]) -> list[float]:
    return [float(len(c)) for c in completions]


def test_a_script_labels_up_to_the_number_and_all_validation_items(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite", Settings(overlap=0.0))
    store.add_items(items(1, 8, False) + items(1, 2, True))
    labeler = ScriptedLabeler("script", ScorePicker(longest))
    asked: list[int] = []

    def more(count: int) -> None:
        asked.append(count)
        store.add_items(items(2, count, False))

    picks = label_until(store, 1, 9, True, labeler, more, lambda: None)
    assert len(picks) in (9, 10) and not unanswered(store, 1) and not asked
    found = win_rate(picks, 1)
    assert (found["wins"], found["trials"], found["rate"]) == (2, 2, 1.0)
    assert win_rate(picks, 2)["trials"] == 0
    without = label_until(store, 2, 20, False, labeler, more, lambda: None)
    assert len(without) == 20 and asked and all("sides" not in row for row in without)
    store.close()


def test_what_is_shown_does_not_tell_the_sides(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite")
    store.add_items(items(1, 20, True))
    task = store.next_task(store.script("x"))
    assert task is not None and "sides" not in task._fields
    orders = set()
    labeler = ScriptedLabeler("x", ScorePicker(longest))
    labeler.work(store, progress=False)
    orders = {row["position"] for row in store.events()}
    assert len(orders) > 2  # the same completion, shown in other places
    store.close()


def test_ties_are_made_up_for_by_more_items(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite", Settings(overlap=0.0))
    store.add_items(items(0, 4, False))
    same = [
        {"prompt": f"q{i}", "completions": ["a", "a"], "source": {"round": 0}} for i in range(4)
    ]
    store.add_items(same)
    ScriptedLabeler("script", ScorePicker(longest)).work(store, progress=False)
    assert items_for(store, 10, 4) == 20  # every second was a tie
    store.close()


def test_people_are_waited_for_and_the_wait_can_be_ended(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.sqlite", Settings(overlap=0.0))
    store.add_items(items(0, 3, False))
    looks = [0]
    person = ScriptedLabeler("on another machine", ScorePicker(longest))

    def look() -> None:
        looks[0] += 1
        if looks[0] > 2:
            person.work(store, 1, progress=False)

    def more(count: int) -> None:
        raise AssertionError("there are enough")

    assert len(label_until(store, 0, 2, True, None, more, look, poll=0.01)) == 2
    assert looks[0] == 4

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_until(store, 0, 3, True, None, more, stop, poll=0.01)
    store.close()


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_what_the_only_person_skips_is_made_up_for_and_what_they_hold_is_waited_for(
    tmp_path: Path, overlap: float
) -> None:
    store = Store(tmp_path / "s.sqlite", Settings(overlap=overlap, repeats=0.0))
    store.add_items(items(0, 3, False))
    ann = store.by_token(store.invite("ann"))
    assert ann is not None
    said, asked = iter(["pick", "skip", "hold", "hold", "pick", "hold", "pick"]), []

    def look() -> None:
        action = next(said)
        task = store.next_task(ann)
        if action != "hold" and task is not None:
            store.record(ann, task.form, action, 0 if action == "pick" else None)

    def more(count: int) -> None:
        asked.append(count)
        store.add_items(items(1, count, False))

    assert len(label_until(store, 0, 3, True, None, more, look, poll=0.001)) == 3
    assert len(asked) == 1  # after the skip, when nothing is left; not while the last is held
    store.close()
