"""Scripted labelers at work on a store."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.locks import letting_go, lock_part
from toolkit.errors import InputError
from toolkit.labeling.labelers import Counts, ScriptedLabeler
from toolkit.labeling.store import Settings, Store
from toolkit.scoring.http_judge import UselessJudge
from toolkit.scoring.picker import ScorePicker

Row = dict[str, Any]
NO_OVERLAP = Settings(overlap=0.0)


def rows(count: int, k: int = 4) -> list[Row]:
    """Items whose completion of the highest number is best; its index goes round."""
    return [
        {"prompt": f"prompt {i}", "completions": [f"{(i + j) % k}" for j in range(k)]}
        for i in range(count)
    ]


def by_number(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """TRL's signature: the number that a completion is."""
    assert len(prompts) == len(completions)
    return [float(text) for text in completions]


def open_store(folder: Path, count: int, settings: Settings = NO_OVERLAP) -> Store:
    store = Store(folder / "labels.sqlite", settings)
    store.add_items(rows(count))
    return store


def labels(store: Store) -> dict[str, tuple[str, int | None]]:
    """What was said of each item: events without forms and times."""
    said = {event["item"]: (event["action"], event["choice"]) for event in store.events()}
    assert len(said) == len(list(store.events()))
    return said


class Chance:
    """A judge who refuses now and then, costs two a question, and gives out at ``limit``."""

    refusal = "'Well'"

    def __init__(self, limit: int | None = None) -> None:
        self.asked, self.limit, self.cost = 0, limit, 0.0

    def best(self, prompt: Any, completions: list[str], fields: Any = None) -> list[int]:
        if self.asked == self.limit:
            raise KeyboardInterrupt
        self.asked += 1
        self.cost += 2.0
        return [] if prompt.endswith("7") else [completions.index("3")]


def judged(judge: Chance, **options: Any) -> ScriptedLabeler:
    return ScriptedLabeler("judge", judge, **options)  # type: ignore[arg-type]


def test_every_item_gets_the_best_completion_whatever_order_it_is_shown_in(tmp_path: Path) -> None:
    store = open_store(tmp_path, 30)
    counts = ScriptedLabeler("numbers", ScorePicker(by_number)).work(store, progress=False)
    picks = list(store.picks())
    assert counts == Counts(picked=30) and len(picks) == 30
    assert all(pick["completions"][pick["best"]] == "3" for pick in picks)
    assert {pick["labeler"] for pick in picks} == {"numbers"}
    positions = [event["position"] for event in store.events()]
    assert set(positions) == {0, 1, 2, 3}  # shown in an order of their own
    store.close()


def test_a_users_function_is_checked_and_named(tmp_path: Path) -> None:
    def broken(prompts: list[str], completions: list[str]) -> list[float]:
        return [1.0]

    store = open_store(tmp_path, 1)
    assert ScriptedLabeler("x", ScorePicker(by_number)).decide("p", ["1", "3", "2"]) == ("pick", 1)
    with pytest.raises(InputError, match="reward function broken returned 1 scores for 4"):
        ScriptedLabeler("x", ScorePicker(broken)).work(store, progress=False)
    for scores, message in [
        ([1.0], "returned 1 scores for 2"),
        ([1.0, float("nan")], "scored 'b' as nan"),
        ([None, 1.0], "scored 'a' as nan"),
    ]:
        with pytest.raises(InputError, match=f"reward function <lambda> {message}"):
            ScorePicker(lambda scores=scores, **_: scores).best("p", ["a", "b"])
    store.close()


def test_ties_are_recorded_or_broken_by_lot(tmp_path: Path) -> None:
    def level(prompts: list[str], completions: list[str]) -> list[float]:
        return [min(float(text), 2.0) for text in completions]  # 2 and 3 tie

    store = open_store(tmp_path, 40)
    dropping = ScriptedLabeler("level", ScorePicker(level))
    assert dropping.work(store, limit=15, progress=False) == Counts(ties=15)
    assert {action for action, _ in labels(store).values()} == {"tie"}
    breaking = ScriptedLabeler("level", ScorePicker(level), ties="random")
    assert breaking.work(store, progress=False) == Counts(picked=25)
    picked = [pick["completions"][pick["best"]] for pick in store.picks()]
    assert set(picked) == {"2", "3"} and 4 < picked.count("2") < 21
    store.close()


def test_equal_completions_are_a_tie_and_nobody_is_asked() -> None:
    judge = Chance()
    for ties in ("drop", "random"):
        assert judged(judge, ties=ties, noise=1.0).decide("p", ["x", "x"]) == ("tie", None)
    assert judge.asked == 0


@pytest.mark.slow
def test_noise_picks_by_lot_that_often() -> None:
    labeler = ScriptedLabeler("noisy", ScorePicker(by_number), noise=0.4)
    picks = [labeler.decide(row["prompt"], row["completions"]) for row in rows(2000)]
    right = sum(pick == ("pick", (3 - i) % 4) for i, pick in enumerate(picks))
    assert 0.66 < right / 2000 < 0.74  # 0.6 + 0.4 / 4, standard deviation 0.0102


def test_luck_depends_on_item_name_and_seed_and_on_nothing_before() -> None:
    def picks(name: str, seed: int, order: int = 1) -> list[Any]:
        labeler = ScriptedLabeler(name, ScorePicker(by_number), noise=0.5, seed=seed)
        chosen = rows(200)[::order]
        return [labeler.decide(row["prompt"], row["completions"]) for row in chosen][::order]

    same = picks("a", 0)
    assert picks("a", 0) == same == picks("a", 0, order=-1)
    assert picks("a", 1) != same != picks("b", 0)


def test_a_labeler_that_was_killed_labels_the_rest_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, torn = open_store(tmp_path / "a", 60), open_store(tmp_path / "b", 60)
    expected = judged(Chance(), noise=0.3).work(whole, progress=False)
    assert str(expected) == "54 picks, 0 ties, 6 refused; cost 120"

    for limit in (0, 7, 11):
        with pytest.raises(KeyboardInterrupt):
            judged(Chance(limit), noise=0.3).work(torn, progress=False)
    torn.close()
    torn = Store(tmp_path / "b" / "labels.sqlite", NO_OVERLAP)
    judge = Chance()
    rest = judged(judge, noise=0.3).work(torn, progress=False)
    assert judge.asked == rest.items == 60 - 7 - 11 and rest.cost == 2.0 * rest.items
    assert labels(torn) == labels(whole)
    assert judged(Chance(0)).work(torn, progress=False) == Counts()
    whole.close(), torn.close()


def test_what_the_judge_refused_is_skipped_with_that_reason(tmp_path: Path) -> None:
    store = open_store(tmp_path, 10)
    assert judged(Chance()).work(store, progress=False).refused == 1
    (skipped,) = [event for event in store.events() if event["action"] == "skip"]
    assert skipped["reason"] == "refused" and skipped["choice"] is None
    numbers = ScriptedLabeler("numbers", ScorePicker(by_number))
    assert numbers.work(store, progress=False) == Counts(picked=1)  # somebody else may know
    store.close()


def test_the_limit_counts_items_and_work_goes_on_from_there(tmp_path: Path) -> None:
    store = open_store(tmp_path, 20)
    labeler = judged(Chance())
    parts = [labeler.work(store, limit=n, progress=False) for n in (0, 5, 5, None)]
    assert [part.items for part in parts] == [0, 5, 5, 10]
    assert sum(part.cost for part in parts) == labeler.picker.cost == 40.0
    store.close()


def test_scripts_work_beside_people_and_not_in_their_name(tmp_path: Path) -> None:
    store = open_store(tmp_path, 12)
    person = store.by_token(store.invite("ann"))
    assert person is not None
    task = store.next_task(person)
    assert task is not None
    assert judged(Chance()).work(store, progress=False).items == 11  # all but what she looks at
    assert store.record(person, task.form, "pick", 0)
    with pytest.raises(InputError, match="'ann' is a person"):
        ScriptedLabeler("ann", ScorePicker(by_number)).work(store, progress=False)
    store.close()


def test_one_process_a_name(tmp_path: Path) -> None:
    store = open_store(tmp_path, 3)
    with letting_go():
        lock_part(store.path, "numbers", "labeler")
        if (child := os.fork()) == 0:  # another process, to which that lock is somebody's
            other = Store(store.path)
            try:
                ScriptedLabeler("numbers", ScorePicker(by_number)).work(other, progress=False)
            except InputError as problem:
                said = f"'numbers', is being written by another run, process {os.getppid()}"
                os._exit(0 if said in str(problem) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        others = ScriptedLabeler("others", ScorePicker(by_number))
        assert others.work(store, progress=False).picked == 3
    assert [path.name for path in tmp_path.glob(".lock*")] == []
    store.close()


def test_a_lease_that_ran_out_meanwhile_costs_no_label(tmp_path: Path) -> None:
    store = open_store(tmp_path, 3, Settings(overlap=0.0, lease=0.02))
    other = store.script("other")
    late: list[str] = []

    def slow(prompts: list[str], completions: list[str]) -> list[float]:
        if not late:
            late.append(prompts[0])
            time.sleep(0.03)
            assert store.next_task(other) is not None  # the lease ran out; the item is free again
            time.sleep(0.03)
        return by_number(prompts, completions)

    counts = ScriptedLabeler("slow", ScorePicker(slow)).work(store, progress=False)
    assert counts.picked == len(list(store.picks())) == 3
    store.close()


def test_values_out_of_range_are_refused() -> None:
    for options in ({"noise": 1.5}, {"ties": "keep"}, {"seed": -1}):
        with pytest.raises(InputError):
            ScriptedLabeler("x", ScorePicker(by_number), **options)  # type: ignore[arg-type]


class Failing(Chance):
    """Answers what its script says: "3" the best, "?" nothing; at its end it raises ``ending``."""

    def __init__(self, script: str, ending: Exception) -> None:
        super().__init__()
        self.script, self.ending = list(script), ending

    def best(self, prompt: Any, completions: list[str], fields: Any = None) -> list[int]:
        if not self.script:
            raise self.ending
        return [completions.index("3")] if self.script.pop(0) == "3" else []


def test_what_a_useless_judge_said_is_taken_back_and_asked_again(tmp_path: Path) -> None:
    store = open_store(tmp_path, 12)
    store.add_items([{"prompt": "alike", "completions": ["x", "x"]}])  # nobody is asked of it
    useless = judged(Failing("33?3???", UselessJudge("no use", 4)))
    with pytest.raises(UselessJudge, match=r"no use \(3 of its labels were taken back\)"):
        useless.work(store, progress=False)
    store.check()
    held = [row[0] for row in store.db.execute("SELECT action FROM labels ORDER BY event")]
    assert [action for action in held if action != "tie"] == ["pick", "pick", "skip", "pick"]
    other = store.by_token(store.invite("ann"))
    assert other is not None and store.next_task(other) is not None  # no lease is left behind
    mended = judged(Failing("3" * 20, UselessJudge("never", 1))).work(store, progress=False)
    assert mended.picked >= 12 - 4 - 1 and mended.refused == 0
    store.check()
    store.close()


def test_void_picks_of_one_letter_are_taken_back_too(tmp_path: Path) -> None:
    store = open_store(tmp_path, 8)
    with pytest.raises(UselessJudge):
        judged(Failing("33333", UselessJudge("always A", 5))).work(store, progress=False)
    assert len(list(store.picks())) == 1
    store.close()


def test_refusals_before_a_failure_are_taken_back(tmp_path: Path) -> None:
    store = open_store(tmp_path, 8)
    with pytest.raises(InputError, match="gone"):
        judged(Failing("3?3??", InputError("gone"))).work(store, progress=False)
    actions = [row[0] for row in store.db.execute("SELECT action FROM labels ORDER BY event")]
    assert actions == ["pick", "skip", "pick"]
    store.close()


def test_refused_items_can_be_asked_again(tmp_path: Path) -> None:
    store = open_store(tmp_path, 10)
    assert judged(Chance()).work(store, progress=False).refused == 1
    judge = store.script("judge")
    assert (store.ask_again(judge), store.ask_again(judge)) == (1, 0)
    store.check()
    again = judged(Failing("3", InputError("once"))).work(store, progress=False)
    assert again == Counts(picked=1) and len(list(store.picks())) == 10
    store.close()


def test_a_labeler_that_has_only_ever_refused_has_not_labeled(tmp_path: Path) -> None:
    store = open_store(tmp_path, 3)
    labeler = judged(Failing("???", InputError("never")))
    labeler.work(store, progress=False)
    with pytest.raises(
        InputError, match="'judge': refused all 3 items.* last answer begins 'Well'"
    ):
        labeler.check(store)
    assert store.db.execute("SELECT count(*) FROM labels").fetchone()[0] == 0
    judged(Failing("3??", InputError("never"))).work(store, progress=False)
    labeler.check(store)  # two refusals beside a pick are what a judge may do
    store.close()
