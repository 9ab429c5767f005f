"""What the evaluation can be told."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from toolkit.arguments.judges import JudgeRequestArguments
from toolkit.arguments.prompts import (
    HELD_OUT,
    LaterPromptArguments,
    PromptSourceArguments,
    prompts_help,
)
from toolkit.errors import InputError, check_range
from toolkit.flags import Count, CountOrZero, flag, other_default
from toolkit.scoring.arguments import Spec, parse_specs, short_forms

if TYPE_CHECKING:
    from toolkit.evaluation.contenders import Contender
    from toolkit.evaluation.judges import Judge
    from toolkit.scoring.http_judge import HTTPJudge


@dataclass
class EvaluationArguments(LaterPromptArguments, JudgeRequestArguments):
    """Who is compared, on what, and who judges."""

    adapter: str | None = flag(
        None, "A policy adapter's folder: short for --contenders policy=FOLDER."
    )
    contenders: list[str] = flag(
        [],
        "NAME=WHAT: an adapter's or checkpoint's folder (checkpoint-*: all), a model, best_of_N, "
        "best_of_N:NAME. The untuned model is there unasked.",
    )
    judges: list[str] = flag(
        [],
        "NAME=KIND:VALUE: lexicon:FILE, function:MODULE:FUNCTION, reward_adapter:FOLDER, "
        "reward_model:NAME, http:MODEL@URL, people:STORE.",
    )
    lexicon: str | None = flag(None, "Short for --judges lexicon=lexicon:FILE.")
    reward_function: str | None = flag(
        None, "Short for --judges FUNCTION=function:MODULE:FUNCTION."
    )
    reward_adapter: str | None = flag(None, "Short for --judges reward=reward_adapter:FOLDER.")
    reward_end_token: str = flag(
        "auto",
        "What closes a text before reward models score it: auto for what each was trained with, "
        "none, eos, or a token.",
    )
    training_reward: str | None = flag(
        None, "The judge that policies were trained on: the gap to others is shown."
    )
    reranker: str | None = flag(
        None, "The judge that best-of-n picks by; the training reward, or the first."
    )
    prompts: str | None = flag(None, prompts_help(HELD_OUT))
    limit: Count | None = other_default(512, PromptSourceArguments, "limit")
    samples: str | None = flag(
        None, "Judge what an earlier evaluation sampled (its samples.jsonl)."
    )
    output_dir: str = flag("outputs/evaluation", "Folder to write.")
    frontier_prompts: CountOrZero = flag(
        0, "Estimate the KL-optimal curve on so many of the prompts; 0: do not."
    )
    frontier_samples: Count = flag(512, "Reference samples of each of these.")
    pick_pairs: Literal["reference", "all"] = flag(
        "reference", "What HTTP judges and people compare: each with the reference, or all."
    )
    pick_limit: Count = flag(100, "Show them so many of the prompts.")
    show: CountOrZero = flag(8, "Samples in the table.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frontier_prompts:
            check_range("frontier_samples", self.frontier_samples, low=16)

    def load_contenders(self, base: str, precision: str) -> "list[Contender]":
        """The contenders, the reference first; their files are checked."""
        from toolkit.evaluation.contenders import check_contenders, parse_contenders

        specs = list(self.contenders)
        if self.adapter is not None or not specs:
            specs.insert(0, f"policy={self.adapter or 'outputs/ppo/adapters/policy'}")
        contenders = parse_contenders(specs)
        check_contenders(contenders, base, precision)
        picks = any(c.kind == "best_of_n" for c in contenders)
        if picks and not (self.reranker or self.training_reward or self._scoring()):
            raise InputError("contenders: best-of-n needs a judge that scores, to pick by")
        return contenders

    def load_judges(self, base: str, precision: str) -> "list[Judge]":
        """The judges; nothing large is loaded.

        Raises:
            InputError: nobody, one that does not load, or a name that is nobody's.
        """
        from toolkit.evaluation.judges import ScoreJudge, load_judges

        judges = load_judges(self.specs(), base, precision, self.reward_end_token, self._http_judge)
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
                    f"{', '.join(scoring) or 'none'})",
                    field_name,
                )
        return judges

    def specs(self) -> list[Spec]:
        """Who judges, by all flags that name judges."""
        return [*self._scoring(), *parse_specs(self.judges, "judges")]

    def _scoring(self) -> list[Spec]:
        """What the short flags say."""
        return short_forms(
            {
                "lexicon": self.lexicon,
                "reward_function": self.reward_function,
                "reward_adapter": self.reward_adapter,
            }
        )

    def _http_judge(self, url: str, model: str) -> "HTTPJudge":
        """A judge at this address, asked as the flags say."""
        from toolkit.scoring.http_judge import HTTPJudge

        return HTTPJudge(
            url,
            model,
            self.judge_key_variable,
            max_tokens=self.judge_max_tokens,
            timeout=self.judge_timeout,
            patience=self.judge_patience,
        )
