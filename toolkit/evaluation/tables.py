"""What a person sees in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolkit.data.text import printable, prompt_text
from toolkit.evaluation.frontier import optimal_gain

Row = dict[str, Any]
Fact = tuple[str, str, str]  # name, value, and "yes", "no", "not decided" or ""
TEXT_MEASURES = (
    ("words", "words", "{:.1f}"), ("tokens sampled", "tokens", "{:.1f}"),
    ("distinct-1", "distinct_1", "{:.3f}"), ("distinct-2", "distinct_2", "{:.3f}"),
    ("repeats itself", "repetition", "{:.1%}"), ("unique completions", "unique", "{:.1%}"),
    ("copied from the prompt", "copied_3grams", "{:.1%}"),
    ("new sentences", "new_sentences", "{:.1%}"),
    ("begins as the prompt does", "copies_opening", "{:.1%}"),
)  # fmt: skip


def print_facts(title: str, facts: Sequence[Fact]) -> None:
    """Names, values and verdicts."""
    table = Table(title=title, show_header=False)
    for name, value, verdict in facts:
        color = {"yes": "green", "no": "bold red", "not decided": "yellow"}.get(verdict, "")
        table.add_row(Text(name), Text(value), Text(verdict, style=color))
    Console().print(table)


def print_evaluation(result: Row, samples: Sequence[Row]) -> None:
    """What evaluate.py found; names and texts are shown as they are, never as markup."""
    _print("Contenders", *contender_table(result))
    _print("Their texts", *text_table(result))
    for judge in result["judges"]:
        _print(f"Pairs, judged by {judge['name']}",
               *pair_table(result, judge["name"]))  # fmt: skip
        if places := place_table(result, judge["name"]):
            _print(f"Below the KL-optimal curve of {judge['name']}", *places)
        if judge["name"] in result["ratings"]:
            rows = [[r["name"], f"{r['rating']:.0f}", f"{r['low']:.0f} to {r['high']:.0f}"]
                    for r in result["ratings"][judge["name"]]]  # fmt: skip
            _print(f"Ratings by {judge['name']} (400 points are odds of 10 to 1)",
                   ["contender", "rating", "95 %"], rows)  # fmt: skip
    if result["gaps"]:
        _print("Training reward against others (gains in standard deviations)",
               *gap_table(result))  # fmt: skip
    if samples:
        names = list(samples[0]["completions"])
        rows = [
            [prompt_text(row["prompt"]), *(row["completions"][n] for n in names)] for row in samples
        ]
        _print("Samples (first prompts, fixed seed, not picked)", ["prompt", *names], rows, True)


def contender_table(result: Row) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: KL, and each judge's mean score, its error and the gain."""
    judges = list(result["contenders"][0]["scores"])
    rows = []
    for c in result["contenders"]:
        kl = "not known" if c["kl"] is None else f"{c['kl']:.2f} ± {c['kl_error']:.2f}"
        scores = [c["scores"][j] for j in judges]
        rows.append([
            c["name"], kl,
            *(cell for s in scores for cell in (f"{s['mean']:.2f} ± {s['error']:.2f}",
                                                f"{s['gain']:+.2f}")),
        ])  # fmt: skip
    headers = [cell for j in judges for cell in (j, "gain, std")]
    return ["contender", "KL, nats", *headers], rows


def text_table(result: Row) -> tuple[list[str], list[list[str]]]:
    """Headers and cells, a column for each contender: what their texts are like."""
    contenders = result["contenders"]
    rows = [
        [label, *(shown.format(c[key]) for c in contenders)] for label, key, shown in TEXT_MEASURES
    ]
    return ["", *(c["name"] for c in contenders)], rows


def pair_table(
    result: Row, judge: str, with_reference: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of a judge's pairs; of those alone that the reference is one of."""
    rows = []
    for p in result["pairs"]:
        if p["judge"] == judge and (not with_reference or p["b"] == result["reference"]):
            counts = f"{p['wins']} / {p['ties']} / {p['losses']}"
            missing = f" ({p['not_judged']} not judged)" if p["not_judged"] else ""
            rows.append([
                f"{p['a']} : {p['b']}", counts + missing,
                _rate(p), f"{p['p_value']:.2g}",
                f"{p['p_holm']:.2g}", f"{p['p_scores']:.2g}" if "p_scores" in p else "",
            ])  # fmt: skip
    return ["pair", "wins / ties / losses", "win rate of decided", "p", "p, Holm",
            "p of scores"], rows  # fmt: skip


def _rate(p: Row) -> str:
    if not p["wins"] + p["losses"]:
        return "none decided"
    return f"{p['win_rate']:.1%} [{p['low']:.1%}, {p['high']:.1%}]"


def place_table(result: Row, judge: str) -> tuple[list[str], list[list[str]]] | None:
    """Headers and cells: each contender's place below the KL-optimal curve; None without one."""
    curve = result["frontier"].get(judge)
    if curve is None:
        return None
    reference = result["contenders"][0]["scores"][judge]
    rows = []
    for c in result["contenders"]:
        if c["kl"] is None or c["kl"] <= 0:
            continue
        gain = c["scores"][judge]["gain"]
        error = c["scores"][judge]["error"] / reference["std"] if reference["std"] > 0 else 0.0
        best = optimal_gain(curve, c["kl"])
        share = ""
        if best is not None and best > 0:
            share = f"{gain / best:.0%} ± {error / best:.0%}"
        shown = "beyond what the samples support" if best is None else f"{best:+.2f}"
        rows.append([c["name"], f"{c['kl']:.2f}", f"{gain:+.2f} ± {error:.2f}", shown, share])
    headers = ["contender", "KL", "gain", "optimal gain there", "share of it"]
    return (headers, rows) if rows else None


def gap_table(result: Row) -> tuple[list[str], list[list[str]]]:
    """Headers and cells of what other judges say of the training reward's gain."""
    rows = [
        [g["name"], g["judge"], f"{g['trained_gain']:+.2f}", f"{g['gain']:+.2f}",
         f"{g['gap']:+.2f}", "ALARM: not confirmed" if g["alarm"] else ""]
        for g in result["gaps"]
    ]  # fmt: skip
    return ["contender", "other judge", "training reward", "its gain", "gap", "verdict"], rows


def _print(
    title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], lines: bool = False
) -> None:
    table = Table(title=Text(printable(title)), show_lines=lines)
    for header in headers:
        table.add_column(Text(printable(header)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)
