"""Nothing is trained on a reward model that is known to be worthless by its metrics.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.data.records import Row, from_row
from toolkit.errors import InputError
from toolkit.record import RUN_FILE, RunRecord
from toolkit.scoring.accuracy import RewardMetrics, judge
from toolkit.terminal import say


@dataclass(frozen=True)
class Trust:
    """What is known of a reward model that something was trained on, as run.json holds it.

    Attributes:
        model: its folder or Hub id.
        answer: "yes", "no", "not decided" (``accuracy.judge``) or "not measured".
        sentence: the same in words.
        p, accuracy: that the answer rests on; None where nobody measured.
        allowed: the answer is "no", and it was trained on all the same.
    """

    model: str
    answer: str
    sentence: str
    p: float | None
    accuracy: float | None
    allowed: bool = False


def check_trust(given: Mapping[str, str | None], allowed: bool) -> list[Trust]:
    """The verdicts on reward models, before one of them is loaded; each is said, but for a "yes".

    The verdict (``accuracy.judge``) is that of metrics.json in the model's folder, which reward.py
    leaves there. "no" is refused; "not decided" goes on with a warning; a model without such a file
    (another tool's, or one on the Hub) goes on as "not measured".

    Args:
        given: the flag that names a reward model -> its folder or Hub id; None for none.
        allowed: go on with one that is worthless (``--allow_untrusted_reward``).

    Raises:
        InputError: the verdict is "no", and that was not allowed.
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
    """The verdict on one model by what lies in its folder."""
    try:
        metrics = RewardMetrics.read(Path(model) / "metrics.json", "metrics.json")
    except (InputError, OSError):
        sentence = (
            "Nobody measured whether it has learned what people pick: there is no metrics.json of "
            "reward.py in its folder."
        )
        return Trust(model, "not measured", sentence, p=None, accuracy=None)

    verdict = judge(metrics)
    return Trust(model, verdict.answer, verdict.sentence, verdict.p, metrics.accuracy)


def read_trusts(run: Row, place: str) -> list[Trust]:
    """Read the verdicts that stand in a run.json; none where it has none.

    Raises:
        InputError: one that is no such.
    """
    return [from_row(Trust, row, place) for row in run.get("reward_verdicts") or []]


def with_earlier(folder: Path, now: list[Trust], resumed: bool) -> list[Trust]:
    """Verdicts for a run's run.json: those of a run that is taken up again stay, in their order.

    An online run has another reward model in each round, and one of them may have been worthless.
    """
    then: list[Trust] = []
    if resumed and (folder / RUN_FILE).is_file():
        try:
            record = RunRecord.read(folder / RUN_FILE)
            then = read_trusts(record.as_json(), str(folder / RUN_FILE))
        except InputError:
            then = []  # a run.json of something else
    return [trust for trust in then if trust not in now] + now
