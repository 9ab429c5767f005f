"""Other people's formats, each by hand-made rows and, where they are at hand, by real files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from toolkit.data.comparisons import problems_of
from toolkit.data.convert import convert, load_decoder, to_pairs, with_space
from toolkit.data.layouts import detect
from toolkit.data.tables import read_table
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


def shared(root: Path, *parts: str) -> Path:
    path = root.parent.joinpath("shared", "data", *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)}, which is not part of this project")
    return path


def picked(row: dict) -> str:
    return row["completions"][row["best"]]


def test_pairs_with_a_prompt_of_their_own() -> None:
    made = one({"prompt": "Hi.", "chosen": " good", "rejected": " bad", "margin": 1.5})
    assert made["prompt"] == "Hi." and picked(made) == " good" and made["margin"] == 1.5
    assert sorted(made["completions"]) == [" bad", " good"]


def test_pairs_without_one_share_their_beginning_up_to_a_word() -> None:
    made = one({"chosen": "The tea was good.", "rejected": "The tea was gone."})
    assert made["prompt"] == "The tea was" and picked(made) == " good."


def test_the_chosen_one_stands_first_about_as_often_as_second() -> None:
    best = [one({"prompt": "Hi.", "chosen": f" {i}", "rejected": " x"})["best"] for i in range(400)]
    assert 160 < sum(best) < 240


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
        ({"prompt": "Hi.", "responses": ["a", "b"], "rank": [0, 0]}, "two replies of one rank"),
        ({"prompt": "Hi.", "responses": ["a"], "rank": [0]}, "fewer than two ranked replies"),
        ({"prompt": "Hi.", "completions": ["a", "b"], "scores": [2, 2]}, "a tie at the top"),
    ],
)  # fmt: skip
def test_sound_rows_that_make_no_comparison_say_why(row: dict, reason: str) -> None:
    assert dropped(row) == reason


def test_the_lowest_rank_is_the_best_and_a_reply_that_nobody_ranked_is_left_out() -> None:
    row = {"prompt": "Hi.", "responses": ["a", "b", "c", "d"], "rank": [2, None, 0, 1]}
    made = one(row)
    assert made["completions"] == ["a", "c", "d"]
    assert (made["best"], made["ranking"]) == (1, [1, 2, 0])
    assert picked(one(row | {"rank": ["10", "9", float("nan"), None]})) == "b"  # numbers, not text
    assert dropped(row | {"rank": [2, None, None, None]}) == "fewer than two ranked replies"


def test_a_scored_set_takes_its_best_and_drops_ties() -> None:
    def scored(*scores: float) -> dict:
        return {
            "instruction": "Do it.",
            "completions": [
                {"model": f"m{i}", "response": f"r{i}", "overall_score": s}
                for i, s in enumerate(scores)
            ],
        }

    made = one(scored(3, 8.5, 7, 1))
    assert (made["prompt"], made["best"], made["ranking"]) == ("Do it.", 1, [1, 2, 0, 3])
    assert made["scores"] == [3, 8.5, 7, 1] and made["models"] == ["m0", "m1", "m2", "m3"]
    assert "ranking" not in one(scored(3, 8.5, 3, 1))  # a tie below the top orders nothing
    assert dropped(scored(8.5, 8.5, 7, 1)) == "a tie at the top"


def test_one_column_a_completion_as_csv_has_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion1,completion2,best,labeler\nHi., a, b,2,ann\n")
    (made,) = convert(read_table(path, "--input"))
    assert made == {
        "prompt": "Hi.",
        "completions": [" a", " b"],
        "best": 1,
        "labeler": "ann",
        "source": "a.csv:2",
    }
    path.write_text("prompt,chosen,rejected\nHi., a, b\n")
    (made,) = convert(read_table(path, "--input"))
    assert picked(made) == " a"


def test_openai_label_files_are_token_ids(tmp_path: Path, demo_model: str, root: Path) -> None:
    from toolkit.models.loading import load_tokenizer

    tokenizer = load_tokenizer(demo_model)
    pad = [50259] * 3
    row = {"query": tokenizer("We went.")["input_ids"] + pad, "best": 3} | {
        f"sample{k}": tokenizer(f" It was {w}.")["input_ids"] + pad
        for k, w in enumerate(["bad", "dull", "plain", "great"])
    }
    made = one(row, decode=load_decoder(demo_model))
    assert made["prompt"] == "We went." and picked(made) == " It was great."
    with pytest.raises(InputError, match="token ids: give their --tokenizer"):
        one(row)
    with pytest.raises(InputError, match=r"f:1: token id 99999, but the tokenizer has"):
        one(row | {"sample0": [99999]}, decode=load_decoder(demo_model))


def test_gpt2s_own_files_decode_openais_ids(root: Path) -> None:
    decode = load_decoder(str(shared(root, "gpt2_bpe")))
    assert decode([15496, 995]) == "Hello world" and decode([13, 198]) == ".\n"
    assert decode([50256]) == "<|endoftext|>"
    row = {"query": [15496, 995, 50259, 50259], "best": 0}
    row |= {f"sample{k}": [995 + k, 13, 50259] for k in range(4)}
    made = one(row, decode=decode)
    assert made["prompt"] == "Hello world" and made["completions"][0] == " world."


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither tokenizer.json nor encoder.json"):
        load_decoder(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not loaded"):
        load_decoder(str(tmp_path))


def test_every_real_row_of_hh_becomes_a_comparison_or_says_why_not(root: Path) -> None:
    path = shared(root, "hh_helpful_base", "test.jsonl.gz")
    reasons: Counter[str] = Counter()
    made = list(convert(read_table(path, "--input"), dropped=reasons))
    assert len(made) == 2339 and sum(reasons.values()) == 15
    texts = [row["chosen"] for _, row in read_table(path, "--input")]
    for row in made[:200]:
        last = row["prompt"][-1]
        assert last["role"] == "user"
        assert any(last["content"] in text and picked(row) in text for text in texts)
    assert {row["best"] for row in made} == {0, 1}


def test_real_rankings_agree_with_their_best_of_four(root: Path) -> None:
    sets = list(convert(read_table(shared(root, "oasst_ranked", "ranked_sets.jsonl"), "--input")))
    assert Counter(min(4, len(row["completions"])) for row in sets) == {2: 57, 3: 117, 4: 38}
    assert all(len(row["ranking"]) == len(row["completions"]) for row in sets)
    order = {
        json.dumps(row["prompt"]): [row["completions"][k] for k in row["ranking"]] for row in sets
    }
    fours = list(convert(read_table(shared(root, "oasst_ranked", "best_of_4.jsonl"), "--input")))
    assert len(fours) == 38
    for row in fours:  # four of the replies, of which the best ranked one
        ranked = order[json.dumps(row["prompt"])]
        assert picked(row) == min(row["completions"], key=ranked.index)


def test_real_best_of_four_keeps_its_ratings(root: Path) -> None:
    path = shared(root, "human_best_of_4", "movie_sentiment_best_of_4.dev.jsonl")
    made = list(convert(read_table(path, "--input")))
    assert len(made) == 1444
    for row in made:
        assert row["scores"][row["best"]] == max(row["scores"])
        assert row["margin"] >= 0 and len(row["ratings"]) == 4


def test_bad_rows_are_counted_and_may_be_skipped() -> None:
    rows = [("f:1", {"prompt": "Hi.", "sample0": "a", "sample1": "b", "best": "x"}),
            ("f:2", {"prompt": "Hi.", "sample0": "a", "sample1": "b", "best": 5}),
            ("f:3", {"prompt": "Hi.", "sample0": "a", "sample1": "b"}),
            ("f:4", {"prompt": "Hi.", "sample0": "a", "sample1": "b", "best": 1})]  # fmt: skip
    with pytest.raises(InputError, match="f:1: best: 'x', .*; 2 more bad rows") as caught:
        list(convert(rows))
    assert [d[:18] for d in caught.value.details] == ["f:2: best: 5, but ", "f:3: best is missi"]
    reasons: Counter[str] = Counter()
    assert len(list(convert(rows, skip_invalid=True, dropped=reasons))) == 1
    assert sum(reasons.values()) == 3


def test_fields_that_speak_of_no_format_are_refused() -> None:
    with pytest.raises(InputError, match="f:1: no format known by the fields text"):
        detect({"text": "a"}, "f:1")


def test_a_comparison_becomes_pairs_of_one_group_and_comes_back() -> None:
    row = {"prompt": "Hi.", "completions": ["a", "b", "c", "b"], "best": 1, "scores": [1, 4, 2, 4]}
    pairs = to_pairs(row)
    assert [(p["chosen"], p["rejected"], p["margin"]) for p in pairs] == [
        ("b", "a", 3),
        ("b", "c", 2),
    ]
    assert len({p["group"] for p in pairs}) == 1
    assert to_pairs(row | {"prompt": "Ho."})[0]["group"] != pairs[0]["group"]
    assert [picked(made) for made in convert([("", p) for p in pairs])] == ["b", "b"]


def test_a_pick_against_the_scores_makes_pairs_without_a_margin() -> None:
    (pair,) = to_pairs({"prompt": "Hi.", "completions": ["a", "b"], "best": 0, "scores": [0, 1.5]})
    assert "margin" not in pair
    assert one(pair)["prompt"] == "Hi."


def test_columns_keep_their_ranks_and_refuse_one_number_twice() -> None:
    row = {"query": "Hi.", "sample0": "a", "sample1": "b", "sample2": "c", "best": 1}
    assert one(row | {"rank": [5, 0, 4]})["ranking"] == [1, 2, 0]
    with pytest.raises(InputError, match="two columns of one number among sample0, .*answer0"):
        one(row | {"answer0": "x"})


def test_csv_pairs_may_have_a_margin(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,margin\nHi., a, b,1.5\nHo., a, b,\n")
    first, second = convert(tmp_path / "a.csv")
    assert first["margin"] == 1.5 and "margin" not in second


def test_a_space_is_put_where_there_is_none() -> None:
    row = {"prompt": "The cafe.", "completions": ["It", " was", "\nOne"], "best": 0}
    assert with_space(row)["completions"] == [" It", " was", "\nOne"]
    assert with_space(row | {"prompt": "The "})["completions"] == row["completions"]


def test_pairs_of_messages_are_trls_conversational_ones() -> None:
    from trl.data_utils import is_conversational

    prompt = [{"role": "user", "content": "Hi."}]
    (pair,) = to_pairs({"prompt": prompt, "completions": ["a", "b"], "best": 1})
    assert is_conversational(pair)
    assert pair["chosen"] == [{"role": "assistant", "content": "b"}]
    assert picked(one(pair)) == "b"


def rows_of(*rows: dict, **kwargs: Any) -> list[dict]:
    return list(convert([(f"f:{n}", row) for n, row in enumerate(rows, start=1)], **kwargs))


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def bot(text: str) -> dict:
    return {"role": "assistant", "content": text}


# Prompts that are repeated


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
    with pytest.raises(InputError, match=r"^f:1: .* repeats? the prompt, but .* does not \(mend"):
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
    with pytest.raises(InputError, match=r"f:1: chosen\[0\].role: 'user' behind a prompt"):
        one(row)


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


# Scores


def answer(text: str, overall: Any, finer: Any = 4.0) -> dict:
    return {
        "model": f"m-{text}",
        "response": text,
        "overall_score": overall,
        "fine-grained_score": finer,
    }


def test_ultrafeedbacks_mistaken_ten_is_left_out_and_a_true_one_is_the_best() -> None:
    noted: Counter[str] = Counter()
    row = {
        "instruction": "Do it.",
        "models": ["m-a", "m-b", "m-c"],
        "completions": [answer("a", 10, 1.0), answer("b", 7), answer("c", 8.5)],
    }
    made = one(row, noted=noted)
    assert made["completions"] == ["b", "c"] and picked(made) == "c"
    assert made["models"] == ["m-b", "m-c"] and made["scores"] == [7, 8.5]
    assert list(noted) == ["answers of overall_score 10, fine-grained_score 2 or less left out"]
    row["completions"][0]["fine-grained_score"] = 4.75
    assert picked(one(row)) == "a"
    row["completions"] = row["completions"][:1] + [answer("b", 10, "1.5")]
    assert dropped(row) == "fewer than two scored answers"


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
    with pytest.raises(InputError, match="f:1: scores: none for completion 1, which is the best"):
        one(native | {"best": 1})
    assert one(
        {
            "prompt": "Hi.",
            "responses": ["a", "b", "c"],
            "rank": [1, none, 0],
            "models": ["x", "y", "z"],
        }
    )["models"] == ["x", "z"]


def test_a_score_that_is_no_number_is_refused_by_its_name() -> None:
    row = {"instruction": "Do it.", "completions": [answer("a", "seven"), answer("b", 3)]}
    with pytest.raises(InputError, match=r"f:1: completions\[0\].overall_score: 'seven', but must"):
        one(row)


def test_margins_come_from_scores_that_a_csv_file_holds_as_text() -> None:
    row = {"prompt": "Hi.", "chosen": "a", "rejected": "b"}
    assert one(row | {"score_chosen": "4.5", "score_rejected": "1"})["margin"] == 3.5
    assert "margin" not in one(row | {"score_chosen": "N/A", "score_rejected": "1"})
    assert "margin" not in one(row | {"margin": float("nan")})


# Labels


COLUMNS = {"prompt": "Hi.", "completion1": "a", "completion2": "b", "completion3": "c"}
NATIVE = {"prompt": "Hi.", "completions": ["a", "b", "c"]}


@pytest.mark.parametrize("best", [2, 2.0, "2", "2.0", np.int64(2), np.float32(2), "B", "b",
                                  "completion2", " Completion2 "])  # fmt: skip
def test_the_second_column_is_named_in_many_ways(best: Any) -> None:
    assert one(COLUMNS | {"best": best})["best"] == 1
    if not str(best).strip().lower().startswith("c"):
        number = best if str(best).lower() == "b" else type(best)(1)
        assert one(NATIVE | {"best": number})["best"] == 1


@pytest.mark.parametrize("best", [True, 1.5, "best", "D", "completion4", -1, [2], "", None,
                                  float("nan")])  # fmt: skip
def test_a_label_that_names_no_completion_is_refused_with_its_place(best: Any) -> None:
    for row in (COLUMNS, NATIVE):
        with pytest.raises(InputError, match="^f:1: best"):
            one(row | {"best": best})


def test_a_letter_that_is_also_another_completions_text_is_refused() -> None:
    row = {"prompt": "Which?", "completions": ["B", "A"], "best": "A"}
    with pytest.raises(InputError, match="'A', a completion's letter and another's text"):
        one(row)
    assert one(row | {"completions": ["A", "B"]})["best"] == 0


def test_columns_with_letters_are_read_and_numbers_need_to_say_where_they_begin() -> None:
    row = {"prompt": "Hi.", "Response A": "a", "Response B": "b"}
    assert picked(one(row | {"best": "B"})) == "b"
    assert picked(one(row | {"best": "response b"})) == "b"
    with pytest.raises(InputError, match="f:1: best: 1, .*say --first 0 or --first 1"):
        one(row | {"best": 1})
    assert picked(one(row | {"best": 1}, first=1)) == "a"
    assert picked(one(row | {"best": 1}, first=0)) == "b"


def test_first_says_from_where_best_and_ranking_count() -> None:
    for row in (NATIVE, COLUMNS):
        made = one(row | {"best": 3, "ranking": [3, 1, 2]}, first=1)
        assert (made["best"], made["ranking"]) == (2, [2, 0, 1])
        made = one(row | {"best": 0, "ranking": [0, 2, 1]}, first=0)
        assert (made["best"], made["ranking"]) == (0, [0, 2, 1])
    assert one(COLUMNS | {"best": 1, "ranking": "1>3>2"})["ranking"] == [0, 2, 1]
    with pytest.raises(InputError, match=r"f:1: best: 0, but the completions are \[1, 2, 3\]"):
        one(NATIVE | {"best": 0}, first=1)


@pytest.mark.parametrize(
    ("row", "bests", "cure"),
    [(NATIVE, [1, 2, 3], 1), (NATIVE, [1.0, 3.0], 1), (COLUMNS, [0, 1, 2], 0),
     ({"query": "q", "sample0": "a", "sample1": "b"}, [1, 2, 2], 1)],
)  # fmt: skip
def test_labels_that_count_from_another_number_are_never_skipped_to_shifted_ones(
    row: dict, bests: list, cure: int
) -> None:
    rows = [row | {"prompt": f"p{i}", "best": best} for i, best in enumerate(bests)]
    for skip in (False, True):
        with pytest.raises(InputError, match=f"--first {cure}"):
            rows_of(*rows, skip_invalid=skip)
    low = min(bests)
    assert [r["best"] for r in rows_of(*rows, first=cure)] == [best - low for best in bests]


# Dialogues


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
         "two of the assistant's turns running"),
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


def test_messages_that_a_table_holds_as_text_are_messages_or_refused() -> None:
    """Else the common beginning of two such texts would pass for the prompt."""
    chosen, rejected = [user("Hi."), bot("a")], [user("Hi."), bot("b")]
    made = one({"chosen": json.dumps(chosen), "rejected": json.dumps(rejected)})
    assert made["prompt"] == [user("Hi.")] and picked(made) == "a"
    with pytest.raises(InputError, match="f:1: chosen: messages that some program wrote as text"):
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


def test_tools_and_template_arguments_are_kept_and_handed_on_to_pairs() -> None:
    more = {"tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": False}}
    made = one({"prompt": [user("Hi.")], "chosen": [bot("a")], "rejected": [bot("b")]} | more)
    (pair,) = to_pairs(made)
    for row in (made, pair, one(pair), one(NATIVE | {"best": 0} | more)):
        assert {name: row[name] for name in more} == more
    with pytest.raises(InputError, match="f:1: tools: 'search', but must be a list"):
        one(NATIVE | {"best": 0, "tools": "search"})


# Files


def test_each_file_of_a_folder_has_its_own_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(NATIVE | {"best": 1}) + "\n")
    (tmp_path / "b.csv").write_text("prompt,chosen,rejected\nHi.,a,b\n")
    assert [picked(row) for row in convert(tmp_path)] == ["b", "a"]


def test_a_first_row_of_no_format_may_be_skipped() -> None:
    rows = [{"text": "a"}, NATIVE | {"best": 1}]
    reasons: Counter[str] = Counter()
    assert len(rows_of(*rows, skip_invalid=True, dropped=reasons)) == 1
    assert [reason[:40] for reason in reasons] == ["bad, the first f:1: no format known by t"]
    with pytest.raises(InputError, match="f:1: no format known"):
        rows_of(*rows)


def test_a_csv_file_that_pandas_wrote_is_read(tmp_path: Path) -> None:
    """A missing label makes floats of all others; only its own row is bad."""
    table = pandas.DataFrame([COLUMNS | {"best": b, "labeler": "ann"} for b in (1, None, 3)])
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "b.parquet")
    table.to_json(tmp_path / "c.jsonl", orient="records", lines=True)
    for name, place in (("a.csv", 3), ("b.parquet", 1), ("c.jsonl", 2)):
        with pytest.raises(InputError, match=f"{name}:{place}: best is missing"):
            list(convert(tmp_path / name))
        assert [r["best"] for r in convert(tmp_path / name, skip_invalid=True)] == [0, 2]
