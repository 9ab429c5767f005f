"""The report's numbers on comparisons whose answers are known."""

import math

import numpy as np
import pytest

from toolkit.data.records import to_row
from toolkit.evaluation.reward_analysis import analyze, people, position_bias
from toolkit.evaluation.reward_results import Calibration, NotCalibrated, People


def made(count: int = 400, seed: int = 0) -> tuple[list[dict], list[list[float]], float]:
    """Rows of mixed K whose picks are drawn from the softmax of the scores times 2: a model that
    is half as sure as it might be. Also the accuracy that is then to be expected."""
    rng = np.random.default_rng(seed)
    rows, raw, expected = [], [], []
    for i in range(count):
        k = int(rng.integers(2, 6))
        scores = rng.normal(size=k)
        p = np.exp(2 * scores) / np.exp(2 * scores).sum()
        best = int(rng.choice(k, p=p))
        texts = [f"text {j} " + "x" * int(rng.integers(1, 60)) for j in range(k)]
        rows.append(
            {
                "prompt": f"p{i}",
                "completions": texts,
                "best": best,
                "scores": [float(k == best) for k in range(k)],
            }
        )
        raw.append([float(s) for s in scores])
        expected.append(p[int(np.argmax(scores))])
    return rows, raw, float(np.mean(expected))


@pytest.mark.slow
def test_accuracy_chance_and_baselines() -> None:
    rows, raw, expected = made()
    a = analyze(rows, raw, gain=2.0, bias=1.0, baselines={"last": lambda t: list(range(len(t)))})
    assert a.accuracy.low < expected < a.accuracy.high
    assert a.chance == pytest.approx(np.mean([1 / len(r) for r in raw]))
    assert a.metrics.p < 1e-6
    last = np.mean([row["best"] == len(row["completions"]) - 1 for row in rows])
    assert a.baselines["last"].value == pytest.approx(last)
    longest = np.mean(  # but for equal lengths, which share a row's point
        [np.argmax([len(t) for t in row["completions"]]) == row["best"] for row in rows]
    )
    assert a.baselines["longest completion"].value == pytest.approx(longest, abs=0.01)
    assert sum(g.n for g in a.by_k) == sum(g.n for g in a.by_length) == 400
    assert [g.group for g in a.by_k] == [f"{k} completions" for k in (2, 3, 4, 5)]
    for g, k in zip(a.by_k, (2, 3, 4, 5), strict=True):
        right = [
            int(np.argmax(s)) == row["best"]
            for s, row in zip(raw, rows, strict=True)
            if len(s) == k
        ]
        assert (g.value, g.chance) == pytest.approx((np.mean(right), 1 / k))


def test_the_histogram_of_a_cross_validation_is_of_the_adapters_own_scores() -> None:
    rows, raw, _ = made(50)
    moved = [[s + 100 for s in scores] if i >= 20 else scores for i, scores in enumerate(raw)]
    alone = analyze(rows[:20], raw[:20], 1.0, 0.0)
    found = analyze(rows, moved, 1.0, 0.0, own=range(20))
    assert found.histogram == alone.histogram and found.accuracy.n == 50


def test_the_histogram_is_of_all_scores_and_scaled_as_normalised() -> None:
    rows, raw, _ = made(50)
    h = analyze(rows, raw, gain=2.0, bias=1.0).histogram
    flat = np.concatenate(raw)
    assert sum(h.raw.counts) == sum(h.normalised.counts) == len(flat)
    assert h.raw.mean == pytest.approx(flat.mean())
    assert (h.normalised.mean, h.normalised.std) == pytest.approx(
        (2 * flat.mean() + 1, 2 * flat.std())
    )


@pytest.mark.slow
def test_a_model_that_is_half_as_sure_as_it_might_be_wants_the_temperature_one_half() -> None:
    rows, raw, _ = made(4000)
    c = analyze(rows, raw, 1.0, 0.0).calibration
    assert isinstance(c, Calibration)
    assert c.temperature == pytest.approx(0.5, rel=0.1)
    assert c.after.ece < 0.03 < 0.1 < c.before.ece
    assert c.after.loss < c.before.loss
    assert c.fitted_on + c.tested_on == 4000
    few = analyze(rows[:12], raw[:12], 1.0, 0.0).calibration
    assert isinstance(few, NotCalibrated) and "too few" in few.reason


def test_a_favoured_position_is_found_out() -> None:
    rows = [
        {"completions": ["a", "b", "c", "d"], "best": 0 if i % 2 else i // 2 % 4}
        for i in range(200)
    ]
    (position,) = position_bias(rows, [i % 4 for i in range(200)])
    assert position.people[0] > 0.6 and position.people_p < 1e-6
    assert position.model == [0.25] * 4 and position.model_p == pytest.approx(1.0)


def test_peoples_agreement_is_reported_where_the_rows_tell() -> None:
    assert (
        people([{"prompt": "p", "completions": ["a", "b"], "best": 0, "labeler": "x"}]) == People()
    )
    pair = [
        {"prompt": "p", "completions": c, "best": b, "labeler": who}
        for c, b, who in ((["a", "b"], 0, "x"), (["b", "a"], 1, "y"), (["a", "b"], 1, "z"))
    ]
    assert to_row(people(pair))["two_labellers"] == pytest.approx(
        {"value": 1 / 3, "n": 3, "prompts": 3, "low": 0.0615, "high": 0.7923}, abs=1e-3
    )
    for ratings in (None, "high", [[1, 2]], [[1], [2]], [["a", "b"], [1, 2]], [None, [1, 2]]):
        odd = {"prompt": "p", "completions": ["a", "b"], "best": 0, "ratings": ratings}
        assert not people([odd]).known
    rated = {"prompt": "p", "completions": ["a", "b"], "best": 0, "ratings": [[2, 2], [1, 3]]}
    assert people([rated]).one_rater == pytest.approx(0.5)


@pytest.mark.slow
def test_the_most_confident_mistakes_come_first() -> None:
    rows, raw, _ = made()
    found = analyze(rows, raw, 1.0, 0.0).mistakes
    sure = [m.confidence for m in found]
    assert len(found) == 10 and sure == sorted(sure, reverse=True)
    wrong = [
        max(np.exp(s) / np.exp(s).sum())
        for s, row in zip(raw, rows, strict=True)
        if int(np.argmax(s)) != row["best"]
    ]
    assert sure[0] == pytest.approx(max(wrong))
    for m in found:
        row = next(row for row in rows if row["prompt"] == m.prompt)
        assert row["completions"][row["best"]] == m.people_pick != m.model_pick
        scores = raw[rows.index(row)]
        p = math.exp(scores[row["best"]]) / sum(map(math.exp, scores))
        assert m.people_probability == pytest.approx(p)
