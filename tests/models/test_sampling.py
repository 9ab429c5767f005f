"""How much of each completion the scorer sees."""

import pytest
import torch

from toolkit.errors import InputError
from toolkit.models.generation import Sampled
from toolkit.models.loading import load_tokenizer
from toolkit.models.sampling import SamplingRule, sampling_rule

STOP, END = 13, 1


def sampled(rows: list[list[int]], mask: list[list[int]] | None = None) -> Sampled:
    ids = torch.tensor(rows)
    keep = torch.ones_like(ids, dtype=torch.bool) if mask is None else torch.tensor(mask).bool()
    return Sampled(ids, keep, torch.zeros(ids.shape))


def test_the_scorer_sees_up_to_the_first_full_stop_that_counts() -> None:
    rule = SamplingRule(6, 0.7, pad_id=0, truncate_id=STOP, truncate_after=2)
    visible, valid = rule.visible(sampled([[5, STOP, 6, STOP, 7, STOP], [5, STOP, 6, 7, 8, 9]]))
    assert visible.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    assert valid.tolist() == [True, False]


def test_the_scorer_sees_all_without_a_rule_and_never_the_stop_token() -> None:
    rule = SamplingRule(4, 0.7, pad_id=0)
    assert rule.visible(sampled([[5, 6, 7, 8]]))[0].all()
    rule = SamplingRule(4, 0.7, pad_id=0, stop_ids=(END,))
    visible, valid = rule.visible(sampled([[5, 6, END, 0]], [[1, 1, 1, 0]]))
    assert visible.tolist() == [[True, True, False, False]] and valid.all()


def test_a_pad_token_that_is_also_a_real_one_does_no_harm() -> None:
    rule = SamplingRule(4, 0.7, pad_id=7, truncate_id=STOP, truncate_after=0)
    visible, _ = rule.visible(sampled([[7, STOP, 7, 7]]))
    assert visible.tolist() == [[True, True, False, False]]


def test_a_rule_that_nothing_can_meet_is_refused(demo_model: str) -> None:
    tokenizer = load_tokenizer(demo_model)
    with pytest.raises(InputError, match="must be below response_length"):
        sampling_rule(tokenizer, 16, 0.7, truncate_token=".", truncate_after=16)
