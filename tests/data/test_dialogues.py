"""Dialogues become a prompt and its answers, or say why they make no comparison."""

import json
from collections import Counter
from typing import Any

import pytest

from toolkit.data.convert import convert
from toolkit.data.dialogues import from_dialogues, hh_messages, prompt_of, unpacked
from toolkit.data.problems import problems_of
from toolkit.errors import InputError


def one(row: dict, **kwargs: Any) -> dict:
    (made,) = convert([("f:1", row)], **kwargs)
    assert problems_of(made, "best") == []
    return made


def dropped(row: dict, **kwargs: Any) -> str:
    reasons: Counter[str] = Counter()
    assert list(convert([("f:1", row)], dropped=reasons, **kwargs)) == []
    ((reason, count),) = reasons.items()
    assert count == 1
    return reason


def picked(row: dict) -> str:
    return row["completions"][row["best"]]


def test_conversational_pairs() -> None:
    user = {"role": "user", "content": "Hi."}
    good, bad = ({"role": "assistant", "content": text} for text in ("Hello!", "What?"))
    for row in (
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {
            "prompt": "Hi.",
            "chosen": [user, good],
            "rejected": [user, bad],
            "score_chosen": 4.0,
            "score_rejected": 1.0,
        },  # ultrafeedback_binarized
    ):
        made = one(row)
        assert made["prompt"] == [user] and picked(made) == "Hello!"
    assert made["margin"] == 3.0


def test_hh_dialogues_become_messages() -> None:
    start = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Why?\nTell me.\n\nAssistant: "
    made = one({"chosen": start + "Because.", "rejected": start + "No."})
    assert made["prompt"] == [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?\nTell me."},
    ]
    assert picked(made) == "Because."


def rows_of(*rows: dict, **kwargs: Any) -> list[dict]:
    return list(convert([(f"f:{n}", row) for n, row in enumerate(rows, start=1)], **kwargs))


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def bot(text: str) -> dict:
    return {"role": "assistant", "content": text}


def test_messages_that_repeat_the_prompt_make_what_trl_makes_of_the_dialogue_alone() -> None:
    """Right by TRL: ``extract_prompt`` of the same dialogues without a prompt beside them."""
    from trl.data_utils import extract_prompt

    system, ask = {"role": "system", "content": "Be kind."}, user("Name a fruit.")
    for start in ([ask], [system, ask], [ask, bot("Which?"), user("Any.")]):
        chosen, rejected = [*start, bot("A plum.")], [*start, bot("A brick.")]
        noted: Counter[str] = Counter()
        made = one({"prompt": start, "chosen": chosen, "rejected": rejected}, noted=noted)
        wanted = extract_prompt({"chosen": chosen, "rejected": rejected})
        assert made["prompt"] == wanted["prompt"] == start
        assert picked(made) == wanted["chosen"][0]["content"] == "A plum."
        assert noted.total() == 1


def test_a_dialogue_may_repeat_only_the_last_message_of_the_prompt() -> None:
    start = [{"role": "system", "content": "Be kind."}, user("Name a fruit.")]
    row = {
        "prompt": start,
        "chosen": [start[1], bot("A plum.")],
        "rejected": [start[1], bot("A brick.")],
    }
    assert one(row)["prompt"] == start


def test_a_prompt_that_is_not_repeated_stays_whole() -> None:
    start = [user("Name a fruit."), bot("A plum."), user("Another.")]
    made = one({"prompt": start, "chosen": [bot("A plum.")], "rejected": [bot("A brick.")]})
    assert made["prompt"] == start and picked(made) == "A plum."


def test_a_prompt_of_text_is_the_user_before_answers_that_are_messages() -> None:
    made = one({"prompt": "Name a fruit.", "chosen": [bot("A plum.")], "rejected": [bot("No.")]})
    assert made["prompt"] == [user("Name a fruit.")]


def test_nulls_that_a_table_puts_into_messages_make_no_other_prompt() -> None:
    empty = {"name": None, "tool_calls": None}
    row = {
        "chosen": [user("Hi.") | empty, bot("Ho.") | empty],
        "rejected": [user("Hi."), bot("No.")],
    }
    assert one(row)["prompt"] == [user("Hi.")]
    assert one(row | {"prompt": [user("Hi.") | empty]})["prompt"] == [user("Hi.")]


HALF = [
    {"prompt": [user("Hi.")], "chosen": [user("Hi."), bot("Ho.")], "rejected": [bot("No.")]},
    {"prompt": "Hi.", "chosen": [user("Hi."), bot("Ho.")], "rejected": [bot("No.")]},
    {"prompt": "Name a fruit.", "chosen": "Name a fruit. A plum.", "rejected": " A brick."},
    {"prompt": "Name a fruit.", "completions": ["A plum.", "Name a fruit. A fig."], "best": 0},
]


@pytest.mark.parametrize("row", HALF, ids=["messages", "text and messages", "text", "native"])
def test_a_row_that_repeats_the_prompt_by_half_is_refused_and_may_be_skipped(row: dict) -> None:
    with pytest.raises(
        InputError, match=r"^f:1: .* repeats? the prompt, but .* does not \(correct"
    ):
        one(row)
    good = {"prompt": "Hi.", "chosen": "a", "rejected": "b"}
    good = good if "chosen" in row else {"prompt": "Hi.", "completions": ["a", "b"], "best": 0}
    assert len(rows_of(row, good, skip_invalid=True)) == 1


def test_a_user_who_says_something_else_behind_the_prompt_is_refused() -> None:
    row = {
        "prompt": [user("Hi.")],
        "chosen": [user("Ho."), bot("a")],
        "rejected": [user("Ho."), bot("b")],
    }
    with pytest.raises(InputError, match=r"f:1: chosen\[0\].role: 'user' follows a prompt"):
        one(row)


def hh(*turns: str) -> str:
    return "".join(f"\n\n{'Human' if t[0] == 'H' else 'Assistant'}: {t[2:]}" for t in turns)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (hh("H a dialogue", "A So:", "H hi", "A yes"), hh("H a dialogue", "A no"),
         "the dialogues differ before their last turn"),
        (hh("H a dialogue", "A So:"), hh("H a dialogue", "A So:", "H hi", "A yes"),
         "the dialogues differ before their last turn"),
        (hh("H hi", "A yes", "H and"), hh("H hi", "A yes", "H or"),
         "the last turn is not the assistant's"),
        (hh("H ", "A yes"), hh("H ", "A no"), "an empty turn"),
        (hh("H hi", "A ", "H so", "A yes"), hh("H hi", "A ", "H so", "A no"), "an empty turn"),
        (hh("H hi", "A yes", "A yes"), hh("H hi", "A yes", "A no"),
         "two turns of the assistant in a row"),
    ],
)  # fmt: skip
def test_odd_dialogues_make_no_row(chosen: str, rejected: str, reason: str) -> None:
    assert dropped({"chosen": chosen, "rejected": rejected}) == reason


def test_two_of_the_users_turns_running_stay_two() -> None:
    made = one(
        {"chosen": hh("H hi", "H there?", "A yes"), "rejected": hh("H hi", "H there?", "A no")}
    )
    assert made["prompt"] == [user("hi"), user("there?")] and picked(made) == "yes"


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
         r"f:1: chosen\[1\].content: null beside tool_calls"),
        ({"role": "assistant", "content": [{"type": "text", "text": "a"}]},
         r"f:1: chosen\[1\].content: a list of parts"),
        ({"role": "bot", "content": "a"}, r"f:1: chosen\[1\].role: 'bot', but must be one of"),
        ("a", r"f:1: chosen\[1\]: 'a', but must be"),
    ],
)  # fmt: skip
def test_a_message_that_is_no_text_is_refused_by_its_name(last: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        one({"chosen": [user("Hi."), last], "rejected": [user("Hi."), bot("b")]})


def test_messages_that_a_table_holds_as_text_are_messages_or_refused() -> None:
    """Else the common beginning of two such texts would pass for the prompt."""
    chosen, rejected = [user("Hi."), bot("a")], [user("Hi."), bot("b")]
    made = one({"chosen": json.dumps(chosen), "rejected": json.dumps(rejected)})
    assert made["prompt"] == [user("Hi.")] and picked(made) == "a"
    with pytest.raises(InputError, match="f:1: chosen: messages that a program wrote as text"):
        one({"chosen": str(chosen), "rejected": str(rejected)})


def test_a_question_and_a_system_text_of_their_own_are_the_prompt() -> None:
    """Intel/orca_dpo_pairs; the answers' common beginning is no prompt then."""
    row = {
        "system": "Be kind.",
        "question": "Name a fruit.",
        "chosen": "It is a plum.",
        "rejected": "It is a brick.",
    }
    made = one(row)
    assert made["prompt"] == [{"role": "system", "content": "Be kind."}, user("Name a fruit.")]
    assert picked(made) == "It is a plum."
    assert one(row | {"system": ""})["prompt"] == "Name a fruit."


def test_a_dialogue_begins_with_the_prompt_or_with_its_last_messages() -> None:
    asked = [user("One."), bot("Two."), user("Three.")]
    for repeated in (asked, asked[2:], asked[1:]):
        made = from_dialogues(asked, [[*repeated, bot("a")], [*repeated, bot("b")]], ["x", "y"])
        assert made == (asked, ["a", "b"], True)
    assert from_dialogues(asked, [bot("a"), bot("b")], ["x", "y"]) == (asked, ["a", "b"], False)


def test_a_text_prompt_is_held_to_be_in_dialogues_in_which_a_user_speaks_first() -> None:
    dialogues: list[object] = [[user("Hi."), bot("a")], [user("Hi."), bot("b")]]
    assert from_dialogues("Hi.", dialogues, ["x", "y"]) == ([user("Hi.")], ["a", "b"], False)
    assert from_dialogues("Hi.", [bot("a"), bot("b")], ["x", "y"])[0] == [user("Hi.")]


def test_hh_text_comes_apart_at_its_turns_alone() -> None:
    text = "\n\nHuman: Say\nHuman: twice.\n\nAssistant:No.\n\nHuman: Why?"
    assert hh_messages(text) == [user("Say\nHuman: twice."), bot("No."), user("Why?")]


@pytest.mark.parametrize("name", ["prompt", "query", "instruction", "question"])
def test_the_prompt_has_four_names_and_an_empty_one_is_none(name: str) -> None:
    assert prompt_of({name: "Hi."}) == "Hi." and prompt_of({name: ""}) is None
    briefly = {"role": "system", "content": "Be brief."}
    assert prompt_of({name: "Hi.", "system_prompt": "Be brief."}) == [briefly, user("Hi.")]
    whole = [briefly, user("Hi.")]
    assert prompt_of({name: whole, "system": "Other."}) == whole


def test_alpacas_input_follows_its_instruction_after_an_empty_line() -> None:
    assert prompt_of({"instruction": "Translate.", "input": "Hi."}) == "Translate.\n\nHi."
    assert prompt_of({"instruction": "Translate.", "input": ""}) == "Translate."


def test_messages_that_are_text_are_read_if_they_are_json_and_text_stays_text() -> None:
    assert unpacked('[{"role": "user", "content": "Hi."}]', "prompt") == [user("Hi.")]
    assert unpacked("[a list] of words", "prompt") == "[a list] of words"
    with pytest.raises(ValueError, match=r"^prompt: messages that a program wrote as text"):
        unpacked("[{'role': 'user', 'content': 'Hi.'}]", "prompt")
