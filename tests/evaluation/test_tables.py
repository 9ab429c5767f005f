"""Tables: what stands in the cells, and that no text in them is markup."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from toolkit.data.records import from_row, to_row
from toolkit.evaluation.result import Evaluation, JudgeResult
from toolkit.evaluation.tables import (
    contender_table,
    gap_table,
    pair_table,
    place_table,
    print_evaluation,
    print_facts,
    text_table,
    worth_of_length,
)

Make = Callable[..., Any]


def test_hostile_text_is_no_markup_in_the_terminal(
    capsys: pytest.CaptureFixture[str], evaluation: Make
) -> None:
    result, samples = evaluation(["[red]x[/red]", "\x1b[31my", "z"])
    result.judges.append(JudgeResult("people", "people", False))
    print_evaluation(result, samples)  # people have no scores, and no curve
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out.replace("\n", "") and "\x1b" not in out


def test_places_below_the_curve_stop_where_its_samples_do(evaluation: Make) -> None:
    result, _ = evaluation([str(i) for i in range(40)])
    found = place_table(result, "rm")
    assert found is not None
    (row,) = found[1]
    assert row[0] == "ppo" and "% ± " in row[5]
    assert 0 < float(row[3]) <= float(row[4])  # best-of-n is below the optimum
    result.contenders[1] = replace(result.contenders[1], kl=9.0)
    found = place_table(result, "rm")
    assert found is not None and found[1][0][3:] == ["", "beyond what the samples support", ""]
    assert place_table(result, "<b>truth</b>") is None  # no curve was made for it


def test_a_contenders_cells_are_its_kl_and_each_judges_score(evaluation: Make) -> None:
    result, _ = evaluation(["a", "b", "c", "d", "e"])  # scores 0 to 4, and 1 more for ppo
    headers, (reference, ppo) = contender_table(result)
    assert headers[:3] == ["contender", "KL, nats", "tokens"]
    assert headers[3:6] == ["rm", "gain, std", "rm at equal length"]
    assert headers[6:] == ["<b>truth</b>", "gain, std", "<b>truth</b> at equal length"]
    # std of 0 .. 4 is sqrt(2), so 1 more is a gain of 0.71; s / sqrt(5) = 0.71 as well. The
    # reference's scores 0, 2, 4, 1, 3 of 0 .. 4 tokens have the slope 5 / 10, and ppo writes 2 more
    # tokens: they are worth all of its gain.
    assert reference[:6] == ["reference", "0.00 ± 0.00", "2.0", "2.00 ± 0.71", "+0.00", "+0.00"]
    assert ppo[:6] == ["ppo", "0.50 ± 0.00", "4.0", "3.00 ± 0.71", "+0.71", "+0.00"]
    said, _ = worth_of_length(result)
    assert said.startswith("Under rm, a token more is worth +0.5000 ± 0.5000 of the score")
    assert said.endswith("completions of reference, which have 2.0 tokens on average.")
    result.contenders[1] = replace(result.contenders[1], kl=None, kl_error=None)
    assert contender_table(result)[1][1][1] == "not known"


def test_a_file_from_before_lengths_were_counted_has_the_table_that_it_had(
    evaluation: Make,
) -> None:
    result, _ = evaluation(["a", "b", "c", "d", "e"])
    old = to_row(result)
    del old["lengths"]
    for row in old["contenders"]:
        del row["length"]
        for scores in row["scores"].values():
            del scores["gain_at_equal_length"]
    read = from_row(Evaluation, old, "old")
    headers, (_, ppo) = contender_table(read)
    assert headers == ["contender", "KL, nats", "rm", "gain, std", "<b>truth</b>", "gain, std"]
    assert ppo[:4] == ["ppo", "0.50 ± 0.00", "3.00 ± 0.71", "+0.71"]
    assert worth_of_length(read) == []


def test_a_pairs_cells_count_and_say_what_was_not_judged(evaluation: Make) -> None:
    result, _ = evaluation(["a", "b", "c", "d", "e"], kind="checkpoint")
    headers, rows = pair_table(result, "rm")
    assert [row[0] for row in rows] == ["ppo@1 : reference", "ppo@2 : reference", "ppo@2 : ppo@1"]
    assert rows[0][1] == "5 / 0 / 0" and rows[0][3] == "0.062"  # 2 of 2^5 sign patterns
    assert [row[0] for row in pair_table(result, "rm", with_reference=True)[1]] == [
        row[0] for row in rows[:2]
    ]
    unsaid = replace(
        result.pairs[0], wins=0, ties=1, losses=0, not_judged=4, difference=None, p_scores=None
    )
    assert len(headers) == len(rows[0]) == 6
    (row, *_) = pair_table(replace(result, pairs=[unsaid]), "rm")[1]
    assert row[1:3] == ["0 / 1 / 0 (4 not judged)", "none decided"] and row[5] == ""


def test_text_measures_have_a_column_for_each_contender(evaluation: Make) -> None:
    result, _ = evaluation(["one two", "one two", "three", "four"])
    headers, rows = text_table(result)
    cells = {row[0]: row[1:] for row in rows}
    assert headers == ["", "reference", "ppo"]
    assert cells["words"] == ["1.5", "1.5"] and cells["unique completions"] == ["75.0%"] * 2
    assert cells["distinct-1"] == ["0.667"] * 2  # 4 words of 6


def test_a_gap_that_alarms_says_so(evaluation: Make) -> None:
    result, _ = evaluation(["a", "b", "c"])
    result.gaps[0] = replace(result.gaps[0], alarm=True, gap=1.25)
    (row,) = gap_table(result)[1]
    assert row[:2] == ["ppo", "<b>truth</b>"] and row[4:] == ["+1.25", "ALARM: not confirmed"]


def test_facts_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts("Title", [("[b]name[/b]", "value", "no"), ("other", "x", "")])
    out = capsys.readouterr().out
    assert "[b]name[/b]" in out and "value" in out and "Title" in out
