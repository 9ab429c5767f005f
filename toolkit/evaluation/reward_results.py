"""What the reward report holds: one dataclass for each of its sections."""

from dataclasses import dataclass, field
from pathlib import Path

from toolkit.data.chat import Messages
from toolkit.data.files import read_object, write_json
from toolkit.data.records import Row, from_row, to_row
from toolkit.evaluation.reward_bench import RewardBench
from toolkit.scoring.accuracy import RewardMetrics, Share
from toolkit.scoring.power import Power


@dataclass(frozen=True, kw_only=True)
class Group(Share):
    """The accuracy on a group of rows, and the accuracy of chance there."""

    group: str
    chance: float


@dataclass(frozen=True)
class People:
    """Agreement between people; each figure is None if the rows do not hold what it needs.

    Attributes:
        one_rater: how often one random rater per candidate leads to the same pick as all raters
            together (who include that rater).
        split_half: how often two halves of the raters pick the same.
        rated_rows: rows with ratings.
        two_labellers: how often two labelers of the same completions pick the same.
    """

    one_rater: float | None = None
    split_half: float | None = None
    rated_rows: int | None = None
    two_labellers: Share | None = None

    @property
    def known(self) -> bool:
        """Whether the rows show anything about agreement."""
        return self.one_rater is not None or self.two_labellers is not None


@dataclass(frozen=True, kw_only=True)
class SureGuesses(Share):
    """The accuracy of guesses with about the same softmax probability."""

    confidence: float


@dataclass(frozen=True)
class CalibrationHalf:
    """Expected calibration error, loss in nats, and the curve, at one temperature."""

    ece: float
    loss: float
    curve: list[SureGuesses]


@dataclass(frozen=True)
class Calibration:
    """One half of the prompts before and after a temperature fitted on the other half."""

    temperature: float
    fitted_on: int
    tested_on: int
    before: CalibrationHalf
    after: CalibrationHalf


@dataclass(frozen=True)
class NotCalibrated:
    """The reason why the calibration was not measured."""

    reason: str


@dataclass(frozen=True)
class Positions:
    """Shares of people's and the model's picks at each position, for comparisons of K completions.

    ``people_p`` and ``model_p`` come from a chi-squared test that picks do not depend on position;
    they are small if people (or the file's author) favored a position.
    """

    k: int
    n: int
    people: list[float]
    model: list[float]
    people_p: float
    model_p: float


@dataclass(frozen=True)
class Correlations:
    """Spearman's correlation of length with the model's scores and with people's picks."""

    model: float
    people: float


@dataclass(frozen=True)
class Shares:
    """A share of the model's picks, and the same share of people's picks."""

    model: Share
    people: Share


@dataclass(frozen=True)
class WithoutLength:
    """What is left of the model's ranking once length is regressed out of its scores.

    Attributes:
        slope: raw score per character, of differences within comparisons.
        explained: share of the scores' variance within comparisons that length explains.
        same_picks: how often the model's pick stays the same.
        accuracy: of the picks that are left.
    """

    slope: float
    explained: float
    same_picks: Share
    accuracy: Share


@dataclass(frozen=True)
class LengthBias:
    """Whether the model likes long answers more than people do.

    ``without_length`` is None if the completions of a comparison are always equally long, and in
    old files. ``equal_pairs`` are the pairs of the pick and another completion whose lengths differ
    by at most a tenth of the longer one, and ``all_pairs`` are all of them: the share in which the
    pick scores higher.
    """

    rank_correlation: Correlations
    picks_longest: Shares
    accuracy_if_best_is_longest: Share
    accuracy_if_not: Share
    without_length: WithoutLength | None = None
    equal_pairs: Share | None = None
    all_pairs: Share | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of scores in equal bins from ``low`` on, with mean and standard deviation."""

    low: float
    width: float
    counts: list[int]
    mean: float
    std: float


@dataclass(frozen=True)
class Histograms:
    """The scores as trained, and as gain x raw + bias."""

    raw: Histogram
    normalised: Histogram
    gain: float
    bias: float


@dataclass(frozen=True)
class Mistake:
    """A wrong guess, with the softmax's probabilities of it and of people's pick."""

    prompt: str | Messages
    model_pick: str
    people_pick: str
    confidence: float
    people_probability: float
    labeler: str | None


@dataclass(frozen=True)
class Analysis:
    """All sections of the report.

    Attributes:
        metrics: the metrics of metrics.json.
        accuracy: accuracy with the interval that the verdict uses.
        chance: accuracy of random guesses.
        pairwise_accuracy: share of (best, other) pairs in which the best scores higher.
        baselines: accuracies by the baseline's name.
        people: agreement between people.
        by_k, by_margin, by_length: accuracy on groups of rows; empty if no row can be grouped.
        by_source, by_labeler: the same for each name; empty if there are not at least two.
        reward_bench: what RewardBench 2 says; None if it was not asked.
        power: what a test on so many comparisons can show.
    """

    metrics: RewardMetrics
    accuracy: Share
    chance: float
    pairwise_accuracy: float
    baselines: dict[str, Share]
    people: People
    by_k: list[Group]
    by_margin: list[Group]
    by_length: list[Group]
    calibration: Calibration | NotCalibrated
    position: list[Positions]
    length_bias: LengthBias
    histogram: Histograms
    mistakes: list[Mistake]
    reward_bench: RewardBench | None = None
    by_source: list[Group] = field(default_factory=list)
    by_labeler: list[Group] = field(default_factory=list)
    power: Power | None = None


@dataclass(frozen=True)
class CurvePoint:
    """Held-out accuracy, its interval and the loss after training on a share of the labels."""

    fraction: float
    train: int
    value: float
    low: float
    high: float
    loss: float | None


@dataclass(frozen=True)
class LabelsNeeded:
    """How many comparisons an accuracy takes (``maths.learning_curve``).

    Attributes:
        accuracy: the target.
        labels, low, high: comparisons to train on, with their 95 % interval; None beyond what the
            curve can say.
        sentence: the same in words.
    """

    accuracy: float
    labels: int | None
    low: int | None
    high: int | None
    sentence: str


@dataclass(frozen=True)
class Outlook:
    """What more labels would give.

    Attributes:
        most: comparisons that the model was trained on.
        at_most: accuracy of the fitted line there.
        doubling, doubling_low, doubling_high: what twice as many add to the accuracy, with its 95 %
            interval.
        models: number of models at each point of the curve.
        twice: a sentence on the accuracy with twice as many.
        needed: how many some accuracies take.
        backtest: a sentence on how well the smaller shares alone foretold the accuracy with all
            labels; empty with fewer than two of them.
    """

    most: int
    at_most: float
    doubling: float
    doubling_low: float
    doubling_high: float
    models: int
    twice: str
    needed: list[LabelsNeeded]
    backtest: str = ""


@dataclass(frozen=True)
class RewardReport:
    """The result of reward_report.py, stored in reward_report.json.

    Attributes:
        label_curve: accuracy against labels, the smallest share first; empty if not measured.
        run: run.json of the model; what is known if there is none.
        verdict: the verdict in a sentence.
        outlook: what more labels would give; None if the curve was not measured.
        notes: what a reader must know, on which prompts the model was trained for example.
        held_out: whether none of the prompts was trained on; None if that is not known.
    """

    analysis: Analysis
    label_curve: list[CurvePoint] = field(default_factory=list)
    run: Row = field(default_factory=dict)
    verdict: str = ""
    outlook: Outlook | None = None
    notes: list[str] = field(default_factory=list)
    held_out: bool | None = True

    @classmethod
    def read(cls, path: Path, what: str) -> "RewardReport":
        """Read reward_report.json.

        Raises:
            InputError: the file is missing or malformed.
        """
        return from_row(RewardReport, read_object(path, what), str(path))

    def write(self, path: Path) -> None:
        """Write reward_report.json atomically."""
        write_json(path, to_row(self))
