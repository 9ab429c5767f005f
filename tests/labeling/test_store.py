"""The store: what was said is kept, once, whatever happens."""

import itertools
import sqlite3
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import InputError
from toolkit.labeling.store import Labeler, Refused, Settings, Store
from toolkit.labeling.store.database import MIGRATIONS, Database
from toolkit.labeling.store.queue import shown_order

PLAIN = Settings(overlap=0.0, repeats=0.0, gold=0.0)


def rows(count: int, k: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Text {i}.",
            "completions": [f" {'abcdefgh'[n]}{i}" for n in range(k)],
            "source": {"model": "m", "update": i},
        }
        for i in range(count)
    ]


def new(path: Path, count: int = 8, settings: Settings = PLAIN, **names: str) -> Any:
    store = Store(path / "labels.sqlite", settings)
    store.add_items(rows(count))
    people = [store.by_token(store.invite(name)) for name in ("ann", "bob")]
    return store, *people


def label_one(store: Store, who: Labeler) -> None:
    task = store.next_task(who)
    assert task is not None and store.record(who, task.form, "pick", 0)


def label_all(store: Store, who: Labeler, action: str = "pick") -> list[int]:
    items = []
    while (task := store.next_task(who)) is not None:
        assert store.record(who, task.form, action, 0 if action == "pick" else None)
        items.append(task.item)
    return items


def test_a_form_makes_one_label_and_the_first_answer_stands(tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path)
    task = store.next_task(ann)
    assert store.next_task(ann) == task  # loaded again, the same is asked
    assert store.record(ann, task.form, "pick", 2)
    assert not store.record(ann, task.form, "pick", 1)
    (pick,) = store.picks()
    assert pick["best"] == task.order[2] and pick["labeler"] == "ann"
    assert pick["source"] == {"model": "m", "update": int(pick["prompt"][5:-1])}
    assert [e["action"] for e in store.events()] == ["pick"]


def test_each_item_is_labeled_by_as_many_as_wanted(tmp_path: Path) -> None:
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


def test_what_one_skips_another_is_asked(tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path, 5)
    task = store.next_task(ann)
    store.record(ann, task.form, "skip", reason="other")
    assert task.item not in label_all(store, ann)
    assert label_all(store, bob) == [task.item]
    assert [e["reason"] for e in store.events() if e["action"] == "skip"] == ["other"]


def test_undo_asks_again_and_a_second_click_takes_back_nothing_more(tmp_path: Path) -> None:
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


def test_undo_of_nothing_is_nothing(tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path)
    label_all(store, ann)
    assert not store.undo(bob) and not store.undo(ann, 10**9)


def test_a_lease_that_ran_out_frees_the_item_and_its_form_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ann, bob = new(tmp_path, 1)
    task = store.next_task(ann)
    assert store.next_task(bob) is None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + PLAIN.lease + 1)
    theirs = store.next_task(bob)
    assert theirs.item == task.item and theirs.form != task.form
    with pytest.raises(Refused, match="run out") as refused:
        store.record(ann, task.form, "pick", 0)
    assert refused.value.status == 409
    assert store.record(bob, theirs.form, "pick", 0)


def test_a_late_answer_counts_where_nobody_has_taken_the_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ann, _ = new(tmp_path, 1)
    task = store.next_task(ann)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + PLAIN.lease + 1)
    assert store.record(ann, task.form, "pick", 0)


@pytest.mark.parametrize(
    ("action", "position"),
    [("pick", 4), ("pick", -1), ("pick", None), ("skip", 1), ("undo", None), ("delete", None)],
)
def test_an_answer_that_is_none_is_refused_and_nothing_is_written(
    tmp_path: Path, action: str, position: int | None
) -> None:
    store, ann, _ = new(tmp_path)
    task = store.next_task(ann)
    with pytest.raises(Refused):
        store.record(ann, task.form, action, position)
    assert list(store.events()) == [] and store.next_task(ann) == task


def test_somebody_elses_form_is_refused(tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path)
    task = store.next_task(ann)
    for _ in range(2):  # before it is answered, and after
        with pytest.raises(Refused, match="somebody else's") as refused:
            store.record(bob, task.form, "pick", 0)
        assert refused.value.status == 403
        store.record(ann, task.form, "tie")
    assert len(list(store.events())) == 1


@pytest.mark.slow
def test_all_orders_are_as_likely_and_the_choice_is_what_stood_there(tmp_path: Path) -> None:
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


def test_events_are_only_ever_added(tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path)
    label_all(store, ann)
    for statement in ("UPDATE events SET choice = 1", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
            store.db.execute(statement)


def test_repeats_come_later_unmarked_and_stay_out_of_the_comparisons(tmp_path: Path) -> None:
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


def test_gold_items_are_asked_of_everybody_and_are_no_work_done(tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path, 60, Settings(overlap=0.0, repeats=0.0, gold=0.3))
    store.add_items([row | {"best": 2} for row in rows(3, k=3)], gold=True)
    assert store.progress()["wanted"] == 60
    done = [label_all(store, ann), label_all(store, bob)]
    golden = {row[0] for row in store.db.execute("SELECT id FROM items WHERE gold = 2")}
    assert len(golden & set(done[0])) == 3
    assert len(list(store.picks())) == 60
    assert len(list(store.picks(gold=True))) == 60 + sum(len(golden & set(d)) for d in done)


def test_items_and_picks_come_in_once(tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path)
    assert store.add_items(rows(9)) == (1, 8)
    label_all(store, ann)
    out = list(store.picks())
    other = Store(tmp_path / "other.sqlite", PLAIN)
    assert other.add_picks(out) == (9, 0)
    assert other.add_picks(out) == (0, 9)
    assert list(other.picks()) == out
    assert other.next_task(other.script("bot")) is None  # nothing is left to label
    other.check()


def test_tokens_and_sessions_are_kept_hashed_and_end_with_a_new_invitation(tmp_path: Path) -> None:
    store, _, _ = new(tmp_path)
    token = store.invite("cleo")
    cleo = store.by_token(token)
    session = store.start_session(cleo)
    assert store.by_session(session) == cleo and store.by_session("") is None
    assert store.by_session(session, longest=0) is None
    store.close()
    files = b"".join(p.read_bytes() for p in tmp_path.glob("labels.sqlite*"))
    assert token.encode() not in files and session.encode() not in files
    with pytest.raises(Refused, match="cleo has a link already"):
        store.invite("cleo")
    assert store.by_token(token) == cleo
    store.invite("cleo", replaces=store.invitation("cleo"))
    assert store.by_token(token) is None and store.by_session(session) is None
    with pytest.raises(InputError, match="'cleo' is a person, not a script"):
        store.script("cleo")


def damaged(kind: str, path: Path) -> Path:
    file = path / "labels.sqlite"
    store, ann, _ = new(path, 300)
    label_all(store, ann)
    db = store.db
    if kind == "newer":
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    elif kind == "undone by hand":
        db.execute("DELETE FROM labels WHERE event = 3")
    elif kind == "orphan":
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("INSERT INTO sessions VALUES ('x', 99, 0)")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    content = file.read_bytes()
    if kind == "flipped":
        half = len(content) // 2
        file.write_bytes(content[:half] + bytes(200) + content[half + 200 :])
    elif kind == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "no database":
        file.write_text("prompt,completions\n" * 100)
    elif kind == "another database":
        file.unlink()
        with sqlite3.connect(file) as other:
            other.execute("CREATE TABLE songs (name)")
        other.close()
    elif kind == "a folder":
        file.unlink()
        file.mkdir()
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("newer", "made by a newer version"),
        ("undone by hand", "labels are not what the events say"),
        ("orphan", "a label of an item that is not there"),
        ("flipped", "damaged"),
        ("cut", "damaged"),
        ("no database", "not an SQLite file"),
        ("another database", "not a store of labels"),
        ("a folder", "can not be opened"),
    ],
)
def test_a_file_that_is_no_good_is_named_and_left_alone(
    tmp_path: Path, kind: str, message: str
) -> None:
    file = damaged(kind, tmp_path)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(InputError, match=message) as error:
        Store(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    if before is not None and kind != "another database":
        assert file.read_bytes() == before


def test_two_leases_that_ran_out_free_the_item_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ann, bob = new(tmp_path, 1, Settings(overlap=1.0))
    assert store.next_task(ann).item == store.next_task(bob).item
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + PLAIN.lease + 1)
    assert label_all(store, ann) == label_all(store, bob) != []
    store.check()


def test_a_store_is_opened_while_others_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label comes in before each query of the check: it looks at one moment, so all agree."""
    store, ann, _ = new(tmp_path, 30)
    connect = Database._connect

    def watched(database: Database) -> sqlite3.Connection:
        connection = connect(database)
        if database is not store:
            connection.set_trace_callback(lambda statement: label_one(store, ann))
        return connection

    monkeypatch.setattr(Database, "_connect", watched)
    Store(store.path).close()  # no false alarm
    assert len(list(store.events())) >= 6  # labels did come in


def test_a_pick_that_comes_in_ends_the_lease_on_its_item(tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path, 1)
    task = store.next_task(ann)
    row = rows(1)[0] | {"best": 1, "labeler": "ann"}
    assert store.add_picks([row]) == (1, 0)
    with pytest.raises(Refused, match="run out"):
        store.record(ann, task.form, "pick", 0)
    assert store.undo(ann) and store.next_task(ann).item == task.item
    store.check()


@pytest.mark.parametrize("change", [{"best": 7}, {"best": -1}, {"turn": "x"}, {"turn": 5}])
def test_a_pick_that_can_not_be_is_refused_whole(tmp_path: Path, change: dict[str, Any]) -> None:
    store, _, _ = new(tmp_path, 0)
    good = rows(1)[0] | {"best": 1}
    with pytest.raises(InputError, match="there is no such"):
        store.add_picks([good, good | change])
    assert list(store.picks()) == [] and store.progress()["items"] == 0


def test_names_of_any_kind_come_in_and_repeats_stay_marked_apart(tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    row = rows(1)[0] | {"best": 1, "labeler": "half \ud800"}
    assert store.add_picks([row | {"turn": 1}, row]) == (2, 0)
    assert [r.get("turn", 0) for r in store.picks(repeats=True)] == [1, 0]
    assert [r["labeler"] for r in store.picks()] == ["half \\ud800"]


def test_matches_are_no_comparisons_to_train_on(tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path, 2)
    store.add_items([row | {"side": "x"} for row in rows(3, k=2)], kind="match")
    label_all(store, ann)
    assert len(list(store.picks())) == 2
    assert len(list(store.picks(kind="match"))) == 3


def test_a_corrected_gold_answer_is_taken(tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    for best in (0, 2):
        store.add_items([rows(1)[0] | {"best": best}], gold=True)
    assert [row[0] for row in store.db.execute("SELECT gold FROM items")] == [2]


def test_who_was_imported_can_be_invited_but_a_script_that_worked_can_not(tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 2)
    store.add_picks([rows(1)[0] | {"best": 1, "labeler": "cleo"}])
    cleo = store.by_token(store.invite("cleo"))
    assert cleo.kind == "person" and store.invitation("cleo") and not store.invitation("dora")
    label_all(store, store.script("bot"))
    with pytest.raises(InputError, match="'bot' is a script"):
        store.invite("bot")


def test_numbers_that_are_no_json_are_refused(tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    with pytest.raises(InputError, match="NaN or infinity"):
        store.add_items([rows(1)[0] | {"weight": float("nan")}])


def test_many_threads_and_two_connections_lose_nothing(tmp_path: Path) -> None:
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


# Of a person's labels of one item, the one that was made last counts


EARLY, NOON, LATE = (f"2024-01-0{day}T12:00:00+00:00" for day in (1, 2, 3))


def said(best: int, when: str | None = None, who: str = "ann") -> dict[str, Any]:
    return rows(1)[0] | {"best": best, "labeler": who} | ({"updated_at": when} if when else {})


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
    tmp_path: Path, labels: list[dict[str, Any]], best: int, at_once: bool
) -> None:
    store, _, _ = new(tmp_path, 0)
    for some in [labels] if at_once else [[label] for label in labels]:
        store.add_picks(some)
    assert held(store) == [best]


def test_who_goes_back_to_the_first_choice_within_a_file_has_made_it_last(tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    store.add_picks([said(1), said(2), said(1)])
    assert held(store) == [1]


def test_a_file_that_comes_in_again_changes_nothing(tmp_path: Path) -> None:
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


def test_a_pick_takes_the_place_of_a_skip_and_the_item_is_done(tmp_path: Path) -> None:
    store, ann, bob = new(tmp_path, 1)
    store.record(ann, store.next_task(ann).form, "skip")
    assert store.add_picks([said(2, "2999-01-01")]) == (1, 0) and held(store) == [2]
    assert store.next_task(bob) is None


def test_two_people_and_two_items_keep_a_label_each(tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    other = rows(2)[1] | {"best": 3, "labeler": "ann"}
    assert store.add_picks([said(1), said(2, None, "bob"), other]) == (3, 0)
    assert held(store) == [1, 2, 3]


def test_the_time_of_a_label_is_kept_and_is_no_part_of_the_item(tmp_path: Path) -> None:
    store, _, _ = new(tmp_path, 0)
    store.add_picks([said(1, EARLY)])
    (event,), (pick,) = store.events(), store.picks()
    assert event["at"] == 1_704_110_400  # date -d 2024-01-01T12:00:00Z +%s
    assert "updated_at" not in pick
    with pytest.raises(InputError, match="updated_at: 'noon', but must be a time"):
        store.add_picks([said(1, "noon")])


# A clock that is set


DAY = 86_400.0


def set_clock(monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + by)


@pytest.mark.parametrize("by", [-DAY, -2 * PLAIN.lease, 365 * DAY])
@pytest.mark.parametrize("anew", [False, True])
def test_after_the_clock_was_set_leases_are_free_and_no_time_is_negative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float, anew: bool
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    store, ann, bob = new(tmp_path, 1)
    task = store.next_task(ann)
    set_clock(monkeypatch, by)
    assert store.next_task(ann) == task and store.next_task(bob) is None


def test_a_session_of_a_clock_that_was_a_year_ahead_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ann, _ = new(tmp_path)
    month = 30 * DAY
    now = store.start_session(ann)
    with monkeypatch.context() as patch:
        set_clock(patch, 365 * DAY)
        ahead = store.start_session(ann)
        assert store.by_session(ahead, month) == ann and store.by_session(now, month) is None
    assert store.by_session(ahead, month) is None and store.by_session(now, month) == ann
    set_clock(monkeypatch, -DAY)
    assert store.by_session(now, month) == ann  # one day back is no reason to sign people out


def test_negative_times_of_an_older_version_are_not_counted(tmp_path: Path) -> None:
    store, ann, _ = new(tmp_path)
    label_one(store, ann)
    store.db.execute(
        "INSERT INTO events (form, item, labeller, turn, action, seconds, at) "
        "VALUES ('old', 1, ?, 0, 'skip', ?, 0)",
        (ann.id, -DAY),
    )
    assert 0 <= store.own_progress(ann)["seconds"] < 60


def test_connections_of_threads_that_ended_are_closed(tmp_path: Path) -> None:
    """A server's threads come and go; each left three files open."""
    store, _, _ = new(tmp_path)
    for _ in range(30):
        thread = threading.Thread(target=store.progress)
        thread.start()
        thread.join()
    assert len(store._connections) <= 3
    store.close()
