"""Print results as tables in the terminal."""

from collections.abc import Callable, Sequence

from toolkit.data.text import apart, prompt_text
from toolkit.evaluation.best_of_n import best_of_n_gain, best_of_n_lines
from toolkit.evaluation.contenders import GIVEN
from toolkit.evaluation.frontier import optimal_gain
from toolkit.evaluation.result import (
    ContenderResult,
    Copying,
    Evaluation,
    PairCounts,
    Perplexities,
    Rouge,
)
from toolkit.evaluation.samples import SampleRow
from toolkit.terminal import Cell, print_table, say

Fact = tuple[str, str, str]  # name, value, and "yes", "no", "not decided" or ""
Grid = tuple[list[str], list[list[str]]]  # headers and cells
TEXT_MEASURES: tuple[tuple[str, str, Callable[[ContenderResult], float]], ...] = (
    ("words", "{:.1f}", lambda c: c.words),
    ("tokens sampled", "{:.1f}", lambda c: c.tokens),
    ("distinct-1", "{:.3f}", lambda c: c.distinct_1),
    ("distinct-2", "{:.3f}", lambda c: c.distinct_2),
    ("repeats itself", "{:.1%}", lambda c: c.repetition),
    ("unique completions", "{:.1%}", lambda c: c.unique),
    ("copied from the prompt", "{:.1%}", lambda c: c.copied_3grams),
    ("new sentences", "{:.1%}", lambda c: c.new_sentences),
    ("begins like the prompt", "{:.1%}", lambda c: c.copies_opening),
)
# Measures of summaries; ROUGE is times 100, as it is published.
COPIES: tuple[tuple[str, Callable[[Copying], str]], ...] = (
    ("copied opening, no preamble", lambda c: _share(c.opening_plain)),
    ("copied opening, preamble", lambda c: _share(c.opening_preamble)),
    ("copied sentences", lambda c: str(c.copied)),
    ("first / second / third / later", lambda c: _places(c)),
    ("mean place of these, 0 to 1", lambda c: _decimal(c.mean_place)),
)
ROUGES: tuple[tuple[str, Callable[[Rouge], str]], ...] = (
    ("ROUGE-1, not stemmed", lambda r: f"{100 * r.rouge_1:.2f}"),
    ("ROUGE-2, not stemmed", lambda r: f"{100 * r.rouge_2:.2f}"),
    ("ROUGE-L, not stemmed", lambda r: f"{100 * r.rouge_l:.2f}"),
    ("ROUGE-Lsum, not stemmed", lambda r: f"{100 * r.rouge_lsum:.2f}"),
    ("R-AVG, not stemmed", lambda r: f"{100 * r.average:.2f} ± {100 * r.average_error:.2f}"),
)


def print_facts(title: str, facts: Sequence[Fact]) -> None:
    """Print names, values and verdicts."""
    colors = {"yes": "green", "no": "bold red", "not decided": "yellow"}
    rows: list[list[str | Cell]] = []
    for name, value, verdict in facts:
        rows.append([name, value, Cell(verdict, colors.get(verdict, ""))])
    print_table(title, [], rows)


def print_evaluation(result: Evaluation, samples: Sequence[SampleRow]) -> None:
    """Print the results of evaluate.py; names and texts are never read as markup."""
    print_table("Contenders", *contender_table(result))
    for line in worth_of_length(result):
        say(line)
    print_table("Texts", *text_table(result))
    for line in summary_notes(result):
        say(line)
    if result.perplexity is not None and (found := perplexity_table(result)):
        print_table(perplexity_title(result.perplexity), *found)

    for judge in result.judges:
        print_table(f"Pairs, judged by {judge.name}", *pair_table(result, judge.name))
        if places := place_table(result, judge.name):
            print_table(f"Gain compared with the KL-optimal curve, judged by {judge.name}", *places)
        for line in best_of_n_lines(result, judge.name):
            say(line)
        if judge.name in result.ratings:
            rows = [
                [r.name, f"{r.rating:.0f}", f"{r.low:.0f} to {r.high:.0f}"]
                for r in result.ratings[judge.name]
            ]
            title = f"Ratings by {judge.name} (400 points are odds of 10 to 1)"
            print_table(title, ["contender", "rating", "95 %"], rows)

    if result.gaps:
        title = "Training reward against other judges (gains in standard deviations)"
        print_table(title, *gap_table(result))

    if samples:
        rows = []
        for row in samples:
            rows.append(["prompt", prompt_text(row.prompt)])
            rows += [
                [name, apart(row.prompt, text).strip()] for name, text in row.completions.items()
            ]
        print_table(
            "Samples (the first prompts with a fixed seed, not selected)", [], rows, lines=True
        )


def contender_table(result: Evaluation) -> Grid:
    """Return each contender's KL and length, and its score and gain under each judge.

    A score is a mean with its standard error. The gain at equal length stands beside the plain one
    where the worth of a token is known.
    """
    judges = list(result.contenders[0].scores)
    measured = result.contenders[0].length is not None  # not in old files

    rows = []
    for c in result.contenders:
        row = [c.name, _kl(c)]
        if measured:
            row.append(f"{c.length:.1f}")
        for judge in judges:
            s = c.scores[judge]
            row += [f"{s.mean:.2f} ± {s.error:.2f}", f"{s.gain:+.2f}"]
            if judge in result.lengths:
                fair = s.gain_at_equal_length
                row.append("not known" if fair is None else f"{fair:+.2f}")
        rows.append(row)

    headers = ["contender", "KL, nats", *(["tokens"] if measured else [])]
    for judge in judges:
        headers += [judge, "gain, std"]
        if judge in result.lengths:  # a narrow terminal may part the columns of a judge
            headers.append(f"{judge} at equal length")
    return headers, rows


def _kl(c: ContenderResult) -> str:
    """A contender's KL; nothing for a text that no model wrote."""
    if c.kl is None:
        return "" if c.kind in GIVEN else "not known"
    return f"{c.kl:.2f} ± {c.kl_error:.2f}"


def worth_of_length(result: Evaluation) -> list[str]:
    """Return a sentence for each judge on what a token is worth under it."""
    return [
        f"Under {judge}, a token more is worth {line.slope:+.4f} ± {line.error:.4f} of the score, "
        f"by a straight line through the completions of {result.reference}, which have "
        f"{line.length:.1f} tokens on average."
        for judge, line in result.lengths.items()
    ]


def text_table(result: Evaluation) -> Grid:
    """Return the measures of the contenders' texts, one column per contender."""
    rows = [
        [label, *(shown.format(measure(c)) for c in result.contenders)]
        for label, shown, measure in TEXT_MEASURES
    ]
    if any(c.copying is not None for c in result.contenders):
        rows += [[label, *(_copied(c, cell) for c in result.contenders)] for label, cell in COPIES]
    if any(c.rouge is not None for c in result.contenders):
        rows += [[label, *(_rouge(c, cell) for c in result.contenders)] for label, cell in ROUGES]
    return ["", *(c.name for c in result.contenders)], rows


def summary_notes(result: Evaluation) -> list[str]:
    """Return what the measures of summaries in ``text_table`` mean, a sentence each."""
    lines = []
    if any(c.copying is not None for c in result.contenders):
        lines += [
            "Copying is measured on the text that a prompt asks to sum up. A copied opening is its "
            "first five words.",
            "A preamble is hi, hello, hey, ok, okay or so as a text's first word, or a colon among "
            "its first three words.",
            "A copied sentence is counted at its first place in the text, and the mean place goes "
            "from 0 (the text's first sentence) to 1 (its last).",
        ]
    if any(c.rouge is not None for c in result.contenders):
        lines.append(
            "ROUGE is the F of lower-case words (letters and digits) that are not stemmed, times "
            "100, as a mean over prompts. R-AVG is the mean of ROUGE-1, -2 and -L, with its "
            "standard error."
        )
    return lines


def _copied(c: ContenderResult, cell: Callable[[Copying], str]) -> str:
    return "" if c.copying is None else cell(c.copying)


def _rouge(c: ContenderResult, cell: Callable[[Rouge], str]) -> str:
    return "" if c.rouge is None else cell(c.rouge)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _places(c: Copying) -> str:
    return " / ".join(f"{count / c.copied:.0%}" for count in c.places) if c.copied else ""


def perplexity_table(result: Evaluation) -> Grid | None:
    """Return each contender's perplexity with its interval; None if it was not measured."""
    if result.perplexity is None:
        return None
    rows = []
    for p in result.perplexity.contenders:
        ratio = ""
        if p.ratio is not None:
            ratio = f"{p.ratio:.3f} [{p.ratio_low:.3f}, {p.ratio_high:.3f}]"
        rows.append([p.name, f"{p.perplexity:.3f} [{p.low:.3f}, {p.high:.3f}]", ratio])
    return ["contender", "perplexity [95 %]", "divided by the reference's [95 %]"], rows


def perplexity_title(found: Perplexities) -> str:
    """Say on what the perplexity was measured."""
    cut = f", {found.cut} of them cut" if found.cut else ""
    tokens = f"{found.tokens:,} predicted tokens in {found.texts:,} texts"
    return f"Perplexity on {found.file} ({tokens}{cut})"


def pair_table(result: Evaluation, judge: str, with_reference: bool = False) -> Grid:
    """Return a judge's pairs; with ``with_reference`` only the pairs with the reference."""
    rows = []
    for p in result.pairs:
        if p.judge != judge or (with_reference and p.b != result.reference):
            continue
        missing = f" ({p.not_judged} not judged)" if p.not_judged else ""
        rows.append(
            [
                f"{p.a} : {p.b}",
                f"{p.wins} / {p.ties} / {p.losses}{missing}",
                _rate(p),
                f"{p.p_value:.2g}",
                f"{p.p_holm:.2g}",
                "" if p.p_scores is None else f"{p.p_scores:.2g}",
            ]
        )
    headers = ["pair", "wins / ties / losses", "win rate if decided", "p", "p, Holm", "p of scores"]
    return headers, rows


def _rate(p: PairCounts) -> str:
    if not p.wins + p.losses:
        return "none decided"
    return f"{p.win_rate:.1%} [{p.low:.1%}, {p.high:.1%}]"


def place_table(result: Evaluation, judge: str) -> Grid | None:
    """Return each contender's place below the KL-optimal curve; None without a curve or KL.

    Beside its gain stand those of best-of-n and of the optimum at the same KL.
    """
    curve = result.frontier.get(judge)
    if curve is None:
        return None

    spread = result.contenders[0].scores[judge].std
    rows = []
    for c in result.contenders:
        if c.kl is None or c.kl <= 0:
            continue
        gain = c.scores[judge].gain
        error = c.scores[judge].error / spread if spread > 0 else 0.0

        best = optimal_gain(curve, c.kl)
        shown = "beyond what the samples support" if best is None else f"{best:+.2f}"
        share = ""
        if best is not None and best > 0:
            share = f"{gain / best:.0%} ± {error / best:.0%}"
        chosen = best_of_n_gain(curve.best_of_n, c.kl)
        by_choice = "" if chosen is None else f"{chosen:+.2f}"
        rows.append([c.name, f"{c.kl:.2f}", f"{gain:+.2f} ± {error:.2f}", by_choice, shown, share])

    headers = [
        "contender", "KL", "gain", "best of n", "optimal gain", "share of optimum"
    ]  # fmt: skip
    return (headers, rows) if rows else None


def gap_table(result: Evaluation) -> Grid:
    """Return the training reward's gains beside those of the other judges."""
    rows = [
        [
            g.name,
            g.judge,
            f"{g.trained_gain:+.2f}",
            f"{g.gain:+.2f}",
            f"{g.gap:+.2f}",
            "ALARM: not confirmed" if g.alarm else "",
        ]
        for g in result.gaps
    ]
    return ["contender", "other judge", "training reward", "its gain", "gap", "verdict"], rows
