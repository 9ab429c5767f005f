"""What is measured on the reference before the first update, and what a run makes of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toolkit.data.files import read_object
from toolkit.errors import InputError
from toolkit.maths.lengths import LengthLine
from toolkit.models.loading import load_base
from toolkit.models.roles import Roles
from toolkit.scoring.ensembles import RewardEnsemble
from toolkit.scoring.reward_models import RewardAdapter
from toolkit.scoring.scorer import Completions, Scorer, TokenCompletions
from toolkit.training.ppo.guards import Watch
from toolkit.training.ppo.reference import AtStart


class Longest(Scorer):
    name = "longest"
    identity = "longest"

    def __call__(self, completions: Completions) -> Tensor:
        assert isinstance(completions, TokenCompletions)
        return torch.tensor([float(len(ids)) for ids in completions.ids])


def ensemble(folders: list[str], how: Any = "mean_minus_std") -> RewardEnsemble:
    return RewardEnsemble([RewardAdapter(folder) for folder in folders], how)


def test_it_survives_a_checkpoint_and_says_how_much_a_disagreement_has_grown() -> None:
    found = AtStart(0.25, LengthLine(0.07, 0.01, 25.0))
    assert AtStart.from_json(found.to_json()) == found
    assert AtStart().to_json() is None and AtStart.from_json(None) == AtStart()
    assert found.grown(0.5) == 2.0
    assert found.grown(None) is None and AtStart(0.0).grown(0.5) is None


def test_an_alarm_is_said_when_it_begins_and_again_after_it_was_over() -> None:
    watch = Watch(in_fp32=True)
    row = {"update": 7, "reward/disagreement": 0.6, "reward/disagreement_grown": 2.0}
    said = [bool(watch.alarms(row | {"reward/alarm": on})) for on in (0, 1, 1, 0, 1)]
    assert said == [False, True, False, False, True]
    assert watch.alarms({"update": 8}) == []


@pytest.mark.slow
def test_a_run_on_several_reward_models_logs_their_disagreement_and_resumes_to_the_bit(
    new_trainer: Any, reward_adapters: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "reference_samples": 64,
        "truncate_token": ".",
        "truncate_after": 0,
        "regress_length": True,
        "length_penalty": 0.01,
        "disagreement_alarm": 1.0,
    }
    whole = new_trainer("whole", reward_model=ensemble(reward_adapters), **settings)
    rows = whole.train()
    assert "have a standard deviation of" in capsys.readouterr().out
    assert whole.at_start.line is not None and whole.at_start.disagreement > 0.05
    for row in rows:
        grown = row["reward/disagreement"] / whole.at_start.disagreement
        assert row["reward/disagreement_grown"] == pytest.approx(grown)
        assert row["reward/alarm"] is (grown > 1.0)
    # The first batch is the reference's own samples: 8 of them, after 64 others.
    assert rows[0]["reward/disagreement_grown"] == pytest.approx(1.0, abs=0.3)

    part = new_trainer("part", reward_model=ensemble(reward_adapters), stop_at_update=1, **settings)
    part.train()
    goes_on = new_trainer("part", reward_model=ensemble(reward_adapters), resume="auto", **settings)
    assert goes_on.train() == rows
    for (name, one), (_, other) in zip(
        whole.model.trainable(), goes_on.model.trainable(), strict=True
    ):
        assert torch.equal(one, other), name
    state = "checkpoint-000002/state.json"
    at_start = [read_object(tmp_path / run / state, "x")["at_start"] for run in ("whole", "part")]
    assert at_start[0] == at_start[1] == whole.at_start.to_json()

    # Another set of reward models, or another way to combine them, is another reward.
    for other in (ensemble(reward_adapters[:2]), ensemble(reward_adapters, "min")):
        with pytest.raises(InputError, match="made under other settings"):
            new_trainer("part", reward_model=other, resume="auto", **settings).train()
    with pytest.raises(InputError, match="only a single reward adapter can change"):
        new_trainer("online", reward_model=ensemble(reward_adapters), online=True)


@pytest.mark.slow
def test_what_length_wins_is_taken_out_and_what_it_costs_is_paid(
    new_trainer: Any, tmp_path: Path
) -> None:
    """A reward that is the number of tokens itself has slope 1, and nothing is left of it."""
    options: dict[str, Any] = {
        "truncate_token": ".",
        "penalty_reward_value": 0.0,
        "truncate_after": 4,
        "reference_samples": 64,
    }
    flat = new_trainer("flat", reward_model=Longest(), regress_length=True, **options)
    rows = flat.train()
    line = flat.at_start.line
    assert line.slope == pytest.approx(1.0) and line.error == pytest.approx(0.0, abs=1e-9)

    plain = new_trainer("plain", reward_model=Longest(), total_episodes=8, **options).train()
    paid = new_trainer(
        "paid", reward_model=Longest(), total_episodes=8, length_penalty=0.25, **options
    ).train()
    mean = plain[0]["objective/scores"]
    valid = plain[0]["objective/valid"]
    assert paid[0]["objective/scores"] == pytest.approx(0.75 * mean)
    assert rows[0]["objective/scores"] == pytest.approx(valid * line.length)

    with pytest.raises(InputError, match="samples that have a score are equally long"):
        new_trainer("equal", reward_model=Longest(), regress_length=True).train()


def test_rewards_of_other_models_are_not_mixed_up_with_those_of_the_roles(
    demo_model: str, reward_adapters: list[str]
) -> None:
    """The digest that a resume compares does not depend on which of them scored last."""
    roles = Roles(load_base(demo_model, "fp32"), reward_adapter=reward_adapters[0])
    alone = roles.identity()["frozen"]
    roles.use_reward(reward_adapters[0])
    assert roles.identity()["frozen"] == alone and len(roles.adapters) == 1

    roles.use_reward(reward_adapters[1])
    second = roles.identity()["frozen"]
    roles.use_reward(reward_adapters[0])
    assert roles.identity()["frozen"] == second != alone

    roles.use_reward(reward_adapters[1])
    assert roles.reward_head is not None
    roles.reward_head.weight.data += 1.0  # another head is another reward, whoever is in use
    roles.use_reward(reward_adapters[0])
    assert roles.identity()["frozen"] not in (second, alone)
