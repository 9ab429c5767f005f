"""Refusing to train on a reward model that its metrics.json shows to be worthless."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.data.records import Row, from_row
from toolkit.errors import InputError
from toolkit.models.toolkit_json import read_facts
from toolkit.record import RUN_FILE, RunRecord
from toolkit.scoring.accuracy import RewardMetrics, judge
from toolkit.terminal import say


@dataclass(frozen=True)
class Trust:
    """What is known about a reward model that was trained on; a part of run.json.

    Attributes:
        model: its folder or Hub id.
        answer: "yes", "no", "not decided" (``accuracy.judge``) or "not measured".
        sentence: the answer in words.
        p, accuracy: the figures behind the answer; None if nobody measured.
        allowed: whether the answer is "no", but training was allowed.
    """

    model: str
    answer: str
    sentence: str
    p: float | None
    accuracy: float | None
    allowed: bool = False


def check_trust(given: Mapping[str, str | None], allowed: bool) -> list[Trust]:
    """Return the verdicts on reward models before one is loaded, and print all but a "yes".

    The verdict (``accuracy.judge``) comes from metrics.json in the model's folder, which reward.py
    wrote. "no" is refused; "not decided" prints a note; a model without this file (another tool's,
    or one on the Hub) counts as "not measured".

    Args:
        given: flag that names a reward model -> its folder or Hub id, or None.
        allowed: whether to accept a worthless one (``--allow_untrusted_reward``).

    Raises:
        InputError: the verdict is "no", and this is not allowed.
    """
    found = []
    for flag, model in given.items():
        if model is None:
            continue

        trust = _trust(model)
        if trust.answer == "no" and not allowed:
            raise InputError(
                f"{flag}: {model}: {trust.sentence} (--allow_untrusted_reward goes on with it all "
                "the same)",
                flag,
            )
        trust = replace(trust, allowed=trust.answer == "no")
        if trust.answer != "yes":
            say(f"{'warning' if trust.allowed else 'note'}: {flag}: {model}: {trust.sentence}")
        found.append(trust)
    return found


def _trust(model: str) -> Trust:
    """Return the verdict on one model from its folder."""
    try:
        metrics = RewardMetrics.read(Path(model) / "metrics.json", "metrics.json")
    except (InputError, OSError):
        merged = read_facts(model).get("merged") or {}
        parents = [str(parent.get("adapter")) for parent in merged.get("parents", ())]
        for parent in (p for p in parents if (Path(p) / "metrics.json").is_file()):
            trust = _trust(parent)
            if trust.answer == "no":
                sentence = f"It was merged from {parent}. {trust.sentence}"
                return Trust(model, "no", sentence, p=trust.p, accuracy=None)
        sentence = (
            "Nobody measured whether it has learned what people pick: there is no metrics.json of "
            "preftune reward in its folder."
        )
        return Trust(model, "not measured", sentence, p=None, accuracy=None)

    verdict = judge(metrics)
    return Trust(model, verdict.answer, verdict.sentence, verdict.p, metrics.accuracy)


def read_trusts(run: Row, place: str) -> list[Trust]:
    """Read the verdicts in a run.json; an empty list if it has none.

    Raises:
        InputError: one of them is not a verdict.
    """
    return [from_row(Trust, row, place) for row in run.get("reward_verdicts") or []]


def with_earlier(folder: Path, now: list[Trust], resumed: bool) -> list[Trust]:
    """Join a resumed run's earlier verdicts and new ones, in order, for its run.json.

    An online run has another reward model in each round, and an earlier one may have been
    worthless.
    """
    then: list[Trust] = []
    if resumed and (folder / RUN_FILE).is_file():
        try:
            record = RunRecord.read(folder / RUN_FILE)
            then = read_trusts(record.as_json(), str(folder / RUN_FILE))
        except InputError:
            then = []  # a run.json of another program
    return [trust for trust in then if trust not in now] + now
