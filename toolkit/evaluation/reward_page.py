"""The reward model's report as a page: what ``reward_analysis`` found, drawn and explained."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from toolkit.data.files import json_text, write_json
from toolkit.data.text import prompt_text
from toolkit.evaluation.page import picture, render
from toolkit.scoring.accuracy import judge

Row = dict[str, Any]


def verdict(analysis: Row) -> tuple[str, str]:
    """Whether to go on with this model ("yes", "no", "not decided"), and why.

    As ``judge`` has it, but no baseline may be better.
    """
    found = judge(analysis["metrics"])
    value = analysis["accuracy"]["value"]
    better = [
        f"{name} ({s['value']:.1%})"
        for name, s in analysis["baselines"].items()
        if s["value"] > value
    ]
    if found.answer == "yes" and better:
        return "no", f"{found.sentence} But no better than: {', '.join(better)}."
    return found.answer, found.sentence


def facts(analysis: Row) -> list[tuple[str, str, str]]:
    """The report's headline figures for the terminal."""

    def interval(s: Row) -> str:
        return f"{s['value']:.3f} [{s['low']:.3f}, {s['high']:.3f}]"

    answer, sentence = verdict(analysis)
    rows = [("held-out accuracy", interval(analysis["accuracy"])),
            ("chance", f"{analysis['chance']:.3f}")]  # fmt: skip
    rows += [(name, interval(s)) for name, s in analysis["baselines"].items()]
    if "one_rater" in analysis["people"]:
        rows.append(("one human rater", f"{analysis['people']['one_rater']:.3f}"))
        rows.append(("half of the raters", f"{analysis['people']['split_half']:.3f}"))
    if "before" in analysis["calibration"]:
        c = analysis["calibration"]
        rows.append(("calibration error, with temperature",
                     f"{c['before']['ece']:.3f}, {c['after']['ece']:.3f}"))  # fmt: skip
    return [(name, value, "") for name, value in rows] + [("verdict", sentence, answer)]


def curve_point(fraction: float, metrics: Row) -> Row:
    """A point of the accuracy against labels, from ``best_of_k_accuracy``."""
    return {
        "fraction": fraction, "train": metrics["train_comparisons"], "value": metrics["accuracy"],
        "low": metrics["accuracy_low"], "high": metrics["accuracy_high"], "loss": metrics["loss"],
    }  # fmt: skip


def write_reward_report(folder: Path, analysis: Row, curve: list[Row], identity: Row) -> None:
    """``reward_report.html`` and ``reward_report.json`` in ``folder``.

    Args:
        folder: where.
        analysis: of ``reward_analysis.analyse``.
        curve: rows ``fraction, train, value, low, high, loss``, the smallest share first; or none.
        identity: what made the model (``run.json``).
    """
    answer, sentence = verdict(analysis)
    pictures = {
        "accuracy": picture(
            lambda f: _draw_accuracy(f, analysis), "Accuracy beside chance and baselines", (9, 2.8)
        ),
        "position": picture(
            lambda f: _draw_position(f, analysis["position"]), "Picks by position", (9, 2.8)
        ),
        "histogram": picture(
            lambda f: _draw_histogram(f, analysis["histogram"]), "Histogram of scores", (9, 3)
        ),
    }
    if curve:
        pictures["curve"] = picture(
            lambda f: _draw_curve(f, curve, analysis["chance"]), "Accuracy against labels", (9, 3.4)
        )
    if "before" in analysis["calibration"]:
        pictures["calibration"] = picture(
            lambda f: _draw_calibration(f, analysis["calibration"]), "Calibration curve", (9, 3.6)
        )
    title = "Reward model report"
    settings, data = identity.get("settings", {}), identity.get("data", {})
    heading = {
        "base model": f"{settings.get('model_name_or_path')} ({settings.get('precision')})",
        "comparisons": f"{data.get('source')} (digest {data.get('digest')})",
        "trained on": f"{data.get('train_comparisons')}, loss {settings.get('loss_type')}",
        "trained at": identity.get("written"),
    }
    shown = [m | {"prompt": prompt_text(m["prompt"])} for m in analysis["mistakes"]]
    render(
        folder / "reward_report.html", "reward_report.html", title,
        a=analysis, heading=heading, curve=curve, pictures=pictures, verdict=sentence,
        answer=answer, mistakes=shown,
        identity=json_text(identity, indent=2, ensure_ascii=False, sort_keys=True),
    )  # fmt: skip
    write_json(
        folder / "reward_report.json",
        {"analysis": analysis, "label_curve": curve, "run": identity, "verdict": sentence},
    )


def _draw_accuracy(figure: Figure, a: Row) -> None:
    axis = figure.subplots()
    bars = [("this reward model", a["accuracy"])] + list(a["baselines"].items())
    for name, label in (("one_rater", "one human rater"), ("split_half", "half of the raters")):
        if name in a["people"]:
            bars.append((label, {"value": a["people"][name]}))
    if "two_labellers" in a["people"]:
        bars.append(("another labeller", a["people"]["two_labellers"]))
    for y, (_, s) in enumerate(bars):
        value = s["value"]
        error = [[value - s["low"]], [s["high"] - value]] if "low" in s else None
        axis.barh(y, value, xerr=error, color="C0" if y == 0 else "C7", ecolor="C1", height=0.6)
    axis.set_yticks(range(len(bars)), [name for name, _ in bars])
    axis.invert_yaxis()
    axis.axvline(a["chance"], linestyle="--", color="C3", label="chance")
    axis.set_xlim(0, 1)
    axis.set_xlabel("accuracy")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)


def _draw_curve(figure: Figure, curve: list[Row], chance: float) -> None:
    axis = figure.subplots()
    x = [c["train"] for c in curve]
    axis.plot(x, [c["value"] for c in curve], marker="o", label="held-out accuracy")
    axis.fill_between(x, [c["low"] for c in curve], [c["high"] for c in curve], alpha=0.2)
    axis.axhline(chance, linestyle="--", color="C3", label="chance")
    axis.set_xscale("log")
    axis.set_xticks(x, [f"{n:,}" for n in x], minor=False)
    axis.minorticks_off()
    axis.set_xlabel("comparisons trained on")
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize=8)


def _draw_calibration(figure: Figure, c: Row) -> None:
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], linestyle="--", color="C7", label="perfect")
    for shift, (name, label) in enumerate(
        (("before", "as trained"), ("after", "with temperature"))
    ):
        curve = c[name]["curve"]
        x = [p["confidence"] + 0.004 * shift for p in curve]  # so that error bars do not hide
        y = [p["value"] for p in curve]
        error = [[p["value"] - p["low"] for p in curve], [p["high"] - p["value"] for p in curve]]
        axis.errorbar(x, y, yerr=error, marker="o", capsize=2, alpha=0.8, label=label)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("probability of the guess")
    axis.set_ylabel("share that is right")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", fontsize=8)


def _draw_position(figure: Figure, positions: list[Row]) -> None:
    axes = figure.subplots(1, len(positions), squeeze=False)[0]
    for axis, p in zip(axes, positions, strict=True):
        places = range(p["k"])
        axis.bar([x - 0.2 for x in places], p["people"], width=0.4, label="people")
        axis.bar([x + 0.2 for x in places], p["model"], width=0.4, label="the model")
        axis.axhline(1 / p["k"], linestyle="--", color="C7")
        axis.set_xticks(list(places))
        axis.set_title(f"K = {p['k']} ({p['n']} comparisons)", fontsize=9)
        axis.set_xlabel("position")
    axes[0].set_ylabel("share of picks")
    axes[0].legend(fontsize=8)


def _draw_histogram(figure: Figure, histogram: Row) -> None:
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("raw", "normalised"), strict=True):
        h = histogram[name]
        edges = [h["low"] + i * h["width"] for i in range(len(h["counts"]))]
        axis.bar(edges, h["counts"], width=h["width"], align="edge")
        axis.axvline(h["mean"], linestyle="--", color="C3")
        axis.set_title(f"{name} (mean {h['mean']:.2f}, std {h['std']:.2f})", fontsize=9)
        axis.grid(alpha=0.3)
