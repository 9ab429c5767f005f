"""Comparisons to token ids: templates, the rule for long rows, a file on disk."""

from pathlib import Path
from typing import Any

import pytest

from toolkit.data.chat import read_chat
from toolkit.data.encoding import Encoder
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer

GOOD = {"prompt": "Hi.", "completions": [" a", " b", " c"], "best": 2}
CHAT = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Ho."},
    {"role": "user", "content": "Well?"},
]


@pytest.fixture(scope="module")
def tokenizer(demo_model: str) -> Any:
    return load_tokenizer(demo_model)


def encode(encoder: Encoder, *rows: dict) -> list[dict]:
    return list(encoder.encode((f"c.jsonl:{i + 1}", row) for i, row in enumerate(rows)))


def test_a_candidate_is_the_ids_of_prompt_and_completion_as_one_text(tokenizer: Any) -> None:
    (row,) = encode(Encoder(tokenizer, 64), GOOD | {"scores": [1, 2, 3], "margin": 1})
    assert row["candidate_ids"] == [tokenizer(f"Hi.{c}")["input_ids"] for c in (" a", " b", " c")]
    assert (row["best"], row["ranking"], row["scores"], row["margin"]) == (2, [2], [1, 2, 3], 1)


def test_a_row_with_scores_alone_gets_its_best_from_them(tokenizer: Any) -> None:
    (row,) = encode(
        Encoder(tokenizer, 64), {"prompt": "Hi.", "completions": [" a", " b"], "scores": [0.5, 2]}
    )
    assert row["best"] == 1


def test_text_and_messages_may_stand_in_one_file_and_keep_their_order(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 64, chat=read_chat("plain"))
    chat = GOOD | {"prompt": CHAT}
    rows = encode(encoder, GOOD, chat, GOOD, chat)
    assert [row["row"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["candidate_ids"] == rows[2]["candidate_ids"]
    assert rows[1]["candidate_ids"] == rows[3]["candidate_ids"] != rows[0]["candidate_ids"]


def test_the_plain_template_writes_a_dialogue(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 64, chat=read_chat("plain"))
    whole = "\n\nHuman: Hi.\n\nAssistant: Ho.\n\nHuman: Well?\n\nAssistant:"
    assert encoder.prompt_text(CHAT) == whole
    (row,) = encode(encoder, GOOD | {"prompt": CHAT, "completions": ["a", " b"], "best": 0})
    assert row["candidate_ids"] == tokenizer([f"{whole} a", f"{whole} b"])["input_ids"]


def test_a_jinja_file_is_a_template_and_its_special_tokens_are_not_doubled(
    tmp_path: Path, root: Path
) -> None:
    model = root.parent / "shared" / "models" / "stories260k"
    if not model.is_dir():
        pytest.skip("needs the stories260k model, which is not part of this project")
    tokenizer = load_tokenizer(str(model))  # adds <s> to text by itself
    (tmp_path / "t.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoder = Encoder(tokenizer, 200, chat=read_chat(str(tmp_path / "t.jinja")))
    (row,) = encode(encoder, GOOD | {"prompt": CHAT})
    for ids in row["candidate_ids"]:
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    (text,) = encode(encoder, GOOD)
    assert text["candidate_ids"][0][0] == tokenizer.bos_token_id


def test_messages_without_a_template_are_refused_with_the_cure(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="no chat template .pass --chat_template plain"):
        encode(Encoder(tokenizer, 64), GOOD | {"prompt": CHAT})
    with pytest.raises(InputError, match="nowhere.jinja is neither plain nor a Jinja file"):
        Encoder(tokenizer, 64, chat=read_chat("nowhere.jinja"))


def test_a_template_that_refuses_is_named(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ raise_exception('only two turns') }}")
    encoder = Encoder(tokenizer, 64, chat=read_chat(str(tmp_path / "t.jinja")))
    with pytest.raises(InputError, match="chat_template refuses .*only two turns"):
        encode(encoder, GOOD | {"prompt": CHAT})


def test_long_rows_are_dropped_and_counted(tokenizer: Any) -> None:
    long = GOOD | {"completions": [" a", " It was great." * 50, " c"]}
    encoder = Encoder(tokenizer, 64)
    rows = encode(encoder, GOOD, long, GOOD)
    assert [row["row"] for row in rows] == [0, 2]
    assert (encoder.rows, encoder.dropped, encoder.truncated) == (2, 1, 0)


def test_the_prompts_start_is_cut_alike_from_every_candidate(tokenizer: Any) -> None:
    prompt = "We went to the market. " * 30 + "It was"
    row = {"prompt": prompt, "completions": [" great.", " very bad and dirty."], "best": 0}
    (whole,) = encode(Encoder(tokenizer, None), row)
    encoder = Encoder(tokenizer, 40, "truncate_prompt")
    (cut,) = encode(encoder, row)
    assert max(map(len, cut["candidate_ids"])) == 40
    taken = {
        len(a) - len(b) for a, b in zip(whole["candidate_ids"], cut["candidate_ids"], strict=True)
    }
    assert len(taken) == 1  # as much from each
    for before, after in zip(whole["candidate_ids"], cut["candidate_ids"], strict=True):
        assert before[-len(after) :] == after
    assert (encoder.rows, encoder.dropped, encoder.truncated) == (1, 0, 1)


def test_a_completion_that_leaves_no_prompt_is_dropped_whatever_the_rule(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, 20, "truncate_prompt")
    row = {"prompt": "We went.", "completions": [" It was great." * 20, " a"], "best": 0}
    assert encode(encoder, row) == [] and encoder.dropped == 1


def test_the_bos_token_survives_the_cut(root: Path) -> None:
    model = root.parent / "shared" / "models" / "stories260k"
    if not model.is_dir():
        pytest.skip("needs the stories260k model, which is not part of this project")
    tokenizer = load_tokenizer(str(model))
    row = {"prompt": "Once upon a time " * 20, "completions": [" the end", " no"], "best": 0}
    (cut,) = encode(Encoder(tokenizer, 30, "truncate_prompt"), row)
    assert all(ids[0] == tokenizer.bos_token_id for ids in cut["candidate_ids"])


def test_a_completion_that_ends_in_the_pad_tokens_text_is_refused_by_its_place(
    tokenizer: Any,
) -> None:
    pad = {"prompt": "Hi.", "completions": [" a", f" b{tokenizer.pad_token}"], "best": 0}
    with pytest.raises(InputError, match=r"c\.jsonl:2: a completion ends in the pad token"):
        encode(Encoder(tokenizer, 64), GOOD, pad)


class Letters:
    """A tokenizer of letters, with a BOS in front of all text."""

    bos_token_id, pad_token_id, pad_token, chat_template = 1, 0, "\0", None
    bos_token = "\1"

    def __call__(self, texts: list[str], add_special_tokens: bool, **kwargs: Any) -> dict:
        return {"input_ids": [[1] * add_special_tokens + [ord(c) for c in t] for t in texts]}

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "".join(map(chr, ids))


def test_the_cut_keeps_the_bos_and_at_least_a_token_of_the_prompt() -> None:
    row = {"prompt": "abcdef", "completions": ["XY", "UVW"], "best": 0}
    whole = encode(Encoder(Letters(), None), row)[0]["candidate_ids"]
    assert [len(ids) for ids in whole] == [9, 10]
    for length in range(10, 4, -1):  # "abcdef" loses 0 to 5 letters
        (cut,) = encode(Encoder(Letters(), length, "truncate_prompt"), row)
        texts = ["".join(map(chr, ids[1:])) for ids in cut["candidate_ids"]]
        kept = "abcdef"[10 - length :]
        assert texts == [f"{kept}XY", f"{kept}UVW"]
        assert all(ids[0] == 1 for ids in cut["candidate_ids"])
    encoder = Encoder(Letters(), 4, "truncate_prompt")  # nothing of the prompt would be left
    assert encode(encoder, row) == [] and encoder.dropped == 1


def test_completions_that_begin_alike_lose_nothing_of_their_own() -> None:
    row = {"prompt": "ab", "completions": ["QQQQY", "QQQQZ"], "best": 0}
    assert encode(Encoder(Letters(), 5, "truncate_prompt"), row) == []
    (cut,) = encode(Encoder(Letters(), 7, "truncate_prompt"), row)
    assert "".join(map(chr, cut["candidate_ids"][0][1:])) == "bQQQQY"


def test_words_that_run_into_each_other_are_counted() -> None:
    encoder = Encoder(Letters(), None)
    encode(
        encoder,
        {"prompt": "The cafe.", "completions": ["It", "He"], "best": 0},
        {"prompt": "The cafe. ", "completions": ["It", "He"], "best": 0},
        {"prompt": "The cafe", "completions": [" was", "s were"], "best": 0},
    )
    assert (encoder.joined, encoder.example) == (1, "The cafe.It")


@pytest.mark.parametrize(
    "template", ["{{ messages[0]['content'] + 1 }}", "{{ 1 / 0 }}", "", "{# nothing #}", "{% if %}"]
)
def test_a_template_that_fails_in_any_way_is_named(
    tokenizer: Any, tmp_path: Path, template: str
) -> None:
    (tmp_path / "t.jinja").write_text(template)
    encoder = Encoder(tokenizer, 64, chat=read_chat(str(tmp_path / "t.jinja")))
    with pytest.raises(InputError, match="chat_template (refuses|returns no text)"):
        encode(encoder, GOOD | {"prompt": CHAT})


def notes_of(length: int, rule: str, *completions: str) -> list[str]:
    """The notes on rows with the prompt "abcdef" and so long a completion each."""
    encoder = Encoder(Letters(), length, rule)
    rows = [{"prompt": "abcdef", "completions": ["X", text], "best": 0} for text in completions]
    encode(encoder, *rows)
    return [line for line in encoder.notes() if line.startswith("warning")]


def test_rows_that_are_left_out_are_told_with_what_helps() -> None:
    """With its BOS a prompt has 7 tokens, of which a cut must leave the BOS and one more."""
    assert notes_of(10, "drop", "YYY", "Y") == []  # all fit

    (line,) = notes_of(10, "drop", "YYYY", "Y")
    assert "1 of 2 rows are left out, because they are longer than 10 tokens" in line
    assert "the longest has 11" in line and "keep them with --long_rows truncate_prompt" in line
    assert notes_of(10, "truncate_prompt", "YYYY", "Y") == []

    # A completion that leaves no room for a prompt is not helped by cutting the prompt.
    for rule in ("drop", "truncate_prompt"):
        (line,) = notes_of(10, rule, "Y" * 9, "Y")
        assert "raise --max_length" in line and "completions alone are too long" in line
        assert "--long_rows" not in line
    (line,) = notes_of(10, "drop", "Y" * 9, "YYYY")
    assert "2 of 2 rows" in line and "keep 1 of them with --long_rows truncate_prompt" in line
