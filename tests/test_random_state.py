"""Random states: what is put back gives the same numbers again, also by way of JSON."""

import json
import random

import numpy as np
import torch

from toolkit.random_state import (
    current,
    python_random_state,
    random_state,
    restore,
    restore_python_random_state,
    restore_random_state,
)


def draw() -> tuple[float, float, float, float]:
    """A number from each library; the normal ones leave a second one waiting."""
    return random.random(), random.gauss(), float(np.random.normal()), torch.rand(()).item()


def test_the_same_numbers_come_again() -> None:
    draw()  # so that a normal number waits in Python's and in numpy's
    state = current()
    expected = [draw() for _ in range(3)]
    restore(state)
    assert [draw() for _ in range(3)] == expected


def test_the_same_numbers_come_again_by_way_of_json() -> None:
    draw()
    state = json.loads(json.dumps(random_state()))
    expected = [draw() for _ in range(3)]
    restore_random_state(state)
    assert [draw() for _ in range(3)] == expected


def test_python_and_numpy_are_put_back_alone() -> None:
    state = json.loads(json.dumps(python_random_state()))
    first, third = draw(), None
    restore_python_random_state(state)
    third = draw()
    assert third[:3] == first[:3] and third[3] != first[3]  # torch went on


def test_the_form_in_json_is_that_of_earlier_checkpoints() -> None:
    """Python's version, 625 numbers and the normal one that waits; numpy's legacy tuple."""
    random.seed(0)
    np.random.seed(0)
    state = json.loads(json.dumps(python_random_state()))
    version, numbers, waiting = state["python"]
    assert (version, len(numbers), waiting) == (3, 625, None)
    legacy = np.random.get_state(legacy=True)
    assert state["numpy"] == [legacy[0], legacy[1].tolist(), *legacy[2:]]
