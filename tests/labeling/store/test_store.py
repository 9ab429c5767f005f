"""The store: what was said is kept, once, whatever happens."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.labeling.store import Refused, Settings, Store


def test_a_form_makes_one_label_and_the_first_answer_stands(new: Any, tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path)
    task = store.next_task(ann)
    assert store.next_task(ann) == task  # loaded again, the same is asked
    assert store.record(ann, task.form, "pick", 2)
    assert not store.record(ann, task.form, "pick", 1)
    (pick,) = store.picks()
    assert pick["best"] == task.order[2] and pick["labeler"] == "ann"
    assert pick["source"] == {"model": "m", "update": int(pick["prompt"][5:-1])}
    assert [e["action"] for e in store.events()] == ["pick"]


def test_undo_asks_again_and_a_second_click_takes_back_nothing_more(
    new: Any, label_all: Any, tmp_path: Path
) -> None:
    store, ann, _ = new(tmp_path)
    tasks = []
    for position in (1, 2, 3):
        tasks.append(store.next_task(ann))
        store.record(ann, tasks[-1].form, "pick", position)
    store.next_task(ann)
    last = store.last_event(ann)
    assert store.undo(ann, last) and not store.undo(ann, last)
    again = store.next_task(ann)
    assert (again.item, again.order) == (tasks[2].item, tasks[2].order)
    assert again.form != tasks[2].form
    assert store.undo(ann)  # and once more, further back
    assert store.next_task(ann).item == tasks[1].item
    assert not store.record(ann, tasks[1].form, "pick", 0)  # the old form has spoken
    assert [row["best"] for row in store.picks()] == [tasks[0].order[1]]
    assert [e["action"] for e in store.events()] == ["pick"] * 3 + ["undo"] * 2
    label_all(store, ann)
    assert store.progress()["left"] == 0 and len(list(store.picks())) == 8
    store.check()


def test_undo_of_nothing_is_nothing(new: Any, label_all: Any, tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path)
    label_all(store, ann)
    assert not store.undo(bob) and not store.undo(ann, 10**9)


@pytest.mark.parametrize(
    ("action", "position"),
    [("pick", 4), ("pick", -1), ("pick", None), ("skip", 1), ("undo", None), ("delete", None)],
)
def test_an_answer_that_is_none_is_refused_and_nothing_is_written(
    new: Any, tmp_path: Path, action: str, position: int | None
) -> None:
    store, ann, _ = new(tmp_path)
    task = store.next_task(ann)
    with pytest.raises(Refused):
        store.record(ann, task.form, action, position)
    assert list(store.events()) == [] and store.next_task(ann) == task


def test_somebody_elses_form_is_refused(new: Any, tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path)
    task = store.next_task(ann)
    for _ in range(2):  # before it is answered, and after
        with pytest.raises(Refused, match="belongs to somebody else") as refused:
            store.record(bob, task.form, "pick", 0)
        assert refused.value.status == 403
        store.record(ann, task.form, "tie")
    assert len(list(store.events())) == 1


def test_items_and_picks_come_in_once(new: Any, rows: Any, label_all: Any, tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path)
    assert store.add_items(rows(9)) == (1, 8)
    label_all(store, ann)
    out = list(store.picks())
    other = Store(tmp_path / "other.sqlite", store.settings)
    assert other.add_picks(out) == (9, 0)
    assert other.add_picks(out) == (0, 9)
    assert list(other.picks()) == out
    assert other.next_task(other.script("bot")) is None  # nothing is left to label
    other.check()


def test_tokens_and_sessions_are_kept_hashed_and_end_with_a_new_invitation(
    new: Any, tmp_path: Path
) -> None:
    store, _, _ = new(tmp_path)
    token = store.invite("cleo")
    cleo = store.by_token(token)
    session = store.start_session(cleo)
    assert store.by_session(session) == cleo and store.by_session("") is None
    assert store.by_session(session, longest=0) is None
    store.close()
    files = b"".join(p.read_bytes() for p in tmp_path.glob("labels.sqlite*"))
    assert token.encode() not in files and session.encode() not in files
    with pytest.raises(Refused, match="cleo already has a link"):
        store.invite("cleo")
    assert store.by_token(token) == cleo
    store.invite("cleo", replaces=store.invitation("cleo"))
    assert store.by_token(token) is None and store.by_session(session) is None
    with pytest.raises(InputError, match="'cleo' is a person, not a script"):
        store.script("cleo")


@pytest.mark.parametrize("change", [{"best": 7}, {"best": -1}, {"turn": "x"}, {"turn": 5}])
def test_a_pick_that_can_not_be_is_refused_whole(
    new: Any, rows: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    store, _, _ = new(tmp_path, 0)
    good = rows(1)[0] | {"best": 1}
    with pytest.raises(InputError, match="out of range"):
        store.add_picks([good, good | change])
    assert list(store.picks()) == [] and store.progress()["items"] == 0


def test_names_of_any_kind_come_in_and_repeats_stay_marked_apart(
    new: Any, rows: Any, tmp_path: Path
) -> None:
    store, _, _ = new(tmp_path, 0)
    row = rows(1)[0] | {"best": 1, "labeler": "half \ud800"}
    assert store.add_picks([row | {"turn": 1}, row]) == (2, 0)
    assert [r.get("turn", 0) for r in store.picks(repeats=True)] == [1, 0]
    assert [r["labeler"] for r in store.picks()] == ["half \\ud800"]


def test_a_corrected_gold_answer_is_taken(new: Any, rows: Any, tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    for best in (0, 2):
        store.add_items([rows(1)[0] | {"best": best}], gold=True)
    assert [row[0] for row in store.db.execute("SELECT gold FROM items")] == [2]


def test_who_was_imported_can_be_invited_but_a_script_that_worked_can_not(
    new: Any, rows: Any, label_all: Any, tmp_path: Path
) -> None:
    store, _, _ = new(tmp_path, 2)
    store.add_picks([rows(1)[0] | {"best": 1, "labeler": "cleo"}])
    cleo = store.by_token(store.invite("cleo"))
    assert cleo.kind == "person" and store.invitation("cleo") and not store.invitation("dora")
    label_all(store, store.script("bot"))
    with pytest.raises(InputError, match="'bot' is a script"):
        store.invite("bot")


def test_numbers_that_are_no_json_are_refused(new: Any, rows: Any, tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    with pytest.raises(InputError, match="NaN or infinity"):
        store.add_items([rows(1)[0] | {"weight": float("nan")}])


def test_many_threads_and_two_connections_lose_nothing(
    new: Any, label_all: Any, tmp_path: Path
) -> None:
    store, _, _ = new(tmp_path, 120, Settings(overlap=0.5, repeats=0.0))
    second = Store(store.path, store.settings)
    tokens = [store.invite(f"person {n}") for n in range(6)]
    done: list[int] = []

    def work(number: int) -> None:
        mine = (store, second)[number % 2]
        done.append(len(label_all(mine, mine.by_token(tokens[number]))))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.check()
    assert sum(done) == len(list(store.picks())) == store.progress()["wanted"]


@pytest.mark.slow
def test_a_server_killed_under_load_loses_no_label_and_doubles_none(
    root: Path, tmp_path: Path
) -> None:
    sys.path.insert(0, str(root / "benchmarks"))
    from labeling_load import measure

    result = measure(labels=240, labelers=4, kills=4, folder=tmp_path)
    assert result["labels"] >= 200
    assert (result["lost"], result["doubled"], result["changed"]) == (0, 0, 0)


def test_a_session_of_a_clock_that_was_a_year_ahead_ends(
    new: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ann, _ = new(tmp_path)
    day = 86_400.0
    month, today = 30 * day, time.time()
    now = store.start_session(ann)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: today + 365 * day)
        ahead = store.start_session(ann)
        assert store.by_session(ahead, month) == ann and store.by_session(now, month) is None
    assert store.by_session(ahead, month) is None and store.by_session(now, month) == ann
    monkeypatch.setattr(time, "time", lambda: today - day)
    assert store.by_session(now, month) == ann  # one day back is no reason to sign people out
