"""Labels when they are due, samples in turn, people's verdict, and the alarm."""

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.files import write_jsonl
from toolkit.data.locks import letting_go
from toolkit.errors import InputError
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Settings, Store
from toolkit.pipeline.alarm import alarm_of, scores_of, win_rate
from toolkit.pipeline.online import OnlineArguments, check_alike, claim
from toolkit.pipeline.picks import items_for, label_until, unanswered
from toolkit.pipeline.samples import draw_prompts, with_sides
from toolkit.pipeline.schedule import linear, quadratic, schedule_of, wanted_labels
from toolkit.scoring.picker import ScorePicker

SIDES = ["reference", "reference", "policy", "policy"]


@pytest.mark.parametrize(
    ("share", "labels"), [(0, 7500), (0.25, 30468.75), (0.5, 46875), (0.75, 56718.75), (1, 60000)]
)
def test_the_quadratic_schedule_is_the_specs(share: float, labels: float) -> None:
    assert quadratic(share * 2e6, 2e6, 7500, 60000) == pytest.approx(labels, abs=1e-6)


def test_each_schedule_starts_and_ends_where_it_says() -> None:
    assert [linear(n, 100, 10, 50) for n in (0, 25, 100)] == [10, 20, 50]
    assert schedule_of("all_at_once")(0, 100, 10, 50) == 50
    for name in ("quadratic", "linear", "all_at_once"):
        assert schedule_of(name)(100, 100, 10, 50) == 50


def test_labels_are_whole_and_a_schedule_of_ones_own_is_checked() -> None:
    assert wanted_labels(quadratic, [0, 1, 3], 10, 20) == [10, 16, 20]  # 15.56 is not enough
    assert schedule_of("math:fsum") is not None
    bads: list[Any] = [lambda *a: float("nan"), lambda *a: None, lambda n, *a: 10 - n, lambda *a: 0]
    for bad in bads:
        with pytest.raises(InputError, match="schedule"):
            wanted_labels(bad, [0, 5], 1, 2)
    for name in ("cubic", "math:no", "no_module:f"):
        with pytest.raises(InputError, match="schedule") as caught:
            schedule_of(name)
        assert "reward_function" not in str(caught.value)


def test_the_plan_cuts_the_updates_evenly() -> None:
    plan = OnlineArguments(rounds=3, initial_labels=400, total_labels=1200).plan(640, 64)
    assert plan.stops == [3, 7, 10]
    assert plan.wanted[0] == 400 and plan.wanted[-1] == 1200
    with pytest.raises(InputError, match="rounds is 3, but must be at most 2"):
        OnlineArguments(rounds=3).plan(100, 64)


def test_prompts_come_in_turn_through_all_rounds(tmp_path: Path) -> None:
    prompts = [{"prompt": str(i)} for i in range(7)]
    seen = []
    for number, batch, count in ((0, 0, 3), (0, 1, 2), (1, 0, 4)):
        folder = tmp_path / f"round-{number:03d}"
        chosen = draw_prompts(prompts, count, folder, batch)
        write_jsonl(folder / f"prompts-{batch:02d}.jsonl", chosen)
        assert draw_prompts(prompts, count, folder, batch) == chosen  # a second time as well
        seen += [int(row["prompt"]) for row in chosen]
    assert seen == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_validation_items_have_two_of_each_side() -> None:
    policy = [{"prompt": p, "completions": [p + str(k) for k in range(4)]} for p in "abc"]
    rows = with_sides(policy, [{"prompt": "b", "completions": ["x", "y"]}])
    assert rows[0] == policy[0] and rows[2] == policy[2]
    assert rows[1]["completions"] == ["x", "y", "b0", "b1"] and rows[1]["sides"] == SIDES


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


def rate(wins: int, trials: int) -> dict[str, Any]:
    return win_rate(
        [
            {"sides": SIDES, "best": 3 if i < wins else 0, "source": {"round": 1}}
            for i in range(trials)
        ]
    )


RISE, FALL = {"proxy_start": 0.0, "proxy_end": 1.0}, {"proxy_start": 1.0, "proxy_end": 0.5}


@pytest.mark.parametrize(
    ("before", "proxy", "now", "rings"),
    [
        (None, RISE, rate(10, 50), True),  # below a half, where it began
        (None, RISE, rate(25, 50), False),
        (rate(45, 50), RISE, rate(30, 50), True),
        (rate(45, 50), RISE, rate(43, 50), False),  # within the interval
        (rate(45, 50), FALL, rate(30, 50), False),  # both fall: no disagreement
        (rate(45, 50), RISE, rate(0, 0), False),  # nobody was asked
        (rate(0, 0), RISE, rate(10, 50), True),
        (rate(45, 50), {}, rate(10, 50), False),
    ],
)
def test_the_alarm_rings_when_the_score_rises_and_people_turn_away(
    before: Any, proxy: Any, now: Any, rings: bool
) -> None:
    assert (alarm_of(before, proxy, now) is not None) == rings


def test_the_scores_rise_is_over_quarters_of_the_rounds_updates() -> None:
    log = [
        {
            "update": u,
            "objective/scores": float(u),
            "objective/kl": 2.0 * u,
            "objective/kl_coef": 0.1,
        }
        for u in range(1, 17)
    ]
    found = scores_of(log, 9, 16)
    assert (found["proxy_start"], found["proxy_end"], found["kl"]) == (9.5, 15.5, 31.0)
    assert scores_of(log, 17, 20) == {}


def test_a_loop_goes_on_only_under_its_own_settings(tmp_path: Path) -> None:
    args = OnlineArguments(output_dir=str(tmp_path / "o"))
    assert claim(args, {"ppo": {"lam": 0.9}}) == claim(args, {"ppo": {"lam": 0.9}})
    args.on_alarm = "stop"
    claim(args, {"ppo": {"lam": 0.9}})
    args.noise = 0.1
    with pytest.raises(InputError, match="noise: was 0.0, is 0.1"):
        claim(args, {"ppo": {"lam": 0.9}})
    (tmp_path / "o" / "online.json").unlink()
    (tmp_path / "o" / "mine.txt").write_text(json.dumps(1))
    with pytest.raises(InputError, match="exists"):
        claim(args, {})


def test_people_judge_what_ppo_is_scored_on() -> None:
    class One:
        response_length, stop_token, truncate_after = 24, None, 16
        truncate_token: str | None = "."

    class Other(One):
        truncate_token = None

    check_alike(One, One)
    with pytest.raises(InputError, match="truncate_token: '.' in sample_config, but None in ppo"):
        check_alike(One, Other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"validation": 1.1},
        {"total_labels": 10, "initial_labels": 20},
        {"on_alarm": "ring"},
        {"poll_seconds": 0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        OnlineArguments(**wrong)


def test_a_loop_that_others_run_is_refused(tmp_path: Path) -> None:
    args = OnlineArguments(output_dir=str(tmp_path))
    with letting_go():
        claim(args, {})  # begun, and to be gone on with
    with open(tmp_path / ".lock", "w") as held:  # as another process holds it
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being written by another run"):
            claim(args, {})


def test_a_schedule_is_a_guest() -> None:
    def leaves(*_: float) -> float:
        sys.exit(0)

    def wanders(n: float, *_: float) -> float:
        os.chdir("/")
        return n + 1

    with pytest.raises(InputError, match=r"schedule: .*it called sys.exit\(0\)"):
        wanted_labels(leaves, [0, 5], 1, 2)
    here = os.getcwd()
    assert wanted_labels(wanders, [0, 5], 1, 2) == [1, 6]
    assert os.getcwd() == here
