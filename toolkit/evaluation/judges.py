"""The judges of pairs of completions: scorers, HTTP judges, people.

Scorers' scores are compared; the others are asked about each pair. ``scoring.arguments`` parses
the names of judges.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tqdm.auto import tqdm

from toolkit.errors import InputError
from toolkit.evaluation.contenders import Contender, Outputs, Sampling
from toolkit.labeling.store import Settings, Store, StoreReader, check_writable
from toolkit.scoring.arguments import CombiningArguments, Spec, load_scorer
from toolkit.scoring.http_judge import HTTPJudge
from toolkit.scoring.picker import Picker
from toolkit.scoring.scorer import Prompt, Scorer

# 1: the first is better; -1: the second is better; 0: equally good; None: not judged.
Verdict = int | None
Scores = dict[str, list[float]]  # contender -> a score for each prompt
Verdicts = dict[tuple[str, str], list[Verdict]]  # (contender, opponent) -> one for each prompt
Question = tuple[Prompt, str, str]  # a prompt, and two completions


@dataclass
class ScoreJudge:
    """A judge that scores completions; the higher score wins.

    Attributes:
        name: name in tables.
        kind: one of ``scoring.arguments.KINDS``.
        scorer: computes the scores.
    """

    name: str
    kind: str
    scorer: Scorer

    def score(
        self, sampling: Sampling, outputs: Outputs, indices: Sequence[int] | None = None
    ) -> list[float]:
        """Score completions; ``indices`` names the prompt of each (by default all in order).

        Raises:
            InputError: a score is NaN or infinite.
        """
        return self.scorer.finite_scores(sampling.completions(outputs, indices))


@dataclass
class AskJudge:
    """A judge that picks the better completion, such as a language model behind an endpoint."""

    name: str
    picker: Picker
    kind: str = "http"

    def verdicts(self, questions: list[Question]) -> list[Verdict]:
        """Ask the judge; equal texts are a tie without asking, and None means no clear answer.

        Raises:
            InputError: the judge could not be asked, or gave no answer to any pair.
        """
        found: list[Verdict] = []
        asked = answered = 0
        for prompt, first, second in tqdm(questions, desc=f"Judging by {self.name}", unit="pair"):
            if first == second:
                found.append(0)
                continue

            best = self.picker.best(prompt, [first, second])
            asked += 1
            answered += bool(best)
            found.append((0 in best) - (1 in best) if best else None)

        if asked and not answered:
            raise InputError(
                f"judges: {self.name}: gave no answer on any of {asked} pairs; its last reply "
                f"begins {self.picker.refusal}"
            )
        if doubt := self.picker.doubt():
            print(f"warning: {self.name}: {doubt}")
        return found


@dataclass
class PeopleJudge:
    """People on the labeling page, who do not see which contender wrote what.

    The questions go into a store as items, and the labels given so far count. Run
    ``evaluate.py --samples`` again later for the rest.

    Attributes:
        path: of the store.
        votes: people who are asked about each pair; the majority counts.
    """

    name: str
    path: str
    kind: str = "people"
    votes: int = 1

    def ask(self, questions: list[Question]) -> int:
        """Put the pairs that differ into the store; return how many were not there before."""
        different = [question for question in questions if question[1] != question[2]]
        settings = Settings(overlap=0.0, repeats=0.0, gold=0.0, votes=self.votes)
        with Store(self.path, settings) as store:
            added, _ = store.add_items(
                ({"prompt": p, "completions": sorted((a, b))} for p, a, b in different),
                kind="match",
            )
        return added

    def verdicts(self, questions: list[Question]) -> list[Verdict]:
        """Return the majority of each pair's labels; ties and "both bad" count for neither."""
        self.ask(questions)
        said: dict[str, list[int]] = defaultdict(list)
        with StoreReader(self.path) as store:
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
                f"{self.name}: {len(found) - left} of {len(found)} pairs are judged. To judge the "
                f"rest, run preftune label --serve --store {self.path} --invite NAME, "
                "then preftune evaluate again with --samples"
            )
        return found


def _key(prompt: Prompt, *texts: str) -> str:
    return json.dumps([prompt, *texts], sort_keys=True)


Judge = ScoreJudge | AskJudge | PeopleJudge


def load_judges(
    specs: Sequence[Spec],
    base: str,
    precision: str,
    end_token: str = "auto",
    ask: Callable[[str, str], HTTPJudge] = HTTPJudge,
    combining: CombiningArguments | None = None,
    votes: int = 1,
) -> list[Judge]:
    """Make the judges without loading anything large.

    Args:
        specs: judges of any kind.
        base: the base, which reward adapters must fit.
        precision: precision of bases.
        end_token: end token of texts that reward models read.
        ask: makes an HTTP judge from its address and its model's name.
        combining: how a judge of several reward adapters combines their scores.
        votes: people who are asked about each pair.

    Raises:
        InputError: a name is used twice, or a judge does not load.
    """
    judges: list[Judge] = []
    for spec in specs:
        if any(judge.name == spec.name for judge in judges):
            raise InputError(f"judges: two are called {spec.name!r}")

        what = f"judges: {spec.name}"
        if spec.kind == "people":
            check_writable(spec.value, what)
            judges.append(PeopleJudge(spec.name, spec.value, votes=votes))
        elif spec.kind == "http":
            model, _, url = spec.value.partition("@")
            if not url:
                raise InputError(f"{what}: {spec.value!r} is not MODEL@URL")
            judges.append(AskJudge(spec.name, ask(url, model)))
        else:
            scorer = load_scorer(spec, base, precision, end_token, what, combining)
            judges.append(ScoreJudge(spec.name, spec.kind, scorer))
    return judges


def reranker(judges: Sequence[Judge], name: str | None) -> Scorer | None:
    """Return the scorer for best-of-n: the judge called ``name``, or the first that scores."""
    for judge in judges:
        if isinstance(judge, ScoreJudge) and name in (None, judge.name):
            return judge.scorer
    return None


def judge_all(
    judges: Sequence[Judge],
    sampling: Sampling,
    contenders: Sequence[Contender],
    outputs: dict[str, Outputs],
    pick_pairs: str,
    pick_limit: int,
) -> tuple[dict[str, Scores], dict[str, Verdicts]]:
    """Ask all judges.

    Args:
        judges: the judges.
        sampling: base and prompts.
        contenders: the contenders, the reference first.
        outputs: completions by contender.
        pick_pairs: "reference" or "all": the pairs that judges who pick are asked about.
        pick_limit: number of prompts that these judges see.

    Returns:
        Scores (judge -> contender -> prompts) and verdicts (judge -> pair -> prompts).
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
        said = judge.verdicts(questions_of(pairs, shown, outputs))
        verdicts[judge.name] = {
            pair: said[k * count : (k + 1) * count] for k, pair in enumerate(pairs)
        }
    return scores, verdicts


def questions_of(
    pairs: Sequence[tuple[str, str]], shown: Sequence[Prompt], outputs: Mapping[str, Outputs]
) -> list[Question]:
    """The questions on these pairs of contenders, pair by pair, on the first prompts each.

    Args:
        pairs: as of ``pairs_of``.
        shown: the prompts that are asked about, as people see them.
        outputs: completions by contender, on these prompts and perhaps more.
    """
    return [
        (prompt, outputs[a].texts[i], outputs[b].texts[i])
        for a, b in pairs
        for i, prompt in enumerate(shown)
    ]


def pairs_of(names: Sequence[str], wanted: str) -> Iterator[tuple[str, str]]:
    """Yield (contender, opponent): all others against the first or, with "all", all pairs."""
    for i, name in enumerate(names):
        for opponent in names[:i] if wanted == "all" else names[: min(i, 1)]:
            yield name, opponent
