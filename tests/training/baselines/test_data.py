"""The baselines' data: the tokens that reach TRL's losses, and the rows that are made of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.baselines.conftest import EOS, data_of, preference
from toolkit.arguments.comparisons import ComparisonArguments
from toolkit.data.chat import read_chat
from toolkit.data.encoding import Encoder
from toolkit.data.from_arguments import split_picks
from toolkit.data.prompts import read_prompts
from toolkit.data.tokens import decode_pair
from toolkit.errors import InputError
from toolkit.models.loading import load_tokenizer
from toolkit.training.baselines.data import (
    SFT_SCHEMA,
    complete,
    kto_rows,
    others,
    pair_rows,
    prepare_completions,
    prepare_text,
    sft_rows,
    with_kl_rows,
)
from toolkit.training.reward.config import BestOfKConfig
from toolkit.training.reward.data import prepare


def encoded(tokenizer: Any, row: dict, stop_id: int | None = None, **kwargs: Any) -> list[dict]:
    encoder = Encoder(tokenizer, kwargs.pop("max_length", 64), **kwargs)
    return list(complete(encoder, [("c.jsonl:1", row)], stop_id))


def test_prompts_are_ppos_and_completions_read_as_they_were_written(
    tokenizer: Any, comparisons: str
) -> None:
    prompts, _ = read_prompts(comparisons, tokenizer, 64)
    lines = [json.loads(line) for line in Path(comparisons).read_text().splitlines()]
    for line, prompt in zip(lines, prompts, strict=True):
        (row,) = encoded(tokenizer, line)
        assert row["prompt_ids"] == prompt and row["best"] == line["best"]
        for ids, text in zip(row["completion_ids"], line["completions"], strict=True):
            assert decode_pair(tokenizer, prompt, ids) == (line["prompt"], text)
            assert EOS not in ids


def test_the_stop_token_comes_once_and_only_when_asked_for(tokenizer: Any) -> None:
    row = {"prompt": "Hi.", "completions": [" a", " b<|endoftext|>"], "best": 0}
    plain, stopped = encoded(tokenizer, row)[0], encoded(tokenizer, row, stop_id=EOS)[0]
    assert [c.count(EOS) for c in plain["completion_ids"]] == [0, 0]
    assert [c.count(EOS) for c in stopped["completion_ids"]] == [1, 1]
    assert all(c[-1] == EOS for c in stopped["completion_ids"])


def test_a_token_across_the_border_leaves_the_prompt_as_it_is_sampled_from(tokenizer: Any) -> None:
    """Of the whole, "cafe" is one token; PPO would start from "ca"."""
    line = {"prompt": "I sat at the ca", "completions": ["fe. She was", "r"], "best": 0}
    (row,) = encoded(tokenizer, line)
    prompt = tokenizer(line["prompt"])["input_ids"]
    assert tokenizer("I sat at the cafe. She was")["input_ids"][: len(prompt)] != prompt
    assert row["prompt_ids"] == prompt
    for ids, text in zip(row["completion_ids"], line["completions"], strict=True):
        assert decode_pair(tokenizer, prompt, ids)[1] == text


def test_sentencepiece_keeps_its_bos_and_leading_spaces_and_ends_in_nothing(root: Path) -> None:
    model = root.parent / "shared" / "models" / "stories260k"
    if not model.is_dir():
        pytest.skip("needs the stories260k model, which is not part of this project")
    tokenizer = load_tokenizer(str(model))
    encoder = Encoder(tokenizer, 64)
    joined = 0
    for before, after in (
        ("Once upon a time", " there was a cat."),
        ("Once upon a time", "ly dog"),
        ("She saw a do", "g. It ran"),
        ("He wen", "t home"),
    ):
        prompt = encoder.prompt_ids(before)
        assert prompt[0] == tokenizer.bos_token_id == 1
        ids = encoder.completion_ids(prompt, before, after, chat=False)
        assert decode_pair(tokenizer, prompt, ids) == (before, after)
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
        joined += tokenizer(before + after)["input_ids"][: len(prompt)] != prompt
    assert joined  # where a token runs across the border


def test_messages_go_through_the_template(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Well?"}]
    (row,) = encoded(
        tokenizer, {"prompt": chat, "completions": ["a", " b"], "best": 1}, chat=read_chat("plain")
    )
    whole = "\n\nHuman: Well?\n\nAssistant:"
    assert row["prompt_ids"] == tokenizer(whole)["input_ids"]
    assert [row["prompt_ids"] + c for c in row["completion_ids"]] == [
        tokenizer(f"{whole} {c}")["input_ids"] for c in "ab"
    ]


def test_long_rows_are_dropped_or_lose_their_prompts_start_and_are_counted(tokenizer: Any) -> None:
    line = {"prompt": "One two three four five.", "completions": [" a b", " c"], "best": 0}
    (row,) = encoded(tokenizer, line)
    length = len(row["prompt_ids"]) + len(row["completion_ids"][0])
    drop = Encoder(tokenizer, length - 1)
    assert list(complete(drop, [("1", line)], None)) == [] and drop.dropped == 1
    cut = Encoder(tokenizer, length - 2, "truncate_prompt")
    (shorter,) = complete(cut, [("1", line)], None)
    assert shorter["prompt_ids"] == row["prompt_ids"][2:] and cut.truncated == 1
    assert shorter["completion_ids"] == row["completion_ids"]
    # The stop token counts too.
    assert not list(complete(Encoder(tokenizer, length), [("1", line)], EOS))


ROW = {"prompt_ids": [1, 2], "completion_ids": [[3], [4, 5], [6], [3]], "best": 0}


def test_the_pick_stands_against_each_other_completion_but_its_equals() -> None:
    pairs = list(pair_rows([ROW], "all", 0))
    assert [(p["chosen_ids"], p["rejected_ids"]) for p in pairs] == [([3], [4, 5]), ([3], [6])]
    seen = {str(others(ROW, number, "one", 0)) for number in range(20)}
    assert seen == {"[[4, 5]]", "[[6]]"}
    assert others(ROW, 3, "one", 7) == others(ROW, 3, "one", 7)
    labels = [(r["completion_ids"], r["label"]) for r in kto_rows([ROW], "all", 0)]
    assert labels == [([3], True), ([4, 5], False), ([6], False)]
    assert list(kto_rows([ROW | {"completion_ids": [[3], [3]]}], "all", 0)) == []


def test_ktos_kl_rows_hold_another_prompts_completion(
    tokenizer: Any, comparisons: str, tmp_path: Path
) -> None:
    data = data_of(tokenizer, comparisons, tmp_path, preference(tmp_path, "kto"))
    rows = with_kl_rows(data.train, 8, seed=0)
    for start in range(0, len(rows), 8):
        batch = rows[start : start + 8]
        ids = batch["completion_ids"]
        assert batch["KL_completion_ids"] == ids[-1:] + ids[:-1]
    prompts = [tuple(p) for p in rows["prompt_ids"]]
    same = np.mean([a == b for a, b in zip(prompts[1:], prompts[:-1], strict=True)])
    assert same < 0.2  # in the file's order most neighbours share a prompt


def test_the_rows_held_out_are_the_reward_models(
    tokenizer: Any, comparisons: str, tmp_path: Path
) -> None:
    args = ComparisonArguments(comparisons=comparisons, eval_rows=4)
    reward = prepare(
        *split_picks(args, 3),
        Encoder(tokenizer, 64),
        BestOfKConfig(use_cpu=True),
        1,
        32,
        tmp_path,
    )
    data = prepare_completions(
        split_picks(args, 3),
        Encoder(tokenizer, 64),
        None,
        sft_rows,
        SFT_SCHEMA,
        tmp_path,
    )
    picked = [row["candidate_ids"][row["best"]] for row in reward.held_out]
    assert list(data.held_out["input_ids"]) == picked and len(picked) == 4


def test_plain_text_is_learned_whole_cut_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    texts = [f"{number} men. We loved it." for number in range(10)] + ["a " * 60]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    data = prepare_text(str(path), tokenizer, 20, EOS, 3, 0, tmp_path)
    rows = [*data.train, *data.held_out]
    expected = sorted((tokenizer(t)["input_ids"] + [EOS])[:20] for t in texts)
    assert sorted(r["input_ids"] for r in rows) == expected
    assert all(r["labels"] == r["input_ids"] for r in rows)
    assert (len(data.held_out), data.facts["rows_cut"]) == (3, 1)
    path.write_text('{"text": "a"}\n{"texts": "b"}\n')
    with pytest.raises(InputError, match=r"t.jsonl:2: text: None"):
        prepare_text(str(path), tokenizer, 20, None, None, 0, tmp_path)


def test_no_row_that_fits_is_told(tokenizer: Any, comparisons: str, tmp_path: Path) -> None:
    split = split_picks(ComparisonArguments(comparisons=comparisons, eval_rows=4), 0)
    with pytest.raises(InputError, match="no train row fits 5 tokens"):
        prepare_completions(split, Encoder(tokenizer, 5), None, sft_rows, SFT_SCHEMA, tmp_path)
    assert not list(tmp_path.iterdir())  # the scratch folder is gone
