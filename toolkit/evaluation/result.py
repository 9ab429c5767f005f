"""What evaluate.py found, as evaluation.json holds it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.data.chat import Chat, chat_of
from toolkit.data.files import read_object, write_json
from toolkit.data.records import Row, from_row, to_row
from toolkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TextMeasures:
    """What a contender's texts are like: means over completions, shares but for ``words``."""

    words: float
    distinct_1: float
    distinct_2: float
    repetition: float
    unique: float
    new_sentences: float
    copied_3grams: float
    copies_opening: float


@dataclass(frozen=True, kw_only=True)
class SeenPrompts:
    """How many of the prompts a contender was trained on.

    Attributes:
        trained_prompts: their number; None where it could not be checked.
        trained_prompts_note: why it could not be.
    """

    trained_prompts: int | None
    trained_prompts_note: str | None


@dataclass(frozen=True)
class ScoreSummary:
    """A contender's scores under one judge.

    Attributes:
        mean: over the prompts.
        error: its standard error.
        gain: rise of the mean over the reference's, in standard deviations of its scores.
        std: standard deviation of the contender's own scores.
    """

    mean: float
    error: float
    gain: float
    std: float


@dataclass(frozen=True, kw_only=True)
class ContenderResult(SeenPrompts, TextMeasures):
    """One contender.

    Attributes:
        name, kind, source, adapter, n: as those of ``contenders.Contender``.
        tokens: sampled for a completion, mean.
        kl: from the reference, in nats a completion; None where the tokens are not the base's.
        kl_error: its standard error.
        scores: by judge; empty until they have judged.
    """

    name: str
    kind: str
    source: str
    adapter: str | None
    n: int
    tokens: float
    kl: float | None
    kl_error: float | None
    scores: dict[str, ScoreSummary]


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """One contender against another, each prompt a pair.

    Attributes:
        wins, ties, losses, not_judged: prompts.
        win_rate, low, high: over decided prompts, with Wilson's 95 % interval.
        p_value: of the exact two-sided sign test.
        difference, difference_error, p_scores: of the scores, mean, standard error and p of a
            paired test; None under a judge that gives no scores.
    """

    wins: int
    ties: int
    losses: int
    not_judged: int
    win_rate: float
    low: float
    high: float
    p_value: float
    difference: float | None = None
    difference_error: float | None = None
    p_scores: float | None = None

    @property
    def judged(self) -> int:
        """The number of prompts on which there is a verdict."""
        return self.wins + self.ties + self.losses


@dataclass(frozen=True, kw_only=True)
class Pair(PairCounts):
    """What one judge says of ``a`` against ``b``.

    Attributes:
        p_holm: ``p_value`` corrected for the number of that judge's pairs.
    """

    judge: str
    a: str
    b: str
    p_holm: float

    @property
    def surely_scores_higher(self) -> bool:
        """Whether the scores of ``a`` are higher by more than luck (p < 0.05)."""
        if self.difference is None or self.p_scores is None:
            return False
        return self.difference > 0 and self.p_scores < 0.05

    def turned(self) -> "Pair":
        """Return the same pair as seen from ``b``."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            wins=self.losses,
            losses=self.wins,
            win_rate=1 - self.win_rate,
            low=1 - self.high,
            high=1 - self.low,
            difference=None if self.difference is None else -self.difference,
        )


@dataclass(frozen=True)
class PairRating:
    """A contender's Bradley-Terry rating on Elo's scale, with its 95 % interval."""

    name: str
    rating: float
    low: float
    high: float


@dataclass(frozen=True)
class Gap:
    """What the training reward says of a contender, beside a judge that it was not trained on.

    Attributes:
        name: of the contender.
        judge: the other one.
        trained_gain, gain: in standard deviations, under the training reward and the judge.
        gap: the first minus the second.
        alarm: the training reward finds it better than the reference, and the judge does not.
    """

    name: str
    judge: str
    trained_gain: float
    gain: float
    gap: float
    alarm: bool


@dataclass(frozen=True)
class JudgeResult:
    """Who judged; ``training_reward`` says that policies were trained on this one."""

    name: str
    kind: str
    training_reward: bool


@dataclass(frozen=True)
class OptimalPoint:
    """A point of the KL-optimal curve: nats, standard deviations, and samples of the worst prompt.

    The samples are effective ones.
    """

    kl: float
    gain: float
    effective_samples: float


@dataclass(frozen=True)
class BestOfNPoint:
    """What best-of-n gains, in standard deviations, at its KL, in nats."""

    n: int
    kl: float
    gain: float


@dataclass(frozen=True)
class Frontier:
    """How much gain a KL can buy, by samples of the reference.

    Attributes:
        prompts, samples: how many, and reference samples of each.
        optimal: the curve of the KL-optimal policy, by rising KL.
        supported_kl: up to which each of its prompts has ten effective samples or more, in nats.
        best_of_n: n = 1, 2, 4, ...
    """

    prompts: int
    samples: int
    optimal: list[OptimalPoint]
    supported_kl: float
    best_of_n: list[BestOfNPoint]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is known once the contenders have written, before anybody judges.

    Attributes:
        prompts: how many.
        contenders: the reference first.
        vocabulary: digest of the vocabulary that samples.jsonl's ids are of
            (``data.text.vocabulary_digest``); None in files of before.
        chat_template, chat_template_kwargs: how messages were rendered; both None in files of
            before.
    """

    prompts: int
    contenders: list[ContenderResult]
    vocabulary: str | None
    chat_template: str | None
    chat_template_kwargs: Row | None

    @property
    def chat(self) -> Chat | None:
        """How messages were rendered; None where that was not noted."""
        if self.chat_template is None and self.chat_template_kwargs is None:
            return None
        return chat_of(to_row(self))

    @classmethod
    def read(cls, path: Path, what: str) -> "Written":
        """Read evaluation.json, of an evaluation that may have ended before anybody judged.

        Raises:
            InputError: no such file, or something else in it.
        """
        return from_row(Written, read_object(path, what), str(path))

    def write(self, path: Path) -> None:
        """Write it, atomically."""
        write_json(path, to_row(self))


@dataclass(frozen=True, kw_only=True)
class Evaluation(Written):
    """All that evaluate.py found.

    Attributes:
        seed: of everybody's sampling; 0 where it is not told.
        reference: the name of the contender that the others are measured against.
        judges: who judged.
        pairs: of contenders, under each judge.
        ratings: by judge, the best first; of those under whom all have met.
        gaps: none without a training reward.
        frontier: by judge; empty unless it was asked for.
    """

    reference: str
    judges: list[JudgeResult]
    pairs: list[Pair]
    seed: int = 0
    ratings: dict[str, list[PairRating]] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    frontier: dict[str, Frontier] = field(default_factory=dict)

    @property
    def training_reward(self) -> str | None:
        """The judge that policies were trained on, if that was told."""
        return next((j.name for j in self.judges if j.training_reward), None)

    @classmethod
    def read(cls, path: Path, what: str) -> "Evaluation":
        """Read evaluation.json.

        Raises:
            InputError: no such file, something else in it, or nobody has judged yet.
        """
        row = read_object(path, what)
        try:
            return from_row(Evaluation, row, str(path))
        except InputError as error:
            raise InputError(
                f"{what}: {path.parent}: not what evaluate.py wrote ({error})"
            ) from None
