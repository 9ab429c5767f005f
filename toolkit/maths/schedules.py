"""The number of steps, and the learning rate at each."""

import math


def num_updates(total_episodes: int, batch_size: int) -> int:
    """ceil(total_episodes / batch_size).

    Source: openai/lm-human-preferences lm_human_preferences/train_policy.py:78-84.
    """
    return math.ceil(total_episodes / batch_size)


def linear_decay(done: int, total: int) -> float:
    """Factor on the learning rate: 1 at the first step, 1 / total at the last.

    ``done`` counts completed steps: PPO updates (the rate is constant within one), or rows of
    the reward model's data. Source: ibid. :172-177, and train_reward.py:245-250.
    """
    return 1 - done / total


def updates_between(steps: float, updates: int) -> int:
    """Updates from one checkpoint (or evaluation) to the next.

    If ``steps`` is below 1 it is a part of the run, rounded up as in transformers' Trainer: 0.25 of
    10 updates is 3.
    """
    return math.ceil(updates * steps) if steps < 1 else int(steps)
