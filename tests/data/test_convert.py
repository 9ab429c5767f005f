"""Other people's formats, each by hand-made rows and, where they are at hand, by real files."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest

from toolkit.data.convert import MARGIN, convert, load_decoder, to_pairs, with_space
from toolkit.data.problems import problems_of
from toolkit.errors import InputError


def one(row: dict, **kwargs: Any) -> dict:
    (made,) = convert([("f:1", row)], **kwargs)
    assert problems_of(made, "best") == []
    return made


def shared(root: Path, *parts: str) -> Path:
    path = root.parent.joinpath("shared", "data", *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)}, which is not part of this project")
    return path


def picked(row: dict) -> str:
    return row["completions"][row["best"]]


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
    with pytest.raises(InputError, match="cannot be loaded"):
        load_decoder(str(tmp_path))


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


def test_a_margin_of_two_completions_is_the_pairs_and_of_three_it_is_counted() -> None:
    row = {"prompt": "Hi.", "completions": ["a", "b"], "best": 1, "margin": 0.333333}
    noted: Counter[str] = Counter()
    assert [pair["margin"] for pair in to_pairs(row, noted)] == [0.333333] and not noted
    assert [pair["margin"] for pair in to_pairs(row | {"scores": [0, 2]}, noted)] == [2]

    three = to_pairs(row | {"completions": ["a", "b", "c"]}, noted)
    assert len(three) == 2 and not any("margin" in pair for pair in three)
    assert noted == {MARGIN: 1}


def test_a_pick_against_the_scores_makes_pairs_without_a_margin() -> None:
    (pair,) = to_pairs({"prompt": "Hi.", "completions": ["a", "b"], "best": 0, "scores": [0, 1.5]})
    assert "margin" not in pair
    assert one(pair)["prompt"] == "Hi."


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


COLUMNS = {"prompt": "Hi.", "completion1": "a", "completion2": "b", "completion3": "c"}
NATIVE = {"prompt": "Hi.", "completions": ["a", "b", "c"]}


def test_tools_and_template_arguments_are_kept_and_handed_on_to_pairs() -> None:
    more = {"tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": False}}
    made = one({"prompt": [user("Hi.")], "chosen": [bot("a")], "rejected": [bot("b")]} | more)
    (pair,) = to_pairs(made)
    for row in (made, pair, one(pair), one(NATIVE | {"best": 0} | more)):
        assert {name: row[name] for name in more} == more
    with pytest.raises(InputError, match="f:1: tools: 'search', but must be a list"):
        one(NATIVE | {"best": 0, "tools": "search"})


def test_each_file_of_a_folder_has_its_own_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(NATIVE | {"best": 1}) + "\n")
    (tmp_path / "b.csv").write_text("prompt,chosen,rejected\nHi.,a,b\n")
    assert [picked(row) for row in convert(tmp_path)] == ["b", "a"]


def test_a_first_row_of_no_format_may_be_skipped() -> None:
    rows = [{"words": "a"}, NATIVE | {"best": 1}]
    reasons: Counter[str] = Counter()
    assert len(rows_of(*rows, skip_invalid=True, dropped=reasons)) == 1
    assert [reason[:40] for reason in reasons] == ["bad, the first: f:1: prompt: missing, bu"]
    with pytest.raises(InputError, match="f:1: unknown format"):
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
