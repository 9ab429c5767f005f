"""What is shown of single items and labelers, counted by hand and, in a larger store, plainly."""

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import chisquare

from toolkit.labeling.quality import quality
from toolkit.labeling.review import (
    Answers,
    disagreement,
    item_of,
    items,
    labeler_ids,
    work_of,
)
from toolkit.labeling.store import Asked, Details, Labeler, Settings, Store

DAY = 86_400.0


def rows(count: int, name: str = "p") -> list[dict[str, Any]]:
    texts = [f"c{k}" for k in range(4)]
    return [{"prompt": f"{name}{i}", "completions": texts, "note": f"n{i}"} for i in range(count)]


def person(store: Store, name: str) -> Labeler:
    labeler = store.by_token(store.invite(name))
    assert labeler is not None
    return labeler


def answer(store: Store, who: Labeler, says: dict[str, int | str], reason: str = "other") -> None:
    """Say of each item what is named for its prompt: a completion's index, or an action."""
    while (task := store.next_task(who)) is not None:
        said = says[str(task.prompt)]
        if isinstance(said, int):
            assert store.record(who, task.form, "pick", task.order.index(said))
        else:
            assert store.record(who, task.form, said, None, reason if said == "skip" else None)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[tuple[Store, Labeler, Labeler, Labeler]]:
    """Three people and four items: all differ on p2, two of three agree on p1, all on p0."""
    with Store(tmp_path / "labels.sqlite", Settings(overlap=1.0, repeats=0.0, gold=0.0)) as store:
        store.add_items(rows(4))
        with store.writing() as db:
            db.execute("UPDATE items SET wanted = 3")
        people = [person(store, name) for name in ("ann", "bob", "cleo")]
        answer(store, people[0], {"p0": "tie", "p1": 2, "p2": 0, "p3": "skip"})
        answer(store, people[1], {"p0": "tie", "p1": 2, "p2": 1, "p3": "skip"})
        answer(store, people[2], {"p0": "tie", "p1": 3, "p2": "bad", "p3": 1}, "broken")
        yield store, *people


def test_items_on_which_people_differ_come_first(
    three: tuple[Store, Labeler, Labeler, Labeler],
) -> None:
    found = items(three[0], "disputed")
    assert [(line.prompt, line.disagreement) for line in found.lines] == [
        ("p2", 1.0),
        ("p1", pytest.approx(2 / 3)),
        ("p0", 0.0),
    ]
    assert (found.count, found.page, found.pages) == (3, 1, 1)
    assert found.lines[1].answers == [Answers("pick", 2, 2), Answers("pick", 3, 1)]
    assert found.lines[2].answers == [Answers("tie", None, 3)]

    (skipped,) = items(three[0], "skipped").lines
    assert (skipped.prompt, skipped.skips, skipped.disagreement) == ("p3", 2, None)
    assert [line.prompt for line in items(three[0], "all").lines] == ["p0", "p1", "p2", "p3"]
    assert items(three[0], "gold").count == 0


def test_the_share_is_that_of_all_pairs() -> None:
    rng = random.Random(0)
    for _ in range(200):
        said = [rng.randrange(4) for _ in range(rng.randrange(2, 7))]
        pairs = list(itertools.combinations(said, 2))
        share = sum(a != b for a, b in pairs) / len(pairs)
        assert disagreement(list(Counter(said).values())) == pytest.approx(share)
    assert disagreement([]) is disagreement([1]) is None


def test_a_list_is_paged_and_a_page_beyond_its_end_is_the_last(tmp_path: Path) -> None:
    with Store(tmp_path / "labels.sqlite") as store:
        store.add_items(rows(120))
        pages = [items(store, "all", n) for n in (1, 2, 3, 4, 10**14, 0)]
        assert [page.page for page in pages] == [1, 2, 3, 3, 3, 1]
        assert [len(page.lines) for page in pages[:3]] == [50, 50, 20]
        ids = [line.item for page in pages[:3] for line in page.lines]
        assert ids == sorted(set(ids)) and len(ids) == pages[0].count == 120


def test_gold_items_that_people_missed_come_first(tmp_path: Path) -> None:
    with Store(tmp_path / "labels.sqlite", Settings(repeats=0.0, gold=0.9)) as store:
        store.add_items([row | {"best": 1} for row in rows(2, "g")], gold=True)
        store.add_items(rows(30))
        ann = person(store, "ann")
        says: dict[str, int | str] = {f"p{i}": 0 for i in range(30)}
        answer(store, ann, says | {"g0": 1, "g1": 3})
        found = items(store, "gold")
        assert [(line.prompt, line.gold) for line in found.lines] == [("g1", 1), ("g0", 1)]
        work = work_of(store, ann.id, time.time())
        assert work is not None and [line.prompt for line in work.missed] == ["g1"]


def test_an_item_tells_who_said_what_when_and_what_was_taken_back(
    three: tuple[Store, Labeler, Labeler, Labeler],
) -> None:
    store, ann, bob, cleo = three
    store.add_picks(
        [rows(3)[2] | {"best": 2, "labeler": "dora", "updated_at": "2024-01-31T12:00:00Z"}]
    )
    assert store.undo(cleo)  # her last answer; the item is on her screen again
    before = time.time()
    last = next(
        line.item for line in items(store, "all").lines if cleo.name in looked(store, line.item)
    )
    item = item_of(store, last, before)
    assert item is not None and item.looking == ["cleo"]
    events = [(said.name, said.action, said.counts) for said in item.said]
    assert events[-2:] == [("cleo", events[-2][1], False), ("cleo", "undo", False)]

    first = item_of(store, items(store, "all").lines[2].item, before)
    assert first is not None and first.prompt == "p2" and first.extra == {"note": "n2"}
    said = {one.name: one for one in first.said if one.counts}
    assert (said["ann"].choice, said["bob"].choice) == (0, 1)
    assert said["dora"].imported and said["dora"].at == 1706702400.0
    assert not said["ann"].imported and before - said["ann"].at < 60
    assert first.pickers == [["ann"], ["bob"], ["dora"], []]

    # Where it stood on their page is where the store's own order had put it.
    position = said["ann"].position
    query = "SELECT position FROM events WHERE id = ?"
    assert position == store.db.execute(query, (said["ann"].event,)).fetchone()[0]
    assert item_of(store, 10**14, before) is None


def looked(store: Store, item: int) -> list[str]:
    found = item_of(store, item, time.time())
    assert found is not None
    return found.looking


def test_what_was_said_beside_a_pick_is_shown_with_it(tmp_path: Path) -> None:
    asked = Asked("ranking", strength=True, comment=True, edit=True)
    with Store(tmp_path / "labels.sqlite") as store:
        store.settle(asked)
        store.add_items(rows(1))
        ann = person(store, "ann")
        task = store.next_task(ann)
        assert task is not None
        ranking = [3, 1, 0, 2]
        by_place = [task.order.index(k) for k in ranking]
        said = Details(by_place, None, 2, "too curt", "Much better.", "enough")
        assert store.record(ann, task.form, "pick", by_place[0], details=said)
        item = item_of(store, task.item, time.time())
        assert item is not None and item.said[0].choice == 3
        assert item.said[0].more == {
            "order": "4, 2, 1, 3",
            "strength": "clearly better",
            "comment": "too curt",
            "better answer": "Much better.",
            "seen": "“seen enough”",
        }

        # Exports say the same beside the pick, and the same again without reading the items.
        row = rows(1)[0] | {"best": 1, "labeler": "bob", "worst": 2, "margin": 0.25}
        assert store.add_picks([row]) == (1, 0)
        assert item_of(store, task.item, 0.0).said[1].more == {  # type: ignore[union-attr]
            "worst": "completion 3",
            "margin": "0.25",
        }
        names = ("ranking", "worst", "margin", "labeler_comment", "labeler_edit")
        assert store.said_beside() == [
            {name: pick[name] for name in names if name in pick} for pick in store.picks()
        ]


def test_a_labelers_page_adds_up_to_what_the_first_page_says(tmp_path: Path) -> None:
    """Both count from the tables in their own way; here 4 people answer 40 items at random."""
    rng = random.Random(1)
    settings = Settings(overlap=1.0, repeats=0.2, spacing=3, gold=0.1)
    with Store(tmp_path / "labels.sqlite", settings) as store:
        store.add_items(rows(40))
        store.add_items([row | {"best": 1} for row in rows(5, "g")], gold=True)
        people = [person(store, name) for name in ("ann", "bob", "cleo", "dora")]
        shown: dict[int, Counter[int]] = {who.id: Counter() for who in people}
        for who in [*people, *people]:
            for _ in range(16):
                if (task := store.next_task(who)) is None:
                    break
                action = rng.choice(["pick", "pick", "pick", "tie", "skip"])
                position = min(rng.randrange(8), 3) if action == "pick" else None
                store.record(who, task.form, action, position, "broken")
                if position is not None:
                    shown[who.id][position] += 1

        # Hidden repeats count neither in the list nor among those who picked a completion.
        query = "SELECT item, action, choice FROM labels WHERE turn = 0 AND action != 'skip'"
        labels = Counter(map(tuple, store.db.execute(query)))
        listed = items(store, "all").lines
        assert labels == {
            (line.item, one.action, one.choice): one.count
            for line in listed
            for one in line.answers
        }
        repeated = [row[0] for row in store.db.execute("SELECT item FROM labels WHERE turn = 1")]
        assert len(repeated) > 3
        for number in repeated:
            item = item_of(store, number, time.time())
            assert item is not None and len(item.said) > item.line.labels
            for choice, names in enumerate(item.pickers):
                assert len(names) == labels[number, "pick", choice]

        told = {one.name: one for one in quality(store).labelers}
        ids = labeler_ids(store)
        for who in people:
            work = work_of(store, ids[who.name], time.time())
            assert work is not None and work.name == who.name
            mine = told[who.name]
            assert sum(other.items for other in work.others) == mine.agreement.count > 5
            assert sum(other.agreed for other in work.others) == pytest.approx(
                (mine.agreement.share or 0) * mine.agreement.count
            )
            assert sum(work.reasons.values()) == mine.skips
            assert sum(work.daily) == work.daily[-1] == mine.labels
            (bias,) = work.positions
            assert bias.picked == [shown[who.id][k] for k in range(4)]
            expected = float(chisquare(bias.picked).pvalue) if sum(bias.picked) >= 20 else None
            assert bias.p_value == pytest.approx(expected)


def test_answers_are_counted_by_days_of_24_hours_back_from_now(
    three: tuple[Store, Labeler, Labeler, Labeler],
) -> None:
    store, ann, *_ = three
    later = time.time()
    for ahead, day in ((2.5 * DAY, 27), (29.5 * DAY, 0)):
        work = work_of(store, ann.id, later + ahead)
        assert work is not None and work.daily == [4 * (n == day) for n in range(30)]
    gone = work_of(store, ann.id, later + 31 * DAY)
    early = work_of(store, ann.id, later - DAY)
    assert gone is not None and early is not None
    assert sum(gone.daily) == sum(early.daily) == 0


def test_a_labelers_lists_name_the_items(three: tuple[Store, Labeler, Labeler, Labeler]) -> None:
    store, ann, _, cleo = three
    work = work_of(store, ann.id, time.time())
    assert work is not None and work.first is not None and work.last is not None
    assert {line.prompt for line in work.differing} == {"p2", "p1"}
    assert [line.prompt for line in work.skipped] == ["p3"] and work.reasons == {"other": 1}
    assert [(o.name, o.items, o.agreed) for o in work.others] == [("bob", 3, 2), ("cleo", 3, 1)]
    hers = work_of(store, cleo.id, time.time())
    assert hers is not None and not hers.skipped and not hers.reasons
    assert work_of(store, 10**14, time.time()) is None


def test_a_long_prompt_is_cut_and_of_a_chat_the_last_message_is_shown(tmp_path: Path) -> None:
    with Store(tmp_path / "labels.sqlite") as store:
        chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why\n me?"}]
        store.add_items(
            [{"prompt": p, "completions": ["a", "b"]} for p in ("word " * 10_000, chat)]
        )
        long, short = [line.prompt for line in items(store, "all").lines]
    assert len(long) <= 161 and long.startswith("word word") and long.endswith("…")
    assert short == "Why me?"
