"""What a good row is, for each stage that reads it."""

import json

from toolkit.data.problems import problem_of_messages, problems_of

GOOD = {"prompt": "Hi.", "completions": [" a", " b", " c"], "best": 2}
MESSAGES = [{"role": "user", "content": "Hi."}]


def test_a_stage_wants_no_more_than_it_needs() -> None:
    row = {"prompt": "Hi."}
    assert problems_of(row, "prompt") == []
    assert problems_of(row, "completions") != []
    assert problems_of(row | {"completions": [" a", " b"]}, "completions") == []
    assert problems_of(row | {"completions": [" a", " b"], "scores": [1, 2.5]}, "scores") == []
    assert problems_of(GOOD, "scores") == [
        "scores: missing (this loss needs 3 numbers, one a completion)"
    ]


def test_a_full_row_with_messages_is_good() -> None:
    row = {
        "prompt": MESSAGES,
        "completions": ["a", "b"],
        "best": 1,
        "ranking": [1, 0],
        "scores": [0, 1.5],
        "margin": 0.5,
        "labeler": "ann",
        "source": {"id": 1},
    }
    assert problems_of(row, "best") == []


def test_developers_and_tools_are_let_pass() -> None:
    prompt = [{"role": "developer", "content": "Be brief."}, *MESSAGES]
    tool = {"type": "function", "function": {"name": "search"}}
    for tools in ([tool], json.dumps([tool]), [], None):
        row = GOOD | {"prompt": prompt, "tools": tools, "chat_template_kwargs": {"a": 1}}
        assert problems_of(row, "best") == []


def test_a_demonstration_has_one_completion_or_more_and_needs_no_pick() -> None:
    row = {"prompt": "Hi.", "completions": [" a"]}
    assert problems_of(row, "demonstration") == []
    assert problems_of(row, "best")[0].startswith("completions: only 1, but a choice needs")
    assert problems_of(row | {"completions": [" "]}, "demonstration") != []
    assert problems_of(row | {"completions": []}, "demonstration") != []


def test_the_first_bad_message_of_a_list_is_named() -> None:
    assert problem_of_messages(MESSAGES, "prompt") is None
    bad = [*MESSAGES, {"role": "bot", "content": "a"}, {"role": "user", "content": ""}]
    assert str(problem_of_messages(bad, "prompt")).startswith("prompt[1].role: 'bot'")
