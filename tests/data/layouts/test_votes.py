"""A vote between two answers: who won, who voted, and what makes no comparison."""

import pytest

from tests.data.layouts.one_row import bot, dropped, one, picked, prompts, user
from tests.data.layouts.published import ASK, COMPARED
from toolkit.data.layouts.votes import summary_prompt
from toolkit.errors import InputError

SHP, ARENA, SAFE = COMPARED["shp"], COMPARED["arena"], COMPARED["safe_rlhf"]
SUMMARIES = COMPARED["summaries"]


def test_shps_label_1_is_a_and_its_scores_are_kept() -> None:
    assert one(SHP)["scores"] == [12, 3]
    other = SHP | {"labels": "0", "score_A": 3, "score_B": 12}
    assert picked(one(other)) == "It was fine."
    assert "scores" not in one(SHP | {"score_B": None})


@pytest.mark.parametrize("winner", ["tie", "tie (bothbad)"])
def test_a_tie_of_the_arena_is_left_out_by_its_name(winner: str) -> None:
    assert dropped(ARENA | {"winner": winner}) == f"a {winner}"


def test_the_arena_says_who_voted_and_which_models_answered() -> None:
    made = one(ARENA)
    assert made["labeler"] == "arena_user_1" and made["models"] == ["one", "two"]
    assert picked(one(ARENA | {"winner": "model_a"})) == "It was fine."
    assert dropped(ARENA | {"conversation_b": ARENA["conversation_a"]}) == "all answers are equal"


def test_conversations_that_went_different_ways_have_no_common_prompt() -> None:
    more = [user("And the cake?"), bot("Good.")]
    row = ARENA | {side: ARENA[side] + more for side in ("conversation_a", "conversation_b")}
    assert dropped(row) == "the dialogues differ before their last turn"
    assert prompts(row) == [[user(ASK)]]


def test_of_safe_rlhfs_two_labels_one_has_to_be_named() -> None:
    from toolkit.data.layouts.named import NamedColumns

    both = SAFE | {"safer_response_id": 0}
    with pytest.raises(InputError, match="--columns best=better_.*--columns best=safer_response"):
        one(both)
    for label, text in (("better", "We loved it."), ("safer", "It was fine.")):
        columns = NamedColumns({"best": [f"{label}_response_id"]})
        assert picked(one(both, columns=columns)) == text
    assert dropped(SAFE | {"response_1": SAFE["response_0"]}) == "all answers are equal"


def test_summaries_follow_the_post_or_the_article_as_the_papers_models_read_it() -> None:
    made = one(SUMMARIES)
    assert made["prompt"] == f"SUBREDDIT: r/tea\n\nTITLE: Tea\n\nPOST: {ASK}\n\nTL;DR:"
    assert (made["labeler"], made["models"], made["id"]) == ("w1", ["sup1", "ref"], "t3_1")
    assert summary_prompt({"article": "Tea rose."}) == "Article:\n\nTea rose.\n\nTL;DR:"
    same = [{"text": "Tea.", "policy": "a"}] * 2
    assert dropped(SUMMARIES | {"summaries": same}) == "all answers are equal"
