"""A judge is asked alike from a script and from a command line."""

import dataclasses
import inspect

import pytest

from toolkit.arguments.judges import JudgeRequestArguments
from toolkit.errors import InputError
from toolkit.scoring.http_judge import HTTPJudge


def test_the_flags_have_the_defaults_of_the_judge_itself() -> None:
    own = inspect.signature(HTTPJudge.__init__).parameters
    told = dataclasses.asdict(JudgeRequestArguments())
    assert told == {name: own[name.removeprefix("judge_")].default for name in told}


@pytest.mark.parametrize("wrong", [{"judge_timeout": 0.0}, {"judge_patience": 0}])
def test_a_judge_that_could_never_answer_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is 0"):
        JudgeRequestArguments(**wrong)  # type: ignore[arg-type]
