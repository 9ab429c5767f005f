"""The report on runs: verdicts, alarms and the data sheet."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.files import write_jsonl
from toolkit.errors import InputError
from toolkit.evaluation.run_report import (
    data_sheet,
    last_fifth,
    overoptimized,
    read_evaluation,
    read_ppo_run,
    read_reward_run,
    verdicts,
)
from toolkit.evaluation.samples import read_samples
from toolkit.training.log_rows import read_log

Make = Callable[..., Any]


def test_verdicts_say_no_where_it_is_no(runs: Path, evaluation: Make) -> None:
    good = {f[0]: f[2] for f in verdicts({"ppo": read_ppo_run(runs / "ppo")}, {}, None)}
    assert good == {"ppo: the KL was held": "yes"}
    rows = [
        update.row | {"objective/kl_target": 5.7} for update in read_log(runs / "ppo" / "log.jsonl")
    ]
    write_jsonl(runs / "ppo" / "log.jsonl", rows)
    missed = {f[0]: f[2] for f in verdicts({"ppo": read_ppo_run(runs / "ppo")}, {}, None)}
    assert missed == {"ppo: the KL was held": "no"}
    reward = read_reward_run(runs / "reward")
    lost = replace(reward.verdict, answer="no")
    assert verdicts({}, {"r": reward}, None)[0][2] == "yes"
    assert verdicts({}, {"r": replace(reward, verdict=lost)}, None)[0][2] == "no"
    result, _ = evaluation([str(i) for i in range(40)], shift=0.0)
    facts = {f[0]: f[2] for f in verdicts({}, {}, result)}  # by whom it was not trained on
    assert facts["ppo better than reference, says <b>truth</b>"] == "yes"
    result = replace(result, judges=[replace(j, training_reward=False) for j in result.judges])
    facts = {f[0]: f[2] for f in verdicts({}, {}, result)}  # by the first
    assert facts["ppo better than reference, says rm"] == "no"
    assert facts["free of over-optimization"] == ""


def test_a_later_checkpoint_that_only_the_training_reward_likes_raises_the_alarm(
    evaluation: Make,
) -> None:
    result, _ = evaluation([str(i) for i in range(60)], kind="checkpoint")
    assert overoptimized(result) == []
    place = next(
        i
        for i, p in enumerate(result.pairs)
        if (p.a, p.b, p.judge) == ("ppo@2", "ppo@1", "<b>truth</b>")
    )
    result.pairs[place] = replace(
        result.pairs[place], difference=-(result.pairs[place].difference or 0.0)
    )
    (alarm,) = overoptimized(result)
    assert alarm.startswith("ppo@2: <b>truth</b> finds it worse than ppo@1")


def test_the_data_sheet_counts_labellers_and_how_far_they_agree(
    runs: Path, hostile: list[str]
) -> None:
    sheet = data_sheet(runs / "comparisons.jsonl")
    assert sheet.comparisons == 5 and sheet.prompts == 3
    assert sheet.labellers == {"ann": 2, "bob": 2, hostile[0]: 1}
    assert sheet.positions == [3, 2] and sheet.completions == {"2": 5}
    assert sheet.items_twice == 2 and sheet.agreement == 0.5
    # Units (0, 0) and (1, 0): D_o = 1/4 * 2 = 1/2, D_e = 6 / 12, so alpha is 0.
    assert sheet.alpha == pytest.approx(0.0)


def test_a_few_wins_are_no_verdict_and_an_unfinished_run_says_so(
    runs: Path, evaluation: Make
) -> None:
    result, _ = evaluation(["a", "b", "c", "d"])  # 4 wins of 4: p is 0.125
    assert {f[0]: f[2] for f in verdicts({}, {}, result)}[
        "ppo better than reference, says <b>truth</b>"
    ] == "no"
    run = read_ppo_run(runs / "ppo")
    run.identity["settings"]["total_episodes"] = 2560
    assert verdicts({"ppo": run}, {}, None)[0] == ("ppo: finished", "100 of 2,560 episodes", "no")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r[:3], "3 rows, but evaluation.json beside it has 21"),
        (
            lambda r: [r[0] | {"completions": {"reference": "x"}}, *r[1:]],
            "jsonl:1: the prompt or the",
        ),
        (lambda r: [r[0], r[1] | {"prompt": 5}, *r[2:]], "jsonl:2: the prompt or the text"),
        (lambda r: [*r[:2], r[2] | {"scores": None}, *r[3:]], "jsonl:3: scores: missing"),
        (lambda r: [], "0 rows"),
    ],
)
def test_samples_that_were_edited_are_found_out(runs: Path, edit: Any, message: str) -> None:
    path = runs / "evaluation" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, edit(rows))
    with pytest.raises(InputError, match=message):
        read_evaluation(runs / "evaluation", 3)
    with pytest.raises(InputError, match=message):
        read_samples(path)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda p: read_ppo_run(p), "log.jsonl is missing"),
        (lambda p: read_ppo_run(p / "x"), "no such folder"),
        (lambda p: read_reward_run(p), "run.json"),
        (lambda p: read_evaluation(p, 3), "evaluation.json"),
        (lambda p: data_sheet(p / "x.jsonl"), "no such file"),
    ],
)
def test_a_folder_of_something_else_is_one_line(read: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_last_fifth_rounds_up_and_never_is_empty(runs: Path) -> None:
    log = read_log(runs / "ppo" / "log.jsonl")
    assert last_fifth(log, lambda update: update.episode) == 95.0
    assert last_fifth(log[:1], lambda update: update.episode) == 10.0
    assert last_fifth(log[:6], lambda update: update.episode) == 55.0


def test_what_was_no_number_in_the_last_fifth_is_left_out_of_its_mean(runs: Path) -> None:
    log = read_log(runs / "ppo" / "log.jsonl")
    lost = [*log[:-1], replace(log[-1], scores=None)]
    assert last_fifth(lost, lambda update: update.scores) == pytest.approx(0.9)  # of 0.9 and None
    assert last_fifth(lost[-1:], lambda update: update.scores) is None
