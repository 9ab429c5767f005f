"""The page on what more labels are worth to the policy: its gain against the number of labels.

This is figure 2 of arXiv 1909.08593 at the end of each run: policies trained by reward models of
ever more labels, and one trained on the labeler's scores directly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from toolkit.data.files import write_json
from toolkit.data.records import to_row
from toolkit.errors import InputError
from toolkit.evaluation.page import picture, render
from toolkit.evaluation.result import ContenderResult, Evaluation

PAGE = "labels.html"


@dataclass(frozen=True)
class LabelPoint:
    """What a policy came to.

    Attributes:
        name: of the contender.
        labels: comparisons that its reward model was trained on; None for the direct one.
        kl, kl_error: nats per completion.
        gains, errors: by judge, in standard deviations of the untuned model's scores.
    """

    name: str
    labels: int | None
    kl: float | None
    kl_error: float | None
    gains: dict[str, float]
    errors: dict[str, float]


def label_points(
    result: Evaluation, labels: Mapping[str, int], direct: str | None
) -> list[LabelPoint]:
    """Return a point for each policy, the fewest labels first and the direct one last.

    Args:
        result: of the evaluation in which all of them took part.
        labels: the number of labels by contender.
        direct: name of the policy that was trained on the scorer itself, if there is one.

    Raises:
        InputError: a policy took no part, or no judge gave scores.
    """
    found = {c.name: c for c in result.contenders}
    reference = found[result.reference]
    if not reference.scores:
        raise InputError("evaluate_config: no judge scores (name a lexicon or a reward function)")

    points = []
    for name in [*sorted(labels, key=lambda one: labels[one]), *([direct] if direct else [])]:
        if name not in found:
            raise InputError(f"evaluation: {name} is not among the contenders")
        points.append(_point(found[name], reference, labels.get(name)))
    return points


def _point(one: ContenderResult, reference: ContenderResult, labels: int | None) -> LabelPoint:
    errors = {
        judge: score.error / reference.scores[judge].std if reference.scores[judge].std else 0.0
        for judge, score in one.scores.items()
    }
    gains = {judge: score.gain for judge, score in one.scores.items()}
    return LabelPoint(one.name, labels, one.kl, one.kl_error, gains, errors)


def write_label_page(
    out: Path, title: str, points: Sequence[LabelPoint], result: Evaluation
) -> Path:
    """Write labels.html, labels.json and a PNG for each judge; return the page.

    Args:
        out: the folder.
        title: heading of the page.
        points: of ``label_points``.
        result: of the evaluation.
    """
    judges = list(points[0].gains)
    pictures = [
        picture(
            lambda figure, judge=judge: draw_labels(figure, points, judge),  # type: ignore[misc]
            f"Gain by {judge} against the number of labels",
            (7, 4),
            out / f"labels-{judge}.png",
        )
        for judge in judges
    ]
    direct = next((point.name for point in points if point.labels is None), None)
    write_json(out / "labels.json", [to_row(point) for point in points])
    render(
        out / PAGE,
        "label_figure.html",
        title,
        pictures=pictures,
        headers=headers_of(judges),
        rows=[row_of(point) for point in points],
        direct=direct,
        prompts=result.prompts,
    )
    return out / PAGE


def headers_of(judges: Sequence[str]) -> list[str]:
    """The heads of the table's columns."""
    return ["policy", "labels", "KL, nats", *(f"gain by {judge}" for judge in judges)]


def row_of(point: LabelPoint) -> list[str]:
    """A point as a row of the table."""
    kl = "" if point.kl is None else f"{point.kl:.2f} ± {point.kl_error or 0:.2f}"
    return [
        point.name,
        "none" if point.labels is None else f"{point.labels:,}",
        kl,
        *(f"{point.gains[judge]:.2f} ± {point.errors[judge]:.2f}" for judge in point.gains),
    ]


def draw_labels(figure: Figure, points: Sequence[LabelPoint], judge: str) -> None:
    """Draw the gain by one judge against the number of labels, on a logarithmic axis."""
    axis = figure.subplots()
    learned = [point for point in points if point.labels is not None]
    axis.errorbar(
        [point.labels for point in learned if point.labels is not None],
        [point.gains[judge] for point in learned],
        yerr=[point.errors[judge] for point in learned],
        fmt="o-",
        capsize=3,
        label="by a reward model",
    )
    for point in points:
        if point.labels is None:
            gain, error = point.gains[judge], point.errors[judge]
            axis.axhline(gain, color="C1", label=f"{point.name}: on the scores themselves")
            axis.axhspan(gain - error, gain + error, color="C1", alpha=0.2, linewidth=0)
    axis.axhline(0, color="gray", linewidth=0.8, linestyle=":", label="untuned")
    axis.set_xscale("log")
    counts = [point.labels for point in learned if point.labels is not None]
    axis.set_xticks(counts, [f"{count:,}" for count in counts])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("comparisons that the reward model was trained on")
    axis.set_ylabel(f"gain by {judge}, standard deviations")
    axis.legend()
