"""Write the reward model report: draw and explain the results in ``reward_results``."""

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from toolkit.data.files import json_text
from toolkit.data.records import Row
from toolkit.data.text import prompt_text
from toolkit.evaluation.page import picture, render
from toolkit.evaluation.reward_results import (
    Analysis,
    Calibration,
    CurvePoint,
    Histograms,
    Positions,
    RewardReport,
)
from toolkit.evaluation.tables import Fact
from toolkit.scoring.accuracy import RewardMetrics, Share, judge


def verdict(analysis: Analysis) -> tuple[str, str]:
    """Return whether to go on with this model ("yes", "no", "not decided"), and why.

    The verdict is that of ``judge``, except that no baseline may be better.
    """
    found = judge(analysis.metrics)
    better = [
        f"{name} ({s.value:.1%})"
        for name, s in analysis.baselines.items()
        if s.value > analysis.accuracy.value
    ]
    if found.answer == "yes" and better:
        return "no", f"{found.sentence} But it is no better than: {', '.join(better)}."
    return found.answer, found.sentence


def facts(analysis: Analysis) -> list[Fact]:
    """Return the report's main figures for the terminal."""

    def interval(s: Share) -> str:
        return f"{s.value:.3f} [{s.low:.3f}, {s.high:.3f}]"

    rows = [
        ("held-out accuracy", interval(analysis.accuracy)),
        ("chance", f"{analysis.chance:.3f}"),
    ]
    rows += [(name, interval(s)) for name, s in analysis.baselines.items()]
    if analysis.people.one_rater is not None:
        rows.append(("one human rater", f"{analysis.people.one_rater:.3f}"))
        rows.append(("half of the raters", f"{analysis.people.split_half:.3f}"))
    left = analysis.length_bias.without_length
    if left is not None:
        rows.append(("score's variance that is length", f"{left.explained:.1%}"))
        rows.append(("accuracy without length", interval(left.accuracy)))
    if isinstance(analysis.calibration, Calibration):
        before, after = analysis.calibration.before, analysis.calibration.after
        rows.append(("calibration error, with temperature", f"{before.ece:.3f}, {after.ece:.3f}"))

    if analysis.reward_bench is not None:
        rows.append(("RewardBench 2, mean of its subsets", f"{analysis.reward_bench.mean:.3f}"))

    answer, sentence = verdict(analysis)
    return [(name, value, "") for name, value in rows] + [("verdict", sentence, answer)]


def curve_point(fraction: float, metrics: RewardMetrics) -> CurvePoint:
    """Make a point of the curve of accuracy against labels."""
    assert metrics.train_comparisons is not None  # reward.py counts them
    return CurvePoint(
        fraction=fraction,
        train=metrics.train_comparisons,
        value=metrics.accuracy,
        low=metrics.accuracy_low,
        high=metrics.accuracy_high,
        loss=metrics.loss,
    )


def write_reward_report(
    folder: Path, analysis: Analysis, curve: list[CurvePoint], identity: Row
) -> None:
    """Write ``reward_report.html`` and ``reward_report.json``; ``identity`` is run.json."""
    answer, sentence = verdict(analysis)
    pictures = {
        "accuracy": picture(
            lambda f: _draw_accuracy(f, analysis),
            "Accuracy of the reward model, chance and baselines",
            (9, 2.8),
        ),
        "position": picture(
            lambda f: _draw_position(f, analysis.position), "Picks by position", (9, 2.8)
        ),
        "histogram": picture(
            lambda f: _draw_histogram(f, analysis.histogram), "Histogram of scores", (9, 3)
        ),
    }
    if curve:
        pictures["curve"] = picture(
            lambda f: _draw_curve(f, curve, analysis.chance), "Accuracy against labels", (9, 3.4)
        )
    measured = analysis.calibration
    if isinstance(measured, Calibration):
        pictures["calibration"] = picture(
            lambda f: _draw_calibration(f, measured), "Calibration curve", (9, 3.6)
        )

    settings, data = identity.get("settings", {}), identity.get("data", {})
    heading = {
        "base model": f"{settings.get('model_name_or_path')} ({settings.get('precision')})",
        "comparisons": f"{data.get('source')} (digest {data.get('digest')})",
        "trained on": f"{data.get('train_comparisons')}, loss {settings.get('loss_type')}",
        "trained at": identity.get("written"),
    }
    render(
        folder / "reward_report.html",
        "reward_report.html",
        "Reward model report",
        a=analysis,
        heading=heading,
        curve=curve,
        pictures=pictures,
        verdict=sentence,
        answer=answer,
        mistakes=[replace(m, prompt=prompt_text(m.prompt)) for m in analysis.mistakes],
        identity=json_text(identity, indent=2, ensure_ascii=False, sort_keys=True),
    )
    report = RewardReport(analysis, curve, identity, sentence)
    report.write(folder / "reward_report.json")


def _draw_accuracy(figure: Figure, a: Analysis) -> None:
    axis = figure.subplots()
    bars: list[tuple[str, Share | float]] = [("this reward model", a.accuracy)]
    bars += a.baselines.items()
    if a.people.one_rater is not None:
        bars.append(("one human rater", a.people.one_rater))
    if a.people.split_half is not None:
        bars.append(("half of the raters", a.people.split_half))
    if a.people.two_labellers is not None:
        bars.append(("another labeler", a.people.two_labellers))

    for y, (_, bar) in enumerate(bars):
        value = bar.value if isinstance(bar, Share) else bar
        error = None
        if isinstance(bar, Share):
            error = [[value - bar.low], [bar.high - value]]
        axis.barh(y, value, xerr=error, color="C0" if y == 0 else "C7", ecolor="C1", height=0.6)

    axis.set_yticks(range(len(bars)), [name for name, _ in bars])
    axis.invert_yaxis()
    axis.axvline(a.chance, linestyle="--", color="C3", label="chance")
    axis.set_xlim(0, 1)
    axis.set_xlabel("accuracy")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)


def _draw_curve(figure: Figure, curve: list[CurvePoint], chance: float) -> None:
    axis = figure.subplots()
    x = [c.train for c in curve]
    axis.plot(x, [c.value for c in curve], marker="o", label="held-out accuracy")
    axis.fill_between(x, [c.low for c in curve], [c.high for c in curve], alpha=0.2)
    axis.axhline(chance, linestyle="--", color="C3", label="chance")

    axis.set_xscale("log")
    axis.set_xticks(x, [f"{n:,}" for n in x], minor=False)
    axis.minorticks_off()
    axis.set_xlabel("comparisons trained on")
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize=8)


def _draw_calibration(figure: Figure, c: Calibration) -> None:
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], linestyle="--", color="C7", label="perfect")

    # The second curve is shifted a little, so that its error bars do not cover the first.
    for shift, half, label in (
        (0.0, c.before, "as trained"),
        (0.004, c.after, "with temperature"),
    ):
        x = [p.confidence + shift for p in half.curve]
        y = [p.value for p in half.curve]
        error = [[p.value - p.low for p in half.curve], [p.high - p.value for p in half.curve]]
        axis.errorbar(x, y, yerr=error, marker="o", capsize=2, alpha=0.8, label=label)

    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("probability of the guess")
    axis.set_ylabel("share of right guesses")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", fontsize=8)


def _draw_position(figure: Figure, positions: list[Positions]) -> None:
    axes = figure.subplots(1, len(positions), squeeze=False)[0]
    for axis, p in zip(axes, positions, strict=True):
        places = range(p.k)
        axis.bar([x - 0.2 for x in places], p.people, width=0.4, label="people")
        axis.bar([x + 0.2 for x in places], p.model, width=0.4, label="the model")
        axis.axhline(1 / p.k, linestyle="--", color="C7")
        axis.set_xticks(list(places))
        axis.set_title(f"K = {p.k} ({p.n} comparisons)", fontsize=9)
        axis.set_xlabel("position")
    axes[0].set_ylabel("share of picks")
    axes[0].legend(fontsize=8)


def _draw_histogram(figure: Figure, histograms: Histograms) -> None:
    axes = figure.subplots(1, 2)
    both = (("raw", histograms.raw), ("normalized", histograms.normalised))
    for axis, (name, h) in zip(axes, both, strict=True):
        edges = [h.low + i * h.width for i in range(len(h.counts))]
        axis.bar(edges, h.counts, width=h.width, align="edge")
        axis.axvline(h.mean, linestyle="--", color="C3")
        axis.set_title(f"{name} (mean {h.mean:.2f}, std {h.std:.2f})", fontsize=9)
        axis.grid(alpha=0.3)
