"""What stops a run, or an update, before it does harm."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from toolkit.errors import RunStopped
from toolkit.maths.kl import penalized_rewards
from toolkit.training.distributed import Ranks
from toolkit.training.ppo.checkpoints import checkpoints
from toolkit.training.ppo.guards import Guards, Watch, check_signs

Make = Callable[..., Any]


def scorer_that_fails(at: set[int], value: float) -> Callable[..., list[float]]:
    """Scores 1, 2, 3 ...; in the calls named, ``value`` for all."""
    calls = [0]

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        calls[0] += 1
        return [value if calls[0] in at else float(len(c)) for c in completions]

    return score


def test_a_faulty_update_stops_the_run_with_its_checkpoint(
    new_trainer: Make, tmp_path: Path
) -> None:
    trainer = new_trainer(
        reward_model=scorer_that_fails({3}, math.nan), total_episodes=40, save_steps=1
    )
    with pytest.raises(RunStopped, match="no completion could be scored.*checkpoint-000002"):
        trainer.train()
    assert checkpoints(tmp_path / "run")[0][0] == 2


@pytest.mark.slow
def test_or_it_is_skipped_and_counted_and_nothing_moves(new_trainer: Make, tmp_path: Path) -> None:
    trainer = new_trainer(
        reward_model=scorer_that_fails({2, 4}, math.nan), total_episodes=40, on_fault="skip"
    )
    moved: list[bool] = []
    before = [p.detach().clone() for p in trainer.parameters]
    finish = trainer.finish

    def watch(update: int, *args: Any) -> None:
        moved.append(
            any(not torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
        )
        before[:] = [p.detach().clone() for p in trainer.parameters]
        finish(update, *args)

    trainer.finish = watch
    rows = trainer.train()
    assert moved == [True, False, True, False, True]
    assert [row["guard/skipped"] for row in rows] == [0, 1, 1, 2, 2]
    assert rows[1]["loss/policy_avg"] is None and rows[2]["loss/policy_avg"] is not None
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_too_many_skipped_in_a_row_stop_the_run_all_the_same(new_trainer: Make) -> None:
    trainer = new_trainer(
        reward_model=scorer_that_fails({2, 3, 4, 5}, math.nan),
        total_episodes=80,
        on_fault="skip",
        max_skipped=3,
    )
    with pytest.raises(RunStopped, match="3 updates in a row were skipped"):
        trainer.train()


def test_a_kl_beyond_the_cap_is_a_fault(new_trainer: Make) -> None:
    trainer = new_trainer(total_episodes=160, learning_rate=2e-2, max_kl=0.5, kl_coef=0.01)
    with pytest.raises(RunStopped, match="above max_kl 0.5"):
        trainer.train()


def test_a_loss_that_is_not_finite_moves_nothing(new_trainer: Make) -> None:
    trainer = new_trainer(total_episodes=8, on_fault="skip")
    honest = trainer.algorithm.credit

    def broken(*args: Any) -> Any:
        credit = honest(*args)
        return credit._replace(returns=credit.returns.fill_(math.inf))

    object.__setattr__(trainer.algorithm, "credit", broken)
    before = [p.detach().clone() for p in trainer.parameters]
    row = trainer.train()[0]
    assert row["guard/skipped"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))


def test_a_collapse_of_the_score_stops_the_run() -> None:
    guards = Guards("skip", 5, None, max_score_drop=2.0)
    assert all(guards.collapsed(2.0 + 0.1 * i, 0.5) is None for i in range(20))
    found = [guards.collapsed(-3.0, 0.5) for _ in range(5)]
    assert found[0] is None and "max_score_drop 2" in (found[-1] or "")
    assert Guards("skip", 5, None, None).collapsed(-1e9, 1.0) is None


def test_guards_remember_across_a_resume() -> None:
    guards, again = Guards("skip", 3, 1.0, 1.0), Guards("skip", 3, 1.0, 1.0)
    guards.collapsed(1.0, 0.5)
    assert guards.skip("x") is None
    again.load_state_dict(json.loads(json.dumps(guards.state_dict())))
    assert again.state_dict() == guards.state_dict()
    assert again.skip("x") is None
    assert "3 updates in a row" in (again.skip("x") or "")


@pytest.mark.parametrize(
    ("make", "gain", "message"),
    [
        (lambda s, kl, c, m: penalized_rewards(-s, kl, c, m), 1.0, "better score"),
        (lambda s, kl, c, m: penalized_rewards(s, kl, -c, m), 1.0, "more KL"),
        (penalized_rewards, -0.5, "better score"),
    ],
)
def test_the_sign_test_finds_what_was_flipped(make: Any, gain: float, message: str) -> None:
    check_signs()
    with pytest.raises(RunStopped, match=message):
        check_signs(make, gain)


def test_a_reward_model_turned_round_stops_the_run_before_its_first_update(
    new_trainer: Make, tmp_path: Path
) -> None:
    trainer = new_trainer()
    trainer.model.gain = -1.0
    with pytest.raises(RunStopped, match=re.escape("gain -1")):
        trainer.train()
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.slow
def test_a_skipped_update_leaves_sampling_as_it_was_under_checkpointing(new_trainer: Make) -> None:
    """An error while optimizing must not leave the model in training mode, without its cache."""
    trainer = new_trainer(gradient_checkpointing=True, on_fault="skip", total_episodes=24)
    step, calls = trainer._step, []

    def fails_once(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise FloatingPointError("the loss is nan")
        return step(*args)

    trainer._step = fails_once
    rows = trainer.train()
    assert rows[0]["guard/skipped"] == 1 and not trainer.model.training
    assert abs(rows[1]["objective/kl"]) < 1e-4 and rows[1]["val/first_max_log_ratio"] < 1e-4


def test_a_minibatch_in_which_nothing_was_scored_counts_for_nothing(new_trainer: Make) -> None:
    def one_in_eight(prompts: list[str], completions: list[str]) -> list[float | None]:
        return [1.0 * len(c) if i == 3 else None for i, c in enumerate(completions)]

    row = new_trainer(
        reward_model=one_in_eight, num_mini_batches=8, total_episodes=8, whiten_rewards=False
    ).train()[0]
    assert row["val/ratio"] == pytest.approx(1.0, abs=0.05)
    assert row["objective/scored"] == pytest.approx(1 / 8)


def test_scores_that_were_all_equal_at_first_are_no_measure_of_a_collapse() -> None:
    guards = Guards("skip", 5, None, max_score_drop=1.0)
    assert guards.collapsed(0.0, 0.0) is None
    assert guards.collapsed(-0.001, 0.0) is None
    assert guards.collapsed(-0.1, 2.0) is None
    assert guards.first_std == 2.0


def test_completions_that_never_end_are_told_once_with_the_cure() -> None:
    """Nobody is told of it who lets completions end behind a full stop, or asked for no end."""
    ranks = Ranks(1, 60)
    rollout = SimpleNamespace(completion_ids=torch.tensor([[5, 6, 7], [8, 5, 5]]))
    row = {"objective/scored": 1.0, "objective/scores_std": 1.0, "val/num_eos_tokens": 0}

    def said(watch: Watch, should_end: bool, ended: int = 0) -> list[str]:
        told = row | {"val/num_eos_tokens": ended}
        return watch.warnings(1, told, rollout, (1,), ranks, should_end)  # type: ignore[arg-type]

    assert said(Watch(in_fp32=True), should_end=False) == []
    assert said(Watch(in_fp32=True), should_end=True, ended=1) == []
    watch = Watch(in_fp32=True)
    (line,) = said(watch, should_end=True)
    assert line.startswith("warning: update 1: no completion ends by itself within 3 tokens")
    assert "longer response_length" in line
    assert said(watch, should_end=True) == []
