"""Ratings with what a reward model predicts beside them."""

import json
import math
from pathlib import Path

import pytest
import torch

from toolkit.cli import call, recipe
from toolkit.errors import InputError
from toolkit.evaluation import trained_prompts
from toolkit.maths.ratings import ELO_SCALE
from toolkit.scoring import reward_models
from toolkit.scoring.scorer import Completions

main = recipe("ratings").main


class Pretended:
    """A reward model that gives a text's length in nats, but for gain and bias."""

    tokenizer = None
    gain, bias = 0.5, 3.0

    def __init__(self, *args: object) -> None:
        pass

    def __call__(self, completions: Completions) -> torch.Tensor:
        raw = torch.tensor([float(len(text)) for text in completions.texts], dtype=torch.float64)
        return self.gain * raw + self.bias


def rows() -> list[dict[str, object]]:
    return [
        {
            "prompt": f"p{i}",
            "completions": [" a", " bcd"],
            "models": ["old", "new"],
            "best": int(i % 4 > 0),
        }
        for i in range(40)
    ]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    monkeypatch.setattr(reward_models, "RewardModel", Pretended)
    return ["--comparisons", str(path), "--output", str(tmp_path / "r.json"), "--resamples", "20"]


def test_predictions_are_in_nats_and_leave_out_prompts_that_were_trained_on(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trained_prompts,
        "prompts_of_reward",
        lambda folder, rows, tokenizer: ([row["prompt"] in ("p0", "p1") for row in rows], None),
    )
    call(main, [*words, "--reward_model", "rm"])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["left_out"] == 2 and found["reward_model"] == "rm"
    new, old = found["ratings"]
    assert (new["name"], new["contests"], new["wins"]) == ("new", 38, 29)
    assert new["rating"] - old["rating"] == pytest.approx(ELO_SCALE * math.log(29 / 9), abs=3)
    # Two letters more are two nats.
    led = new["predicted"]["points"] - old["predicted"]["points"]
    assert led == pytest.approx(2 * ELO_SCALE)
    assert new["predicted"]["by_choices"] > new["rating"]  # it always chooses the longer


def test_a_reward_model_that_saw_every_prompt_predicts_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        trained_prompts, "prompts_of_reward", lambda _, rows, __: ([True] * len(rows), None)
    )
    with pytest.raises(InputError, match="was trained on the prompts of all 40 comparisons"):
        call(main, [*words, "--reward_model", "rm"])
    with pytest.raises(InputError, match="reward_model: has no use beside --scores"):
        call(main, [*words, "--reward_model", "rm", "--scores", str(tmp_path / "s.jsonl")])
    assert not (tmp_path / "r.json").exists()
