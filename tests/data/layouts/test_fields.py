"""What layouts share: ties and equal answers say why, and what belongs together stays so."""

from typing import Any

import pytest

from tests.data.layouts.one_row import bot, dropped, one, picked, user
from toolkit.errors import InputError


def answer(text: str, overall: Any, finer: Any = 4.0) -> dict:
    return {
        "model": f"m-{text}",
        "response": text,
        "overall_score": overall,
        "fine-grained_score": finer,
    }


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi.", "chosen": " a", "rejected": " a"}, "chosen equals rejected"),
        ({"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: B\n\nAssistant: c"},
         "the dialogues differ before their last turn"),
        ({"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: A\n\nAssistant: "},
         "an empty completion"),
        ({"chosen": "\n\nHuman: A", "rejected": "\n\nHuman: B"},
         "the last turn is not the assistant's"),
        ({"prompt": "Hi.", "responses": ["a", "b"], "rank": [0, 0]},
         "two replies have the same rank"),
        ({"prompt": "Hi.", "responses": ["a"], "rank": [0]}, "fewer than two ranked replies"),
        ({"prompt": "Hi.", "completions": ["a", "b"], "scores": [2, 2]}, "a tie at the top"),
    ],
)  # fmt: skip
def test_sound_rows_that_make_no_comparison_say_why(row: dict, reason: str) -> None:
    assert dropped(row) == reason


@pytest.mark.parametrize("none", ["N/A", "", None, float("nan"), "n/a"])
def test_an_answer_without_a_score_is_left_out_and_the_others_stay_aligned(none: Any) -> None:
    row = {
        "instruction": "Do it.",
        "models": ["m-a", "m-b", "m-c"],
        "ratings": [[1], [2], [3]],
        "completions": [answer("a", "3"), answer("b", none), answer("c", "8.5")],
    }
    made = one(row)
    assert made["completions"] == ["a", "c"] and made["scores"] == [3, 8.5]
    assert made["models"] == ["m-a", "m-c"] and made["ratings"] == [[1], [3]]
    for each in row["completions"]:
        del each["model"]  # then the models are the row's own
    assert one(row)["models"] == ["m-a", "m-c"]
    native = {
        "prompt": "Hi.",
        "completions": ["a", "b", "c"],
        "scores": [1, none, 3],
        "models": ["x", "y", "z"],
    }
    made = one(native)
    assert (made["completions"], made["best"], made["models"]) == (["a", "c"], 1, ["x", "z"])
    assert one(native | {"best": 2, "ranking": [2, 1, 0]})["ranking"] == [1, 0]
    assert one(native | {"best": 2, "worst": 0})["worst"] == 0
    assert "worst" not in one(native | {"best": 2, "worst": 1})  # which of the others is not said
    with pytest.raises(InputError, match="f:1: scores: completion 1 is the best, but has no score"):
        one(native | {"best": 1})
    assert one(
        {
            "prompt": "Hi.",
            "responses": ["a", "b", "c"],
            "rank": [1, none, 0],
            "models": ["x", "y", "z"],
        }
    )["models"] == ["x", "z"]


def test_completions_that_are_messages_are_read_in_every_format() -> None:
    answers = [[bot("a")], bot("b")]
    for row in (
        {"prompt": [user("Hi.")], "completions": answers, "best": 1},
        {"prompt": [user("Hi.")], "completions": [bot("a"), bot("b")], "best": 1},
        {"prompt": [user("Hi.")], "responses": answers, "rank": [1, 0]},
        {"prompt": [user("Hi.")], "chosen": answers[1], "rejected": answers[0]},
    ):
        made = one(row)
        assert made["prompt"] == [user("Hi.")] and picked(made) == "b"
