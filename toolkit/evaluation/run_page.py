"""The report on runs as one page: HTML with everything in it, JSON and PNGs beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolkit.data.files import json_text, write_json
from toolkit.data.text import printable, prompt_text
from toolkit.evaluation.page import picture, render
from toolkit.evaluation.tables import (
    Fact,
    contender_table,
    gap_table,
    pair_table,
    place_table,
    text_table,
)
from toolkit.evaluation.trained_prompts import notes as trained_notes

Row = dict[str, Any]
LOOKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def write_run_report(
    folder: Path, title: str, facts: Sequence[Fact], runs: dict[str, Row], rewards: dict[str, Row],
    result: Row | None, samples: Sequence[Row], sheet: Row | None, trainings: dict[str, Row],
) -> Path:  # fmt: skip
    """Write ``report.html``, ``report.json`` and the pictures as PNGs into ``folder``.

    Args:
        folder: made if need be.
        title: the page's heading.
        facts: the headline (``run_report.verdicts``).
        runs: name -> ``read_ppo_run``.
        rewards: name -> ``read_reward_run``.
        result: of evaluate.py, or None.
        samples: rows of its samples.jsonl.
        sheet: ``data_sheet``, or None.
        trainings: name -> run.json of what else was trained (SFT, DPO, ...).

    Returns:
        the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Markup] = {}
    if runs:
        pictures["curves"] = picture(
            lambda f: draw_curves(f, runs), "Learning curves of the PPO runs", (10, 6.4),
            folder / "learning_curves.png",
        )  # fmt: skip
    histories = {n: r["history"] for n, r in rewards.items() if r["history"]}
    if histories:
        pictures["rewards"] = picture(
            lambda f: _draw_rewards(f, histories), "Training of the reward models", (9, 2.8),
            folder / "reward_training.png",
        )  # fmt: skip
    tables: Row = {}
    fronts: list[tuple[str, Markup, Any]] = []
    if result is not None:
        fronts = [
            _front(folder, result, judge, runs) for judge in result["contenders"][0]["scores"]
        ]
        pictures["wins"] = picture(
            lambda f: _draw_wins(f, result), "Win rates against the reference",
            (9, 1.2 + 0.3 * len(_against_reference(result))),
            folder / "win_rates.png",
        )  # fmt: skip
        tables = {
            "contenders": contender_table(result), "texts": text_table(result),
            "gaps": gap_table(result) if result["gaps"] else None,
            "pairs": [
                (j["name"], pair_table(result, j["name"], True), pair_table(result, j["name"]))
                for j in result["judges"]
            ],
        }  # fmt: skip
    identities = (
        {name: run["identity"] for name, run in runs.items()}
        | {name: reward["identity"] for name, reward in rewards.items()}
        | trainings
    )
    render(
        folder / "report.html", "run_report.html", title, facts=facts, runs=runs, rewards=rewards,
        result=result, sheet=sheet, pictures=pictures, fronts=fronts,
        samples=[row | {"prompt": prompt_text(row["prompt"])} for row in samples],
        trained=bool(result and trained_notes(result["contenders"], result["prompts"])),
        tables=tables, run_rows=_run_rows(runs), sheet_rows=_sheet_rows(sheet),
        baseline_rows={name: _baseline_rows(reward) for name, reward in rewards.items()},
        identities={n: _identity(i) for n, i in identities.items()},
        whole={n: json_text(i, indent=2, ensure_ascii=False) for n, i in identities.items()},
    )  # fmt: skip
    write_json(folder / "report.json", {
        "title": title, "facts": [list(fact) for fact in facts], "evaluation": result,
        "samples": list(samples), "data": sheet, "runs": runs, "rewards": rewards,
        "trainings": trainings,
    })  # fmt: skip
    return folder / "report.html"


def _front(folder: Path, result: Row, judge: str, runs: dict[str, Row]) -> tuple[str, Markup, Any]:
    """A judge's frontier: its name, the picture, and each contender's place below the curve."""
    image = picture(
        lambda f: draw_frontier(f, result, judge, runs), f"Gain against KL: {judge}", (9, 4.6),
        folder / f"frontier_{_plain(judge)}.png",
    )  # fmt: skip
    return judge, image, place_table(result, judge)


def _label(name: str) -> str:
    """A name in a picture: no formula to matplotlib, not hidden from the legend, not too long."""
    text = printable(name).replace("$", r"\$").replace("\n", " ")
    return (" " if text.startswith("_") else "") + (text[:37] + "..." if len(text) > 40 else text)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _identity(facts: Row) -> list[tuple[str, str]]:
    """What made a run, in a few lines."""
    settings = facts.get("settings", {})
    versions = facts.get("versions", {})
    rows = [
        ("commit", facts.get("git") or "not known"),
        ("base model", f"{settings.get('model_name_or_path')} ({settings.get('precision')})"),
        ("seed", str(facts.get("seed"))),
        ("device", str(facts.get("device"))),
        ("written", str(facts.get("written"))),
        ("seconds of training", _first(facts, "seconds")),
        ("peak memory", f"{_first(facts, 'peak_mb')} MiB, of the process when this was written"),
        ("versions", ", ".join(f"{name} {v}" for name, v in versions.items())),
    ]
    return rows if facts else []


def _run_rows(runs: dict[str, Row]) -> list[list[str]]:
    def shown(value: float | None, digits: int = 0) -> str:
        return "not known" if value is None else f"{value:,.{digits}f}"

    return [
        [name, shown(r["episodes"]), shown(r["scores"], 2), shown(r["kl"], 2),
         shown(r["kl_target"], 1), shown(r["seconds"]), f"{shown(r['peak_mb'])} MiB"]
        for name, r in runs.items()
    ]  # fmt: skip


def _baseline_rows(reward: Row) -> list[list[str]]:
    """The reward model's accuracy beside chance, baselines and people."""
    m = reward["metrics"]
    rows = [
        ["this reward model", f"{m['accuracy']:.1%} of {m['comparisons']} held-out comparisons"],
        ["chance", f"{m['chance']:.1%}"],
    ]
    rows += [[name, f"{b['value']:.1%}"] for name, b in reward["baselines"].items()]
    for key, label in (("one_rater", "one human rater"), ("split_half", "half of the raters")):
        if key in reward["people"]:
            rows.append([label, f"{reward['people'][key]:.1%}"])
    return rows


def _sheet_rows(sheet: Row | None) -> list[list[str]]:
    """The data sheet as names and values."""
    if sheet is None:
        return []
    who = ", ".join(f"{name} {count:,}" for name, count in sheet["labellers"].items())
    agree = "no item has two labellers"
    if sheet["agreement"] is not None:
        alpha = "" if sheet["alpha"] is None else f", Krippendorff's alpha {sheet['alpha']:.2f}"
        agree = f"{sheet['agreement']:.1%} on {sheet['items_twice']:,} items{alpha}"
    return [
        ["comparisons", f"{sheet['comparisons']:,} of {sheet['prompts']:,} prompts"],
        ["labellers", who],
        ["completions each", ", ".join(f"{k}: {n:,}" for k, n in sheet["completions"].items())],
        ["picks by position", " / ".join(f"{n:,}" for n in sheet["positions"])],
        ["words of a completion, median", str(sheet["words"])],
        ["labellers agree", agree],
    ]


def _first(facts: Row, name: str) -> str:
    """A figure of run.json, at its top or among the metrics."""
    value = facts.get(name, facts.get("metrics", {}).get(name))
    return "see the table of runs" if value is None else f"{value:,.0f}"


def draw_frontier(figure: Figure, result: Row, judge: str, runs: dict[str, Row]) -> None:
    """Gain (standard deviations of the reference's scores) against KL: curves and contenders."""
    axis = figure.subplots()
    curve = result["frontier"].get(judge)
    contenders = [c for c in result["contenders"] if c["kl"] is not None]
    right = 1.15 * max([c["kl"] + c["kl_error"] for c in contenders] + [1.0])
    if curve is not None:
        _draw_optimum(axis, curve, right)
        best = [p for p in curve["best_of_n"] if p["kl"] <= right]
        axis.plot([p["kl"] for p in best], [p["gain"] for p in best], ".-", color="C7",
                  label="best of n")  # fmt: skip
        for p in best[1:]:
            axis.annotate(str(p["n"]), (p["kl"], p["gain"]), fontsize=7, xytext=(2, -9),
                          textcoords="offset points")  # fmt: skip
    reference = result["contenders"][0]["scores"][judge]
    training = any(j["name"] == judge and j["training_reward"] for j in result["judges"])
    if training and reference["std"] > 0:
        for i, (name, run) in enumerate(runs.items()):
            kl = [row["objective/kl"] for row in run["log"]]
            gain = [(row["objective/scores"] - reference["mean"]) / reference["std"]
                    for row in run["log"]]  # fmt: skip
            axis.plot(kl, gain, linewidth=0.7, alpha=0.5, color=f"C{i % 10}",
                      label=_label(f"{name}, while training"))  # fmt: skip
    _draw_checkpoints(axis, contenders, judge)
    single = [c for c in contenders if c["kind"] != "checkpoint"]
    for i, c in enumerate(single):
        s = c["scores"][judge]
        error = s["error"] / reference["std"] if reference["std"] > 0 else 0.0
        axis.errorbar(
            c["kl"], s["gain"], xerr=c["kl_error"], yerr=error, fmt=LOOKS[i % len(LOOKS)],
            color=f"C{i % 10}", capsize=2, markersize=6, label=_label(c["name"]),
        )  # fmt: skip
    axis.set_xlim(-0.03 * right, right)
    axis.set_xlabel("KL from the reference, nats a completion")
    axis.set_ylabel("gain, standard deviations")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)


def _draw_optimum(axis: Axes, curve: Row, right: float) -> None:
    points = [p for p in curve["optimal"] if p["kl"] <= right]
    known = [p for p in points if p["kl"] <= curve["supported_kl"]]
    beyond = points[max(len(known) - 1, 0) :]
    axis.plot([p["kl"] for p in known], [p["gain"] for p in known], color="C3",
              label="KL-optimal")  # fmt: skip
    axis.plot([p["kl"] for p in beyond], [p["gain"] for p in beyond], color="C3", linestyle=":",
              label="same, too few samples")  # fmt: skip


def _draw_checkpoints(axis: Axes, contenders: Sequence[Row], judge: str) -> None:
    lines: dict[str, list[Row]] = {}
    for c in contenders:
        if c["kind"] == "checkpoint":
            lines.setdefault(c["name"].rpartition("@")[0], []).append(c)
    for i, (name, row) in enumerate(lines.items()):
        axis.plot([c["kl"] for c in row], [c["scores"][judge]["gain"] for c in row], ".--",
                  color=f"C{(i + 5) % 10}", label=_label(f"{name}, checkpoints"))  # fmt: skip


def draw_curves(figure: Figure, runs: dict[str, Row]) -> None:
    """Score, KL with its target, KL coefficient and entropy of each run, over episodes."""
    axes = figure.subplots(2, 2)
    panels = (
        (axes[0, 0], "objective/scores", "Score"),
        (axes[0, 1], "objective/kl", "KL from the reference, nats a completion"),
        (axes[1, 0], "objective/kl_coef", "KL coefficient"),
        (axes[1, 1], "objective/entropy", "Entropy, nats a completion"),
    )
    for axis, column, title in panels:
        for i, (name, run) in enumerate(runs.items()):
            known = [row for row in run["log"] if row.get(column) is not None]
            x = [row["episode"] for row in known]
            axis.plot(x, [row[column] for row in known], color=f"C{i % 10}", label=_label(name))
            held_out = [row for row in run["log"] if row.get("eval/scores") is not None]
            if column == "objective/scores" and held_out:
                axis.plot([r["episode"] for r in held_out], [r["eval/scores"] for r in held_out],
                          "x--", color=f"C{i % 10}",
                          label=_label(f"{name}, held-out prompts"))  # fmt: skip
            if column == "objective/kl" and run["kl_target"] is not None:
                axis.axhline(run["kl_target"], linestyle="--", color=f"C{i % 10}", alpha=0.6)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("episodes")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(loc="best", fontsize=8)


def _draw_rewards(figure: Figure, histories: dict[str, list[Row]]) -> None:
    axes = figure.subplots(1, 2)
    for axis, column in zip(axes, ("loss", "accuracy"), strict=True):
        for name, history in histories.items():
            known = [row for row in history if column in row]
            axis.plot(
                [row["step"] for row in known], [row[column] for row in known], label=_label(name)
            )
        axis.set_title(f"{column} on training batches", fontsize=10)
        axis.set_xlabel("optimizer steps")
        axis.grid(alpha=0.3)
    axes[0].legend(loc="best", fontsize=8)


def _against_reference(result: Row) -> list[Row]:
    """The pairs with the reference on which anybody has spoken."""
    return [
        p for p in result["pairs"]
        if p["b"] == result["reference"] and p["wins"] + p["ties"] + p["losses"]
    ]  # fmt: skip


def _draw_wins(figure: Figure, result: Row) -> None:
    axis = figure.subplots()
    rows = _against_reference(result)
    judges = [j["name"] for j in result["judges"]]
    for y, p in enumerate(rows):
        error = [[p["win_rate"] - p["low"]], [p["high"] - p["win_rate"]]]
        axis.errorbar(p["win_rate"], y, xerr=error, fmt="o", capsize=3,
                      color=f"C{judges.index(p['judge']) % 10}")  # fmt: skip
    axis.set_yticks(range(len(rows)), [_label(f"{p['a']}, says {p['judge']}") for p in rows])
    axis.invert_yaxis()
    axis.axvline(0.5, linestyle="--", color="C7")
    axis.set_xlim(0, 1)
    axis.set_xlabel(
        f"win rate against {_label(result['reference'])} over decided prompts, Wilson 95 %"
    )
    axis.grid(axis="x", alpha=0.3)
