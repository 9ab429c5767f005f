"""Who says which of two completions is better: scorers, reward adapters, HTTP judges, people.

vader=lexicon:vader_lexicon.txt
mine=function:my_module:my_scores
rm=reward_adapter:outputs/reward/adapter       on the base at hand
big=reward_model:some-org/some-reward-model    on another base, loaded beside it
qwen=http:qwen3@http://localhost:8000/v1
people=people:outputs/matches.sqlite           a store that label.py serves
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from toolkit.data.encoding import Encoder
from toolkit.data.prompts import Prompts
from toolkit.data.text import answers
from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Outputs, Reranker, Sampling
from toolkit.labeling.store import Settings, Store, check_writable
from toolkit.models.adapters import check_adapter
from toolkit.models.reading import reading_of
from toolkit.scoring.functions import RewardFunction, call_reward_function, load_function
from toolkit.scoring.http_judge import HTTPJudge
from toolkit.scoring.lexicon import Lexicon
from toolkit.scoring.reward_models import TextRewardModel
from toolkit.scoring.scorer import model_scores

KINDS = ("lexicon", "function", "reward_adapter", "reward_model", "http", "people")
# 1: the first is better, -1: the second, 0: equally good; None: not judged.
Verdict = int | None
Scores = dict[str, list[float]]  # contender -> a score for each prompt
Verdicts = dict[tuple[str, str], list[Verdict]]  # (contender, opponent) -> one for each prompt


@dataclass
class ScoreJudge:
    """Gives each completion a number; the greater one wins.

    Attributes:
        name: in tables.
        kind: one of ``KINDS``.
        function: of texts; None for a reward adapter.
        folder: the reward adapter's.
        end_token: what closes the texts that it reads, as for ``reading_of``.
    """

    name: str
    kind: str
    function: RewardFunction | None = None
    folder: str = ""
    end_token: str = "auto"

    def check(self, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise InputError if these prompts are not rendered as a reward adapter's were."""
        if self.function is None:
            reading_of(self.folder, tokenizer, self.end_token).check(prompts)

    def score(
        self, sampling: Sampling, outputs: Outputs, indices: Sequence[int] | None = None
    ) -> list[float]:
        """A score for each of these completions.

        Args:
            sampling: base and prompts.
            outputs: the completions.
            indices: the prompt of each; by default all prompts in their order.

        Raises:
            InputError: a score that is NaN or infinite.
        """
        chosen = range(len(sampling.prompts)) if indices is None else indices
        prompts = sampling.prompts.pick(chosen)
        shown = [prompts.shown(i, sampling.tokenizer) for i in range(len(prompts))]
        if self.function is not None:
            asked = answers(shown, outputs.texts)
            return call_reward_function(self.function, shown, asked, prompts.columns)
        kept = outputs.ids
        if kept is None:  # text of other tokens, or of a file: as the base would read it
            encoder = Encoder(sampling.tokenizer, None, chat=prompts.chat)
            kept = [
                encoder.completion_ids(ids, encoder.prompt_text(given, prompts.row(i)), text,
                                       not isinstance(given, str))
                for i, (ids, given, text) in enumerate(zip(prompts, shown, outputs.texts,
                                                           strict=True))
            ]  # fmt: skip
        reading = reading_of(self.folder, sampling.tokenizer, self.end_token)
        sampling.roles.use_reward(self.folder, reading)
        scores = model_scores(
            sampling.roles, prompts, kept, sampling.tokenizer, sampling.batch_size
        ).tolist()
        for value, text in zip(scores, outputs.texts, strict=True):
            if not math.isfinite(value):
                raise InputError(
                    f"judges: {self.name}: scored {text!r:.60} as {value} (the weights of "
                    f"{self.folder} are broken, or the precision is too low: try --precision fp32)"
                )
        return scores


class PickJudge(Protocol):
    """Says of two completions which is better."""

    name: str
    kind: str

    def verdicts(self, questions: list[tuple[Any, str, str]]) -> list[Verdict]:
        """One for each (prompt, first completion, second completion)."""


@dataclass
class AskJudge:
    """A language model behind an OpenAI-compatible endpoint."""

    name: str
    judge: HTTPJudge
    kind: str = "http"

    def verdicts(self, questions: list[tuple[Any, str, str]]) -> list[Verdict]:
        """Its answers; equal texts are a tie without asking, no clear answer is None.

        Raises:
            InputError: it could not be asked, or it gave no answer at all; a table of those would
                look as if it had judged.
        """
        found: list[Verdict] = []
        asked = answered = 0
        for prompt, first, second in tqdm(questions, desc=f"{self.name} judges", unit="pair"):
            if first == second:
                found.append(0)
                continue
            pick = self.judge.pick(prompt, [first, second])
            asked, answered = asked + 1, answered + (pick is not None)
            found.append(None if pick is None else 1 - 2 * pick)
        if asked and not answered:
            raise InputError(
                f"judges: {self.name}: gave no answer on any of {asked} pairs; its last begins "
                f"{self.judge.refusal}"
            )
        if doubt := self.judge.doubt():
            print(f"warning: {self.name}: {doubt}")
        return found


@dataclass
class PeopleJudge:
    """People on the labelling page, who see neither names nor which is which.

    The questions go into a store as items; what has been said of them so far is what counts. Ask
    again later, with ``evaluate.py --samples``, for the rest.
    """

    name: str
    path: str
    kind: str = "people"

    def verdicts(self, questions: list[tuple[Any, str, str]]) -> list[Verdict]:
        """By majority of those who labelled a pair; a tie, or both bad, counts for neither."""
        different = [q for q in questions if q[1] != q[2]]
        said: dict[str, list[int]] = defaultdict(list)
        with Store(self.path, Settings(overlap=0.0, repeats=0.0, gold=0.0)) as store:
            store.add_items(
                ({"prompt": p, "completions": sorted((a, b))} for p, a, b in different),
                kind="match",
            )
            for label in store.said("match"):
                sign = 0 if label["choice"] is None else 1 - 2 * label["choice"]
                said[_key(label["prompt"], *label["completions"])].append(sign)
        found: list[Verdict] = []
        for prompt, first, second in questions:
            votes = said.get(_key(prompt, *sorted((first, second))))
            if first == second:
                found.append(0)
            elif votes is None:
                found.append(None)
            else:
                total = sum(votes) if first < second else -sum(votes)
                found.append((total > 0) - (total < 0))
        left = sum(v is None for v in found)
        if left:
            print(
                f"{self.name}: {len(found) - left} of {len(found)} pairs are judged; for the rest: "
                f"python recipes/label.py --serve --store {self.path} --invite NAME, then "
                "evaluate.py again with --samples"
            )
        return found


def _key(prompt: Any, *texts: str) -> str:
    return json.dumps([prompt, *texts], sort_keys=True)


Judge = ScoreJudge | AskJudge | PeopleJudge


def parse_judges(
    specs: Sequence[str], base: str, precision: str, key_variable: str = "OPENAI_API_KEY",
    end_token: str = "auto", **http: Any,
) -> list[Judge]:  # fmt: skip
    """Judges from ``name=kind:value``; nothing large is loaded. ``http`` is for ``HTTPJudge``.

    Raises:
        InputError: another form or kind, a name twice, something that does not load.
    """
    judges: list[Judge] = []
    http_options = {"key_variable": key_variable} | http
    for spec in specs:
        name, _, what = spec.partition("=")
        kind, _, value = what.partition(":")
        if not (name and value) or kind not in KINDS:
            raise InputError(
                f"judges: {spec!r} is not NAME=KIND:VALUE with a KIND of {', '.join(KINDS)}"
            )
        if any(j.name == name for j in judges):
            raise InputError(f"judges: two are called {name!r}")
        judges.append(_load(name, kind, value, base, precision, end_token, http_options))
    return judges


def _load(
    name: str, kind: str, value: str, base: str, precision: str, end_token: str,
    http: dict[str, Any],
) -> Judge:  # fmt: skip
    if kind == "lexicon":
        return ScoreJudge(name, kind, Lexicon(value))
    if kind == "function":
        return ScoreJudge(name, kind, load_function(value))
    if kind == "reward_model":
        return ScoreJudge(name, kind, TextRewardModel(value, precision, end_token=end_token))
    if kind == "reward_adapter":
        check_adapter(value, base, "SEQ_CLS", f"judges: {name}", precision)
        return ScoreJudge(name, kind, folder=value, end_token=end_token)
    if kind == "people":
        check_writable(value, f"judges: {name}")
        return PeopleJudge(name, value)
    model, _, url = value.partition("@")
    if not url:
        raise InputError(f"judges: {name}: {value!r} is not MODEL@URL")
    return AskJudge(name, HTTPJudge(url, model, **http))


def reranker(judges: Sequence[Judge], name: str | None, sampling: Sampling) -> Reranker | None:
    """What best-of-n picks by: the judge called ``name``, or the first that scores, if any does."""
    for judge in judges:
        if isinstance(judge, ScoreJudge) and name in (None, judge.name):
            return lambda indices, outputs: judge.score(sampling, outputs, indices)
    return None


def judge_all(
    judges: Sequence[Judge], sampling: Sampling, contenders: Sequence[Contender],
    outputs: dict[str, Outputs], pick_pairs: str, pick_limit: int,
) -> tuple[dict[str, Scores], dict[str, Verdicts]]:  # fmt: skip
    """Scores (judge -> contender -> a number a prompt) and verdicts (judge -> pair -> one each).

    Args:
        judges: who judge.
        sampling: base and prompts.
        contenders: the reference first.
        outputs: of each.
        pick_pairs: "reference" or "all": the pairs that judges who pick are asked about.
        pick_limit: they see so many of the prompts.
    """
    scores: dict[str, Scores] = {}
    verdicts: dict[str, Verdicts] = {}
    count = min(pick_limit, len(sampling.prompts))
    shown = [sampling.prompts.shown(i, sampling.tokenizer) for i in range(count)]
    for judge in judges:
        if isinstance(judge, ScoreJudge):
            scores[judge.name] = {
                c.name: judge.score(sampling, outputs[c.name]) for c in contenders
            }
            continue
        pairs = list(pairs_of([c.name for c in contenders], pick_pairs))
        said = judge.verdicts([
            (shown[i], outputs[a].texts[i], outputs[b].texts[i])
            for a, b in pairs for i in range(count)
        ])  # fmt: skip
        verdicts[judge.name] = {
            pair: said[k * count : (k + 1) * count] for k, pair in enumerate(pairs)
        }
    return scores, verdicts


def pairs_of(names: Sequence[str], wanted: str) -> Iterator[tuple[str, str]]:
    """(contender, opponent): each but the first against the first; with "all", everyone."""
    for i, name in enumerate(names):
        for opponent in names[:i] if wanted == "all" else names[: min(i, 1)]:
            yield name, opponent
