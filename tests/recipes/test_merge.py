"""Merging adapters by the command line, and mistakes in it."""

import json
from pathlib import Path

import pytest
import torch

from tests.models.test_adapter_arithmetic import LAYER, deltas, write
from toolkit.cli import call, recipe
from toolkit.errors import InputError

main = recipe("merge").main


def test_adapters_are_merged_into_one_and_it_is_said_what_it_is(
    tmp_path: Path, demo_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    one, other = (
        write(tmp_path / name, {LAYER: (torch.randn(3, 2), torch.randn(2, 4))},
              base_model_name_or_path=demo_model)
        for name in "ab"
    )  # fmt: skip
    out = tmp_path / "out"
    words = ["--adapters", str(one), str(other), "--output_dir", str(out)]
    call(main, [*words, "--weights", "0.75", "-0.5", "--scale", "2"])
    expected = 1.5 * deltas(one)[LAYER] - deltas(other)[LAYER]
    torch.testing.assert_close(deltas(out)[LAYER], expected)

    said = capsys.readouterr().out
    assert "has rank 4 in 1 layer." in said and "(policy adapter)" in said
    assert f"evaluate --adapter {out}" in said or f"evaluate.py --adapter {out}" in said
    call(main, [*words, "--how", "slerp", "--overwrite"])
    assert json.loads((out / "toolkit.json").read_text())["merged"]["how"] == "slerp"
    with pytest.raises(InputError, match="output_dir: .*holds|is there|exists"):
        call(main, words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "adapter: missing"),
        ("--adapter a --adapters b c", "merges one adapter into its base, --adapters merges"),
        ("--adapters a --dtype fp32", "merging adapters with each other does not read dtype"),
        ("--adapters a --model_name_or_path b", "does not read model_name_or_path"),
        ("--adapter a --scale 0.5", "merging an adapter into its base does not read scale"),
        ("--adapter a --how slerp", "does not read how"),
        ("--adapter a --weights 1", "does not read weights"),
        ("--adapter a --start b", "does not read start"),
        ("--adapters a b --weights x", "weights"),
        ("--adapters a --scale nan", "scale"),
        ("--adapters nowhere other", "nowhere has no adapter_config.json"),
    ],
)
def test_a_mistake_is_said_before_anything_is_written(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        call(main, words.split())
    assert not (tmp_path / "outputs" / "merged" / "adapter_config.json").exists()
