"""Curves from reference samples, on a toy whose reference is enumerated; PPO's place below them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from toolkit.evaluation.contenders import Sampling
from toolkit.evaluation.frontier import frontier, frontiers, optimal_gain, reference_scores
from toolkit.evaluation.judges import ScoreJudge
from toolkit.maths.frontier import best_of_n_score, exponential_tilt, tilt_at_kl
from toolkit.models.actors import POLICY, REFERENCE, Actors
from toolkit.scoring.functions import as_scorer

pytestmark = pytest.mark.slow  # samples by the thousand

Make = Callable[..., Any]


def one_token_logprobs(actors: Actors, role: str, prompts: list[list[int]]) -> torch.Tensor:
    """The whole distribution (P, V) of completions of one token at temperature 0.7."""
    rows = []
    for prompt in prompts:
        ids = torch.tensor([prompt + [0]])
        logits = actors.logits(role, ids, torch.ones_like(ids, dtype=torch.bool), 1)[0, 0]
        rows.append(torch.log_softmax(logits.double() / 0.7, dim=-1))
    return torch.stack(rows)


def rewards_of_tokens(count: int) -> torch.Tensor:
    """A known reward for each token: standard normal numbers."""
    return torch.randn(count, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def test_the_estimate_equals_the_closed_form_to_a_thousandth(new_sampling: Make) -> None:
    sampling: Sampling = new_sampling(length=1)
    exact = one_token_logprobs(sampling.roles, REFERENCE, sampling.prompts)
    table = rewards_of_tokens(exact.shape[1]).expand_as(exact)
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(exact.exp(), 3_000_000, replacement=True, generator=generator)
    drawn = table.gather(1, draws).float()
    for kl_coef in (2.0, 1.0, 0.7):  # 0.1 to 0.6 nats
        known, estimated = (
            exponential_tilt(table, kl_coef, exact),
            exponential_tilt(drawn, kl_coef),
        )
        assert estimated.score == pytest.approx(known.score, abs=1e-3)
        assert estimated.kl == pytest.approx(known.kl, abs=1e-3)


def test_what_is_sampled_for_the_curve_follows_the_reference(new_sampling: Make) -> None:
    sampling: Sampling = new_sampling(length=1)
    exact = one_token_logprobs(sampling.roles, REFERENCE, sampling.prompts)
    table = rewards_of_tokens(exact.shape[1])
    judge = ScoreJudge("toy", "function", as_scorer(token_length))
    judge.score = lambda s, outputs, indices: [table[i[0]].item() for i in outputs.ids]  # type: ignore
    scores = reference_scores(sampling, [judge], 3, 2000, seed=3)["toy"]
    assert scores.shape == (3, 2000)
    expected = (exact.exp() * table).sum(dim=1)
    spread = ((exact.exp() * table**2).sum(dim=1) - expected**2).sqrt()
    for row, mean, std in zip(scores, expected, spread, strict=True):
        assert abs(row.double().mean() - mean) < 4 * std / 2000**0.5


def test_ppo_stands_below_the_frontier_and_well_above_nothing(new_trainer: Make) -> None:
    """Completions of one token: KL and score of the policy are exact sums over the vocabulary."""
    trainer = new_trainer(
        response_length=1,
        total_episodes=1280,
        per_device_train_batch_size=64,
        kl_target=0.5,
        learning_rate=2e-3,
        kl_horizon=640,
        reward_model=token_length,
        kl_coef=0.3,
    )
    prompts = list(trainer.train_dataset)[:8]
    before = one_token_logprobs(trainer.model, REFERENCE, prompts)
    trainer.train()
    after = one_token_logprobs(trainer.model, POLICY, prompts)
    texts = [trainer.processing_class.decode([i]) for i in range(before.shape[1])]
    table = torch.tensor(token_length([""] * len(texts), texts), dtype=torch.float64)
    scores = table.expand_as(before)
    kl = (after.exp() * (after - before)).sum(dim=1).mean().item()
    score = (after.exp() * scores).sum(dim=1).mean().item()
    nothing = (before.exp() * scores).sum(dim=1).mean().item()
    best = tilt_at_kl(scores, kl, before).score
    assert 0.1 < kl < 1.5
    assert score <= best + 1e-9  # whatever it learned: it cannot be better
    assert (score - nothing) / (best - nothing) > 0.5


def token_length(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float(min(len(text), 8)) for text in completions]


def test_the_curves_start_at_nothing_rise_and_bend(new_sampling: Make) -> None:
    scores = torch.randn(6, 512, generator=torch.Generator().manual_seed(0)) + 3.0
    curve = frontier(scores, spread=1.0)
    points = curve.optimal
    assert (points[0].kl, points[0].gain) == (0.0, 0.0)
    rise = [b.gain - a.gain for a, b in zip(points, points[1:], strict=False)]
    assert min(rise) >= -1e-9
    assert [p.n for p in curve.best_of_n] == [1, 2, 4, 8, 16, 32, 64, 128]
    for p in curve.best_of_n[1:]:  # best-of-n is one policy among those of its KL
        best = optimal_gain(curve, p.kl)
        assert best is None or p.gain <= best + 0.01
        assert p.gain == pytest.approx(best_of_n_score(scores, p.n) - scores.mean().item())
    kl = curve.supported_kl
    assert optimal_gain(curve, 1.01 * kl) is None
    assert optimal_gain(curve, 0.5 * kl) == pytest.approx(
        tilt_at_kl(scores, 0.5 * kl).score - scores.mean().item(), abs=0.01
    )
    assert exponential_tilt(scores, 1e6).kl < 1e-6


def test_frontiers_are_made_for_judges_that_score_and_only_if_asked_for(new_sampling: Make) -> None:
    sampling: Sampling = new_sampling()
    judge = ScoreJudge("n", "function", as_scorer(token_length))
    scores = {"n": {"reference": [1.0, 2.0, 4.0]}}
    assert frontiers([judge], sampling, scores, 0, 16, 0, None) == {}
    (curve,) = frontiers([judge], sampling, scores, 2, 16, 0, None).values()
    assert curve.prompts == 2 and curve.samples == 16
