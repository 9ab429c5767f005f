"""OASST's trees: a comparison at each message that people answered and ranked twice or more."""

import copy
from collections import Counter

import pytest

from tests.data.layouts.one_row import bot, dropped, one, prompts, user
from tests.data.layouts.published import ASK, TREE
from toolkit.data.convert import convert
from toolkit.data.layouts.trees import trees_of
from toolkit.errors import BadRows, InputError


def answer(name: str, parent: str, text: str, rank: int | None, role: str = "assistant") -> dict:
    return {
        "message_tree_id": "t1",
        "message_id": name,
        "parent_id": parent or None,
        "text": text,
        "role": role,
        "rank": rank,
    }


# The same tree as a table of messages, with ranked answers to the second question, too.
TABLE = [
    answer("m1", "", ASK, None, "prompter"),
    answer("m2", "m1", "It was fine.", 1),
    answer("m3", "m1", "We loved it.", 0),
    answer("m4", "m3", "And the cake?", None, "prompter"),
    answer("m5", "m4", "Dry.", 2),
    answer("m6", "m4", "Sweet.", 1),
    answer("m7", "m4", "Gone.", 0),
    answer("m8", "m4", "Spam.", None),
]


def placed(rows: list[dict]) -> list[tuple[str, dict]]:
    return [(f"f:{n}", row) for n, row in enumerate(rows, start=1)]


def test_a_table_of_messages_holds_a_comparison_for_each_ranked_question() -> None:
    noted: Counter[str] = Counter()
    first, second = convert(placed(TABLE), noted=noted)
    assert first["completions"] == ["It was fine.", "We loved it."] and first["best"] == 1
    assert second["prompt"] == [user(ASK), bot("We loved it."), user("And the cake?")]
    assert second["completions"] == ["Dry.", "Sweet.", "Gone."]
    assert (second["best"], second["ranking"], second["id"]) == (2, [2, 1, 0], "m4")
    assert noted == {"replies without a rank left out": 1}
    backwards = [TABLE[0], *reversed(TABLE[1:])]  # a parent may stand behind its replies
    assert len(list(convert(placed(backwards)))) == 2


def test_a_deleted_answer_and_a_tree_that_nobody_ranked_make_nothing() -> None:
    tree = copy.deepcopy(TREE)
    tree["prompt"]["replies"][0]["deleted"] = True
    assert dropped(tree) == "no message has two ranked answers"
    assert prompts(tree) == [[user(ASK)]]
    assert one(TREE)["id"] == "m1"


def test_equal_ranks_at_one_message_leave_the_others() -> None:
    table = [row | {"rank": 1} if row["message_id"] == "m3" else row for row in TABLE]
    reasons: Counter[str] = Counter()
    (made,) = convert(placed(table), dropped=reasons)
    assert made["id"] == "m4" and reasons == {"two replies have the same rank": 1}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([TABLE[0], answer("m9", "m0", "Lost.", 0)], "f:2: parent_id: 'm0', which no message"),
        (TABLE[1:3], "f:1: parent_id: 'm1', which no message of its tree has"),
        ([TABLE[0], TABLE[0] | {"message_id": "m0"}], "f:1: its tree has 2 first messages"),
    ],
)
def test_a_broken_tree_is_named_by_the_place_of_a_message(rows: list, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        list(convert(placed(rows)))
    bad = BadRows()
    assert list(trees_of(placed(rows), bad)) == [] and bad.count == 1
