"""Write the reward model report: draw and explain the results in ``reward_results``."""

import math
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from toolkit.data.files import json_text
from toolkit.data.text import prompt_text
from toolkit.evaluation.page import picture, render
from toolkit.evaluation.reward_results import (
    Analysis,
    Calibration,
    CurvePoint,
    Histograms,
    Outlook,
    Positions,
    RewardReport,
)
from toolkit.evaluation.tables import Fact
from toolkit.scoring.accuracy import Share, judge


def verdict(analysis: Analysis, held_out: bool | None = True) -> tuple[str, str]:
    """Return whether to go on with this model ("yes", "no", "not decided"), and why.

    The verdict is that of ``judge``, except that no baseline may be better. If it is not known
    whether the prompts were trained on (``held_out`` is None), it cannot be "yes".
    """
    found = judge(analysis.metrics, bool(held_out))
    better = [
        f"{name} ({s.value:.1%})"
        for name, s in analysis.baselines.items()
        if s.value > analysis.accuracy.value
    ]
    if found.answer == "yes" and better:
        return "no", f"{found.sentence} But it is no better than: {', '.join(better)}."
    if found.answer == "yes" and not held_out:
        unknown = "But nobody knows whether it was trained on these prompts."
        return "not decided", f"{found.sentence} {unknown}"
    return found.answer, found.sentence


def title_of(report: RewardReport) -> str:
    """Return what the accuracy is called: "held-out" only if all prompts surely were."""
    if report.analysis.metrics.folds is not None:
        return f"cross-validated accuracy, {report.analysis.metrics.folds} folds"
    return "held-out accuracy" if report.held_out else "accuracy"


def facts(report: RewardReport) -> list[Fact]:
    """Return the report's main figures for the terminal."""
    analysis = report.analysis

    def interval(s: Share) -> str:
        return f"{s.value:.3f} [{s.low:.3f}, {s.high:.3f}]"

    rows = [(title_of(report), interval(analysis.accuracy))]
    left = analysis.length_bias.without_length
    if left is not None:
        rows.append(("at equal length", interval(left.accuracy)))
    own = analysis.metrics.own
    if own is not None:
        rows.append(
            ("this adapter's own part", f"{own.accuracy:.3f} [{own.low:.3f}, {own.high:.3f}]")
        )
    rows.append(("chance", f"{analysis.chance:.3f}"))
    power = analysis.power
    if power is not None and power.accuracy is not None:
        needed = f"{power.accuracy:.3f}, {power.right:,} of {power.comparisons:,}"
        rows.append(("needed for a yes", needed))
    rows += [(name, interval(s)) for name, s in analysis.baselines.items()]
    if analysis.people.one_rater is not None:
        rows.append(("one human rater", f"{analysis.people.one_rater:.3f}"))
        rows.append(("half of the raters", f"{analysis.people.split_half:.3f}"))
    if left is not None:
        rows.append(("score's variance that is length", f"{left.explained:.1%}"))
    if isinstance(analysis.calibration, Calibration):
        before, after = analysis.calibration.before, analysis.calibration.after
        rows.append(("calibration error, with temperature", f"{before.ece:.3f}, {after.ece:.3f}"))

    if analysis.reward_bench is not None:
        rows.append(("RewardBench 2, mean of its subsets", f"{analysis.reward_bench.mean:.3f}"))

    if report.outlook is not None:
        rows.append(("twice the labels", report.outlook.twice))
        if report.outlook.backtest:
            rows.append(("the estimate, checked", report.outlook.backtest))
        rows += [(f"labels for {n.accuracy:.0%}", n.sentence) for n in report.outlook.needed]

    answer, sentence = verdict(analysis, report.held_out)
    return [(name, value, "") for name, value in rows] + [("verdict", sentence, answer)]


def write_reward_report(folder: Path, report: RewardReport) -> None:
    """Write ``reward_report.html`` and ``reward_report.json``."""
    analysis, curve, identity = report.analysis, report.label_curve, report.run
    pictures = {
        "accuracy": picture(
            lambda f: _draw_accuracy(f, analysis),
            "Accuracy of the reward model, chance and baselines",
            (9, 0.8 + 0.4 * len(_bars(analysis))),
            narrow=True,
        ),
        "position": picture(
            lambda f: _draw_position(f, analysis.position),
            "Picks by position",
            (9, 2.8),
            narrow=True,
        ),
        "histogram": picture(
            lambda f: _draw_histogram(f, analysis.histogram),
            "Histogram of scores",
            (9, 3.2),
            narrow=True,
        ),
    }
    if curve:
        pictures["curve"] = picture(
            lambda f: _draw_curve(f, curve, analysis.chance, report.outlook),
            "Accuracy against labels",
            (9, 3.4),
            narrow=True,
        )
    measured = analysis.calibration
    if isinstance(measured, Calibration):
        pictures["calibration"] = picture(
            lambda f: _draw_calibration(f, measured),
            "Calibration curve",
            (9, 3.6),
            narrow=True,
        )

    render(
        folder / "reward_report.html",
        "reward_report.html",
        "Reward model report",
        a=analysis,
        title_of_accuracy=title_of(report),
        heading=_heading(report),
        curve=curve,
        outlook=report.outlook,
        notes=report.notes,
        held_out=report.held_out,
        pictures=pictures,
        verdict=report.verdict,
        answer=verdict(analysis, report.held_out)[0],
        mistakes=[replace(m, prompt=prompt_text(m.prompt)) for m in analysis.mistakes],
        identity=json_text(identity, indent=2, ensure_ascii=False, sort_keys=True),
    )
    report.write(folder / "reward_report.json")


def _heading(report: RewardReport) -> dict[str, object]:
    """Return what the report is about, by name."""
    settings, data = report.run.get("settings", {}), report.run.get("data", {})
    heading: dict[str, object] = {}
    if "adapter" in settings:
        heading["adapter"] = settings["adapter"]
    heading["base model"] = f"{settings.get('model_name_or_path')} ({settings.get('precision')})"
    heading["comparisons"] = f"{data.get('source')} (digest {data.get('digest')})"
    if "held_out_source" in data:
        heading["held out"] = f"{data['held_out_source']} (digest {data.get('held_out_digest')})"

    if "train_comparisons" in data:
        heading["trained on"] = f"{data['train_comparisons']}, loss {settings.get('loss_type')}"
    own = report.analysis.metrics.own
    if own is not None:
        heading["not trained on"] = (
            f"{own.comparisons}. The others of the {report.analysis.metrics.comparisons} are held "
            f"out from {(report.analysis.metrics.folds or 1) - 1} further models, which were "
            "trained by the same settings"
        )
    if "written" in report.run:
        heading["trained at"] = report.run["written"]
    return heading


def _bars(a: Analysis) -> list[tuple[str, Share | float]]:
    """List what is drawn beside each other: the model, baselines and people."""
    bars: list[tuple[str, Share | float]] = [("this reward model", a.accuracy)]
    if a.length_bias.without_length is not None:
        bars.append(("the same at equal length", a.length_bias.without_length.accuracy))
    bars += a.baselines.items()
    if a.people.one_rater is not None:
        bars.append(("one human rater", a.people.one_rater))
    if a.people.split_half is not None:
        bars.append(("half of the raters", a.people.split_half))
    if a.people.two_labellers is not None:
        bars.append(("another labeler", a.people.two_labellers))
    return bars


def _draw_accuracy(figure: Figure, a: Analysis) -> None:
    axis = figure.subplots()
    bars = _bars(a)
    for y, (_, bar) in enumerate(bars):
        value = bar.value if isinstance(bar, Share) else bar
        error = None
        if isinstance(bar, Share):
            error = [[value - bar.low], [bar.high - value]]
        own = bars[y][0] in ("this reward model", "the same at equal length")
        axis.barh(y, value, xerr=error, color="C0" if own else "C7", ecolor="C1", height=0.6)

    axis.set_yticks(range(len(bars)), [name for name, _ in bars])
    axis.invert_yaxis()
    axis.axvline(a.chance, linestyle="--", color="C3", label="chance")
    axis.set_xlim(0, 1)
    axis.set_xlabel("accuracy")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", fontsize=8)  # within the axes it would hide a bar


def _draw_curve(
    figure: Figure, curve: list[CurvePoint], chance: float, outlook: Outlook | None
) -> None:
    axis = figure.subplots()
    x = [c.train for c in curve]
    axis.plot(x, [c.value for c in curve], marker="o", label="accuracy")
    axis.fill_between(x, [c.low for c in curve], [c.high for c in curve], alpha=0.2)
    axis.axhline(chance, linestyle="--", color="C3", label="chance")
    ticks = list(x)
    if outlook is not None:
        # The fitted line, on to twice the labels.
        far = 2 * x[-1]
        ends = [x[0], far]
        line = [outlook.at_most + outlook.doubling * math.log2(n / x[-1]) for n in ends]
        axis.plot(ends, line, linestyle=":", color="C1", label="fitted line")
        ticks.append(far)

    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{n:,}" for n in ticks], minor=False)
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
        axis.set_title(f"{name}\nmean {h.mean:.2f}, std {h.std:.2f}", fontsize=9)
        axis.grid(alpha=0.3)
