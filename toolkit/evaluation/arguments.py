"""What the evaluation can be told."""

from dataclasses import dataclass, field

from toolkit.data.chat import ChatArguments
from toolkit.data.prompts import PROMPTS_HELP
from toolkit.errors import InputError, check_choice, check_range, check_seed
from toolkit.evaluation.contenders import Contender, check_contenders, parse_contenders
from toolkit.evaluation.judges import Judge, ScoreJudge, load_judges
from toolkit.scoring.arguments import Spec, parse_specs, short_forms
from toolkit.scoring.http_judge import HTTPJudge

HELD_OUT = "data/prompts.heldout.jsonl"


@dataclass
class EvaluationArguments(ChatArguments):
    """Who is compared, on what, and who judges."""

    adapter: str | None = field(
        default=None,
        metadata={"help": "A policy adapter's folder: short for --contenders policy=FOLDER."},
    )
    contenders: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=WHAT: an adapter's or checkpoint's folder (checkpoint-*: all), a "
                  "model, best_of_N, best_of_N:NAME. The untuned model is there unasked."},
    )  # fmt: skip
    judges: list[str] = field(
        default_factory=list,
        metadata={"help": "NAME=KIND:VALUE: lexicon:FILE, function:MODULE:FUNCTION, reward_adapter:"
                  "FOLDER, reward_model:NAME, http:MODEL@URL, people:STORE."},
    )  # fmt: skip
    lexicon: str | None = field(
        default=None, metadata={"help": "Short for --judges lexicon=lexicon:FILE."}
    )
    reward_function: str | None = field(
        default=None, metadata={"help": "Short for --judges FUNCTION=function:MODULE:FUNCTION."}
    )
    reward_adapter: str | None = field(
        default=None, metadata={"help": "Short for --judges reward=reward_adapter:FOLDER."}
    )
    reward_end_token: str = field(
        default="auto",
        metadata={"help": "What closes a text before reward models score it: auto for what each "
                  "was trained with, none, eos, or a token."},
    )  # fmt: skip
    training_reward: str | None = field(
        default=None,
        metadata={"help": "The judge that policies were trained on: the gap to others is shown."},
    )
    reranker: str | None = field(
        default=None,
        metadata={"help": "The judge that best-of-n picks by; the training reward, or the first."},
    )
    prompts: str | None = field(
        default=None,
        metadata={"help": f"{PROMPTS_HELP} With the embedded model by default {HELD_OUT}."},
    )
    limit: int | None = field(default=512, metadata={"help": "Use only so many prompts."})
    skip: int = field(default=0, metadata={"help": "Pass over so many rows first."})
    samples: str | None = field(
        default=None,
        metadata={"help": "Judge what an earlier evaluation sampled (its samples.jsonl)."},
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder to write."})
    skip_invalid: bool = field(
        default=False, metadata={"help": "Go on without bad prompts, and say how many there are."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output_dir."})
    frontier_prompts: int = field(
        default=0,
        metadata={"help": "Estimate the KL-optimal curve on so many of the prompts; 0: do not."},
    )
    frontier_samples: int = field(
        default=512, metadata={"help": "Reference samples of each of these."}
    )
    pick_pairs: str = field(
        default="reference",
        metadata={"help": "What HTTP judges and people compare: each with the reference, or all."},
    )
    pick_limit: int = field(default=100, metadata={"help": "They see so many of the prompts."})
    judge_key_variable: str = field(
        default="OPENAI_API_KEY", metadata={"help": "Environment variable of HTTP judges' key."}
    )
    judge_max_tokens: int = field(
        default=8, metadata={"help": "Of their answers; a model that thinks needs thousands."}
    )
    judge_timeout: float = field(
        default=60.0, metadata={"help": "Seconds for one request to them, from start to end."}
    )
    judge_patience: int = field(
        default=20, metadata={"help": "End after so many answers in a row that are no letter."}
    )
    batch_size: int = field(default=256, metadata={"help": "Completions in one pass."})
    show: int = field(default=8, metadata={"help": "Samples in the table."})
    seed: int = field(default=0, metadata={"help": "Of everybody's sampling."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        check_choice("pick_pairs", self.pick_pairs, ("reference", "all"))
        check_range("judge_timeout", self.judge_timeout, above=0, high=86_400)
        for name in ("judge_max_tokens", "judge_patience", "limit", "frontier_samples",
                     "pick_limit", "batch_size"):  # fmt: skip
            check_range(name, getattr(self, name), low=1)
        for name in ("skip", "show", "frontier_prompts"):
            check_range(name, getattr(self, name), low=0)
        if self.frontier_prompts:
            check_range("frontier_samples", self.frontier_samples, low=16)

    def load_contenders(self, base: str, precision: str) -> list[Contender]:
        """The contenders, the reference first; their files are checked."""
        specs = list(self.contenders)
        if self.adapter is not None or not specs:
            specs.insert(0, f"policy={self.adapter or 'outputs/ppo/adapters/policy'}")
        contenders = parse_contenders(specs)
        check_contenders(contenders, base, precision)
        picks = any(c.kind == "best_of_n" for c in contenders)
        if picks and not (self.reranker or self.training_reward or self._scoring()):
            raise InputError("contenders: best-of-n needs a judge that scores, to pick by")
        return contenders

    def load_judges(self, base: str, precision: str) -> list[Judge]:
        """The judges; nothing large is loaded.

        Raises:
            InputError: nobody, one that does not load, or a name that is nobody's.
        """
        specs = [*self._scoring(), *parse_specs(self.judges, "judges")]
        judges = load_judges(specs, base, precision, self.reward_end_token, self._http_judge)
        if not judges:
            raise InputError(
                "no judge: give --lexicon, --reward_function, --reward_adapter or --judges"
            )
        for field_name in ("training_reward", "reranker"):
            name = getattr(self, field_name)
            scoring = [j.name for j in judges if isinstance(j, ScoreJudge)]
            if name is not None and name not in scoring:
                raise InputError(
                    f"{field_name}: no judge that scores is called {name!r} (there are: "
                    f"{', '.join(scoring) or 'none'})", field_name,
                )  # fmt: skip
        return judges

    def _scoring(self) -> list[Spec]:
        """What the short flags say."""
        return short_forms(
            {
                "lexicon": self.lexicon,
                "reward_function": self.reward_function,
                "reward_adapter": self.reward_adapter,
            }
        )

    def _http_judge(self, url: str, model: str) -> HTTPJudge:
        """A judge at this address, asked as the flags say."""
        return HTTPJudge(
            url,
            model,
            self.judge_key_variable,
            max_tokens=self.judge_max_tokens,
            timeout=self.judge_timeout,
            patience=self.judge_patience,
        )
