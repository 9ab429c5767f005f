"""Write the report on runs: one self-contained HTML page, with JSON and PNGs beside it."""

import contextlib
import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from toolkit.data.files import json_text, write_json
from toolkit.data.records import Row, to_row
from toolkit.data.text import apart, printable, prompt_text
from toolkit.evaluation.best_of_n import best_of_n_lines
from toolkit.evaluation.page import picture, render
from toolkit.evaluation.result import ContenderResult, Evaluation, Frontier, Pair
from toolkit.evaluation.root_of_kl import root_lines
from toolkit.evaluation.run_report import DataSheet, PPORun, RewardRun
from toolkit.evaluation.samples import SampleRow
from toolkit.evaluation.tables import (
    Fact,
    Grid,
    contender_table,
    gap_table,
    pair_table,
    perplexity_table,
    perplexity_title,
    place_table,
    summary_notes,
    text_table,
    worth_of_length,
)
from toolkit.evaluation.trained_prompts import notes as trained_notes
from toolkit.training.log_rows import LoggedUpdate
from toolkit.training.methods import method_of

if TYPE_CHECKING:
    from toolkit.evaluation.ratings import Ratings

MARKED = 40  # a curve of at most so many points has a marker at each
LOOKS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass
class Report:
    """The content of a page; each part may be missing.

    Attributes:
        title: the page's heading.
        facts: the main results (``run_report.verdicts``).
        runs, rewards: PPO runs and reward models by name.
        evaluation: the result of evaluate.py, or None.
        samples: the first rows of its samples.jsonl.
        sheet: description of the comparisons, or None.
        trainings: run.json by name for other trainings (SFT, DPO, ...).
        evaluated: run.json of evaluate.py; empty if it is not known.
        ratings: models by what people chose, or None.
    """

    title: str
    facts: Sequence[Fact]
    runs: dict[str, PPORun] = field(default_factory=dict)
    rewards: dict[str, RewardRun] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    samples: Sequence[SampleRow] = ()
    sheet: DataSheet | None = None
    trainings: dict[str, Row] = field(default_factory=dict)
    evaluated: Row = field(default_factory=dict)
    ratings: "Ratings | None" = None


def write_run_report(folder: Path, report: Report) -> Path:
    """Write ``report.html``, ``report.json`` and the pictures as PNGs; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    runs, rewards, result = report.runs, report.rewards, report.evaluation

    pictures: dict[str, Markup] = {}
    if runs:
        pictures["curves"] = picture(
            lambda f: draw_curves(f, runs),
            "Learning curves of the PPO runs",
            (10, 6.4),
            folder / "learning_curves.png",
        )
    histories = {name: reward.history for name, reward in rewards.items() if reward.history}
    if histories:
        pictures["rewards"] = picture(
            lambda f: _draw_rewards(f, histories),
            "Training of the reward models",
            (9, 2.8),
            folder / "reward_training.png",
        )

    tables: dict[str, object] = {}
    fronts: list[tuple[str, Markup, Grid | None]] = []
    if result is not None:
        fronts = [_front(folder, result, judge, runs) for judge in result.contenders[0].scores]
        pictures["wins"] = picture(
            lambda f: _draw_wins(f, result),
            "Win rates against the reference",
            (9, 1.2 + 0.3 * len(_against_reference(result))),
            folder / "win_rates.png",
        )
        tables = {
            "contenders": contender_table(result),
            "worth": worth_of_length(result),
            "texts": text_table(result),
            "summaries": summary_notes(result),
            "perplexity": perplexity_table(result),
            "gaps": gap_table(result) if result.gaps else None,
            "pairs": [
                (j.name, pair_table(result, j.name, True), pair_table(result, j.name))
                for j in result.judges
            ],
        }

    logs = {name: run.log for name, run in runs.items()}
    identities = (
        {name: run.identity for name, run in runs.items()}
        | {name: reward.identity for name, reward in rewards.items()}
        | report.trainings
    )
    render(
        folder / "report.html",
        "run_report.html",
        report.title,
        facts=report.facts,
        runs=runs,
        rewards=rewards,
        result=result,
        sheet=report.sheet,
        ratings=report.ratings,
        pictures=pictures,
        fronts=fronts,
        samples=[_as_read(row) for row in report.samples],
        seen=_seen(result),
        tables=tables,
        perplexity_title=(
            perplexity_title(result.perplexity) if result and result.perplexity else ""
        ),
        run_rows=_run_rows(runs),
        sheet_rows=_sheet_rows(report.sheet),
        baseline_rows={name: _baseline_rows(reward) for name, reward in rewards.items()},
        identities={n: _identity(i) for n, i in identities.items()},
        whole={n: json_text(i, indent=2, ensure_ascii=False) for n, i in identities.items()},
        about=_about(report, identities),
        against={j: best_of_n_lines(result, j) for j, _, _ in fronts} if result else {},
        roots={j: root_lines(result, j, logs) for j, _, _ in fronts} if result else {},
    )
    write_json(
        folder / "report.json",
        {
            "title": report.title,
            "facts": [list(fact) for fact in report.facts],
            "evaluation": None if result is None else to_row(result),
            "samples": [to_row(row) for row in report.samples],
            "ratings": None if report.ratings is None else to_row(report.ratings),
            "data": None if report.sheet is None else to_row(report.sheet),
            "runs": {name: run.row() for name, run in runs.items()},
            "rewards": {name: reward.row() for name, reward in rewards.items()},
            "trainings": report.trainings,
        },
    )
    return folder / "report.html"


def _about(report: Report, identities: dict[str, Row]) -> list[tuple[str, str]]:
    """Return what stands at the top of the page: models, data and dates."""
    named = {name: run for name, run in identities.items() if run}
    trained = [run.get("settings", {}) for run in named.values()]
    evaluated = report.evaluated.get("settings", {})

    def different(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value))

    dates = [
        f"{name} {str(run['written'])[:10]}" for name, run in named.items() if "written" in run
    ]
    if "written" in report.evaluated:
        dates.append(f"evaluation {str(report.evaluated['written'])[:10]}")
    result = report.evaluation
    asked = "" if result is None else f"{result.prompts:,} prompts"
    if evaluated.get("prompts"):
        asked += f" of {evaluated['prompts']}"
    rows = [
        ("base model", different(s.get("model_name_or_path") for s in [*trained, evaluated])),
        ("prompts for training", different(s.get("prompts") for s in trained)),
        ("comparisons", different([*(s.get("comparisons") for s in trained)])),
        ("evaluated on", asked),
        ("dates", ", ".join(dates)),
        ("this page made", datetime.date.today().isoformat()),
    ]
    return [(name, value) for name, value in rows if value]


def _front(
    folder: Path, result: Evaluation, judge: str, runs: dict[str, PPORun]
) -> tuple[str, Markup, Grid | None]:
    """Return a judge's name, its frontier's picture, and the contenders' places below it."""
    image = picture(
        lambda f: draw_frontier(f, result, judge, runs),
        f"Gain against KL: {judge}",
        (9, 4.6),
        folder / f"frontier_{_plain(judge)}.png",
    )
    return judge, image, place_table(result, judge)


def _seen(result: Evaluation | None) -> str:
    """Say which of the evaluation's prompts contenders were trained on."""
    if result is None:
        return ""
    if trained_notes(result.contenders, result.prompts):
        return (
            "The notes above say which contenders were, or may have been, trained on some of them."
        )
    if any(c.trained_prompts is None for c in result.contenders):
        return "It is not known whether contenders were trained on them."
    return "No contender was trained on any of them."


def _label(name: str) -> str:
    """Make a name safe for a picture: no formula, not hidden from the legend, not too long."""
    text = printable(name).replace("$", r"\$").replace("\n", " ")
    return (" " if text.startswith("_") else "") + (text[:37] + "..." if len(text) > 40 else text)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _identity(run: Row) -> list[tuple[str, str]]:
    """Summarize a run.json in a few lines."""
    if not run:
        return []
    settings = run.get("settings", {})
    versions = run.get("versions", {})
    method = method_of(run.get("method"), settings)
    return [
        ("method", "not known" if method is None else method.source),
        ("commit", run.get("git") or "not known"),
        ("base model", f"{settings.get('model_name_or_path')} ({settings.get('precision')})"),
        ("seed", str(run.get("seed"))),
        ("device", str(run.get("device"))),
        ("written", str(run.get("written"))),
        ("seconds of training", _first(run, "seconds")),
        ("peak memory", f"{_first(run, 'peak_mb')} MiB of the process when this was written"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]


def _run_rows(runs: dict[str, PPORun]) -> list[list[str]]:
    def shown(value: float | None, digits: int = 0) -> str:
        return "not known" if value is None else f"{value:,.{digits}f}"

    return [
        [
            name,
            shown(run.episodes),
            shown(run.scores, 2),
            shown(run.kl, 2),
            shown(run.kl_target, 1),
            shown(run.seconds),
            f"{shown(run.peak_mb)} MiB",
        ]
        for name, run in runs.items()
    ]


def _baseline_rows(reward: RewardRun) -> list[list[str]]:
    """List the accuracies of the reward model, chance, baselines and people."""
    m, analysis = reward.metrics, reward.analysis
    rows = [
        ["this reward model", f"{m.accuracy:.1%} of {m.comparisons} held-out comparisons"]
        if m.folds is None
        else [
            f"models like this one, in {m.folds} folds",
            f"{m.accuracy:.1%} of {m.comparisons} comparisons, each held out once",
        ],
        ["chance", f"{m.chance:.1%}"],
    ]
    if analysis is None:
        return rows

    rows += [[name, f"{share.value:.1%}"] for name, share in analysis.baselines.items()]
    if analysis.people.one_rater is not None:
        rows.append(["one human rater", f"{analysis.people.one_rater:.1%}"])
    if analysis.people.split_half is not None:
        rows.append(["half of the raters", f"{analysis.people.split_half:.1%}"])
    return rows


def _sheet_rows(sheet: DataSheet | None) -> list[list[str]]:
    """List the data sheet as names and values."""
    if sheet is None:
        return []
    who = ", ".join(f"{name} {count:,}" for name, count in sheet.labellers.items())
    agree = "not known, because no item has two labelers"
    if sheet.agreement is not None:
        alpha = "" if sheet.alpha is None else f", Krippendorff's alpha {sheet.alpha:.2f}"
        agree = f"{sheet.agreement:.1%} on {sheet.items_twice:,} items{alpha}"
    return [
        ["comparisons", f"{sheet.comparisons:,} of {sheet.prompts:,} prompts"],
        ["labelers", who],
        [
            "comparisons by number of completions",
            ", ".join(f"{k}: {n:,}" for k, n in sheet.completions.items()),
        ],
        ["picks by position", " / ".join(f"{n:,}" for n in sheet.positions)],
        ["median words per completion", str(sheet.words)],
        ["agreement of labelers", agree],
    ]


def _as_read(row: SampleRow) -> SampleRow:
    """Return a row of samples with its texts as people read them."""
    texts = {name: apart(row.prompt, text) for name, text in row.completions.items()}
    return replace(row, prompt=prompt_text(row.prompt), completions=texts)


def _first(run: Row, name: str) -> str:
    """Return a figure of run.json, from its top or its metrics."""
    value = run.get(name, run.get("metrics", {}).get(name))
    return "see the table of runs" if value is None else f"{value:,.0f}"


def draw_frontier(figure: Figure, result: Evaluation, judge: str, runs: dict[str, PPORun]) -> None:
    """Draw gain (standard deviations of the reference's scores) against KL, with contenders."""
    axis = figure.subplots()
    placed = [(c, c.kl, c.kl_error or 0.0) for c in result.contenders if c.kl is not None]
    drawn = [kl + error for _, kl, error in placed]
    reference = result.contenders[0].scores[judge]
    # A run's log holds the training reward's scores, so only that judge's picture shows it.
    paths = runs if judge == result.training_reward and reference.std > 0 else {}
    for run in paths.values():
        drawn += [update.kl for update in run.log if update.kl is not None]
    right = 1.08 * max([*drawn, 1.0])
    left = min([0.0, *drawn])

    curve = result.frontier.get(judge)
    if curve is not None:
        _draw_optimum(axis, curve, right)
        best = [p for p in curve.best_of_n if p.kl <= right]
        axis.plot([p.kl for p in best], [p.gain for p in best], ".-", color="C7", label="best of n")
        for p in best[1:]:
            axis.annotate(
                str(p.n), (p.kl, p.gain), fontsize=7, xytext=(2, -9), textcoords="offset points"
            )

    scaled = scaled_policies([c for c, _, _ in placed])
    on_lines = {c.name for row in scaled.values() for _, c in row}
    single = [one for one in placed if one[0].kind != "checkpoint" and one[0].name not in on_lines]
    # A run's path has the color of its end.
    colors = {c.name: f"C{i % 10}" for i, (c, _, _) in enumerate(single)}
    for i, (name, run) in enumerate(paths.items(), start=len(single)):
        axis.plot(
            _column(run.log, lambda update: update.kl),
            [
                (score - reference.mean) / reference.std
                for score in _column(run.log, lambda update: update.scores)
            ],
            linewidth=0.8,
            marker=".",
            markersize=3,
            alpha=0.7,
            color=colors.get(name, f"C{i % 10}"),
            label=_label(f"{name}, while training"),
        )

    _draw_checkpoints(axis, [c for c, _, _ in placed], judge)
    _draw_scaled(axis, scaled, judge, reference.std, len(single))
    for i, (c, kl, kl_error) in enumerate(single):
        s = c.scores[judge]
        axis.errorbar(
            kl,
            s.gain,
            xerr=kl_error,
            yerr=s.error / reference.std if reference.std > 0 else 0.0,
            fmt=LOOKS[i % len(LOOKS)],
            color=colors[c.name],
            capsize=2,
            markersize=6,
            label=_label(c.name),
        )

    axis.set_xlim(left - 0.03 * right, right)
    axis.set_xlabel("KL from the reference in nats per completion")
    axis.set_ylabel("gain in standard deviations")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)


def _column(
    log: Sequence[LoggedUpdate], value_of: Callable[[LoggedUpdate], float | None]
) -> list[float]:
    """Return a value of each update; an unknown value is NaN, which leaves a gap in the line."""
    values = [value_of(update) for update in log]
    return [float("nan") if value is None else value for value in values]


def _draw_optimum(axis: Axes, curve: Frontier, right: float) -> None:
    points = [p for p in curve.optimal if p.kl <= right]
    known = [p for p in points if p.kl <= curve.supported_kl]
    beyond = points[max(len(known) - 1, 0) :]
    axis.plot([p.kl for p in known], [p.gain for p in known], color="C3", label="KL-optimal")
    axis.plot(
        [p.kl for p in beyond],
        [p.gain for p in beyond],
        color="C3",
        linestyle=":",
        label="KL-optimal, too few samples",
    )


def scaled_policies(
    contenders: Sequence[ContenderResult],
) -> dict[str, list[tuple[float, ContenderResult]]]:
    """Return the contenders NAME*FACTOR with their factors in order, where a NAME has several.

    So also NAME:beta=STRENGTH, which a critic steers.
    """
    rows: dict[str, list[tuple[float, ContenderResult]]] = {}
    for c in contenders:
        steered = c.kind == "ilql"
        name, star, factor = c.name.rpartition(":beta=" if steered else "*")
        with contextlib.suppress(ValueError):
            if star and (steered or c.kind in ("merged", "adapter", "checkpoint")):
                rows.setdefault(name, []).append((float(factor), c))
    return {name: sorted(row, key=lambda one: one[0]) for name, row in rows.items() if len(row) > 1}


def _draw_scaled(
    axis: Axes,
    scaled: dict[str, list[tuple[float, ContenderResult]]],
    judge: str,
    std: float,
    first: int,
) -> None:
    """Draw a line through one policy at several factors, which stand beside its points.

    Args:
        axis: where to draw.
        scaled: of ``scaled_policies``.
        judge: whose gains are shown.
        std: the standard deviation of the reference's scores.
        first: number of the first color that is free.
    """
    for i, (name, row) in enumerate(scaled.items(), start=first):
        places = [(c.kl or 0.0, c.scores[judge].gain) for _, c in row]
        axis.errorbar(
            [kl for kl, _ in places],
            [gain for _, gain in places],
            xerr=[c.kl_error or 0.0 for _, c in row],
            yerr=[c.scores[judge].error / std if std > 0 else 0.0 for _, c in row],
            fmt="o-",
            capsize=2,
            markersize=4,
            color=f"C{i % 10}",
            label=_label(f"{name}, scaled"),
        )
        for (factor, _), place in zip(row, places, strict=True):
            axis.annotate(
                f"×{factor:g}", place, fontsize=7, xytext=(5, -10), textcoords="offset points"
            )


def _draw_checkpoints(axis: Axes, contenders: Sequence[ContenderResult], judge: str) -> None:
    lines: dict[str, list[ContenderResult]] = {}
    for c in contenders:
        if c.kind == "checkpoint":
            lines.setdefault(c.name.rpartition("@")[0], []).append(c)

    for i, (name, row) in enumerate(lines.items()):
        axis.plot(
            [c.kl for c in row if c.kl is not None],
            [c.scores[judge].gain for c in row if c.kl is not None],
            ".--",
            color=f"C{(i + 5) % 10}",
            label=_label(f"{name}, checkpoints"),
        )


def draw_curves(figure: Figure, runs: dict[str, PPORun]) -> None:
    """Draw each run's score, KL with its target, KL coefficient and entropy over episodes."""
    axes = figure.subplots(2, 2)
    _draw_column(axes[0, 0], "Score", runs, lambda update: update.scores)
    _draw_column(
        axes[0, 1], "KL from the reference in nats per completion", runs, lambda update: update.kl
    )
    _draw_column(axes[1, 0], "KL coefficient", runs, lambda update: update.kl_coef)
    _draw_column(axes[1, 1], "Entropy in nats per completion", runs, lambda update: update.entropy)

    for i, (name, run) in enumerate(runs.items()):
        held_out = [(u.episode, u.held_out_scores) for u in run.log]
        if known := [(x, y) for x, y in held_out if y is not None]:
            axes[0, 0].plot(
                [x for x, _ in known],
                [y for _, y in known],
                "x--",
                color=f"C{i % 10}",
                label=_label(f"{name}, {_of_evaluation(run)} prompts"),
            )
        if run.kl_target is not None:
            axes[0, 1].axhline(run.kl_target, linestyle="--", color=f"C{i % 10}", alpha=0.6)
    axes[0, 0].legend(loc="best", fontsize=8)


def _of_evaluation(run: PPORun) -> str:
    """Say what the prompts are on which a run was evaluated: held out only if it saw none."""
    data = run.identity.get("data") or {}
    return "held-out" if data.get("held_out_trained_on") == 0 else "evaluation"


def _draw_column(
    axis: Axes,
    title: str,
    runs: dict[str, PPORun],
    value_of: Callable[[LoggedUpdate], float | None],
) -> None:
    for i, (name, run) in enumerate(runs.items()):
        known = [update for update in run.log if value_of(update) is not None]
        axis.plot(
            [update.episode for update in known],
            _column(known, value_of),
            marker=_marker(len(known)),
            markersize=4,
            color=f"C{i % 10}",
            label=_label(name),
        )
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("episodes")
    axis.grid(alpha=0.3)


def _marker(points: int) -> str | None:
    """The marker of a curve: none where many points would run into each other."""
    return "o" if points <= MARKED else None


def _draw_rewards(figure: Figure, histories: dict[str, list[Row]]) -> None:
    axes = figure.subplots(1, 2)
    for axis, column in zip(axes, ("loss", "accuracy"), strict=True):
        for name, history in histories.items():
            known = [row for row in history if column in row]
            axis.plot(
                [row["step"] for row in known],
                [row[column] for row in known],
                marker=_marker(len(known)),
                markersize=4,
                label=_label(name),
            )
        axis.set_title(f"{column} on training batches", fontsize=10)
        axis.set_xlabel("optimizer steps")
        axis.grid(alpha=0.3)
    axes[0].legend(loc="best", fontsize=8)


def _against_reference(result: Evaluation) -> list[Pair]:
    """The pairs with the reference on which anybody has spoken."""
    return [p for p in result.pairs if p.b == result.reference and p.judged]


def _draw_wins(figure: Figure, result: Evaluation) -> None:
    axis = figure.subplots()
    rows = _against_reference(result)
    judges = [j.name for j in result.judges]
    for y, p in enumerate(rows):
        axis.errorbar(
            p.win_rate,
            y,
            xerr=[[p.win_rate - p.low], [p.high - p.win_rate]],
            fmt="o",
            capsize=3,
            color=f"C{judges.index(p.judge) % 10}",
        )

    axis.set_yticks(range(len(rows)), [_label(f"{p.a}, judged by {p.judge}") for p in rows])
    axis.invert_yaxis()
    axis.axvline(0.5, linestyle="--", color="C7")
    axis.set_xlim(0, 1)
    axis.set_xlabel(
        f"win rate against {_label(result.reference)} over decided prompts, Wilson 95 %"
    )
    axis.grid(axis="x", alpha=0.3)
