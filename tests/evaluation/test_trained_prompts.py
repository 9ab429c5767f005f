"""Prompts that a contender was trained on are not held out: counted by what they say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from toolkit.data.chat import read_chat
from toolkit.data.comparisons import open_comparisons
from toolkit.data.files import write_json, write_jsonl
from toolkit.data.prompts import Prompts, given_prompts, read_prompts
from toolkit.data.splits import split_by_prompt
from toolkit.evaluation.contenders import Contender
from toolkit.evaluation.result import ContenderResult
from toolkit.evaluation.trained_prompts import notes, trained_on
from toolkit.models.loading import load_tokenizer

TEXTS = [f"We went to the cafe {i}." for i in range(20)]


@pytest.fixture(scope="module")
def tokenizer(demo_model: str) -> PreTrainedTokenizerBase:
    return load_tokenizer(demo_model)


def run(folder: Path, data: dict[str, Any] | None = None, **settings: Any) -> str:
    """A run's folder with its run.json, and the adapter's folder within."""
    (folder / "adapter").mkdir(parents=True)
    write_json(folder / "run.json", {"settings": settings, "seed": 3, "data": data or {}})
    return str(folder / "adapter")


def asked(texts: list[Any], tokenizer: PreTrainedTokenizerBase) -> Prompts:
    return given_prompts([{"prompt": text} for text in texts], tokenizer, read_chat("plain"))


def count(source: str, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> Any:
    found = trained_on([Contender("c", "adapter", source)], prompts, tokenizer)["c"]
    return found.trained_prompts, found.trained_prompts_note


def test_prompts_are_compared_by_text_whatever_the_files_are_called(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": text} for text in TEXTS])
    source = run(tmp_path / "ppo", prompts=str(tmp_path / "train.jsonl"), limit=12)
    prompts = asked([*TEXTS[8:16], "It rained."], tokenizer)  # 8 to 11 are among the first 12
    assert count(source, prompts, tokenizer) == (4, None)


def test_messages_are_compared_as_messages(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": chat} for chat in chats[:5]])
    source = run(tmp_path / "ppo", prompts=str(tmp_path / "train.jsonl"), chat_template="plain")
    assert count(source, asked(chats[3:8], tokenizer), tokenizer) == (2, None)


def test_prompts_that_were_cut_out_of_text_are_compared_as_they_were_cut(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "stories.jsonl"
    write_jsonl(path, [{"text": f"{text} The tea was good."} for text in TEXTS[:6]])
    source = run(tmp_path / "ppo", prompts=str(path), prompt_tokens=8)
    prompts, _ = read_prompts(path, tokenizer, 99, 8, skip=4)
    assert count(source, prompts, tokenizer)[0] == len(prompts) == 2
    longer, _ = read_prompts(path, tokenizer, 99, 9, skip=4)
    assert count(source, longer, tokenizer)[0] == 0


def test_what_sft_held_out_is_held_out_and_the_rest_is_not(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "c.jsonl"
    write_jsonl(path, [{"prompt": t, "completions": [" a", " b"], "best": 0} for t in TEXTS])
    found = open_comparisons(path, "best", "--comparisons")
    _, held_out = split_by_prompt(found.order, 6, 3)
    source = run(tmp_path / "sft", comparisons=str(path), eval_rows=6)
    texts = [row["prompt"] for _, row in found.where(held_out)]
    assert count(source, asked(texts, tokenizer), tokenizer) == (0, None)
    assert count(source, asked(TEXTS, tokenizer), tokenizer) == (14, None)


def test_what_a_policy_started_from_counts_as_well_and_so_does_what_best_of_n_picks_from(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    for name, part in (("sft", TEXTS[:3]), ("ppo", TEXTS[10:12])):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": text} for text in part])
    start = run(tmp_path / "sft", prompts=str(tmp_path / "sft.jsonl"))
    source = run(tmp_path / "ppo", prompts=str(tmp_path / "ppo.jsonl"), policy_adapter=start)
    found = trained_on(
        [
            Contender("reference", "reference"),
            Contender("ppo", "adapter", source),
            Contender("best", "best_of_n", "ppo", 4),
            Contender("plain", "best_of_n", "", 4),
        ],
        asked(TEXTS, tokenizer),
        tokenizer,
    )
    counts = {name: row.trained_prompts for name, row in found.items()}
    assert counts == {"reference": 0, "ppo": 5, "best": 5, "plain": 0}


def test_what_cannot_be_checked_is_said_and_not_taken_for_none(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = asked(TEXTS, tokenizer)
    gone = run(tmp_path / "gone", prompts=str(tmp_path / "nowhere.jsonl"))
    write_jsonl(tmp_path / "now.jsonl", [{"prompt": "Other."}])
    changed = run(tmp_path / "changed", {"prompts": 20}, prompts=str(tmp_path / "now.jsonl"))
    text = run(tmp_path / "text", text="stories.jsonl", comparisons="c.jsonl")
    (tmp_path / "theirs" / "adapter").mkdir(parents=True)
    for source, words in (
        (gone, "nowhere.jsonl: no such file"),
        (changed, "has changed (1 prompts, 20 in training)"),
        (text, "trained on stories.jsonl, text without prompts"),
        (str(tmp_path / "theirs" / "adapter"), "there is no run.json beside"),
        ("org/model", "org/model is a whole model"),
    ):
        found, note = count(source, prompts, tokenizer)
        assert found is None and words in note


def test_each_run_is_spoken_of_once(contender_result: Callable[..., ContenderResult]) -> None:
    rows = [
        contender_result("a@10", kind="checkpoint", trained_prompts=3),
        contender_result("a@20", kind="checkpoint", trained_prompts=3),
        contender_result("b", trained_prompts_note="gone"),
        contender_result("c", trained_prompts=0),
        contender_result("old"),
    ]
    assert notes(rows, 8) == {
        "a": "it was trained on 3 of the 8 prompts, so these are not held out",
        "b": "it could not be checked which prompts it was trained on: gone",
    }


def test_prompts_are_read_again_by_the_columns_and_layouts_of_the_run(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    lines = "".join(f"{text};a;b;L\n" for text in TEXTS)
    (tmp_path / "picks.csv").write_text(f"Frage;L;R;Wahl\n{lines}")
    words = ["prompt=Frage", "completions=L,R", "best=Wahl"]
    picks = str(tmp_path / "picks.csv")
    prompts = asked(TEXTS, tokenizer)
    source = run(tmp_path / "reward", comparisons=picks, columns=words, eval_rows=4)
    assert count(source, prompts, tokenizer) == (16, None)
    source = run(tmp_path / "ppo", prompts=picks, columns=words, limit=5)
    assert count(source, prompts, tokenizer) == (5, None)

    # sft's run.json names the default of --comparisons, too, which it did not read.
    rows = [{"instruction": text, "output": "a"} for text in TEXTS[:10]]
    write_jsonl(tmp_path / "alpaca.jsonl", rows)
    shown = str(tmp_path / "alpaca.jsonl")
    source = run(tmp_path / "sft", comparisons="nowhere", demonstrations=shown, eval_rows=3)
    assert count(source, prompts, tokenizer) == (7, None)
