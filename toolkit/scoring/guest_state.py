"""The random states that users' functions draw from while one recipe runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.random_state import RandomState

own: "RandomState | None" = None  # None until the first function is called


@contextmanager
def new_guests() -> Iterator[None]:
    """Users' functions inside begin with random states of their own; outer ones go on after.

    They begin with ours as they are when the first of them is called.
    """
    global own
    outer, own = own, None
    try:
        yield
    finally:
        own = outer
