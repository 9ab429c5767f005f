"""How many steps there are, what the learning rate is at each, and when labels are due."""

import math


def num_updates(total_episodes: int, batch_size: int) -> int:
    """ceil(total_episodes / batch_size).

    Source: openai/lm-human-preferences lm_human_preferences/train_policy.py:78-84.
    """
    return math.ceil(total_episodes / batch_size)


def linear_decay(done: int, total: int) -> float:
    """Factor on the learning rate: 1 at the first step, 1 / total at the last.

    ``done`` counts completed steps: PPO updates (constant within an update's epochs), or rows of
    the reward model's data. Source: ibid. :172-177, and train_reward.py:245-250.
    """
    return 1 - done / total


def updates_between(steps: float, updates: int) -> int:
    """Updates from one checkpoint (or evaluation) to the next.

    ``steps`` below 1 is a part of the run, rounded up, as in transformers' Trainer: 0.25 of 10
    updates is 3.
    """
    return math.ceil(updates * steps) if steps < 1 else int(steps)


def retrain_points(total_episodes: int, rounds: int) -> list[int]:
    """Episodes at which the reward model is trained anew: evenly spaced, the first at 0.

    Source: arXiv 1909.08593 section 2.3 (20 rounds in 2M episodes: every 100,000).
    """
    return [total_episodes * i // rounds for i in range(rounds)]


def labels_due(episodes: float, total_episodes: float, initial: float, total: float) -> float:
    """Labels wanted after ``episodes``: quadratic, most of them early.

    l(n) = initial + (total - initial) (1 - (1 - n / N)^2). That the paper has such a schedule is
    known; this form of it is from memory and unverified, so callers may pass another.
    """
    left = 1 - episodes / total_episodes
    return initial + (total - initial) * (1 - left**2)
