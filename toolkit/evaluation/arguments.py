"""The flags of the evaluation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from toolkit.arguments.judges import JudgeRequestArguments
from toolkit.arguments.prompt_form import PromptFormArguments
from toolkit.arguments.prompts import (
    HELD_OUT,
    LaterPromptArguments,
    PromptSourceArguments,
    prompts_help,
)
from toolkit.errors import InputError, check_range
from toolkit.flags import Count, CountOrZero, flag, other_default
from toolkit.scoring.arguments import CombiningArguments, Spec, parse_specs, short_forms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from toolkit.data.prompts import Prompts
    from toolkit.evaluation.contenders import Contender
    from toolkit.evaluation.judges import Judge
    from toolkit.evaluation.summaries import Summaries
    from toolkit.scoring.http_judge import HTTPJudge


@dataclass
class EvaluationArguments(
    LaterPromptArguments, JudgeRequestArguments, CombiningArguments, PromptFormArguments
):
    """The contenders, the prompts and the judges."""

    adapter: str | None = flag(
        None, "Folder of a policy adapter to compare. Short for --contenders policy=FOLDER."
    )
    contenders: list[str] = flag(
        [],
        "Models to compare, as NAME=WHAT. WHAT is the folder of an adapter or a checkpoint "
        "(checkpoint-* takes all), a model, best_of_N, or best_of_N:NAME. FOLDER*0.5 is half of an "
        "adapter's change, FOLDER*0.25,0.5,1 are three such, and mean(A,B) and slerp(A,B) are "
        "merged adapters. lead-2 is the first two sentences of the text to sum up, and "
        "column:COLUMN what people wrote. The untuned model is always included.",
    )
    judges: list[str] = flag(
        [],
        "Judges, as NAME=KIND:VALUE. KIND:VALUE is lexicon:FILE, function:MODULE:FUNCTION, "
        "reward_adapter:FOLDER (or several by commas), reward_model:NAME, http:MODEL@URL or "
        "people:STORE.",
    )
    lexicon: str | None = flag(None, "Short for --judges lexicon=lexicon:FILE.")
    reward_function: str | None = flag(
        None, "Short for --judges FUNCTION=function:MODULE:FUNCTION."
    )
    reward_adapter: str | None = flag(None, "Short for --judges reward=reward_adapter:FOLDER.")
    reward_end_token: str = flag(
        "auto",
        "Token put at the end of a text before a reward model scores it: auto (the one that the "
        "model was trained with), none, eos, or a token.",
    )
    training_reward: str | None = flag(
        None, "Name of the judge that the policies were trained on. Its gap to others is shown."
    )
    reranker: str | None = flag(
        None,
        "Name of the judge by which best-of-n picks. By default the training reward, else the "
        "first judge that scores.",
    )
    prompts: str | None = flag(None, prompts_help(HELD_OUT))
    limit: Count | None = other_default(512, PromptSourceArguments, "limit")
    samples: str | None = flag(
        None, "The samples.jsonl of an earlier evaluation, to judge again instead of sampling."
    )
    output_dir: str = flag("outputs/evaluation", "Folder for the results.")
    reference_column: str | None = flag(
        None, "Column with a person's completion of each prompt, against which to measure ROUGE."
    )
    source_column: str | None = flag(
        None,
        "Column with the text that each prompt asks to sum up. By default it is the prompt, "
        "without what --prompt_form puts around it.",
    )
    prompt_form: str | None = flag(
        None,
        "What stands around the text in each prompt, with {prompt} in its place, as for split. "
        "Backslash n stands for a new line.",
    )
    frontier_prompts: CountOrZero = flag(
        0, "Number of prompts from which to estimate the KL-optimal curve; 0 leaves it out."
    )
    frontier_samples: Count = flag(
        512, "Reference samples of each prompt for the KL-optimal curve."
    )
    perplexity_text: str | None = flag(
        None,
        "File with rows of `text`: measure on it the perplexity of the reference and of each "
        "contender that shares its base.",
    )
    pick_pairs: Literal["reference", "all"] = flag(
        "reference",
        "Pairs that HTTP judges and people compare: each contender with the reference, or all "
        "pairs.",
    )
    pick_limit: Count = flag(100, "Prompts that HTTP judges and people see.")
    people_votes: Count = flag(
        1, "People who are asked about each pair of texts; the majority counts."
    )
    show: CountOrZero = flag(8, "Number of samples in the printed table.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frontier_prompts:
            check_range("frontier_samples", self.frontier_samples, low=16)

    def summaries(
        self,
        contenders: "Sequence[Contender]",
        prompts: "Prompts",
        tokenizer: "PreTrainedTokenizerBase",
    ) -> "Summaries | None":
        """Return what the prompts ask to sum up, if a flag or a contender says that they do.

        Raises:
            InputError: a row lacks a column, or a prompt is not in the form.
        """
        from toolkit.evaluation.source_text import column_texts, sources_of
        from toolkit.evaluation.summaries import Summaries

        told = self.reference_column or self.source_column or self.prompt_form
        if not told and not any(c.kind == "lead" for c in contenders):
            return None
        sources = sources_of(prompts, tokenizer, self.source_column, self.prompt_form)
        if self.reference_column is None:
            return Summaries(sources)
        texts = column_texts(prompts, self.reference_column, "reference_column")
        return Summaries(sources, self.reference_column, texts)

    def kept_columns(self, contenders: "Sequence[Contender]") -> list[str]:
        """Return the columns of the prompts' rows that are needed."""
        named = [self.reference_column, self.source_column]
        named += [c.source for c in contenders if c.kind == "column"]
        return [name for name in named if name is not None]

    def load_contenders(self, base: str, precision: str) -> "list[Contender]":
        """Return the contenders, the reference first, after checking their files."""
        from toolkit.evaluation.contenders import check_contenders, parse_contenders

        specs = list(self.contenders)
        if self.adapter is not None or not specs:
            specs.insert(0, f"policy={self.adapter or 'outputs/ppo/adapters/policy'}")
        contenders = parse_contenders(specs)
        check_contenders(contenders, base, precision)
        picks = any(c.kind == "best_of_n" for c in contenders)
        if picks and not (self.reranker or self.training_reward or self._scoring()):
            raise InputError("contenders: best-of-n needs a judge that scores (add one)")
        return contenders

    def load_judges(self, base: str, precision: str) -> "list[Judge]":
        """Return the judges without loading anything large.

        Raises:
            InputError: there is no judge, one does not load, or a name is unknown.
        """
        from toolkit.evaluation.judges import ScoreJudge, load_judges

        specs = self.specs()
        self.check_combining(*(spec.value for spec in specs if spec.kind == "reward_adapter"))
        judges = load_judges(
            specs, base, precision, self.reward_end_token, self._http_judge, self, self.people_votes
        )
        if not judges:
            raise InputError(
                "judges: none is given (add --lexicon, --reward_function, --reward_adapter or "
                "--judges)"
            )
        for field_name in ("training_reward", "reranker"):
            name = getattr(self, field_name)
            scoring = [j.name for j in judges if isinstance(j, ScoreJudge)]
            if name is not None and name not in scoring:
                raise InputError(
                    f"{field_name}: no judge that scores is called {name!r} (judges that score: "
                    f"{', '.join(scoring) or 'none'})",
                    field_name,
                )
        return judges

    def specs(self) -> list[Spec]:
        """Who judges, by all flags that name judges."""
        return [*self._scoring(), *parse_specs(self.judges, "judges")]

    def _scoring(self) -> list[Spec]:
        """Return the judges of the short flags."""
        return short_forms(
            {
                "lexicon": self.lexicon,
                "reward_function": self.reward_function,
                "reward_adapter": self.reward_adapter,
            }
        )

    def _http_judge(self, url: str, model: str) -> "HTTPJudge":
        """Make a judge at this address with the request settings of the flags."""
        from toolkit.scoring.http_judge import HTTPJudge

        return HTTPJudge(
            url,
            model,
            self.judge_key_variable,
            max_tokens=self.judge_max_tokens,
            timeout=self.judge_timeout,
            patience=self.judge_patience,
        )
