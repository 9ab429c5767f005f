"""Broken comparisons, one kind each: file and line, a cure, no traceback, nothing written."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit.cli import call, recipe
from toolkit.errors import InputError

convert = recipe("convert")
ratings = recipe("ratings")
reward = recipe("reward")

GOOD = {"prompt": "We went.", "completions": [" It was good.", " It was bad."], "best": 0}
CHAT = [{"role": "user", "content": "Hi."}]
LINE = json.dumps(GOOD).encode()


def row(**change: Any) -> bytes:
    rows = [GOOD, GOOD | change, GOOD | {"prompt": "Hm."}]
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


# kind of fault: the file's name and content, and what is said (":2: " is file:line).
FAULTS: dict[str, tuple[str, bytes, str]] = {
    "no prompt": ("c.jsonl", row(prompt=None), ":2: prompt: missing, but must be text"),
    "a prompt of blanks": ("c.jsonl", row(prompt=" \n"), ":2: prompt: empty (delete the row"),
    "a prompt that is a number": ("c.jsonl", row(prompt=7), ":2: prompt: 7, but must be text"),
    "half a character": ("c.jsonl", row(prompt="a\ud83d"), ":2: prompt: half a character at 1"),
    "a message without content": ("c.jsonl", row(prompt=[{"role": "user"}]), ":2: prompt[0]: "),
    "a role that is none": (
        "c.jsonl", row(prompt=[{"role": "bot", "content": "x"}]), ":2: prompt[0].role: 'bot', but"),
    "a prompt that ends with the answer": (
        "c.jsonl", row(prompt=[*CHAT, {"role": "assistant", "content": "x"}]),
        ":2: prompt: its last message is the assistant's (move it"),
    "messages without a template": (
        "c.jsonl", row(prompt=CHAT), "no chat template (pass --chat_template plain"),
    "no completions": ("c.jsonl", row(completions=None), ":2: completions: missing, but must be"),
    "one completion": ("c.jsonl", row(completions=["x"]), ":2: completions: only 1, but a"),
    "an empty completion": ("c.jsonl", row(completions=["x", ""]), ":2: completions[1]: empty ("),
    "a completion that is a number": ("c.jsonl", row(completions=["x", 2]), ":2: completions: ["),
    "equal completions": ("c.jsonl", row(completions=["x", "x"]), "so a pick says nothing (delete"),
    "no best": ("c.jsonl", row(best=None), ":2: best: missing, but must be the index of the pick"),
    "a best beyond the end": ("c.jsonl", row(best=2), ":2: best: 2, out of range for 2 completions "
                              "(count from 0)"),
    "a best below zero": ("c.jsonl", row(best=-1), ":2: best: -1, out of range"),
    "a best beyond the end has a cure": ("c.jsonl", row(best=2), "run preftune convert --first 1"),
    "a best that is a letter": ("c.jsonl", row(best="A"), ":2: best: 'A', but must be the index"),
    "a ranking that contradicts the best": (
        "c.jsonl", row(ranking=[1, 0]), ":2: ranking: begins with 1, but best is 0 (correct one)"),
    "a ranking with a name twice": ("c.jsonl", row(ranking=[0, 0]), ":2: ranking: [0, 0], but"),
    "too few scores": ("c.jsonl", row(scores=[1.0]), ":2: scores: 1 given for 2 completions"),
    "a score that is no number": (
        "c.jsonl", row(scores=[1, float("nan")]), ":2: not JSON that can be read: NaN is no"),
    "a negative margin": ("c.jsonl", row(margin=-1), ":2: margin: -1, but must be"),
    "a completion that ends in padding": (
        "c.jsonl", row(completions=["x", "y<|pad|>"]), ":2: a completion ends in the pad token"),
    "a broken line": ("c.jsonl", LINE + b"\n" + LINE[:-9] + b"\n", ":2: not JSON, "),
    "a line that is a list": ("c.jsonl", LINE + b"\n[1]\n", ":2: a list, not an object (write {"),
    "a number of 5,000 digits": ("c.jsonl", LINE + b'\n{"a": ' + b"9" * 5000 + b"}", ":2: not"),
    "brackets 100,000 deep": ("c.jsonl", LINE + b'\n{"a": ' + b"[" * 100_000, ":2: not JSON"),
    "Latin-1": ("c.jsonl", LINE + '\n{"prompt": "café"}\n'.encode("latin-1"), ":2: not UTF-8 at"),
    "UTF-16": ("c.jsonl", LINE.decode().encode("utf-16"), ":1: not UTF-8 at byte 0 (save"),
    "a gzip file cut short": ("c.jsonl.gz", gzip.compress(row() * 99)[:60], "broken gzip file"),
    "no rows": ("c.jsonl", b"\n\n", "no rows (--comparisons needs at least one)"),
    "a broken JSON array": ("c.json", b'[{},\noops]', ":2: not JSON"),
    "a Parquet file that is none": ("c.parquet", b"PAR1oops", "not readable as Parquet"),
    "a CSV row with a field too many": ("c.csv", b"prompt,best\nb,0,x\n", ":2: 3 fields, but"),
    "a kind of file that is not read": ("c.xlsx", b"PK", "does not end in one of .jsonl,"),
}  # fmt: skip


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr("toolkit.models.from_arguments.load_base", loaded)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_with_its_place_and_leaves_nothing_behind(
    fault: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_model: None
) -> None:
    monkeypatch.chdir(root)
    name, content, message = FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        call(
            reward.main,
            [
                "--comparisons",
                str(path),
                "--output_dir",
                str(tmp_path / "out"),
                "--eval_rows",
                "1",
                "--use_cpu",
            ],
        )
    assert "\n" not in str(caught.value)
    assert "messages" in fault or name in str(caught.value)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("fault", "main", "field"),
    [("a broken line", convert.main, "--input"), ("no best", ratings.main, "--comparisons"),
     ("Latin-1", convert.main, "--input"), ("no rows", convert.main, "--input")],
)  # fmt: skip
def test_other_recipes_refuse_it_as_well(fault: str, main: Any, field: str, tmp_path: Path) -> None:
    name, content, message = FAULTS[fault]
    (tmp_path / name).write_bytes(content)
    expected = "holds no comparisons" if fault == "no rows" else re.escape(message)
    with pytest.raises(InputError, match=expected):
        call(main, [field, str(tmp_path / name), "--output", str(tmp_path / "out.jsonl")])
    assert os.listdir(tmp_path) == [name]


def test_a_file_of_which_nothing_is_kept_says_why_in_words(tmp_path: Path) -> None:
    path, turns = tmp_path / "c.jsonl", [{"role": "assistant", "content": "Yes."}]
    longer = [*turns, {"role": "user", "content": "And?"}, *turns]
    row = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": longer, "rejected": turns}
    path.write_text((json.dumps(row) + "\n") * 2)
    with pytest.raises(
        InputError, match="left out: 2 the dialogues differ before their last turn$"
    ):
        call(convert.main, ["--input", str(path), "--output", str(tmp_path / "out.jsonl")])


def test_twenty_problems_are_printed_and_all_are_counted(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(row(best=9) * 30)
    done = subprocess.run(
        [
            sys.executable,
            "recipes/reward.py",
            "--comparisons",
            str(path),
            "--output_dir",
            str(tmp_path / "out"),
            "--use_cpu",
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if "out of range" in line]
    assert len(said) == 20
    assert said[0].startswith("error: ") and "; 29 more bad rows (--skip_invalid" in said[0]
    assert f"{path}:59: best: 9" in said[-1]
    assert os.listdir(tmp_path) == ["c.jsonl"]
