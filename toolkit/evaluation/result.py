"""The result of evaluate.py, stored in evaluation.json."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.data.chat import Chat, chat_of
from toolkit.data.files import read_object, write_json
from toolkit.data.records import Row, from_row, to_row
from toolkit.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TextMeasures:
    """Measures of a contender's texts: means over completions; all but ``words`` are shares."""

    words: float
    distinct_1: float
    distinct_2: float
    repetition: float
    unique: float
    new_sentences: float
    copied_3grams: float
    copies_opening: float


@dataclass(frozen=True, kw_only=True)
class Rouge:
    """ROUGE of a contender's texts against a person's: means over prompts of F, from 0 to 1.

    Words are lower case, alphanumeric and not stemmed (``evaluation.rouge``).

    Attributes:
        rouge_1, rouge_2: of words and of pairs of words.
        rouge_l: of the longest common subsequence.
        rouge_lsum: of the same, sentence by sentence.
        average: R-AVG, the mean of ROUGE-1, -2 and -L.
        average_error: the standard error of ``average``.
    """

    rouge_1: float
    rouge_2: float
    rouge_l: float
    rouge_lsum: float
    average: float
    average_error: float


@dataclass(frozen=True, kw_only=True)
class Copying:
    """Where a contender's texts copy the texts that they sum up.

    Attributes:
        with_preamble: number of source texts that begin with a preamble (``hello``, ``ok``, ...).
        opening_plain, opening_preamble: share of completions that begin as their text does, of the
            texts without and with a preamble; None without such texts.
        copied: number of copied sentences.
        places: how many of these are the text's first, second and third sentence, and later ones.
        mean_place: their mean place in the text, from 0 (its first sentence) to 1 (its last); None
            without any.
    """

    with_preamble: int
    opening_plain: float | None
    opening_preamble: float | None
    copied: int
    places: list[int]
    mean_place: float | None


@dataclass(frozen=True, kw_only=True)
class SeenPrompts:
    """The number of prompts that a contender was trained on.

    Attributes:
        trained_prompts: their number; None if it could not be checked.
        trained_prompts_note: why it could not be checked.
    """

    trained_prompts: int | None
    trained_prompts_note: str | None


@dataclass(frozen=True)
class ScoreSummary:
    """A contender's scores under one judge.

    Attributes:
        mean: mean over the prompts.
        error: standard error of the mean.
        gain: the mean minus the reference's mean, in standard deviations of the reference's scores.
        std: standard deviation of the contender's scores.
        gain_at_equal_length: the gain less what the difference in length is worth on the
            reference's samples (``Length``); None if that is not known.
    """

    mean: float
    error: float
    gain: float
    std: float
    gain_at_equal_length: float | None = None


@dataclass(frozen=True)
class Length:
    """What a token is worth under one judge, by the line of scores over length.

    Attributes:
        slope, error: score per token over the reference's completions, and its standard error.
        length: mean length of these completions in tokens.
    """

    slope: float
    error: float
    length: float


@dataclass(frozen=True, kw_only=True)
class ContenderResult(SeenPrompts, TextMeasures):
    """One contender's results.

    Attributes:
        name, kind, source, adapter, n: as in ``contenders.Contender``.
        tokens: mean number of sampled tokens per completion.
        kl: KL from the reference in nats per completion; None if it has other tokens.
        kl_error: standard error of the KL.
        scores: scores by judge; empty until somebody has judged.
        length: mean tokens per completion that a scorer sees, counted in the base's tokens; None in
            old files.
        rouge: against a person's texts; None without any, and for these texts themselves.
        copying: where it copies; None unless it is known what text a prompt asks to sum up.
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
    length: float | None = None
    rouge: Rouge | None = None
    copying: Copying | None = None


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """One contender against another; each prompt is one pair.

    Attributes:
        wins, ties, losses, not_judged: numbers of prompts.
        win_rate, low, high: share of decided prompts won, with Wilson's 95 % interval.
        p_value: p of the exact two-sided sign test.
        difference, difference_error, p_scores: mean difference of scores, its standard error, and
            p of a paired test; None under a judge that gives no scores.
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
        """The number of prompts with a verdict."""
        return self.wins + self.ties + self.losses


@dataclass(frozen=True, kw_only=True)
class Pair(PairCounts):
    """One judge's counts for ``a`` against ``b``.

    Attributes:
        p_holm: ``p_value`` corrected for the number of that judge's pairs.
    """

    judge: str
    a: str
    b: str
    p_holm: float

    @property
    def surely_scores_higher(self) -> bool:
        """Whether the scores of ``a`` are significantly higher (p < 0.05)."""
        if self.difference is None or self.p_scores is None:
            return False
        return self.difference > 0 and self.p_scores < 0.05

    def turned(self) -> "Pair":
        """Return the same pair from the side of ``b``."""
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
    """A contender's gain under the training reward and under a judge that it was not trained on.

    Attributes:
        name: the contender's name.
        judge: the judge's name.
        trained_gain, gain: gains under the training reward and the judge, in standard deviations.
        gap: ``trained_gain`` minus ``gain``.
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
    """A judge; ``training_reward`` marks the judge that the policies were trained on."""

    name: str
    kind: str
    training_reward: bool


@dataclass(frozen=True)
class OptimalPoint:
    """A point of the KL-optimal curve: nats, standard deviations, least effective sample size."""

    kl: float
    gain: float
    effective_samples: float


@dataclass(frozen=True)
class BestOfNPoint:
    """The gain of best-of-n in standard deviations, and its KL in nats."""

    n: int
    kl: float
    gain: float


@dataclass(frozen=True)
class Frontier:
    """The best gain at each KL, estimated from samples of the reference.

    Attributes:
        prompts, samples: number of prompts, and of reference samples of each.
        optimal: the curve of the KL-optimal policy, by rising KL.
        supported_kl: KL in nats up to which each prompt has at least ten effective samples.
        best_of_n: points for n = 1, 2, 4, ...
    """

    prompts: int
    samples: int
    optimal: list[OptimalPoint]
    supported_kl: float
    best_of_n: list[BestOfNPoint]


@dataclass(frozen=True, kw_only=True)
class TextPerplexity:
    """A contender's perplexity on a file of text.

    Attributes:
        name: the contender's name.
        perplexity: exp of the mean negative log-likelihood of a token.
        low, high: its 95 % interval, from the spread over texts.
        ratio: the perplexity divided by the reference's; None for the reference.
        ratio_low, ratio_high: its 95 % interval, paired by text.
    """

    name: str
    perplexity: float
    low: float
    high: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Perplexities:
    """The perplexities of the contenders that share the base.

    Attributes:
        file: where the text is from.
        texts, tokens: numbers of texts, and of predicted tokens in them.
        cut: texts that were cut to the model's context.
        left_out: texts of one token, in which nothing is predicted.
        contenders: the reference first.
    """

    file: str
    texts: int
    tokens: int
    cut: int
    left_out: int
    contenders: list[TextPerplexity]


@dataclass(frozen=True, kw_only=True)
class Written:
    """The results before anybody has judged.

    Attributes:
        prompts: number of prompts.
        contenders: the contenders, the reference first.
        vocabulary: digest of the vocabulary of the ids in samples.jsonl
            (``data.text.vocabulary_digest``); None in old files.
        chat_template, chat_template_kwargs: how messages were rendered; both None in old files.
    """

    prompts: int
    contenders: list[ContenderResult]
    vocabulary: str | None
    chat_template: str | None
    chat_template_kwargs: Row | None

    @property
    def chat(self) -> Chat | None:
        """How messages were rendered; None if it was not recorded."""
        if self.chat_template is None and self.chat_template_kwargs is None:
            return None
        return chat_of(to_row(self))

    @classmethod
    def read(cls, path: Path, what: str) -> "Written":
        """Read evaluation.json, even if nobody has judged yet.

        Raises:
            InputError: the file is missing or malformed.
        """
        return from_row(Written, read_object(path, what), str(path))

    def write(self, path: Path) -> None:
        """Write evaluation.json atomically."""
        write_json(path, to_row(self))


@dataclass(frozen=True, kw_only=True)
class Evaluation(Written):
    """The complete results of evaluate.py.

    Attributes:
        seed: seed of the sampling; 0 if it was not recorded.
        reference: name of the contender that the others are compared with.
        judges: the judges.
        pairs: pairs of contenders under each judge.
        ratings: ratings by judge, the best first, if all contenders met under that judge.
        gaps: gaps of the training reward; empty without one.
        frontier: curves by judge; empty unless requested.
        perplexity: on a file of text; None unless requested.
        lengths: what a token is worth by judge; without one whose reference wrote texts that are
            all equally long.
    """

    reference: str
    judges: list[JudgeResult]
    pairs: list[Pair]
    seed: int = 0
    ratings: dict[str, list[PairRating]] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    frontier: dict[str, Frontier] = field(default_factory=dict)
    perplexity: Perplexities | None = None
    lengths: dict[str, Length] = field(default_factory=dict)

    @property
    def training_reward(self) -> str | None:
        """The judge that the policies were trained on, if it was named."""
        return next((j.name for j in self.judges if j.training_reward), None)

    @classmethod
    def read(cls, path: Path, what: str) -> "Evaluation":
        """Read evaluation.json.

        Raises:
            InputError: the file is missing or malformed, or nobody has judged yet.
        """
        row = read_object(path, what)
        try:
            return from_row(Evaluation, row, str(path))
        except InputError as error:
            raise InputError(
                f"{what}: {path.parent}: was not written by preftune evaluate ({error})"
            ) from None
