"""Experts by the command line: added, found and merged, on the embedded model."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.models.test_adapter_arithmetic import LAYER, deltas, write
from toolkit.cli import call, recipe
from toolkit.errors import InputError
from toolkit.models.toolkit_json import adapter_digest

main = recipe("experts").main
NEAR = {"rtol": 1e-6, "atol": 1e-6}  # weights are saved in fp32
TASKS = {
    "hotel": ["On Monday we visited the hotel by the lake.", "Yesterday I tried the old hotel."],
    "market": ["I went to the market near the bridge.", "Last week we looked into a wide market."],
    "cinema": [
        "At noon we visited the cinema at the corner.",
        "We found the new cinema by chance.",
    ],
}


def prompts(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def registry(tmp_path: Path, demo_model: str) -> str:
    path = str(tmp_path / "experts.jsonl")
    for name, texts in TASKS.items():
        torch.manual_seed(len(name))
        adapter = write(tmp_path / name, {LAYER: (torch.randn(128, 2), torch.randn(2, 128))},
                        base_model_name_or_path=demo_model)  # fmt: skip
        told = ["--prompts", prompts(tmp_path / f"{name}.jsonl", texts), "--library", "2"]
        call(main, ["add", "--name", name, "--adapter", str(adapter), "--registry", path, *told])
    return path


def test_the_expert_whose_prompts_are_asked_is_found_and_the_best_are_merged(
    registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(Path(registry).read_text().splitlines()) == 3
    # Three of four prompts are of the market's library, one is of the hotel's.
    asked = [*TASKS["market"], TASKS["market"][0], TASKS["hotel"][1], *TASKS["cinema"]]
    task = ["--prompts", prompts(tmp_path / "task.jsonl", asked), "--registry", registry]
    task += ["--precision", "fp32"]
    capsys.readouterr()
    vote = call(main, ["find", *task, "--votes", "4"])
    assert vote.counts.tolist() == [1, 3, 0]
    said = capsys.readouterr().out
    assert "market leads by 50% of the votes" in said
    assert f"--adapter {tmp_path / 'market'}" in said

    out = tmp_path / "merged"
    call(main, ["merge", *task, "--votes", "4", "--top", "3", "--output_dir", str(out)])
    hotel, market = (deltas(tmp_path / name)[LAYER] for name in ("hotel", "market"))
    torch.testing.assert_close(deltas(out)[LAYER], 0.25 * hotel + 0.75 * market, **NEAR)
    assert "note: 2 experts and not 3, as no others have votes" in capsys.readouterr().out

    told = ["--weights", "uniform", "--overwrite", "--whiten", "false"]
    call(main, ["merge", *task, "--votes", "4", "--output_dir", str(out), *told])
    torch.testing.assert_close(deltas(out)[LAYER], 0.5 * hotel + 0.5 * market, **NEAR)


def test_an_expert_on_another_base_is_refused_before_anything_is_written(
    registry: str, tmp_path: Path
) -> None:
    before = Path(registry).read_text()
    odd = write(tmp_path / "odd", {LAYER: (torch.ones(128, 2), torch.ones(2, 128))},
                base_model_name_or_path="another/base",
                facts={"base_fingerprint": "0" * 16})  # fmt: skip
    told = ["--prompts", str(tmp_path / "hotel.jsonl"), "--registry", registry]
    with pytest.raises(InputError, match="expert odd"):
        call(main, ["add", "--name", "odd", "--adapter", str(odd), *told])
    with pytest.raises(InputError, match="name: there is an expert hotel"):
        call(main, ["add", "--name", "hotel", "--adapter", str(tmp_path / "market"), *told])
    assert Path(registry).read_text() == before


def test_an_expert_that_was_trained_anew_is_added_again_as_its_message_says(
    registry: str, tmp_path: Path, demo_model: str
) -> None:
    torch.manual_seed(9)
    weights = {LAYER: (torch.randn(128, 2), torch.randn(2, 128))}
    shutil.rmtree(tmp_path / "hotel")
    write(tmp_path / "hotel", weights, base_model_name_or_path=demo_model)
    told = ["--prompts", str(tmp_path / "hotel.jsonl"), "--registry", registry]
    words = ["add", "--name", "hotel", "--adapter", str(tmp_path / "hotel"), *told]
    with pytest.raises(InputError, match="has changed since hotel was added .* with --overwrite"):
        call(main, words)
    call(main, [*words, "--overwrite"])
    found = [json.loads(line) for line in Path(registry).read_text().splitlines()]
    assert [row["name"] for row in found] == list(TASKS)
    assert found[0]["digest"] == adapter_digest(tmp_path / "hotel")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("find", "prompts: missing \\(experts find needs it\\)"),
        ("add --prompts x", "name: missing \\(experts add needs it\\)"),
        ("add --prompts x --name y", "adapter: missing"),
        ("find --prompts x --top 2", "experts find does not read top"),
        ("add --prompts x --votes 3", "experts add does not read votes"),
        ("find --prompts x", "outputs/experts.jsonl: no such file"),
        ("lose --prompts x", "action"),
    ],
)
def test_a_mistake_is_said_in_one_line(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        call(main, words.split())
