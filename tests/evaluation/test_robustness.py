"""The gap of two reward models' gains: its figures, its verdict and its page."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from toolkit.data.records import from_row
from toolkit.errors import InputError
from toolkit.evaluation.result import Evaluation
from toolkit.evaluation.robustness import Robustness, measure, write_page
from toolkit.evaluation.samples import SampleRow

Make = Callable[..., tuple[Evaluation, list[SampleRow]]]
TRUTH = "<b>truth</b>"
TEXTS = [f"text {i}" for i in range(20)]


def test_gains_and_gaps_are_in_standard_deviations_of_the_reference(evaluation: Make) -> None:
    """Scores are 0 to 4 in turn, whose standard deviation is the root of 2."""
    found = measure(*evaluation(TEXTS, 3.0, "checkpoint"), "rm", TRUTH, draws=50)
    root = math.sqrt(2)
    assert [c.name for c in found.checkpoints] == ["ppo@1", "ppo@2"]
    assert [c.train for c in found.checkpoints] == pytest.approx([3 / root, 6 / root])
    assert [c.test for c in found.checkpoints] == pytest.approx([1 / root, 2 / root])
    assert [c.gap.value for c in found.checkpoints] == pytest.approx([2 / root, 4 / root])
    assert [c.kl for c in found.checkpoints] == pytest.approx([0.5, 1.0])
    assert found.overoptimized == "ppo@1" and found.prompts == 20 and found.shared_samples == 1
    assert found.lines == {} and found.sides == {}  # two checkpoints are too few for a line
    (fact,) = found.facts()
    assert fact[2] == "no" and "surely above 0 first at ppo@1, at 0.5 nats" in fact[1]


def test_equal_gains_are_free_of_overoptimization_and_a_judge_says_whether_it_agrees(
    evaluation: Make,
) -> None:
    found = measure(*evaluation(TEXTS, 3.0, "checkpoint"), "rm", "rm", draws=50)
    assert found.overoptimized is None and found.sides == {TRUTH: "yes"}
    assert found.facts()[0][2] == "yes"
    assert found.checkpoints[-1].judge_gaps[TRUTH].value == pytest.approx(4 / math.sqrt(2))
    less = measure(*evaluation(TEXTS, 0.5, "checkpoint"), "rm", "rm", draws=50)
    assert less.sides == {TRUTH: "no"}  # the judge sees more than the train model


def test_three_checkpoints_have_lines_over_the_root_of_the_kl(evaluation: Make) -> None:
    result, samples = evaluation(TEXTS, 1.0, "checkpoint")
    third = replace(result.contenders[-1], name="ppo@3", kl=4.0)
    later = [
        replace(
            row,
            scores={
                judge: of | {"ppo@3": of["ppo@2"] + math.sqrt(2)}
                for judge, of in row.scores.items()
            },
        )
        for row in samples
    ]
    found = measure(
        replace(result, contenders=[*result.contenders, third]), later, "rm", TRUTH, draws=50
    )
    line = found.lines["rm"]
    # Gains of 1, 2 and 2 + sqrt(2) over sqrt(2), at roots of .5, 1 and 4.
    x, y = [math.sqrt(0.5), 1.0, 2.0], [1 / math.sqrt(2), math.sqrt(2), math.sqrt(2) + 1]
    mx, my = sum(x) / 3, sum(y) / 3
    slope = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    slope /= sum((a - mx) ** 2 for a in x)
    assert (line.slope, line.intercept) == pytest.approx((slope, my - slope * mx))
    assert set(found.lines) == {"rm", TRUTH}


def test_what_is_missing_is_named(evaluation: Make) -> None:
    result, samples = evaluation(TEXTS, 1.0, "checkpoint")
    with pytest.raises(InputError, match="no judge is called 'test'"):
        measure(result, samples, "rm", "test")
    with pytest.raises(InputError, match="no checkpoint took part"):
        measure(*evaluation(TEXTS), "rm", TRUTH)
    flat = [
        replace(row, scores=row.scores | {"rm": dict.fromkeys(row.scores["rm"], 1.0)})
        for row in samples
    ]
    with pytest.raises(InputError, match="the same score"):
        measure(result, flat, "rm", TRUTH)


def test_the_page_is_escaped_and_its_figures_can_be_read_again(
    evaluation: Make, tmp_path: Path
) -> None:
    found = measure(*evaluation(TEXTS, 3.0, "checkpoint"), "rm", "rm", draws=50)
    hostile = "<script>alert(1)</script>"
    page = write_page(tmp_path, found, [("folder", hostile)]).read_text(encoding="utf-8")
    assert "<script" not in page and "<b>truth" not in page
    assert "&lt;script&gt;" in page and "&lt;b&gt;truth" in page
    assert page.count("data:image/png;base64,") == 4  # light and dark, wide and narrow
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert (tmp_path / "robustness.png").is_file()
    kept = json.loads((tmp_path / "robustness.json").read_text())
    assert from_row(Robustness, kept, "robustness.json") == found
