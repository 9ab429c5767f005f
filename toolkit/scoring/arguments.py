"""The flags that say who scores or picks, and the long form NAME=KIND:VALUE.

    words=lexicon:data/lexicon.txt
    mine=function:my_module:my_scores              a function of TRL's signature, or a Scorer
    rm=reward_adapter:outputs/reward/adapter       on the base at hand
    three=reward_adapter:a/adapter,b/adapter,c/adapter      several, combined by --reward_combine
    big=reward_model:some-org/some-reward-model    on another base, loaded beside it
    qwen=http:qwen3@http://localhost:8000/v1       picks, and does not score
    people=people:outputs/matches.sqlite           a store that label.py serves; they pick

``--lexicon FILE`` is short for ``lexicon=lexicon:FILE``; the other flags work alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from toolkit.arguments.judges import JudgeRequestArguments
from toolkit.errors import InputError
from toolkit.flags import Count, Flags, NotNegative, flag

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from toolkit.models.reading import Reading
    from toolkit.scoring.http_judge import HTTPJudge
    from toolkit.scoring.picker import Picker
    from toolkit.scoring.scorer import Scorer

# Scorers are imported when they are loaded, so that --help imports no model library.

Kind = Literal["lexicon", "function", "reward_adapter", "reward_model", "http", "people"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Combining = Literal["mean", "min", "mean_minus_std"]  # as ``maths.ensembles`` has it

# Help texts of options that several classes have.
LEXICON = "File of words and valences (word TAB valence); the score is their sum."
REWARD_END_TOKEN = (
    "How a text ends before a reward model scores it: auto (as in its training, by toolkit.json; "
    "the end token for TRL's models), none, eos, or a token's text."
)
UNTRUSTED_REWARD = "Use a reward model even if it is known to be at chance or below."
REWARD_ADAPTER = (
    "Folder of a trained reward adapter, on the same base. Several, joined by commas, score "
    "together (reward_combine)."
)


@dataclass(frozen=True)
class Spec:
    """Who scores or picks, as given by NAME=KIND:VALUE.

    Attributes:
        name: shown in tables and logs.
        kind: one of ``KINDS``.
        value: the file, function, folder, model, MODEL@URL or store.
    """

    name: str
    kind: Kind
    value: str


def parse_specs(texts: Sequence[str], flag: str) -> list[Spec]:
    """Parse each NAME=KIND:VALUE; nothing is loaded.

    Raises:
        InputError: a text has another form, or an unknown kind.
    """
    specs = []
    for text in texts:
        name, _, rest = text.partition("=")
        word, _, value = rest.partition(":")
        kind = next((kind for kind in KINDS if kind == word), None)
        if not (name and value) or kind is None:
            raise InputError(
                f"{flag}: {text!r} is not NAME=KIND:VALUE with a KIND of {', '.join(KINDS)}"
            )
        specs.append(Spec(name, kind, value))
    return specs


def short_forms(flags: Mapping[str, str | None]) -> list[Spec]:
    """The specs of the short flags that were given, in their order.

    >>> short_forms({"lexicon": "words.txt", "reward_adapter": None})
    [Spec(name='lexicon', kind='lexicon', value='words.txt')]
    """
    specs = []
    for name, value in flags.items():
        if value is None:
            continue
        match name:
            case "lexicon":
                specs.append(Spec("lexicon", "lexicon", value))
            case "reward_function":
                specs.append(Spec(value.rpartition(":")[2], "function", value))
            case "reward_adapter":
                specs.append(Spec("reward", "reward_adapter", value))
            case "reward_model":
                specs.append(Spec("reward_model", "reward_model", value))
    return specs


def adapter_folders(value: str | None, what: str = "--reward_adapter") -> list[str]:
    """The folders that a reward adapter's value names: one, or several joined by commas.

    >>> adapter_folders("a/adapter,b/adapter")
    ['a/adapter', 'b/adapter']

    Raises:
        InputError: there is nothing between two commas, or a folder is named twice.
    """
    if value is None:
        return []
    if "," not in value or Path(value).is_dir():
        return [value]
    folders = [folder.strip() for folder in value.split(",")]
    if not all(folders):
        raise InputError(f"{what}: {value!r} has a comma without a folder before or after it")
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise InputError(f"{what}: {twice} is named twice")
    return folders


@dataclass
class CombiningArguments(Flags):
    """How the scores of several reward adapters become one."""

    HELP_GROUP: ClassVar[str] = "rewards and labelers"

    reward_combine: Combining = flag(
        "mean",
        "How the scores of several reward adapters become one, after each is normalized by its own "
        "gain and bias: mean, min (the lowest), or mean_minus_std (the mean less reward_std_weight "
        "standard deviations).",
    )
    reward_std_weight: NotNegative = flag(
        1.0, "Standard deviations that mean_minus_std takes off the mean."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward_std_weight != 1.0 and self.reward_combine != "mean_minus_std":
            raise InputError(
                "reward_std_weight is read by reward_combine: mean_minus_std alone",
                "reward_std_weight",
            )

    def check_combining(self, *adapters: str | None) -> None:
        """Raise InputError if something is said of several reward adapters, but there are none.

        Args:
            adapters: the values that name reward adapters.
        """
        if self.reward_combine == "mean":
            return
        if not any(len(adapter_folders(value)) > 1 for value in adapters):
            raise InputError(
                f"reward_combine is {self.reward_combine}, but there are not several reward "
                "adapters (join their folders by commas)",
                "reward_combine",
            )


def load_scorer(
    spec: Spec,
    base: str,
    precision: str,
    end_token: str = "auto",
    what: str = "--reward_adapter",
    combining: CombiningArguments | None = None,
) -> "Scorer":
    """Make the scorer that a spec names; this checks its inputs and loads nothing large.

    Args:
        spec: of a kind that scores.
        base: the base model, which a reward adapter must fit.
        precision: how bases are held.
        end_token: how texts end that reward models read (``reading_of``).
        what: what a reward adapter is called in messages.
        combining: how several reward adapters score together; by default their mean does.

    Raises:
        InputError: it does not load.
        ValueError: the kind picks and does not score.
    """
    match spec.kind:
        case "lexicon":
            from toolkit.scoring.functions import Lexicon

            return Lexicon(spec.value)
        case "function":
            from toolkit.scoring.functions import as_scorer, load_function

            return as_scorer(load_function(spec.value))
        case "reward_adapter":
            from toolkit.models.adapters import check_adapter
            from toolkit.scoring.reward_models import RewardAdapter

            folders = adapter_folders(spec.value, what)
            for folder in folders:
                check_adapter(folder, base, "SEQ_CLS", what, precision)
            members = [RewardAdapter(folder, end_token, what) for folder in folders]
            if len(members) == 1:
                return members[0]

            from toolkit.scoring.ensembles import RewardEnsemble

            how = combining or CombiningArguments()
            return RewardEnsemble(members, how.reward_combine, how.reward_std_weight, what)
        case "reward_model":
            from toolkit.scoring.reward_models import RewardModel

            return RewardModel(spec.value, precision, end_token=end_token)
    raise ValueError(f"{spec.name}: {spec.kind} does not score")


@dataclass
class FunctionArguments(Flags):
    """The function that scores completions: exactly one of these flags."""

    HELP_GROUP: ClassVar[str] = "rewards and labelers"

    lexicon: str | None = flag(None, LEXICON)
    reward_function: str | None = flag(
        None, "module:function, called with prompts and completions; returns scores."
    )

    def flags(self) -> dict[str, str | None]:
        """The values of the flags that name a scorer; exactly one must be given."""
        return {"lexicon": self.lexicon, "reward_function": self.reward_function}

    @property
    def given(self) -> bool:
        """Whether a scorer was given."""
        return any(value is not None for value in self.flags().values())

    def spec(self) -> Spec:
        """The spec of the scorer.

        Raises:
            InputError: no scorer is given, or more than one.
        """
        flags = self.flags()
        given = [flag for flag, value in flags.items() if value is not None]
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(given) or 'no scorer'} given: give exactly one of "
                f"{', '.join(f'--{flag}' for flag in flags)}"
            )
        (spec,) = short_forms(flags)
        return spec

    def load(self, base_name: str = "", precision: str = "4bit") -> "Scorer":
        """Make the scorer.

        Args:
            base_name: the base model, which a reward adapter must fit.
            precision: how bases are held.

        Raises:
            InputError: no scorer is given, or more than one, or it does not load.
        """
        return load_scorer(self.spec(), base_name, precision)


@dataclass
class ScorerArguments(FunctionArguments, CombiningArguments):
    """Who scores completions: exactly one of these flags."""

    HELP_GROUP: ClassVar[str] = "rewards and labelers"

    reward_adapter: str | None = flag(None, REWARD_ADAPTER)
    reward_end_token: str = flag("auto", REWARD_END_TOKEN)
    allow_untrusted_reward: bool = flag(False, UNTRUSTED_REWARD)

    def flags(self) -> dict[str, str | None]:
        """The values of the flags that name a scorer; exactly one must be given."""
        return super().flags() | {"reward_adapter": self.reward_adapter}

    def load(self, base_name: str = "", precision: str = "4bit") -> "Scorer":
        """Make the scorer, and check that a reward adapter fits the base.

        Raises:
            InputError: not exactly one scorer is given, it does not load, or the adapter is known
                to be worthless (``check_trust``).
        """
        from toolkit.scoring.trust import check_trust

        self.check_combining(self.reward_adapter)
        spec = self.spec()
        scorer = load_scorer(spec, base_name, precision, self.reward_end_token, combining=self)
        for folder in adapter_folders(self.reward_adapter):
            check_trust({"reward_adapter": folder}, self.allow_untrusted_reward)
        return scorer


@dataclass
class RewardArguments(CombiningArguments):
    """What PPO is rewarded for: one of these, or several with weights."""

    HELP_GROUP: ClassVar[str] = "rewards and labelers"

    reward_adapter: str | None = flag(None, REWARD_ADAPTER)
    reward_model: str | None = flag(
        None, "Reward model on another base: its Hub id or folder, or an adapter of one."
    )
    lexicon: str | None = flag(None, LEXICON)
    reward_function: str | None = flag(
        None,
        "module:function(prompts, completions, **columns), returns scores; join several by commas.",
    )
    reward_end_token: str = flag("auto", REWARD_END_TOKEN)
    reward_weights: list[float] | None = flag(
        None, "One weight per reward; order: adapter, model, lexicon, functions."
    )
    allow_untrusted_reward: bool = flag(False, UNTRUSTED_REWARD)

    def specs(self) -> list[Spec]:
        """The specs of the rewards that were given, in the order of the weights."""
        specs = short_forms(
            {
                "reward_adapter": self.reward_adapter,
                "reward_model": self.reward_model,
                "lexicon": self.lexicon,
            }
        )
        for name in (self.reward_function or "").split(","):
            specs += short_forms({"reward_function": name.strip() or None})
        return specs

    def load(self, base_name: str, precision: str) -> "list[Scorer]":
        """Load the rewards in the order of the flags, and note the verdicts on them.

        A single reward adapter becomes a scorer without a folder: the roles hold it themselves.

        Raises:
            InputError: no reward is given, one does not load, the weights do not fit, or a reward
                model is known to be worthless (``check_trust``).
        """
        from toolkit.scoring.reward_models import RewardAdapter, RewardModel
        from toolkit.scoring.trust import Trust, check_trust

        self.check_combining(self.reward_adapter)
        specs = self.specs()
        count = len(specs)
        if count == 0:
            raise InputError(
                "no reward: give --reward_adapter, --reward_model, --lexicon or --reward_function"
            )
        if count > 1 and self.reward_weights is None:
            raise InputError(
                f"{count} rewards need --reward_weights, as their scales differ (give one for each)"
            )
        if self.reward_weights is not None and len(self.reward_weights) != count:
            raise InputError(
                f"{len(self.reward_weights)} reward_weights for {count} rewards", "reward_weights"
            )

        self.verdicts: list[Trust] = []
        scorers: list[Scorer] = []
        for spec in specs:
            scorer = load_scorer(spec, base_name, precision, self.reward_end_token, combining=self)
            models = []
            if spec.kind == "reward_adapter":
                models = adapter_folders(spec.value)
            elif isinstance(scorer, RewardModel):
                models = [spec.value]
            for model in models:
                self.verdicts += check_trust({spec.kind: model}, self.allow_untrusted_reward)
            if isinstance(scorer, RewardModel):
                print(scorer.said())
            scorers.append(RewardAdapter() if isinstance(scorer, RewardAdapter) else scorer)
        return scorers

    @property
    def reward_adapters(self) -> list[str]:
        """The folders of the reward adapters on the same base."""
        return adapter_folders(self.reward_adapter)

    def reading(self, tokenizer: "PreTrainedTokenizerBase") -> "Reading | None":
        """How the first reward adapter reads a text; None without one. It prints this of each."""
        from toolkit.models.reading import reading_of, said

        folders = self.reward_adapters
        found = [reading_of(folder, tokenizer, self.reward_end_token) for folder in folders]
        for folder, reading in zip(folders, found, strict=True):
            name = "reward adapter" if len(folders) == 1 else f"reward adapter {folder}"
            print(said(reading, tokenizer, name))
        return found[0] if found else None


@dataclass
class JudgeArguments(JudgeRequestArguments):
    """A language model behind an OpenAI-compatible endpoint, as a labeler."""

    HELP_GROUP: ClassVar[str] = "rewards and labelers"

    # These may differ when a run goes on, because no label depends on them.
    FREE = ("judge_max_tokens", "judge_timeout", "judge_patience")

    judge_url: str | None = flag(None, "The judge's address, for example http://localhost:8000/v1.")
    judge_model: str | None = flag(None, "Name of the judge's model at that address.")
    judge_prices: list[float] = flag(
        [0.0, 0.0], "Price per million tokens of requests and of answers, to count the cost."
    )
    judge_patience: Count = flag(
        20,
        "Stop after this many answers in a row that are not a letter. The next call asks about "
        "their items again.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.judge_url is None) != (self.judge_model is None):
            raise InputError("judge_url and judge_model: give both or neither", "judge_url")
        if len(self.judge_prices) != 2:
            raise InputError(f"judge_prices has {len(self.judge_prices)} numbers, but must have 2")

    def load(self) -> "HTTPJudge | None":
        """Make the judge; None if none was given."""
        if self.judge_url is None or self.judge_model is None:
            return None

        from toolkit.scoring.http_judge import HTTPJudge

        return HTTPJudge(
            self.judge_url,
            self.judge_model,
            self.judge_key_variable,
            max_tokens=self.judge_max_tokens,
            timeout=self.judge_timeout,
            patience=self.judge_patience,
            input_price=self.judge_prices[0],
            output_price=self.judge_prices[1],
        )


def load_picker(
    judge_args: JudgeArguments, scorer_args: FunctionArguments
) -> "tuple[str, Picker] | None":
    """Make a scripted labeler: its name and picker; None without a judge or a scorer.

    Raises:
        InputError: both a judge and a scorer are given, or a scorer does not load.
    """
    judge = judge_args.load()
    if judge is None and not scorer_args.given:
        return None
    if judge is not None and scorer_args.given:
        raise InputError(
            "judge_url and a scorer are both given (give one labeler at a time)", "judge_url"
        )
    if judge is not None:
        return judge.model, judge

    from toolkit.scoring.picker import ScorePicker

    return scorer_args.reward_function or "lexicon", ScorePicker(scorer_args.load())
