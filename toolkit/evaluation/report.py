"""What a person looks at: tables in the terminal, learning curves, one HTML page."""

import base64
import io
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolkit.data.text import printable
from toolkit.evaluation.page import render

Row = dict[str, Any]
Fact = tuple[str, str, str]  # name, value, and "yes", "no" or ""


def plot_curves(rows: list[Row], reward_history: list[Row] | None = None) -> bytes:
    """Learning curves as a PNG: score, KL and its target, kl_coef, and the reward model's training.

    Args:
        rows: of PPO's log.jsonl.
        reward_history: rows with ``step`` and ``accuracy`` (and ``loss``), or None.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.6), layout="constrained")
    axes = figure.subplots(2, 2)
    episodes = [row["episode"] for row in rows]

    def draw(axis: Any, name: str, label: str) -> None:
        axis.plot(episodes, [row[name] for row in rows], label=label)

    draw(axes[0, 0], "objective/scores", "score")
    draw(axes[0, 0], "objective/rlhf_reward", "score - kl_coef * KL")
    axes[0, 0].set_title("Score (reference: mean 0, std 1)")
    draw(axes[0, 1], "objective/kl", "KL")
    if rows[0]["objective/kl_target"] is not None:
        axes[0, 1].axhline(rows[0]["objective/kl_target"], linestyle="--", color="gray")
        axes[0, 1].axhspan(
            0.9 * rows[0]["objective/kl_target"], 1.1 * rows[0]["objective/kl_target"],
            color="gray", alpha=0.15, label="target, within 10 %",
        )  # fmt: skip
    axes[0, 1].set_title("KL from the reference (nats per completion)")
    draw(axes[1, 0], "objective/kl_coef", "kl_coef")
    axes[1, 0].set_title("KL coefficient")
    for axis in (axes[0, 0], axes[0, 1], axes[1, 0]):
        axis.set_xlabel("episodes")
    if reward_history:
        steps = [row["step"] for row in reward_history]
        axes[1, 1].plot(steps, [row["accuracy"] for row in reward_history], label="accuracy")
        axes[1, 1].set_xlabel("optimizer steps")
        axes[1, 1].set_title("Reward model: accuracy on its training batches")
    else:
        draw(axes[1, 1], "objective/entropy", "entropy")
        axes[1, 1].set_title("Entropy (nats per completion)")
        axes[1, 1].set_xlabel("episodes")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def write_report(
    path: str | Path,
    title: str,
    facts: list[Fact],
    curves: bytes,
    samples: list[Row],
) -> None:
    """One self-contained HTML page; every text in it is escaped.

    Args:
        path: where.
        title: its heading.
        facts: rows of name, value and verdict ("yes", "no" or "").
        curves: a PNG.
        samples: rows of ``compare``.
    """
    encoded = base64.b64encode(curves).decode("ascii")
    render(path, "run_report.html", title, facts=facts, curves=encoded, samples=samples)


def verdict(
    summary: dict[str, float], rows: list[Row], metrics: dict[str, Any], tolerance: float = 0.1
) -> tuple[list[Fact], bool]:
    """What came of a run, as facts for the report, and whether it is good.

    Good: the lower Wilson bound of the win rate is above one half, and the KL's mean over the last
    fifth of the updates is within ``tolerance`` of its target.

    Args:
        summary: of ``compare``.
        rows: of PPO's log, made with an adaptive controller.
        metrics: of the reward model.
        tolerance: relative.
    """
    kl, target = last_fifth(rows, "objective/kl"), rows[-1]["objective/kl_target"]
    held = abs(kl / target - 1) <= tolerance
    better = summary["win_rate_low"] > 0.5
    accuracy = (
        f"{metrics['accuracy']:.1%} [{metrics['accuracy_low']:.1%}, "
        f"{metrics['accuracy_high']:.1%}], chance {metrics['chance']:.0%}"
    )
    facts = [(name, value, "") for name, value in summary_lines(summary)] + [
        ("reward model, held-out accuracy", accuracy, ""),
        ("the policy got better", "win rate above 50 %", "yes" if better else "no"),
        (
            "the KL was held",
            f"{kl:.2f} nats over the last fifth, target {target:g}",
            "yes" if held else "no",
        ),
    ]
    return facts, better and held


def print_facts(title: str, facts: list[Fact]) -> None:
    """The table of ``write_report`` in the terminal."""
    table = Table(title=title, show_header=False)
    for name, value, verdict in facts:
        color = {"yes": "green", "no": "bold red"}.get(verdict, "")
        table.add_row(Text(name), Text(value), Text(verdict, style=color))
    Console().print(table)


def print_summary(summary: dict[str, float]) -> None:
    """What ``compare`` found, as a table."""
    print_facts("Policy against reference", [(n, v, "") for n, v in summary_lines(summary)])


def summary_lines(summary: dict[str, float]) -> list[tuple[str, str]]:
    """Names and values of ``summarize``, as a person reads them."""
    s = summary
    return [
        ("held-out prompts", f"{s['prompts']}"),
        ("wins / ties / losses", f"{s['wins']} / {s['ties']} / {s['losses']}"),
        (
            "win rate of decided pairs",
            f"{s['win_rate']:.1%} [{s['win_rate_low']:.1%}, {s['win_rate_high']:.1%}]",
        ),
        (
            "score, untuned -> tuned",
            f"{s['reference_score']:.2f} -> {s['policy_score']:.2f} "
            f"({s['score_gain']:+.2f} standard deviations)",
        ),
        ("KL from the reference", f"{s['kl']:.2f} nats (standard error {s['kl_error']:.2f})"),
    ]


def print_samples(rows: list[Row]) -> None:
    """Both sides' completions; texts are shown as they are, never as terminal markup."""
    if not rows:
        return
    table = Table(title="Samples (first prompts, fixed seed, not picked)", show_lines=True)
    for header in ("prompt", "untuned", "", "tuned", ""):
        table.add_column(header)
    for row in rows:
        table.add_row(
            Text(printable(row["prompt"])),
            Text(printable(row["reference"])), Text(f"{row['reference_score']:+.1f}"),
            Text(printable(row["policy"])), Text(f"{row['policy_score']:+.1f}"),
        )  # fmt: skip
    Console().print(table)


def last_fifth(rows: list[Row], name: str) -> float:
    """Mean of a column over the last fifth of a run's updates (at least one)."""
    tail = rows[-max(1, math.ceil(len(rows) / 5)) :]
    return sum(row[name] for row in tail) / len(tail)
