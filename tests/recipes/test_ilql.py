"""ilql.py as a person runs it, short, and what evaluate.py makes of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM

from toolkit.cli import call, recipe
from toolkit.errors import InputError
from toolkit.evaluation.result import Evaluation
from toolkit.record import RunRecord

evaluate, ilql = recipe("evaluate"), recipe("ilql")
PLACES = ("market", "river", "cafe", "station", "museum", "harbor", "bakery", "park")


@pytest.fixture
def comparisons(tmp_path: Path) -> Path:
    rows = [
        {
            "prompt": f"We went to the {place} on day {day}.",
            "completions": [" It was wonderful.", " The soup was awful.", " We slept."],
            "best": 0,
            "scores": [2.0, -3.0, 0.0],
        }
        for place in PLACES
        for day in range(3)
    ]
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_policy_and_its_critic_are_trained_and_compared_at_several_strengths(
    comparisons: Path,
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    followed: Callable[..., dict[str, Any]],
) -> None:
    monkeypatch.chdir(root)
    out = tmp_path / "ilql"
    words = ["--comparisons", str(comparisons), "--rewards", "scores", "--output_dir", str(out),
             "--eval_rows", "3", "--max_steps", "6", "--per_device_train_batch_size", "8",
             "--alpha", "0.5", "--beta", "4"]  # fmt: skip
    said = followed(ilql.main, words)
    assert said["recipe"] == "evaluate"
    assert said["contenders"] == [f"ilql={out}/adapters:beta=1,4,16"]

    # What is there: a policy that plain peft loads, a critic, and a record.
    AutoPeftModelForCausalLM.from_pretrained(out / "adapters" / "policy")
    assert (out / "adapters" / "critic" / "q_heads.safetensors").is_file()
    record = RunRecord.read(out / "run.json")
    assert record.method == "ilql" and record.data is not None and record.metrics is not None
    assert record.data["reward_mean"] == pytest.approx(-1 / 3)
    assert record.metrics["reload_difference"] < 1e-3 and "eval/q" in record.metrics
    with pytest.raises(InputError, match=r"exists \(pass --resume auto to go on, --overwrite"):
        call(ilql.main, words)

    # A run that ended is resumed to the same result; further strengths need no training.
    policy = (out / "adapters" / "policy" / "adapter_model.safetensors").read_bytes()
    call(ilql.main, [*words, "--resume", "auto"])
    assert (out / "adapters" / "policy" / "adapter_model.safetensors").read_bytes() == policy

    judged = ["--lexicon", "data/lexicon.txt", "--limit", "6", "--response_length", "6"]
    first = tmp_path / "evaluation"
    call(
        evaluate.main,
        ["--contenders", f"ilql={out}:beta=0,8", f"own={out}/adapters", "b=best_of_2:own",
         "--output_dir", str(first), "--prompts", "data/prompts.heldout.jsonl", *judged],
    )  # fmt: skip
    found = {c.name: c for c in Evaluation.read(first / "evaluation.json", "it").contenders}
    assert list(found) == ["reference", "ilql:beta=0", "ilql:beta=8", "own", "b"]
    assert found["own"].source.endswith(":beta=4") and found["own"].kind == "ilql"
    near, far = found["ilql:beta=0"].kl, found["ilql:beta=8"].kl
    assert near is not None and far is not None and 0 <= near < far
    assert found["own"].trained_prompts == 0

    # Judged again from the file, each has the same KL.
    call(
        evaluate.main,
        ["--samples", str(first), "--output_dir", str(tmp_path / "again"), "--lexicon",
         "data/lexicon.txt"],
    )  # fmt: skip
    again = Evaluation.read(tmp_path / "again" / "evaluation.json", "it").contenders
    for c in again:
        assert c.kl == pytest.approx(found[c.name].kl, abs=1e-9)
        assert c.kl_error == pytest.approx(found[c.name].kl_error, abs=1e-9)


def test_rows_without_scores_are_refused_before_a_model_is_loaded(
    comparisons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.models.from_arguments.load_base", None)
    rows = [json.loads(line) for line in comparisons.read_text().splitlines()]
    del rows[4]["scores"]
    comparisons.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--comparisons", str(comparisons), "--output_dir", str(tmp_path / "ilql")]
    with pytest.raises(InputError, match=r"comparisons\.jsonl:5: scores: missing"):
        call(ilql.main, [*words, "--rewards", "scores"])
    with pytest.raises(InputError, match=r"tau is 1\.5"):
        call(ilql.main, [*words, "--tau", "1.5"])
    assert not (tmp_path / "ilql").exists()
