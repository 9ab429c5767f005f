"""Does a policy please only the reward model that it was trained on? A second one watches it.

``preftune robustness`` trains two reward models on halves of the same comparisons, and the policy
against the first. This reads what its evaluation measured of each checkpoint, and writes the page.
Source: arXiv 2204.05862, sections 4.2 and 4.3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from toolkit.data.files import write_json
from toolkit.data.records import to_row
from toolkit.errors import InputError
from toolkit.evaluation.page import picture, render
from toolkit.evaluation.result import ContenderResult, Evaluation
from toolkit.evaluation.samples import SampleRow
from toolkit.evaluation.tables import Fact
from toolkit.maths.frontier import sqrt_fit
from toolkit.maths.robustness import Gaps, robustness_gaps

NAME = "robustness.json"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CheckpointRow:
    """One checkpoint; gains are in standard deviations of a judge's scores of the reference.

    Attributes:
        name: name of the contender.
        kl, kl_error: nats per completion, and the standard error.
        train, test: gains under the reward model that was trained against, and the other one.
        gap: train minus test.
        sure_low: lower end of the gap in a band for all checkpoints together (``Gaps``).
        judges: gains under further judges.
        judge_gaps: train minus each of these.
    """

    name: str
    kl: float
    kl_error: float
    train: float
    test: float
    gap: Interval
    sure_low: float
    judges: dict[str, float]
    judge_gaps: dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Gain over the square root of the KL (``maths.frontier.sqrt_fit``)."""

    intercept: float
    slope: float
    slope_error: float | None
    r2: float | None
    kl_r2: float | None


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What came out, stored in robustness.json.

    Attributes:
        prompts: number of prompts, which the bootstrap draws.
        shared_samples: samples of the reference on each, by which each judge's mean is 0.
        checkpoints: in the order of training.
        overoptimized: the first checkpoint whose gap is surely above 0; None without one.
        lines: by judge; empty if there are fewer than three checkpoints.
        sides: for each further judge whether it confirms, at the last checkpoint, that the train
            model overstates the gain: "yes", "no" or "not decided".
    """

    prompts: int
    shared_samples: int
    checkpoints: list[CheckpointRow]
    overoptimized: str | None
    lines: dict[str, Line]
    sides: dict[str, str]

    def write(self, path: Path) -> None:
        """Write the figures atomically."""
        write_json(path, to_row(self))

    def facts(self) -> list[Fact]:
        """The main results, each with "yes", "no", "not decided" or nothing."""
        last = self.checkpoints[-1]
        first = next((c for c in self.checkpoints if c.name == self.overoptimized), None)
        where = f"{last.gap.value:+.2f} [{last.gap.low:+.2f}, {last.gap.high:+.2f}]"
        at_last = f"at the last checkpoint, {last.kl:.1f} nats, the gap is {where}"
        if first is None:
            found = f"no gap is surely above 0; {at_last}"
        else:
            at_first = f"{first.name}, at {first.kl:.1f} nats"
            found = f"the gap is surely above 0 first at {at_first}; {at_last}"
        facts: list[Fact] = [("free of over-optimization", found, "yes" if first is None else "no")]

        for name, answer in self.sides.items():
            gap = last.judge_gaps[name]
            value = (
                f"gains at the last checkpoint: train {last.train:+.2f}, test {last.test:+.2f}, "
                f"{name} {last.judges[name]:+.2f}; train less {name}: {gap.value:+.2f} "
                f"[{gap.low:+.2f}, {gap.high:+.2f}]"
            )
            # A "yes" here is bad news, so it is no verdict of the page.
            title = f"{name} also finds the train model's gain too high"
            facts.append((title, f"{answer}; {value}", ""))
        for name, line in self.lines.items():
            error = "" if line.slope_error is None else f" ± {line.slope_error:.2f}"
            fit = "" if line.r2 is None else f", R² {line.r2:.3f}"
            fit += "" if line.kl_r2 is None else f" (over the KL itself {line.kl_r2:.3f})"
            value = f"{line.slope:.2f}{error} a root of a nat{fit}"
            facts.append((f"{name}: gain over the root of the KL", value, ""))
        return facts


def measure(
    result: Evaluation,
    samples: Sequence[SampleRow],
    train: str,
    test: str,
    draws: int = 2000,
    seed: int = 0,
) -> Robustness:
    """Compare the checkpoints' gains under all judges.

    Args:
        result: with these two judges, a contender of kind "reference" or more, and checkpoints.
        samples: its samples.
        train, test: names of the judges that the policy was, and was not, trained against.
        draws, seed: of the bootstrap.

    Raises:
        InputError: one of these is missing, or a judge gives all samples of the reference one
            score.
    """
    names = [judge.name for judge in result.judges]
    missing = [name for name in (train, test) if name not in names]
    if missing:
        raise InputError(f"evaluation: no judge is called {missing[0]!r}")
    checkpoints = [c for c in result.contenders if c.kind == "checkpoint"]
    shared = [c for c in result.contenders if c.kind == "reference"]
    if not checkpoints:
        raise InputError("evaluation: no checkpoint took part (keep them by save_total_limit)")

    def table(judge: str, contenders: Sequence[ContenderResult]) -> Tensor:
        """The scores (contenders, prompts)."""
        rows = [[row.scores[judge][c.name] for row in samples] for c in contenders]
        return torch.tensor(rows, dtype=torch.float64)

    def against(judge: str) -> Gaps:
        try:
            return robustness_gaps(
                table(train, checkpoints),
                table(judge, checkpoints),
                table(train, shared),
                table(judge, shared),
                draws,
                seed,
            )
        except ValueError as error:
            raise InputError(f"judges: {train} and {judge} cannot be compared: {error}") from None

    # Judges that only pick have no scores to average.
    scoring = [name for name in names if name not in (train, test) and name in samples[0].scores]
    gaps, others = against(test), {name: against(name) for name in scoring}

    def interval(of: Gaps, i: int) -> Interval:
        return Interval(value=of.gap[i].item(), low=of.low[i].item(), high=of.high[i].item())

    rows = [
        CheckpointRow(
            name=c.name,
            kl=c.kl if c.kl is not None else math.nan,
            kl_error=c.kl_error or 0.0,
            train=gaps.train[i].item(),
            test=gaps.test[i].item(),
            gap=interval(gaps, i),
            sure_low=gaps.sure_low[i].item(),
            judges={name: of.test[i].item() for name, of in others.items()},
            judge_gaps={name: interval(of, i) for name, of in others.items()},
        )
        for i, c in enumerate(checkpoints)
    ]
    first = gaps.first()
    return Robustness(
        prompts=len(samples),
        shared_samples=len(shared),
        checkpoints=rows,
        overoptimized=None if first is None else rows[first].name,
        lines=_lines(rows, train, test, scoring),
        sides={name: _side(rows[-1].judge_gaps[name]) for name in scoring},
    )


def _side(gap: Interval) -> str:
    if gap.low > 0:
        return "yes"
    return "no" if gap.high < 0 else "not decided"


def _lines(
    rows: Sequence[CheckpointRow], train: str, test: str, judges: Sequence[str]
) -> dict[str, Line]:
    # A KL is estimated by samples, so near 0 it may come out a little below.
    kl = [max(row.kl, 0.0) for row in rows]
    if len(set(kl)) < 3:
        return {}
    gains = {train: [row.train for row in rows], test: [row.test for row in rows]}
    gains |= {name: [row.judges[name] for row in rows] for name in judges}

    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    lines = {}
    for name, values in gains.items():
        fit = sqrt_fit(kl, values)
        lines[name] = Line(
            intercept=fit.intercept,
            slope=fit.slope,
            slope_error=known(fit.slope_error),
            r2=known(fit.r2),
            kl_r2=known(fit.kl_r2),
        )
    return lines


def write_page(folder: Path, found: Robustness, about: Sequence[tuple[str, str]]) -> Path:
    """Write ``robustness.html`` with its picture, and ``robustness.json``; return the page's path.

    Args:
        folder: where they go.
        found: what was measured.
        about: names and values for the top of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    image = picture(
        lambda figure: draw(figure, found),
        "Gains and their gap over the square root of the KL",
        (9, 6.4),
        folder / "robustness.png",
        narrow=True,
    )
    page = folder / "robustness.html"
    render(
        page,
        "robustness.html",
        "Robustness of a reward model",
        facts=found.facts(),
        about=about,
        image=image,
        found=found,
        judges=list(found.sides),
    )
    found.write(folder / NAME)
    return page


def draw(figure: Figure, found: Robustness) -> None:
    """Draw the gains above, and below the gap with its interval, over the root of the KL."""
    above, below = figure.subplots(2, 1, sharex=True)
    rows = found.checkpoints
    root = [math.sqrt(max(row.kl, 0.0)) for row in rows]
    above.plot(root, [row.train for row in rows], "o-", label="train model")
    above.plot(root, [row.test for row in rows], "s-", label="test model")
    for i, name in enumerate(found.sides):
        label = name.replace("$", r"\$")
        shown = f" {label}" if label.startswith("_") else label
        gains = [row.judges[name] for row in rows]
        above.plot(root, gains, "^--", color=f"C{i + 2}", label=shown)
    above.set_ylabel("gain in standard deviations")
    above.grid(alpha=0.3)
    above.legend(loc="best", fontsize=8)

    middle = [row.gap.value for row in rows]
    below.errorbar(
        root,
        middle,
        yerr=[
            [max(0.0, row.gap.value - row.gap.low) for row in rows],
            [max(0.0, row.gap.high - row.gap.value) for row in rows],
        ],
        fmt="o-",
        capsize=3,
        color="C3",
    )
    below.axhline(0.0, linestyle="--", color="C7")
    below.set_ylabel("train less test, 95 %")
    below.set_xlabel("square root of the KL from the reference (nats per completion)")
    below.grid(alpha=0.3)
