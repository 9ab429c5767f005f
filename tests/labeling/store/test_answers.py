"""What people are asked, and what an answer must hold: it is stored, exported and kept apart."""

import doctest
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.problems import problems_of
from toolkit.errors import InputError
from toolkit.labeling.store import Asked, Details, Labeler, Refused, Store, answers
from toolkit.labeling.store.answers import as_following

FULL = Asked("ranking", strength=True, comment=True, edit=True)


def test_the_docstrings_show_what_comes_out() -> None:
    assert doctest.testmod(answers).attempted > 2 and doctest.testmod(answers).failed == 0


def test_the_words_of_ask_are_read_and_written_in_one_order() -> None:
    assert Asked.of("edit, ranking,comment,strength") == FULL
    assert str(FULL) == "ranking,strength,comment,edit"
    assert Asked.of("comment") == Asked(comment=True) and str(Asked()) == "best"
    assert Asked().at_once and not Asked(comment=True).at_once


@pytest.mark.parametrize(
    ("text", "said"),
    [("worst", "'worst', but must be one of best,"), ("best,ranking", "best and ranking, but")],
)
def test_other_words_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^ask: {said}"):
        Asked.of(text)


GOOD = Details(ranking=[2, 0, 1, 3], strength=2, comment="Short.", edited="Mine.", seen="all")


def test_an_answer_is_stored_by_the_items_own_order_and_exported(new: Any, tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path, 1)
    store.settle(FULL)
    task = store.next_task(ann)
    assert task.asked == FULL
    assert store.record(ann, task.form, "pick", 2, None, GOOD)

    (row,) = store.picks()
    assert row["ranking"] == [task.order[p] for p in (2, 0, 1, 3)] and row["best"] == task.order[2]
    assert (row["margin"], row["labeler_comment"], row["labeler_edit"]) == (
        0.666667, "Short.", " Mine.")  # fmt: skip
    assert problems_of(row, "best") == []

    (edited,) = store.edited()
    assert edited["completions"] == [*task.completions, " Mine."] and edited["best"] == 4
    assert edited["source"] == row["source"] and problems_of(edited, "best") == []
    (event,) = store.events()
    assert (event["strength"], event["seen"]) == (2, "all") and event["seconds"] >= 0
    last = store.last_answer(ann)
    assert last["texts"] == [task.completions[k] for k in row["ranking"]]

    assert store.undo(ann)
    again = store.next_task(ann).said  # what was said is there, to be changed
    assert again.places == {2: 1, 0: 2, 1: 3, 3: 4} and again.details["comment"] == "Short."
    assert list(store.picks()) == list(store.edited()) == [] and store.last_answer(ann) is None


def test_the_best_and_the_worst_are_stored(new: Any, tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path, 1)
    store.settle(Asked("best_and_worst"))
    task = store.next_task(ann)
    assert store.record(ann, task.form, "pick", 1, None, Details(worst=3))
    (row,) = store.picks()
    assert (row["best"], row["worst"]) == (task.order[1], task.order[3]) and "ranking" not in row


BAD: list[tuple[Asked, str, int | None, Details]] = [
    (FULL, "pick", 2, replace(GOOD, ranking=None)),
    (FULL, "pick", 2, replace(GOOD, ranking=[2, 0, 1])),
    (FULL, "pick", 2, replace(GOOD, ranking=[2, 0, 1, 1])),
    (FULL, "pick", 1, GOOD),
    (FULL, "pick", 2, replace(GOOD, strength=None)),
    (FULL, "pick", 2, replace(GOOD, strength=4)),
    (FULL, "pick", 2, replace(GOOD, worst=3)),
    (FULL, "tie", None, GOOD),
    (FULL, "pick", 2, replace(GOOD, comment="x" * 4_001)),
    (FULL, "pick", 2, replace(GOOD, edited="x" * 40_001)),
    (Asked("best_and_worst"), "pick", 1, Details()),
    (Asked("best_and_worst"), "pick", 1, Details(worst=1)),
    (Asked("best_and_worst"), "pick", 1, Details(worst=4)),
    (Asked(), "pick", 2, Details(comment="x")),
    (Asked(), "pick", 2, Details(edited="x")),
    (Asked(), "pick", 2, Details(strength=1)),
]


@pytest.mark.parametrize(("asked", "action", "position", "details"), BAD)
def test_half_an_answer_or_more_than_was_asked_is_refused_and_not_stored(
    new: Any, tmp_path: Path, asked: Asked, action: str, position: int, details: Details
) -> None:
    store, ann, _ = new(tmp_path, 1)
    store.settle(asked)
    task = store.next_task(ann)
    with pytest.raises(Refused) as error:
        store.record(ann, task.form, action, position, None, details)
    assert error.value.status == 400 and list(store.events()) == []


def test_a_script_only_picks_whatever_people_are_asked(new: Any, tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path, 2)
    store.settle(FULL)
    lexicon = store.script("lexicon")
    assert store.record(lexicon, store.next_task(lexicon).form, "pick", 0)
    (row,) = store.picks()
    assert not {"ranking", "margin"} & set(row)
    assert store.record(ann, store.next_task(ann).form, "bad", None, None, Details(edited="Mine."))
    assert [row["labeler"] for row in store.edited()] == ["ann"]


def test_what_is_asked_may_change_until_a_person_has_answered(new: Any, tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path, 3)
    assert store.settle(None) == Asked()
    lexicon = store.script("lexicon")
    store.record(lexicon, store.next_task(lexicon).form, "pick", 0)
    assert store.settle(Asked("ranking")) == Asked("ranking")
    assert store.settle(Asked()) == Asked()
    store.record(ann, store.next_task(ann).form, "pick", 0)
    with pytest.raises(InputError, match="asks people for best, and holds 1 of their answers"):
        store.settle(Asked("ranking"))
    store.close()
    with Store(store.path) as again:
        assert again.settle(None) == again.settle(Asked()) == again.asked() == Asked()


def test_no_more_than_eight_can_be_put_in_order(new: Any, rows: Any, tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 1)
    store.settle(Asked("ranking"))
    nine = [{"prompt": "p", "completions": [f" {k}" for k in range(9)]}]
    with pytest.raises(InputError, match="at most 8 completions, but an item has 9"):
        store.add_items(nine)
    store.settle(Asked())
    assert store.add_items(nine) == (1, 0)
    with pytest.raises(InputError, match="at most 8"):
        store.settle(Asked("best_and_worst"))


def test_an_edit_that_changes_nothing_is_none() -> None:
    assert as_following("owl.", " owl.") == " owl."
    assert as_following("\u2026xious.", "xious.") == "xious."
    assert as_following("As it is.", "Another.") == "As it is."


def test_a_store_of_version_1_keeps_all_that_it_holds(tmp_path: Path) -> None:
    """version_1.sql was dumped from a store that the first version of the toolkit wrote."""
    path = tmp_path / "labels.sqlite"
    old = sqlite3.connect(path)
    old.executescript(Path(__file__).with_name("version_1.sql").read_text(encoding="utf-8"))
    old.execute("PRAGMA user_version = 1")
    old.commit()
    tables = ("items", "labellers", "sessions", "leases", "events", "labels")
    before = {name: old.execute(f"SELECT * FROM {name}").fetchall() for name in tables}
    old.close()

    with Store(path) as store:
        after = {
            name: list(map(tuple, store.db.execute(f"SELECT * FROM {name}"))) for name in tables
        }
        after["events"] = [event[:-1] for event in after["events"]]  # the new column
        assert after == before
        assert [(e["labeler"], e["action"], e["choice"]) for e in store.events()] == [
            ("ann", "pick", 1), ("ann", "pick", 2), ("bob", "tie", None), ("ann", "skip", None),
            ("bob", "bad", None), ("bob", "pick", 0), ("ann", "pick", 1), ("ann", "undo", None),
            ("elsewhere", "pick", 3), ("lexicon", "pick", 0),
        ]  # fmt: skip
        assert len(list(store.picks())) == 5 and store.progress() == {
            "items": 7, "wanted": 12, "left": 3}  # fmt: skip

        # People go on where they were, and what they are asked stays.
        with pytest.raises(InputError, match="asks people for best"):
            store.settle(Asked("ranking"))
        ann = Labeler(1, "ann", "person")
        task = store.next_task(ann)
        assert task is not None and store.record(ann, task.form, "pick", 0)
        assert store.undo(ann) and len(list(store.picks())) == 5
