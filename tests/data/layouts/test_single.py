"""One answer to each prompt: what is learned from a dialogue, and how Alpaca's parts join."""

from collections import Counter

import pytest

from tests.data.layouts.one_row import bot, demonstrations, prompts, user
from toolkit.data.convert import converted, to_demonstration
from toolkit.data.layouts.reader import LayoutReader
from toolkit.data.layouts.single import sharegpt_messages


def turn(who: str, text: str) -> dict:
    return {"from": who, "value": text}


def test_each_answer_of_a_dialogue_is_a_demonstration_after_all_that_was_said() -> None:
    row = {
        "system": "Be brief.",
        "conversations": [
            turn("human", "Tea?"),
            turn("gpt", "Yes."),
            turn("human", "Cake?"),
            turn("gpt", "No."),
        ],
    }
    system = {"role": "system", "content": "Be brief."}
    first, second = demonstrations(row)
    assert first["prompt"] == [system, user("Tea?")] and first["completions"] == ["Yes."]
    assert second["prompt"] == [system, user("Tea?"), bot("Yes."), user("Cake?")]
    assert prompts(row) == [second["prompt"]]


def test_answers_that_follow_no_question_are_left_out_and_counted() -> None:
    reader = LayoutReader("demonstrations")
    turns = [
        turn("gpt", "Hello."),
        turn("human", "Tea?"),
        turn("gpt", "Yes."),
        turn("gpt", "Sorry."),
        turn("human", " "),
        turn("gpt", "What?"),
        turn("human", "Cake?"),
        turn("gpt", ""),
    ]
    (row,) = [made for _, made in converted([("f:1", {"conversations": turns})], reader)]
    assert row["completions"] == ["Yes."]
    assert reader.noted == Counter(
        {
            "answers before any other message left out": 1,
            "answers behind another one of the assistant left out": 1,
            "answers behind an empty turn left out": 1,
            "empty answers left out": 1,
        }
    )


def test_sharegpt_names_speakers_in_several_ways() -> None:
    turns = [turn(who, "a") for who in ("system", "Human", "chatgpt", "user", "observation", "gpt")]
    roles = [message["role"] for message in sharegpt_messages(turns, "conversations")]
    assert roles == ["system", "user", "assistant", "user", "tool", "assistant"]
    assert sharegpt_messages([user("Hi.")], "conversations") == [user("Hi.")]
    with pytest.raises(ValueError, match=r"conversations\[0\]: 'Hi.', but must be"):
        sharegpt_messages(["Hi."], "conversations")


def test_alpacas_input_follows_its_instruction_and_its_history_makes_messages() -> None:
    row = {"instruction": "Translate.", "input": "Tee", "output": "tea"}
    (made,) = demonstrations(row)
    assert made["prompt"] == "Translate.\n\nTee" and made["completions"] == ["tea"]
    (made,) = demonstrations(row | {"history": [["Hi.", "Ho."]], "system": "Be brief."})
    assert made["prompt"] == [
        {"role": "system", "content": "Be brief."},
        user("Hi."),
        bot("Ho."),
        user("Translate.\n\nTee"),
    ]


def test_of_unpaired_answers_only_the_good_ones_are_learned() -> None:
    reader = LayoutReader("demonstrations")
    rows = [
        (f"f:{n}", {"prompt": "Tea?", "completion": text, "label": good})
        for n, (text, good) in enumerate([("Yes.", True), ("No.", False)], start=1)
    ]
    (made,) = [row for _, row in converted(rows, reader)]
    assert made["completions"] == ["Yes."] and reader.dropped == {"the label is false": 1}


def test_demonstrations_are_written_in_trls_form_and_read_again() -> None:
    from trl.data_utils import is_conversational

    for row in (
        {"prompt": "Tea?", "completion": " Yes."},
        {"prompt": [user("Tea?")], "completion": [bot("Yes.")]},
        {"prompt": "Tea?", "completion": bot("Yes.")},
    ):
        (made,) = demonstrations(row)
        written = to_demonstration(made)
        assert is_conversational(written) == (not isinstance(made["prompt"], str))
        assert demonstrations(written) == [made]
