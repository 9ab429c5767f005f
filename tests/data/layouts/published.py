"""A row of each layout as it was published, with sentences of our own.

Field names come from the data sets' cards and TRL's page on dataset formats.
"""

from tests.data.layouts.one_row import bot, user

ASK = "How was the tea?"
TREE = {
    "message_tree_id": "t1",
    "tree_state": "ready_for_export",
    "prompt": {
        "message_id": "m1",
        "parent_id": None,
        "text": ASK,
        "role": "prompter",
        "lang": "en",
        "replies": [
            {
                "message_id": "m2",
                "parent_id": "m1",
                "text": "It was fine.",
                "role": "assistant",
                "rank": 1,
                "replies": [],
            },
            {
                "message_id": "m3",
                "parent_id": "m1",
                "text": "We loved it.",
                "role": "assistant",
                "rank": 0,
                "replies": [
                    {
                        "message_id": "m4",
                        "parent_id": "m3",
                        "text": "And the cake?",
                        "role": "prompter",
                        "rank": None,
                        "replies": [],
                    }
                ],
            },
        ],
    },
}
MESSAGE = {
    "message_tree_id": "t1",
    "message_id": "m1",
    "parent_id": None,
    "text": ASK,
    "role": "prompter",
    "rank": None,
    "deleted": False,
}

# Rows that hold a comparison: each picks "We loved it.".
COMPARED: dict[str, dict] = {
    "native": {"prompt": ASK, "completions": ["It was fine.", "We loved it."], "best": 1},
    "pairs": {"prompt": ASK, "chosen": "We loved it.", "rejected": "It was fine."},
    "ranked": {"prompt": ASK, "responses": ["It was fine.", "We loved it."], "rank": [1, 0]},
    "scored": {
        "instruction": ASK,
        "completions": [
            {"model": "a", "response": "It was fine.", "overall_score": 6.0},
            {"model": "b", "response": "We loved it.", "overall_score": 8.5},
        ],
    },
    "columns": {
        "prompt": ASK,
        "completion_a": "It was fine.",
        "completion_b": "We loved it.",
        "best": "B",
    },
    "nectar": {
        "prompt": f"\n\nHuman: {ASK}\n\nAssistant: ",
        "answers": [
            {"answer": "We loved it.", "model": "a", "rank": 1.0},
            {"answer": "It was fine.", "model": "b", "rank": 2.0},
        ],
        "turns": 1,
        "num_responses": 2,
        "source": ["tea-talk"],
        "good_natured": True,
    },
    "shp": {
        "post_id": "p1",
        "domain": "asktea_train",
        "upvote_ratio": 0.98,
        "history": ASK,
        "score_A": 12,
        "score_B": 3,
        "human_ref_A": "We loved it.",
        "human_ref_B": "It was fine.",
        "labels": 1,
        "seconds_difference": 60.0,
        "score_ratio": 4.0,
    },
    "arena": {
        "question_id": "q1",
        "model_a": "one",
        "model_b": "two",
        "winner": "model_b",
        "judge": "arena_user_1",
        "conversation_a": [user(ASK), bot("It was fine.")],
        "conversation_b": [user(ASK), bot("We loved it.")],
        "turn": 1,
        "anony": True,
        "language": "English",
        "tstamp": 1.0,
    },
    "safe_rlhf": {
        "prompt": ASK,
        "response_0": "It was fine.",
        "response_1": "We loved it.",
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "better_response_id": 1,
    },
    "summaries": {
        "info": {"id": "t3_1", "post": ASK, "title": "Tea", "subreddit": "tea", "article": None},
        "summaries": [
            {"text": "It was fine.", "policy": "sup1", "note": None},
            {"text": "We loved it.", "policy": "ref", "note": None},
        ],
        "choice": 1,
        "worker": "w1",
        "batch": "batch3",
        "split": "train",
        "extra": {"confidence": 7},
    },
    "reward_bench": {
        "id": "7",
        "prompt": ASK,
        "chosen": ["We loved it."],
        "rejected": ["It was fine.", "It was.", "Tea?"],
        "num_correct": 1,
        "num_incorrect": 3,
        "total_completions": 4,
        "models": ["human", "a", "b", "c"],
        "subset": "Focus",
        "additional_metadata": None,
    },
    "oasst_tree": TREE,
}

# Rows with one answer to each prompt.
DEMONSTRATED: dict[str, dict] = {
    "sharegpt": {
        "id": "s1",
        "conversations": [
            {"from": "human", "value": ASK},
            {"from": "gpt", "value": "We loved it."},
        ],
    },
    "alpaca": {"instruction": ASK, "input": "", "output": "We loved it."},
    "messages": {"messages": [user(ASK), bot("We loved it.")]},
    "prompt_completion": {"prompt": ASK, "completion": "We loved it."},
    "unpaired": {"prompt": ASK, "completion": "We loved it.", "label": True},
}

# Rows that hold neither, and what their refusal proposes.
NEITHER: dict[str, tuple[dict, str]] = {
    "stepwise": ({"prompt": ASK, "completions": ["One.", "Two."], "labels": [True, False]}, "PRM"),
    "text": ({"text": "We loved it."}, "sft --text"),
    "prompt": ({"prompt": ASK}, "preftune sample"),
}
