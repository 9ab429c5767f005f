"""A project from init to a reward model: it waits for people, and gives what flags give."""

from pathlib import Path

import pytest

from toolkit.cli import call, recipe
from toolkit.data.files import read_jsonl
from toolkit.errors import InputError
from toolkit.labeling.store import Settings, Store

LESS = """
sample:
  completions: 2
label:
reward:
  eval_rows: 4
  folds: 0
  normalize_samples: 8
  check_reload: false
"""


def test_a_project_stops_for_people_and_its_reward_model_is_that_of_the_flags(
    demo_model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("\n".join(f"We went to market {i}." for i in range(24)))
    model = ["--model_name_or_path", demo_model]
    call(recipe("init").main, [*model, "--prompts", "p.txt", "--precision", "fp32"])
    text = Path("project.yaml").read_text().partition("\nsample:")[0]
    Path("project.yaml").write_text(text + LESS)
    run = recipe("run").main

    # It samples, and stops with the command that opens the page.
    assert list(call(run, ["project.yaml"])) == ["split", "sample"]
    printed = capsys.readouterr().out
    assert "next: preftune label --config project.yaml\n" in printed
    assert "then: preftune run project.yaml\n" in printed
    assert call(run, []) == {"split": None, "sample": None}  # nobody has labeled yet

    # People label all of it; the next run goes on from there.
    from toolkit.data.comparisons import read_rows

    with Store("outputs/labels.sqlite", Settings(overlap=0)) as store:
        store.add_items(read_rows("outputs/samples.jsonl", "completions", "samples"))
        ann = store.script("ann")
        while (task := store.next_task(ann)) is not None:
            store.record(ann, task.form, "pick", 1)
    results = call(run, ["project.yaml"])
    assert results["sample"] is None and results["reward"] is not None
    assert call(run, ["project.yaml"]) == dict.fromkeys(results)

    # The same model by flags alone.
    words = [*model, "--precision", "fp32", "--truncate_token", ".", "--truncate_after", "12"]
    words += ["--stop_token", "none", "--learning_rate", "1e-4", "--eval_rows", "4", "--folds", "0"]
    words += ["--normalize_samples", "8", "--check_reload", "false", "--output_dir", "flags"]
    call(recipe("reward").main, [*words, "--comparisons", "outputs/comparisons.jsonl"])
    mine, theirs = Path("outputs/reward/adapter"), Path("flags/adapter")
    for file in ("adapter_model.safetensors", "toolkit.json", "metrics.json"):
        assert (mine / file).read_bytes() == (theirs / file).read_bytes(), file


def test_prompts_are_split_in_their_form_or_both_files_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    split = recipe("split").main
    Path("p.txt").write_text("a\nb\nc\nb\nd\ne\n")

    def prompts(name: str) -> list[object]:
        return [row["prompt"] for _, row in read_jsonl(f"outputs/prompts{name}.jsonl")]

    call(split, ["--prompts", "p.txt", "--prompt_form", "<{prompt}>", "--eval_share", "0.4"])
    assert sorted([*prompts(""), *prompts(".heldout")]) == ["<a>", "<b>", "<c>", "<d>", "<e>"]
    assert len(prompts(".heldout")) == 2
    said = capsys.readouterr().out
    assert "p.txt: 1 of 6 prompts occur again, and are kept once" in said
    assert "on 2 prompts a win rate is known to about 50 percentage points" in said

    Path("e.txt").write_text("x\n")
    words = ["--prompts", "p.txt", "--eval_prompts", "e.txt", "--as_messages", "--overwrite"]
    call(split, words)
    assert len(prompts("")) == 5
    assert prompts(".heldout") == [[{"role": "user", "content": "x"}]]

    Path("p.txt").write_text("a\nb\nb\nc\n")
    with pytest.raises(InputError, match="p.txt has 3 different prompts, which are too few"):
        call(split, ["--prompts", "p.txt", "--overwrite"])
