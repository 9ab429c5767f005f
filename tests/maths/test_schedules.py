"""O13: counts and decay."""

import pytest
import torch

from toolkit.maths.schedules import linear_decay, num_updates


def test_counts_of_the_published_runs() -> None:
    assert num_updates(1_000_000, 512) == 1954
    assert num_updates(1_000_000, 32) == 31_250
    assert num_updates(2_000_000, 1024) == 1954
    assert num_updates(2_000_000, 512) == 3907
    assert 4 * num_updates(1_000_000, 512) == 7816
    assert num_updates(4_992, 32) == 156 and num_updates(46_000, 16) == 2875


def test_last_learning_rate_of_the_reward_model() -> None:
    assert 5e-5 * linear_decay(4_992 - 32, 4_992) == pytest.approx(3.205e-07, rel=1e-3)
    assert linear_decay(0, 1954) == 1.0


def test_decay_equals_the_librarys_linear_schedule() -> None:
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 156)
    for step in range(156):
        assert schedule.get_last_lr()[0] == pytest.approx(linear_decay(step, 156), abs=1e-12)
        optimizer.step()
        schedule.step()
