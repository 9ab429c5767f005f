"""Rows: what is refused, how text becomes ids and comes back."""

import json
from pathlib import Path

import pytest

from toolkit.data.comparisons import (
    encode_candidates,
    problem_of,
    read_prompts,
    read_rows,
    split_by_prompt,
)
from toolkit.data.text import decode_pair, token_id
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer

GOOD = {"prompt": "Hi.", "completions": [" a", " b", " c"], "best": 2}

BAD_ROWS = [
    ({"prompt": None}, "prompt: missing or not a string"),
    ({"prompt": 3}, "prompt: missing or not a string"),
    ({"prompt": "  \n"}, "prompt: empty"),
    ({"completions": None}, "completions: missing or not a list"),
    ({"completions": "ab"}, "completions: missing or not a list"),
    ({"completions": [" a", 2]}, "completions: missing or not a list of strings"),
    ({"completions": []}, "completions: 0 of them"),
    ({"completions": [" a"]}, "completions: 1 of them, but a choice needs at least 2"),
    ({"completions": [" a", " "]}, r"completions\[1\]: empty"),
    ({"prompt": "a\ud83d"}, "prompt: half a character at 1"),
    ({"best": None}, "best: None, but must be the index of the pick, 0 to 2"),
    ({"best": "1"}, "best: '1', but must be"),
    ({"best": True}, "best: True, but must be"),
    ({"best": 1.0}, "best: 1.0, but must be"),
    ({"best": 3}, "best: 3, out of range for 3 completions"),
    ({"best": -1}, "best: -1, out of range"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ROWS, ids=[m for _, m in BAD_ROWS])
def test_bad_rows_are_refused_with_file_and_line(
    tmp_path: Path, change: dict, message: str
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(InputError, match=r"c\.jsonl:2: " + message):
        read_rows(path, "best", "--comparisons")


def test_all_bad_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text((json.dumps(GOOD | {"best": 9}) + "\n") * 3)
    with pytest.raises(InputError, match=r":1: best.*; 2 more bad rows"):
        read_rows(path, "best", "--comparisons")


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n")
    with pytest.raises(InputError, match="no rows"):
        read_rows(path, "best", "--comparisons")


def test_a_stage_wants_no_more_than_it_needs() -> None:
    row = {"prompt": "Hi."}
    assert problem_of(row, "prompt") is None
    assert problem_of(row, "completions") is not None
    assert problem_of(row | {"completions": [" a", " b"]}, "completions") is None


def test_prompts_are_cut_or_left_out_by_length(tmp_path: Path, demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    path = tmp_path / "p.jsonl"
    texts = ["We went.", "We went to the market near the station with my old friend."]
    path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    prompts, left_out = read_prompts(path, tokenizer, max_prompt_length=5)
    assert (len(prompts), left_out) == (1, 1)
    prompts, left_out = read_prompts(path, tokenizer, 256, prompt_tokens=6)
    assert ([len(p) for p in prompts], left_out) == ([6], 1)
    with pytest.raises(InputError, match="no prompt left of 2"):
        read_prompts(path, tokenizer, max_prompt_length=1)


def test_rows_of_text_need_to_be_told_where_to_cut(tmp_path: Path, demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"text": "We went to the market near the station."}) + "\n")
    with pytest.raises(InputError, match=r"p\.jsonl:1: .*say --prompt_tokens N"):
        read_prompts(path, tokenizer, 256)
    prompts, _ = read_prompts(path, tokenizer, 256, prompt_tokens=4)
    assert [len(p) for p in prompts] == [4]


def test_prompt_and_completion_join_to_the_whole_text(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    ids = tokenizer("We went to the market. It was great.")["input_ids"]
    for cut in range(1, len(ids)):
        prompt, completion = decode_pair(tokenizer, ids[:cut], ids[cut:])
        assert prompt + completion == "We went to the market. It was great."


def test_a_sentencepiece_completion_keeps_its_leading_space(root: Path) -> None:
    model = root.parent / "shared" / "models" / "stories260k"
    if not model.is_dir():
        pytest.skip("needs the stories260k model, which is not part of this project")
    tokenizer = load_tokenizer(str(model))
    ids = tokenizer("Once upon a time, there was")["input_ids"]
    assert decode_pair(tokenizer, ids[:3], ids[3:]) == ("Once upon", " a time, there was")


def test_candidates_too_long_are_left_out_and_counted(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    long = GOOD | {"completions": [" a", " It was great." * 50, " c"]}
    encoded, left_out = encode_candidates(tokenizer, [GOOD, long], max_length=64)
    assert (len(encoded), left_out) == (1, 1)
    assert encoded[0]["candidate_ids"][1] == tokenizer("Hi. b")["input_ids"]
    assert encoded[0]["best"] == 2


def test_no_prompt_is_on_both_sides_of_the_split() -> None:
    rows = [{"prompt": f"p{i % 40}", "i": i} for i in range(100)]
    train, held_out = split_by_prompt(rows, 30, seed=1)
    assert len(train) + len(held_out) == 100 and len(held_out) >= 30
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in held_out}
    assert split_by_prompt(rows, 30, seed=1) == (train, held_out)
    assert split_by_prompt(rows, 30, seed=2) != (train, held_out)
    with pytest.raises(InputError, match="leaves none of 100 rows"):
        split_by_prompt(rows, 100, seed=1)


def test_a_token_is_named_by_its_text(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    assert tokenizer.decode([token_id(tokenizer, ".", "stop_token")]) == "."
    assert token_id(tokenizer, "eos", "stop_token") == tokenizer.eos_token_id
    assert token_id(tokenizer, None, "stop_token") is None
    with pytest.raises(InputError, match="which is .* tokens, not one"):
        token_id(tokenizer, "the end of it", "stop_token")
