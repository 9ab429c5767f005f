"""A prompt that completions repeat is cut off, and one that they only seem to repeat is not."""

from collections import Counter
from typing import Any

import pytest

from toolkit.data.convert import convert
from toolkit.data.problems import problems_of
from toolkit.data.repeated_prompts import Habit
from toolkit.errors import InputError


def one(row: dict, **kwargs: Any) -> dict:
    (made,) = convert([("f:1", row)], **kwargs)
    assert problems_of(made, "best") == []
    return made


def picked(row: dict) -> str:
    return row["completions"][row["best"]]


def rows_of(*rows: dict, **kwargs: Any) -> list[dict]:
    return list(convert([(f"f:{n}", row) for n, row in enumerate(rows, start=1)], **kwargs))


@pytest.mark.parametrize(
    ("prompt", "texts", "wanted"),
    [
        ("Name a fruit.", ["Name a fruit. A plum.", "Name a fruit. A fig."], " A plum."),
        ("Name a fruit.\n", ["Name a fruit.\nA plum.", "Name a fruit.\nA fig."], "A plum."),
        ("Q: a fruit?\nA: ", ["Q: a fruit?\nA: plum", "Q: a fruit?\nA: fig"], "plum"),
        ("Name a fruit.", [" Name a fruit. A plum.", " Name a fruit. A fig."], " A plum."),
        ("\n\nHuman: a fruit?\n\nAssistant:", ["\n\nHuman: a fruit?\n\nAssistant: plum",
                                               "\n\nHuman: a fruit?\n\nAssistant: fig"], " plum"),
    ],
)  # fmt: skip
def test_text_that_repeats_the_prompt_is_cut_in_every_format(
    prompt: str, texts: list[str], wanted: str
) -> None:
    """Right by hand: prompt and completion joined are the text that stood there, once."""
    rated = [{"response": text, "overall_score": 5 - k} for k, text in enumerate(texts)]
    for row in (
        {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]},
        {"prompt": prompt, "completions": texts, "best": 0},
        {"prompt": prompt, "responses": texts, "rank": [0, 1]},
        {"instruction": prompt, "completions": rated},
        {"prompt": prompt, "sample0": texts[0], "sample1": texts[1], "best": 0},
    ):
        noted: Counter[str] = Counter()
        made = one(row, noted=noted)
        assert picked(made) == wanted and noted.total() == 1
        assert (made["prompt"] + picked(made)).strip() == texts[0].strip()


def test_where_a_prompts_space_is_another_in_the_text_both_joined_are_the_text() -> None:
    texts = ["Name a fruit. A plum.", "Name a fruit. A fig."]
    made = one({"prompt": "Name a fruit.\n", "chosen": texts[0], "rejected": texts[1]})
    assert made["prompt"] + picked(made) == texts[0]


def test_a_word_that_runs_on_is_no_repeat() -> None:
    made = one({"prompt": "He said that I", "chosen": "He said that It", "rejected": "no"})
    assert picked(made) == "He said that It"


def test_a_short_prompt_is_judged_by_the_other_rows() -> None:
    """ "Yes" begins many an answer: only what the rest of the file does can tell."""
    short = {"prompt": "Yes", "chosen": "Yes, sir.", "rejected": "Yes, no."}
    apart = {"prompt": "Is it a good day?", "chosen": "It is.", "rejected": "No."}
    again = {
        "prompt": "Is it a good day?",
        "chosen": "Is it a good day? It is.",
        "rejected": "Is it a good day? No.",
    }
    assert picked(rows_of(short, apart)[0]) == "Yes, sir."
    assert [picked(row) for row in rows_of(short, again)] == [", sir.", " It is."]
    with pytest.raises(InputError, match="f:1: prompt: 'Yes' .*too short.*--repeated_prompt cut"):
        one(short)
    assert picked(one(short, repeated_prompt="keep")) == "Yes, sir."
    assert picked(one(short, repeated_prompt="cut")) == ", sir."


def test_short_prompts_alone_are_judged_by_each_other() -> None:
    """Ten different prompts that each of two answers begins with are no chance."""
    again = [
        {"prompt": f"No {i}", "chosen": f"No {i}: a", "rejected": f"No {i}: b"} for i in range(10)
    ]
    apart = {"prompt": "Hi.", "chosen": "a", "rejected": "b"}
    assert {picked(row) for row in rows_of(*again)} == {": a"}
    assert picked(rows_of(again[3], apart)[0]) == "No 3: a"
    with pytest.raises(InputError, match="; 8 more bad rows"):
        rows_of(*again[:9])


def test_a_sample_that_says_the_prompt_again_behind_a_space_is_a_sample() -> None:
    texts = [" We went to the cafe. We sat.", " It was good."]
    made = one({"prompt": "We went to the cafe.", "completions": texts, "best": 1})
    assert made["completions"] == texts


def test_an_answer_may_greet_with_the_prompts_one_word() -> None:
    made = one({"prompt": "Hi", "chosen": "Hi there.", "rejected": "What?"})
    assert picked(made) == "Hi there."


def test_a_few_answers_that_echo_the_question_are_kept_and_counted() -> None:
    rows = [
        {"prompt": f"What is {i} + 1?", "chosen": f"It is {i + 1}.", "rejected": "No."}
        for i in range(40)
    ]
    rows[7]["chosen"] = "What is 7 + 1? It is 8."
    noted: Counter[str] = Counter()
    made = rows_of(*rows, noted=noted)
    assert picked(made[7]) == "What is 7 + 1? It is 8." and noted.total() == 1


LONG, SHORT = "Is it a good day?", "Yes"
WHOLE = ["{} It is.", "{} No."]
HALF = ["{} It is.", "No."]
NONE = ["It is.", "No."]


def row(prompt: str, texts: list[str]) -> dict:
    return {"prompt": prompt, "completions": [text.format(prompt) for text in texts]}


@pytest.mark.parametrize(
    ("others", "short_and_whole", "short_and_half"),
    [
        ([row(LONG, WHOLE)], "cut", "half"),
        ([row(LONG, NONE)], "keep", "keep"),
        ([row(SHORT, NONE)], "keep", "keep"),
        ([row(f"No {i}", WHOLE) for i in range(9)], "unsure", "keep"),
        ([row(f"No {i}", WHOLE) for i in range(10)], "cut", "half"),
        ([row("No", WHOLE)] * 10, "unsure", "keep"),  # ten times the same prompt is one
        ([{"prompt": [], "completions": NONE}], "unsure", "keep"),  # messages say nothing of text
    ],
)
def test_what_becomes_of_a_short_prompt_is_said_by_the_other_rows(
    others: list[dict], short_and_whole: str, short_and_half: str
) -> None:
    habit = Habit.of(others, "auto")
    assert habit.verdict(row(SHORT, WHOLE)) == short_and_whole
    assert habit.verdict(row(SHORT, HALF)) == short_and_half
    assert habit.verdict(row(LONG, WHOLE)) == "cut"


def test_the_rule_that_was_given_goes_over_what_the_rows_say() -> None:
    others = [row(LONG, WHOLE)]
    rows = [row(SHORT, WHOLE), row(LONG, HALF), row(LONG, NONE)]
    assert [Habit.of(others, "keep").verdict(r) for r in rows] == ["keep"] * 3
    assert [Habit.of([], "cut").verdict(r) for r in rows] == ["cut", "half", "keep"]


def test_one_answer_in_twenty_may_echo_the_question_where_none_repeats_it() -> None:
    for echoes, verdict in ((1, "echo"), (2, "half")):
        others = [row(LONG, HALF)] * echoes + [row(LONG, NONE)] * (20 - echoes)
        assert Habit.of(others, "auto").verdict(row(LONG, HALF)) == verdict
