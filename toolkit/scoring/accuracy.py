"""How often a reward model agrees with the picks, and whether that can be luck."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from scipy.special import bdtrc, stdtr

from toolkit.data.files import read_object, write_json
from toolkit.data.records import from_row, to_row
from toolkit.maths.losses import best_of_k_loss
from toolkit.maths.statistics import design_effect, tail_probability, wilson_interval

SURE = 0.001  # trust a model if luck alone does as well with a lower probability
TAIL = 0.025  # probability outside each end of a 95 % interval
USEFUL = 1 / 3  # share of the way from chance to always right that a useful model reaches


@dataclass(frozen=True, kw_only=True)
class Share:
    """A mean of n rows with its 95 % interval, and the number of their prompts."""

    value: float
    low: float
    high: float
    n: int
    prompts: int


@dataclass(frozen=True, kw_only=True)
class OwnAccuracy:
    """In a cross-validation: the adapter's own accuracy, on the comparisons held out from it.

    Attributes:
        accuracy, low, high: share of right picks, with its 95 % interval.
        comparisons: number held out from this adapter.
        p_below: probability that a model as good as those of the other folds has so few right.
    """

    accuracy: float
    low: float
    high: float
    comparisons: int
    p_below: float


@dataclass(frozen=True, kw_only=True)
class RewardMetrics:
    """How good a reward model is on held-out comparisons; the content of metrics.json.

    Attributes:
        accuracy, accuracy_low, accuracy_high: share of right picks, with its 95 % interval.
        p, p_below: probabilities of at least, and at most, this many right picks by luck alone.
        chance: share of right picks by luck.
        loss: K-way cross-entropy, in nats; None if it is not a number.
        comparisons, prompts: numbers held out.
        train_comparisons: number that the model was trained on.
        verdict: the answer of ``judge``.
        folds: number of models, this adapter and others trained like it, of which each scored the
            comparisons that were held out from it. The figures above are of all of them. None if
            they are of this adapter alone.
        own: then its part.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    p: float
    p_below: float | None = None
    chance: float
    loss: float | None = None
    comparisons: int
    prompts: int | None = None
    train_comparisons: int | None = None
    verdict: str | None = None
    folds: int | None = None
    own: OwnAccuracy | None = None

    @classmethod
    def read(cls, path: Path, what: str) -> "RewardMetrics":
        """Read metrics.json.

        Raises:
            InputError: there is no such file, or another tool wrote it.
        """
        return from_row(RewardMetrics, read_object(path, what), str(path))

    def write(self, path: Path) -> None:
        """Write metrics.json, atomically."""
        write_json(path, to_row(self))


def credit(scores: Sequence[float], best: int, texts: Sequence[Hashable]) -> float:
    """Return 1 if the pick has the highest score, 0 if not, and 1/m if m texts share it.

    Equal texts count as one: a pick of either is right.
    """
    top = max(scores)
    tied = {text for text, score in zip(texts, scores, strict=True) if score == top}
    return 1 / len(tied) if texts[best] in tied else 0.0


def share(credits: Sequence[float], prompts: Sequence[Hashable]) -> Share:
    """Mean with Wilson's 95 % interval, for the effective number of trials.

    Rows of one prompt may be right or wrong together; the interval is widened by how much they are
    (``design_effect``).
    """
    n = len(credits)
    if not n:
        return Share(value=0.0, low=0.0, high=1.0, n=0, prompts=0)

    value = math.fsum(credits) / n
    trials = n / design_effect(credits, prompts)
    low, high = wilson_interval(value * trials, trials)
    return Share(value=value, low=low, high=high, n=n, prompts=len(set(prompts)))


def luck(credits: Sequence[float], chances: Sequence[float], prompts: Sequence[Hashable]) -> float:
    """Probability of this many right picks by luck: exact, or a t test over prompts if larger."""
    right = math.floor(math.fsum(credits) + 1e-9)
    if len(set(chances)) == 1:  # the same distribution, but faster
        exact = float(bdtrc(right - 1, len(chances), chances[0]))
    else:
        exact = tail_probability(right, chances)
    groups = len(set(prompts))
    effect = design_effect(credits, prompts)
    if effect <= 1 + 1e-9 or groups < 2:  # rounding, if no prompt is repeated
        return exact
    spread = math.sqrt(effect * math.fsum(p * (1 - p) for p in chances))
    excess = math.fsum(credits) - math.fsum(chances)
    return max(exact, float(stdtr(groups - 1, -excess / spread)))


def chance_of(chances: Sequence[float], skill: float) -> list[float]:
    """Each row's probability of a right pick, if its odds are exp(skill) times those of chance."""
    found = []
    for p in chances:
        if p >= 1:
            found.append(1.0)
        else:
            found.append(1 / (1 + math.exp(-(math.log(p / (1 - p)) + skill))))
    return found


def interval(
    credits: Sequence[float], chances: Sequence[float], prompts: Sequence[Hashable]
) -> tuple[float, float]:
    """95 % interval of the accuracy: the values that ``luck`` would not reject.

    It inverts the test, so the two cannot contradict each other: the interval lies above chance if
    luck gives at least as many right picks with a probability below 0.025, and below chance if it
    gives at most as many. Without repeated prompts, and with one K, it is that of C. J. Clopper and
    E. S. Pearson (1934), Biometrika 26:404-413.
    """
    everyone = len(chances)

    def least(right: Sequence[float], by_luck: Sequence[float]) -> float:
        """The smallest accuracy that does not reject this many right picks."""
        low, high = -30.0, 30.0
        if luck(right, chance_of(by_luck, low), prompts) >= TAIL:
            return 0.0
        for _ in range(50):
            middle = (low + high) / 2
            if luck(right, chance_of(by_luck, middle), prompts) < TAIL:
                low = middle
            else:
                high = middle
        return math.fsum(chance_of(by_luck, low)) / everyone

    wrong = [1 - c for c in credits]
    return least(credits, chances), 1 - least(wrong, [1 - p for p in chances])


def best_of_k_accuracy(
    scores: Sequence[Sequence[float]],
    best: Sequence[int],
    texts: Sequence[Sequence[Hashable]] | None = None,
    prompts: Sequence[Hashable] | None = None,
) -> RewardMetrics:
    """Measure how often the highest score is the pick, with its interval, and chance.

    Args:
        scores: raw scores of each comparison.
        best: the picks.
        texts: the scored texts, to find equal candidates; None treats all as different.
        prompts: the prompts of the rows; None treats all as different.
    """
    texts = texts or [range(len(row)) for row in scores]
    prompts = prompts or range(len(scores))
    credits = [credit(s, b, x) for s, b, x in zip(scores, best, texts, strict=True)]
    chances = [1 / len(row) for row in scores]
    wrong = [1 - c for c in credits]
    low, high = interval(credits, chances, prompts)

    losses = [
        best_of_k_loss(torch.tensor([row], dtype=torch.float64), torch.tensor([b])).item()
        for row, b in zip(scores, best, strict=True)
    ]

    return RewardMetrics(
        accuracy=math.fsum(credits) / len(credits),
        accuracy_low=low,
        accuracy_high=high,
        p=luck(credits, chances, prompts),
        p_below=luck(wrong, [1 - p for p in chances], prompts),
        chance=math.fsum(chances) / len(chances),
        loss=math.fsum(losses) / len(losses),
        comparisons=len(credits),
        prompts=len(set(prompts)),
    )


def cross_validated(
    scores: Sequence[Sequence[Sequence[float]]],
    best: Sequence[Sequence[int]],
    texts: Sequence[Sequence[Sequence[Hashable]]],
    prompts: Sequence[Sequence[Hashable]],
) -> RewardMetrics:
    """Measure a cross-validation: all folds together, and the first one, the adapter's, alone.

    Args:
        scores, best, texts, prompts: as for ``best_of_k_accuracy``, for each fold. No prompt is in
            two folds.
    """
    whole = best_of_k_accuracy(
        list(chain(*scores)), list(chain(*best)), list(chain(*texts)), list(chain(*prompts))
    )
    credits = [
        [credit(*row) for row in zip(*fold, strict=True)]
        for fold in zip(scores, best, texts, strict=True)
    ]
    own, others = credits[0], list(chain(*credits[1:]))
    expected = math.fsum(others) / len(others)
    first = best_of_k_accuracy(scores[0], best[0], texts[0], prompts[0])
    fewer = luck([1 - c for c in own], [1 - expected] * len(own), prompts[0])
    return replace(
        whole,
        folds=len(scores),
        own=OwnAccuracy(
            accuracy=first.accuracy,
            low=first.accuracy_low,
            high=first.accuracy_high,
            comparisons=first.comparisons,
            p_below=fewer,
        ),
    )


@dataclass(frozen=True)
class Verdict:
    """Whether a reward model has learned what people pick.

    Attributes:
        answer: "yes", "no" or "not decided".
        p: the deciding probability: of at least, or at most, this many right picks by luck.
        sentence: the verdict in words, with the figures.
    """

    answer: Literal["yes", "no", "not decided"]
    p: float
    sentence: str


def judge(metrics: RewardMetrics, held_out: bool = True) -> Verdict:
    """Judge whether a reward model can be trusted, by its picks of held-out comparisons.

    "yes": luck alone gives this many right picks with a probability below 0.001.

    "no": it is worthless for training, for one of two reasons. It does worse than chance (the
    interval lies below it: too little training, or inverted labels); or chance explains it (the
    interval reaches down to chance) and it cannot be of much use (the interval ends before a third
    of the way from chance to always right: 67 % of pairs, 50 % of four).

    "not decided": everything else, for example if few comparisons are held out. With 15 pairs a
    useless model and a useful one look alike, so the user is warned, but not stopped. The same if a
    cross-validation says yes, but the adapter itself is so much worse than the other folds' models
    that this is luck with a probability below 0.001.

    Args:
        metrics: what was measured.
        held_out: whether it is known that the prompts were not trained on.
    """
    low, high, chance, p = metrics.accuracy_low, metrics.accuracy_high, metrics.chance, metrics.p
    figures = (
        f"{metrics.accuracy:.1%} of {metrics.comparisons} {'held-out ' * held_out}picks are right "
        f"[{low:.1%}, {high:.1%}], by chance {chance:.1%} would be"
    )
    more = "hold out more (--eval_rows), or collect more comparisons"
    cure = "collect more comparisons, or hold out more"
    if metrics.folds is not None:
        figures = (
            f"in {metrics.folds} folds, {metrics.accuracy:.1%} of {metrics.comparisons} picks, "
            f"each held out once, are right [{low:.1%}, {high:.1%}]; by chance {chance:.1%} would "
            "be"
        )
        more, cure = "collect more comparisons", "or collect more comparisons"
    by_luck = f"{figures}; luck alone gives as many with probability {p:.2g}"

    own = metrics.own
    if p < SURE and own is not None and own.p_below < SURE:
        sentence = (
            f"The settings teach what people pick, but this adapter is worse than the others that "
            f"were trained by them: of the {own.comparisons} picks held out from it, "
            f"{own.accuracy:.1%} are right [{own.low:.1%}, {own.high:.1%}]; {by_luck}. Train it "
            "again with another --seed."
        )
        return Verdict("not decided", p, sentence)

    if p < SURE:
        return Verdict("yes", p, f"It has learned what people pick: {by_luck}.")

    if high < chance:
        p_below = 1 - p if metrics.p_below is None else metrics.p_below
        sentence = (
            f"Worse than chance: {figures}; luck alone gives as few with probability "
            f"{p_below:.2g}. PPO would learn the opposite of what people pick. Either it trained "
            "too little (raise --learning_rate or --num_train_epochs), or the held-out labels are "
            "inverted."
        )
        return Verdict("no", p_below, sentence)

    if p >= TAIL and high < chance + (1 - chance) * USEFUL:
        sentence = (
            f"Cannot be distinguished from chance: {by_luck}. PPO would learn nothing; raise "
            f"--learning_rate or --num_train_epochs, {cure}."
        )
        return Verdict("no", p, sentence)

    if p < TAIL:
        sentence = (
            f"Probably better than chance, but not surely: {by_luck}, not below {SURE:g}. To be "
            f"sure, {more}."
        )
    else:
        sentence = f"Too few comparisons to tell it from chance: {by_luck}. To find out, {more}."
    return Verdict("not decided", p, sentence)
