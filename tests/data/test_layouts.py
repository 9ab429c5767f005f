"""Each layout of comparisons becomes ours, by hand-made rows and real files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.comparisons import problems_of
from toolkit.data.convert import convert, load_decoder
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
    with pytest.raises(InputError, match="token ids .give their --tokenizer"):
        one(row)
    with pytest.raises(InputError, match=r"f:1: token id 99999 is too large: the tokenizer has"):
        one(row | {"sample0": [99999]}, decode=load_decoder(demo_model))


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


def test_fields_that_speak_of_no_format_are_refused() -> None:
    with pytest.raises(InputError, match="f:1: unknown format with the fields text"):
        detect({"text": "a"}, "f:1")


def test_a_table_whose_picks_cannot_be_read_is_refused_once() -> None:
    columns = {"Prompt": "Hi.", "Answer A": "a", "Answer B": "b"}
    with pytest.raises(
        InputError, match="f:1: no column is called best; there are Prompt, Answer A"
    ):
        detect(columns | {"Winner": "A"}, "f:1")
    with pytest.raises(InputError, match="f:1: best is the number 2, .*pass --first 1"):
        detect(columns | {"best": "2"}, "f:1")
    assert detect(columns | {"best": "2"}, "f:1", first=1) == "columns"
    assert detect(columns | {"best": "B"}, "f:1") == "columns"


def test_columns_keep_their_ranks_and_refuse_one_number_twice() -> None:
    row = {"query": "Hi.", "sample0": "a", "sample1": "b", "sample2": "c", "best": 1}
    assert one(row | {"rank": [5, 0, 4]})["ranking"] == [1, 2, 0]
    assert one(row | {"worst": "2"})["worst"] == one(row | {"worst": "sample2"})["worst"] == 2
    with pytest.raises(InputError, match="two columns have the same number: sample0, .*answer0"):
        one(row | {"answer0": "x"})


def test_csv_pairs_may_have_a_margin(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,margin\nHi., a, b,1.5\nHo., a, b,\n")
    first, second = convert(tmp_path / "a.csv")
    assert first["margin"] == 1.5 and "margin" not in second


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def bot(text: str) -> dict:
    return {"role": "assistant", "content": text}


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


def test_a_score_that_is_no_number_is_refused_by_its_name() -> None:
    row = {"instruction": "Do it.", "completions": [answer("a", "seven"), answer("b", 3)]}
    with pytest.raises(InputError, match=r"f:1: completions\[0\].overall_score: 'seven', but must"):
        one(row)


def test_margins_come_from_scores_that_a_csv_file_holds_as_text() -> None:
    row = {"prompt": "Hi.", "chosen": "a", "rejected": "b"}
    assert one(row | {"score_chosen": "4.5", "score_rejected": "1"})["margin"] == 3.5
    assert "margin" not in one(row | {"score_chosen": "N/A", "score_rejected": "1"})
    assert "margin" not in one(row | {"margin": float("nan")})


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
