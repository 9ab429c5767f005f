"""The page on a reward model: its verdict and headline figures; nothing on it is alive."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toolkit.evaluation.reward_analysis import analyze
from toolkit.evaluation.reward_page import facts, verdict, write_reward_report
from toolkit.evaluation.reward_results import (
    Analysis,
    CurvePoint,
    LabelsNeeded,
    Outlook,
    RewardReport,
)
from toolkit.scoring.accuracy import OwnAccuracy

HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}\u202e\x1b[31m"


def made(count: int = 400) -> tuple[list[dict], list[list[float]]]:
    """Comparisons of four whose pick scores highest three times in four; prompts all differ."""
    rng = np.random.default_rng(0)
    rows, raw = [], []
    for i in range(count):
        best = i // 4 % 4
        guess = best if i % 4 else (best + 1) % 4
        texts = [f"text {i} {k} " + "x" * int(rng.integers(1, 60)) for k in range(4)]
        rows.append({"prompt": f"p{i}", "completions": texts, "best": best})
        raw.append([float(2 * (k == guess) + 0.1 * rng.normal()) for k in range(4)])
    return rows, raw


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyze(*made(), gain=1.0, bias=0.0)


def test_the_verdict_is_earned(analysis: Analysis) -> None:
    rows, raw = made()
    answer, sentence = verdict(analysis)
    assert answer == "yes" and "It has learned what people pick" in sentence
    noise = np.random.default_rng(5)
    lost = [[float(x) for x in noise.normal(size=len(s))] for s in raw]
    answer, sentence = verdict(analyze(rows, lost, 1.0, 0.0))
    assert answer == "no" and sentence.startswith("Cannot be distinguished from chance")
    oracle = {"oracle": lambda texts: [float(t == picks[tuple(texts)]) for t in texts]}
    picks = {tuple(row["completions"]): row["completions"][row["best"]] for row in rows}
    answer, sentence = verdict(analyze(rows, raw, 1.0, 0.0, oracle))
    assert answer == "no" and "But it is no better than: oracle (100.0%)" in sentence


def test_the_headline_figures_are_accuracy_chance_and_baselines(analysis: Analysis) -> None:
    report = RewardReport(analysis)
    found = {name: value for name, value, _ in facts(report)}
    assert found["held-out accuracy"].startswith("0.750 [0.7") and found["chance"] == "0.250"
    assert list(found)[:3] == ["held-out accuracy", "at equal length", "chance"]
    assert list(found)[3:5] == ["needed for a yes", "longest completion"]
    assert found["needed for a yes"] == "0.320, 128 of 400"  # scipy: P(127 or more) is 0.0014
    assert "one human rater" not in found  # the rows hold no ratings
    assert facts(report)[-1][2] == "yes"


def test_an_accuracy_is_called_held_out_only_if_it_was(analysis: Analysis) -> None:
    """Of an adapter whose training is not known, nobody knows what was held out."""
    for held_out, name in ((True, "held-out accuracy"), (None, "accuracy")):
        found = facts(RewardReport(analysis, held_out=held_out))
        assert found[0][0] == name and ("held-out" in found[-1][1]) is bool(held_out)
        assert found[-1][2] == ("yes" if held_out else "not decided")
    own = OwnAccuracy(accuracy=0.5, low=0.4, high=0.6, comparisons=80, p_below=0.5)
    folded = replace(analysis, metrics=replace(analysis.metrics, folds=5, own=own))
    found = {name: value for name, value, _ in facts(RewardReport(folded))}
    assert found["cross-validated accuracy, 5 folds"].startswith("0.750")
    assert found["this adapter's own part"] == "0.500 [0.400, 0.600]"


@pytest.mark.slow
def test_the_page_is_self_contained_and_hostile_text_is_inert(tmp_path: Path) -> None:
    rows, raw = made(60)
    for row in rows:
        row["prompt"] = [{"role": "user", "content": HOSTILE + row["prompt"]}]
        row["completions"] = [HOSTILE + text for text in row["completions"]]
        row["labeler"], row["source"] = (HOSTILE, "b") if row["best"] else ("a", HOSTILE)
    curve = [CurvePoint(0.1, 10, 0.3, 0.2, 0.4, 1.3), CurvePoint(1.0, 100, 0.5, 0.4, 0.6, 1.3)]
    analysis = analyze(rows, raw, 1.0, 0.0)
    needed = LabelsNeeded(0.6, 400, 300, None, "For 60.0% about 400 comparisons are needed.")
    ahead = Outlook(100, 0.5, 0.06, 0.01, 0.1, 1, "With twice as many ...", [needed])
    report = RewardReport(analysis, curve, {"config": HOSTILE}, "Yes.", ahead, [HOSTILE])
    write_reward_report(tmp_path, report)
    page = (tmp_path / "reward_report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "\u202e" not in page
    assert "{{ 7 * 7 }}" in page and "\\u202e" in page and "\x1b" not in page
    assert "http" not in page.replace("data:image", "") and page.count("<picture") == 5
    for heading in (
        "Accuracy",
        "Would more labels help?",
        "Accuracy by group",
        "Calibration",
        "Position",
        "Length",
        "Scores",
        "Most confident mistakes",
        "This run",
    ):
        assert f">{heading}</h" in page
    figures = json.loads((tmp_path / "reward_report.json").read_text(encoding="utf-8"))
    assert figures["analysis"]["accuracy"]["n"] == 60 and len(figures["label_curve"]) == 2
    assert "For 60.0% about 400 comparisons are needed." in page and ">labeler<" in page
    assert RewardReport.read(tmp_path / "reward_report.json", "x") == report
