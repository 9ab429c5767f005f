"""Rows: what is refused, how text becomes ids and comes back."""

import json
from pathlib import Path

import pytest

from toolkit.data.comparisons import (
    open_comparisons,
    problems_of,
    read_rows,
)
from toolkit.data.tokens import decode_pair, token_id
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer

GOOD = {"prompt": "Hi.", "completions": [" a", " b", " c"], "best": 2}

MESSAGES = [{"role": "user", "content": "Hi."}]
BAD_ROWS = [
    ({"prompt": None}, "prompt: missing, but must be text or a list of messages"),
    ({"prompt": 3}, "prompt: 3, but must be text"),
    ({"prompt": "  \n"}, "prompt: empty"),
    ({"prompt": "a\ud83d"}, "prompt: half a character at 1"),
    ({"prompt": []}, r"prompt: \[\], but must be text"),
    ({"prompt": ["Hi."]}, r"prompt\[0\]: 'Hi.', but must be"),
    ({"prompt": [{"role": "user"}]}, r"prompt\[0\]: .*, but must be"),
    ({"prompt": [{"role": "bot", "content": "a"}]}, r"prompt\[0\].role: 'bot', but must be one"),
    ({"prompt": [{"role": "user", "content": ""}]}, r"prompt\[0\].content: empty"),
    ({"prompt": [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
     r"prompt\[1\].content: null beside tool_calls, but must be text"),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}]},
     r"prompt\[0\].content: a list of parts, but must be text"),
    ({"tools": {"name": "search"}}, "tools: .*, but must be a list of objects"),
    ({"tools": "search"}, "tools: 'search', but must be .* or the JSON text of one"),
    ({"tools": ["search"]}, "tools: .*, but must be a list of objects"),
    ({"chat_template_kwargs": '{"enable_thinking": false}'}, "chat_template_kwargs: .*an object"),
    ({"prompt": [*MESSAGES, {"role": "assistant", "content": "a"}]}, "prompt: its last message"),
    ({"completions": None}, "completions: missing, but must be a list"),
    ({"completions": "ab"}, "completions: 'ab', but must be a list"),
    ({"completions": [" a", 2]}, "completions: .* but must be a list of strings"),
    ({"completions": []}, "completions: only 0"),
    ({"completions": [" a"]}, "completions: only 1, but a choice needs at least 2"),
    ({"completions": [" a", " "]}, r"completions\[1\]: empty"),
    ({"completions": [" a", " a", " a"]}, "completions: all 3 are ' a', so a pick says nothing"),
    ({"best": None}, "best: missing, but must be the index of the pick, 0 to 2"),
    ({"best": "B"}, r"best: 'B', but must be .*\(preftune convert reads letters"),
    (
        {"completions": None, "Answer A": "a", "completion_b": "b"},
        r"completions: missing, .*\(Answer A, completion_b: another format, which preftune convert",
    ),
    ({"best": True}, "best: True, but must be"),
    ({"best": 1.5}, "best: 1.5, but must be"),
    ({"best": 3}, r"best: 3, out of range for 3 completions \(.*; .*, run preftune convert --fir"),
    ({"best": -1}, "best: -1, out of range"),
    ({"ranking": "201"}, "ranking: '201', but must be a list of indices"),
    ({"ranking": []}, r"ranking: \[\], but must be"),
    ({"ranking": [2, 3]}, r"ranking: \[2, 3\], but must name each of 0 to 2"),
    ({"ranking": [2, 0, 0]}, "ranking: .* at most once"),
    ({"ranking": [0, 2]}, "ranking: begins with 0, but best is 2"),
    ({"worst": 3}, "worst: 3, but must be an index, 0 to 2"),
    ({"worst": 2}, "worst: 2, but that is the best as well"),
    ({"ranking": [2, 0, 1], "worst": 0}, "worst: 0, but the ranking does not end with it"),
    ({"completions": list("abcdefghijklm"), "worst": 3}, "worst: 13 completions, .* at most 12"),
    ({"scores": [1, 2]}, "scores: 2 given for 3 completions"),
    ({"scores": [1, 2, float("nan")]}, "not JSON that can be read: NaN is not a number"),
    ({"scores": [1, 2, 10**400]}, "not JSON that can be read: 10000000000000000000... is no"),
    ({"scores": "high"}, "scores: 'high', but must be a list"),
    ({"margin": -1}, "margin: -1, but must be a finite number, 0 or more"),
    ({"margin": "big"}, "margin: 'big', but must be"),
    ({"labeler": 7}, "labeler: 7, but must be a string"),
    ({"labeler_edit": 7}, "labeler_edit: 7, but must be a string"),
]  # fmt: skip


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


@pytest.mark.parametrize("best", [2.0, "2", "2.0", " 2 "])
def test_a_whole_number_is_an_index_however_it_is_written(tmp_path: Path, best: object) -> None:
    """pandas writes a column of integers in which one is missing as floats."""
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps(GOOD | {"best": best, "ranking": [best, 0.0, "1"]}) + "\n")
    source = open_comparisons(path, "best", "--comparisons")
    ((_, row),) = source
    assert (row["best"], row["ranking"]) == (2, [2, 0, 1])
    assert isinstance(row["best"], int)
    path.write_text(json.dumps(GOOD | {"best": 2, "ranking": [2, 0, 1]}) + "\n")
    assert open_comparisons(path, "best", "--comparisons").digest == source.digest


def labeled(path: Path, *bests: int, k: int = 3) -> Path:
    completions = [f" {n}" for n in range(k)]
    rows = [{"prompt": f"p{i}", "completions": completions, "best": b} for i, b in enumerate(bests)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("wants", ["best", "scores"])
def test_labels_that_count_from_1_are_not_skipped_but_refused(tmp_path: Path, wants: str) -> None:
    """Skipping every 3 of three would leave each other pick one too high, and nobody would know."""
    path = labeled(tmp_path / "c.jsonl", 1, 2, 3, 1, 2)
    if wants == "scores":
        rows = [json.loads(line) | {"scores": [1, 2, 3]} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"1 of 5 rows have .*from 1, not from 0.*--first 1"):
        open_comparisons(path, wants, "--comparisons", skip_invalid=True)


def test_labels_of_a_row_of_each_size_show_that_they_count_from_1(tmp_path: Path) -> None:
    path = labeled(tmp_path / "c.jsonl", 1, 2)
    path.write_text(path.read_text() + labeled(tmp_path / "d.jsonl", 2, k=2).read_text())
    with pytest.raises(InputError, match="--first 1"):
        open_comparisons(path, "best", "--comparisons", skip_invalid=True)


def test_a_wrong_label_among_labels_from_0_is_skipped(tmp_path: Path) -> None:
    path = labeled(tmp_path / "c.jsonl", 0, 2, 3, 1, 0)
    assert len(open_comparisons(path, "best", "--comparisons", skip_invalid=True)) == 4


def test_a_0_that_means_a_tie_does_not_hide_that_labels_count_from_1(tmp_path: Path) -> None:
    path = labeled(tmp_path / "c.jsonl", *[0, 0, 1, 2, 3, 1, 2] * 4)
    with pytest.raises(InputError, match="4 of 28 rows have .*--first 1"):
        open_comparisons(path, "best", "--comparisons", skip_invalid=True)
    path = labeled(tmp_path / "c.jsonl", *[0, 0, 1, 2, 0, 1, 2] * 4, 3)
    assert len(open_comparisons(path, "best", "--comparisons", skip_invalid=True)) == 28


def test_each_file_of_a_folder_counts_for_itself(tmp_path: Path) -> None:
    """One file's picks of the first completion say nothing of how another counts."""
    labeled(tmp_path / "from0.jsonl", 0, 0, 0, 1, 2)
    labeled(tmp_path / "from1.jsonl", 1, 2, 3)
    with pytest.raises(InputError, match=r"from1\.jsonl: 1 of 3 rows"):
        open_comparisons(tmp_path, "best", "--comparisons", skip_invalid=True)


def test_a_file_in_which_nobody_picked_the_first_gets_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_comparisons(labeled(tmp_path / "c.jsonl", *[1, 2] * 10), "best", "--comparisons")
    assert "the first completion (number 0) is picked in none of 20 rows" in capsys.readouterr().out
    open_comparisons(labeled(tmp_path / "c.jsonl", 0, *[1, 2] * 10), "best", "--comparisons")
    assert "picked in none" not in capsys.readouterr().out


def test_every_problem_of_a_row_is_found() -> None:
    row = {"prompt": "", "completions": ["a", ""], "best": 7, "scores": [1]}
    assert [p.split(":")[0] for p in problems_of(row, "best")] == [
        "prompt",
        "completions[1]",
        "best",
        "scores",
    ]


def test_twenty_problems_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text((json.dumps(GOOD | {"best": 9}) + "\n") * 50)
    with pytest.raises(InputError, match="; 49 more bad rows") as caught:
        read_rows(path, "best", "--comparisons")
    lines = [str(caught.value), *caught.value.details]
    assert [line.split(": ")[0] for line in lines] == [f"{path}:{n}" for n in range(1, 21)]


def test_bad_rows_are_skipped_when_asked_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.jsonl"
    rows = [GOOD, GOOD | {"best": 9}, GOOD | {"prompt": "Ho."}, {}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_comparisons(path, "best", "--comparisons", skip_invalid=True)
    assert (len(source), source.skipped) == (2, 2)
    assert [place for place, _ in source] == [f"{path}:1", f"{path}:3"]
    assert "2 bad rows skipped; the first: " in capsys.readouterr().out
    with pytest.raises(InputError, match="no rows but 1 bad ones"):
        path.write_text("{}\n")
        open_comparisons(path, "best", "--comparisons", skip_invalid=True)


def test_the_digest_knows_the_labels(tmp_path: Path) -> None:
    digests = set()
    for change in (
        {},
        {"best": 1},
        {"prompt": "Ho."},
        {"ranking": [2]},
        {"worst": 0},
        {"margin": 1},
        {"labeler": "ann"},
    ):
        path = tmp_path / "c.jsonl"
        path.write_text(json.dumps(GOOD | change) + "\n")
        digests.add(open_comparisons(path, "best", "--comparisons").digest)
    assert len(digests) == 6  # who picked makes no other data


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


def test_a_token_is_named_by_its_text(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    assert tokenizer.decode([token_id(tokenizer, ".", "stop_token")]) == "."
    assert token_id(tokenizer, "eos", "stop_token") == tokenizer.eos_token_id
    assert token_id(tokenizer, None, "stop_token") is None
    with pytest.raises(InputError, match="which is .* tokens, not one"):
        token_id(tokenizer, "the end of it", "stop_token")
