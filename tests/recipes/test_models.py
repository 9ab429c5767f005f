"""Several models that write together: sample --models, and what reads who wrote what."""

from pathlib import Path

import pytest
import torch

from tests.models.test_adapter_arithmetic import LAYER, write
from toolkit.cli import call, recipe
from toolkit.data.files import read_jsonl
from toolkit.data.records import Row
from toolkit.errors import InputError

sample = recipe("sample").main
COMMON = ["--prompts", "demo:prompts.jsonl", "--limit", "6", "--precision", "fp32"]


def rows(path: Path, *words: str) -> list[Row]:
    call(sample, [*COMMON, "--output", str(path), *words])
    return [row for _, row in read_jsonl(path)]


def test_each_model_writes_what_it_would_write_alone_in_equal_shares(
    demo_model: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    adapter = write(tmp_path / "a", {LAYER: (torch.randn(128, 2), torch.randn(2, 128))},
                    base_model_name_or_path=demo_model, layers_to_transform=[0])  # fmt: skip
    models = ["--models", f"mine={adapter}", "plain=base"]
    together = rows(tmp_path / "both.jsonl", *models, "--completions", "4")
    assert all(sorted(row["models"]) == ["mine", "mine", "plain", "plain"] for row in together)
    assert len({tuple(row["models"]) for row in together}) > 1  # neither always stands first

    # The first model draws first, by the same random numbers as alone.
    alone = rows(tmp_path / "one.jsonl", "--adapter", str(adapter), "--completions", "2")
    for row, own in zip(together, alone, strict=True):
        mine = [t for t, name in zip(row["completions"], row["models"], strict=True)
                if name == "mine"]  # fmt: skip
        assert sorted(mine) == sorted(own["completions"])

    swapped = ["--models", "plain=base", f"mine={adapter}"]
    first = rows(tmp_path / "swapped.jsonl", *swapped, "--completions", "4")
    plain = rows(tmp_path / "plain.jsonl", "--completions", "2")
    for row, own in zip(first, plain, strict=True):
        said = [t for t, name in zip(row["completions"], row["models"], strict=True)
                if name == "plain"]  # fmt: skip
        assert sorted(said) == sorted(own["completions"])
    assert all("models" not in row for row in plain)


def test_what_they_wrote_is_picked_rated_and_learned_from(tmp_path: Path) -> None:
    rows(tmp_path / "s.jsonl", "--models", "a=base", "b=base", "--completions", "4")
    picks = tmp_path / "picks.jsonl"
    call(
        recipe("label").main,
        ["--samples", str(tmp_path / "s.jsonl"), "--lexicon", "demo:lexicon.txt",
         "--output", str(picks), "--ties", "random"],
    )  # fmt: skip
    assert all(len(row["models"]) == 4 for _, row in read_jsonl(picks))
    told = ["--comparisons", str(picks), "--output", str(tmp_path / "r.json"), "--resamples", "20"]
    call(recipe("ratings").main, told)
    assert '"a"' in (tmp_path / "r.json").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "a=base", "b=base", "c=base"], "completions: 4 cannot be shared out equally"),
        (["--models", "a=base", "a=base"], "two are called 'a'"),
        (["--models", "outputs/sft"], "is not NAME=FOLDER or NAME=base"),
        (["--models", "a=nowhere", "b=base"], "--models a: nowhere has no adapter_config.json"),
        (["--models", "a=base", "b=base", "--adapter", "x"], "name --adapter among them"),
    ],
)
def test_a_mistake_is_said_before_a_model_is_loaded(
    words: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        rows(tmp_path / "s.jsonl", *words)
    assert not (tmp_path / "s.jsonl").exists()
