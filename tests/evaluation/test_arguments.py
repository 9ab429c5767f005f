"""What evaluate.py can be told: short forms, and what does not go together."""

import pytest

from toolkit.errors import InputError
from toolkit.evaluation.arguments import EvaluationArguments


def test_the_short_flags_are_judges_in_the_order_of_the_help(root: str) -> None:
    args = EvaluationArguments(
        lexicon=f"{root}/data/lexicon.txt", judges=["mine=function:math:fsum"]
    )
    judges = args.load_judges("base", "fp32")
    assert [(judge.name, judge.kind) for judge in judges] == [
        ("lexicon", "lexicon"),
        ("mine", "function"),
    ]


def test_without_a_judge_nothing_can_be_compared() -> None:
    with pytest.raises(InputError, match="judges: none is given"):
        EvaluationArguments().load_judges("base", "fp32")


@pytest.mark.parametrize("field", ["training_reward", "reranker"])
def test_a_judge_that_is_named_must_be_one_that_scores(field: str, root: str) -> None:
    args = EvaluationArguments(lexicon=f"{root}/data/lexicon.txt", **{field: "nobody"})
    with pytest.raises(InputError, match=f"{field}: no judge that scores is called 'nobody'"):
        args.load_judges("base", "fp32")


def test_best_of_n_needs_somebody_to_pick_by() -> None:
    args = EvaluationArguments(contenders=["best4=best_of_4"])
    with pytest.raises(InputError, match="best-of-n needs a judge that scores"):
        args.load_contenders("base", "fp32")


@pytest.mark.parametrize(
    ("told", "said"),
    [({"pick_pairs": "some"}, "pick_pairs is 'some', but must be one of reference, all"),
     ({"limit": 0}, "limit is 0"), ({"show": -1}, "show is -1"),
     ({"judge_timeout": 0.0}, "judge_timeout is 0"),
     ({"frontier_prompts": 2, "frontier_samples": 8}, "frontier_samples is 8"),
     ({"seed": 2**32}, "seed is")],
)  # fmt: skip
def test_a_value_out_of_range_is_named(told: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EvaluationArguments(**told)  # type: ignore[arg-type]
