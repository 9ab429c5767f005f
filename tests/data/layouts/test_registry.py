"""Each published layout is told by its fields, read, or refused by name with the way to use it."""

import re

import pytest

from tests.data.layouts.one_row import demonstrations, one, picked, prompts, user
from tests.data.layouts.published import ASK, COMPARED, DEMONSTRATED, MESSAGE, NEITHER
from toolkit.data.convert import convert
from toolkit.data.layouts.registry import LAYOUTS, detect, refusal, told
from toolkit.errors import InputError

ROWS = {**COMPARED, **DEMONSTRATED, **{name: row for name, (row, _) in NEITHER.items()}}
OPENAI = {"query": [15496], "sample0": [995], "sample1": [13], "best": 0}


def test_each_row_is_told_by_its_layout_and_every_layout_has_a_row() -> None:
    rows = {**ROWS, "oasst_messages": MESSAGE, "openai": OPENAI}
    assert {name: told(row) for name, row in rows.items()} == {name: name for name in LAYOUTS}
    assert told({"words": "a"}) is None


@pytest.mark.parametrize("name", [*COMPARED, *DEMONSTRATED])
def test_fields_that_are_left_of_an_earlier_file_do_not_overrule_our_own(name: str) -> None:
    """sample keeps the fields of a prompt's row, so that a pick may stand beside an older vote."""
    row = {**ROWS[name], **COMPARED["native"]}
    assert told(row) == "native"


@pytest.mark.parametrize("name", COMPARED)
def test_a_comparison_is_read_from_its_published_row(name: str) -> None:
    made = one(COMPARED[name])
    assert picked(made) == "We loved it."
    asked = made["prompt"] if isinstance(made["prompt"], str) else made["prompt"][-1]["content"]
    assert ASK in asked
    if name not in ("pairs", "summaries"):
        (prompt,) = prompts(COMPARED[name])
        assert prompt == made["prompt"]


@pytest.mark.parametrize("name", DEMONSTRATED)
def test_one_answer_makes_a_demonstration_and_a_prompt_but_no_comparison(name: str) -> None:
    row = DEMONSTRATED[name]
    asked = ASK if name in ("alpaca", "prompt_completion", "unpaired") else [user(ASK)]
    (made,) = demonstrations(row)
    assert (made["prompt"], made["completions"]) == (asked, ["We loved it."])
    assert prompts(row) == [asked]
    with pytest.raises(InputError, match=f"^f:1: the layout {name} .*sft --demonstrations FILE"):
        one(row)


@pytest.mark.parametrize("name", NEITHER)
def test_rows_without_answers_to_compare_are_refused_with_the_way_to_use_them(name: str) -> None:
    row, way = NEITHER[name]
    with pytest.raises(InputError, match=f"^f:1: the layout {name} .*{re.escape(way)}"):
        one(row)
    with pytest.raises(InputError, match=f"^f:1: the layout {name} "):
        demonstrations(row)


def test_comparisons_are_no_demonstrations() -> None:
    assert "sft --comparisons FILE learns the picks" in str(refusal("pairs", "f:1", "x"))
    with pytest.raises(InputError, match="the layout arena .*comparisons, not demonstrations"):
        demonstrations(COMPARED["arena"])


def test_fields_that_speak_of_no_format_are_refused() -> None:
    with pytest.raises(InputError, match="f:1: unknown format with the fields words"):
        detect({"words": "a"}, "f:1")
    table = {"prompt": ASK, "left": "a", "right": "b", "winner": "left"}
    with pytest.raises(InputError, match="fields prompt, left, right, winner .*--columns prompt="):
        one(table)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("pairs", {"chosen": 3}, "chosen and rejected: one is text"),
        ("ranked", {"rank": [0]}, "rank: 1 given for 2 replies"),
        ("columns", {"best": "C"}, "best: 'C', but must be the number, letter, column or text"),
        ("nectar", {"answers": [{"rank": 1}, {"rank": 2}]}, "answer is missing"),
        ("shp", {"labels": 2}, r"labels: 2, but must be 1 \(A\) or 0 \(B\)"),
        ("shp", {"labels": 0}, "labels: 0 prefers B, but score_A is 12 and score_B 3"),
        ("arena", {"winner": "both"}, "winner: 'both', but must be one of"),
        ("arena", {"conversation_b": "text"}, "conversation_b: 'text', but must be a list"),
        ("safe_rlhf", {"better_response_id": 2}, r"best: 2, but the completions are \[0, 1\]"),
        ("summaries", {"choice": 2}, "choice: 2, but must be the index of one of 2 summaries"),
        ("summaries", {"info": {"post": None}}, "info: holds neither a post nor an article"),
        ("reward_bench", {"prompt": None}, "prompt: missing"),
        ("oasst_tree", {"prompt": {"role": "bot", "text": "a"}}, "role: 'bot', but must be"),
        ("sharegpt", {"conversations": [{"from": "cat", "value": "a"}]}, r"s\[0\].from: 'cat'"),
        ("sharegpt", {"conversations": [{"from": "function_call", "value": "{}"}]}, "function_cal"),
        ("alpaca", {"output": None}, "completions: .*must be a list of strings"),
        (
            "messages",
            {"messages": [user("a"), {"role": "assistant", "tool_calls": [{}]}]},
            r"messages\[1\]: tool_calls without text",
        ),
        ("prompt_completion", {"completion": [user("a")]}, "completion: must be one message of"),
        ("unpaired", {"label": "good"}, "label: 'good', but must be true or false"),
    ],
)
def test_a_bad_row_of_each_layout_is_named_with_its_place(
    name: str, change: dict, problem: str
) -> None:
    rows = [("f:1", ROWS[name]), ("f:2", ROWS[name] | change)]
    wanted = "demonstrations" if name in DEMONSTRATED else "comparisons"
    with pytest.raises(InputError, match=f"^f:2: {problem}|^f:2: .*{problem}"):
        list(convert(rows, wanted=wanted))
