"""The flags that say who tells how good a completion is."""

import dataclasses
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from toolkit.errors import InputError, check_range
from toolkit.labeling.judge import HTTPJudge
from toolkit.labeling.labellers import JudgePicker, Picker, ScorePicker
from toolkit.labeling.scripted import Lexicon
from toolkit.models.adapters import check_adapter
from toolkit.models.other_base import TextRewardModel
from toolkit.models.reading import Reading, reading_of, said
from toolkit.scoring.functions import RewardFunction, load_function
from toolkit.training.trust import check_trust

# Help texts of options that both a scorer and PPO's rewards have.
REWARD_END_TOKEN = (
    "What closes a text before a reward model scores it: auto for what it was trained with "
    "(toolkit.json; TRL's models: the end token), none, eos, or a token."
)
UNTRUSTED_REWARD = "Go on with a reward model that is known to be at chance, or below it."


@dataclass
class FunctionArguments:
    """A function that says how good a completion is: exactly one of these."""

    lexicon: str | None = field(
        default=None,
        metadata={"help": "Word-valence file (word TAB valence ...); the score is their sum."},
    )
    reward_function: str | None = field(
        default=None,
        metadata={"help": "module:function, called with prompts and completions, -> scores."},
    )

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return any(getattr(self, name) is not None for name in self._scorers())

    def _scorers(self) -> list[str]:
        """The flags that name one."""
        return [f.name for f in dataclasses.fields(self) if f.default is None]

    def function(self) -> RewardFunction:
        """The function.

        Raises:
            InputError: none of them or more than one, or the one does not load.
        """
        names = self._scorers()
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"{' and '.join(given) or 'no scorer'} given: give exactly one of "
                f"{', '.join(f'--{name}' for name in names)}"
            )
        if self.lexicon is not None:
            return Lexicon(self.lexicon)
        return load_function(self.reward_function or "")


@dataclass
class JudgeArguments:
    """A language model behind an OpenAI-compatible endpoint, as a labeller."""

    # How it is asked, which may differ when a run goes on: no label depends on it.
    FREE = ("judge_max_tokens", "judge_timeout", "judge_patience")

    judge_url: str | None = field(
        default=None, metadata={"help": "Its address, as http://localhost:8000/v1."}
    )
    judge_model: str | None = field(default=None, metadata={"help": "The model's name there."})
    judge_key_variable: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable that holds the key."}
    )
    judge_prices: list[float] = field(
        default_factory=lambda: [0.0, 0.0],
        metadata={"help": "Per million tokens of requests, and of answers: to count the cost."},
    )
    judge_max_tokens: int = field(
        default=8,
        metadata={"help": "Of an answer, one letter; a model that thinks needs thousands."},
    )
    judge_timeout: float = field(
        default=60.0, metadata={"help": "Seconds for one request, from its start to its end."}
    )
    judge_patience: int = field(
        default=20,
        metadata={"help": "End after so many answers in a row that are no letter. Their items are "
                  "asked again by the next call."},
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_range("judge_max_tokens", self.judge_max_tokens, low=1)
        check_range("judge_timeout", self.judge_timeout, above=0, high=86_400)
        check_range("judge_patience", self.judge_patience, low=1)
        if (self.judge_url is None) != (self.judge_model is None):
            raise InputError("judge_url and judge_model: give both or neither", "judge_url")
        if len(self.judge_prices) != 2:
            raise InputError(f"judge_prices: {len(self.judge_prices)} numbers, not 2")

    def load(self) -> HTTPJudge | None:
        """The judge; None where none was given."""
        if self.judge_url is None or self.judge_model is None:
            return None
        return HTTPJudge(
            self.judge_url, self.judge_model, self.judge_key_variable,
            max_tokens=self.judge_max_tokens, timeout=self.judge_timeout,
            patience=self.judge_patience, input_price=self.judge_prices[0],
            output_price=self.judge_prices[1],
        )  # fmt: skip


def load_picker(
    judge_args: JudgeArguments, scorer_args: FunctionArguments
) -> tuple[str, Picker] | None:
    """A scripted labeller's name and picker; None where neither a judge nor a scorer was given.

    Raises:
        InputError: both, or more than one scorer, or one that does not load.
    """
    judge = judge_args.load()
    if judge is None and not scorer_args.given:
        return None
    if judge is not None and scorer_args.given:
        raise InputError("judge_url and a scorer given: one labeller at a time", "judge_url")
    if judge is not None:
        return judge.model, JudgePicker(judge)
    return scorer_args.reward_function or "lexicon", ScorePicker(scorer_args.function())


@dataclass
class ScorerArguments(FunctionArguments):
    """Who says how good a completion is: exactly one of these."""

    reward_adapter: str | None = field(
        default=None, metadata={"help": "Folder of a trained reward adapter."}
    )
    reward_end_token: str = field(default="auto", metadata={"help": REWARD_END_TOKEN})
    allow_untrusted_reward: bool = field(default=False, metadata={"help": UNTRUSTED_REWARD})

    def load(self, base_name: str, precision: str | None = None) -> RewardFunction | None:
        """The function, or None for the reward adapter, which is then known to fit the base.

        Raises:
            InputError: none of the three or more than one, the one does not load, or the adapter is
                known to be worthless (``check_trust``).
        """
        if self.reward_adapter is None or self.lexicon or self.reward_function:
            return self.function()
        check_adapter(self.reward_adapter, base_name, "SEQ_CLS", "--reward_adapter", precision)
        check_trust({"reward_adapter": self.reward_adapter}, self.allow_untrusted_reward)
        return None


@dataclass
class RewardArguments:
    """What PPO is rewarded for: one of these, or several, weighed against each other."""

    reward_adapter: str | None = field(
        default=None, metadata={"help": "Folder of a trained reward adapter, on the same base."}
    )
    reward_model: str | None = field(
        default=None,
        metadata={"help": "A reward model on another base: Hub id, folder, or its adapter."},
    )
    lexicon: str | None = field(
        default=None,
        metadata={"help": "Word-valence file (word TAB valence ...); the score is their sum."},
    )
    reward_function: str | None = field(
        default=None,
        metadata={"help": "module:function(prompts, completions, **columns) -> scores; or several, "
                  "joined by commas."},
    )  # fmt: skip
    reward_end_token: str = field(default="auto", metadata={"help": REWARD_END_TOKEN})
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "A weight for each of the above that is given, in this order."},
    )
    allow_untrusted_reward: bool = field(default=False, metadata={"help": UNTRUSTED_REWARD})

    def load(self, base_name: str, precision: str) -> list[RewardFunction | None]:
        """The rewards in the order of the fields; None stands for the reward adapter.

        Raises:
            InputError: none is given, one does not load, or the weights do not fit; or a reward
                model is known to be worthless (``check_trust``).
        """
        functions = [f.strip() for f in (self.reward_function or "").split(",") if f.strip()]
        given = [self.reward_adapter, self.reward_model, self.lexicon, *functions]
        count = sum(item is not None for item in given)
        if count == 0:
            raise InputError(
                "no reward: give --reward_adapter, --reward_model, --lexicon or --reward_function"
            )
        if count > 1 and self.reward_weights is None:
            raise InputError(
                f"{count} rewards and no --reward_weights (their scales differ: give one each)"
            )
        if self.reward_weights is not None and len(self.reward_weights) != count:
            raise InputError(
                f"{len(self.reward_weights)} reward_weights for {count} rewards", "reward_weights"
            )
        parts: list[RewardFunction | None] = []
        if self.reward_adapter is not None:
            check_adapter(self.reward_adapter, base_name, "SEQ_CLS", "--reward_adapter", precision)
            parts.append(None)
        models = {"reward_adapter": self.reward_adapter, "reward_model": self.reward_model}
        self.verdicts = check_trust(models, self.allow_untrusted_reward)
        if self.reward_model is not None:
            model = TextRewardModel(self.reward_model, precision, end_token=self.reward_end_token)
            print(said(model.reading, model.tokenizer, model.__name__))
            parts.append(model)
        if self.lexicon is not None:
            parts.append(Lexicon(self.lexicon))
        return parts + [load_function(name) for name in functions]

    def reading(self, tokenizer: PreTrainedTokenizerBase) -> Reading | None:
        """How the reward adapter reads a text (``reading_of``), which is said; None without one."""
        if self.reward_adapter is None:
            return None
        found = reading_of(self.reward_adapter, tokenizer, self.reward_end_token)
        print(said(found, tokenizer, "reward adapter"))
        return found
