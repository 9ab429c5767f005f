"""What a launcher says in the environment, and what a stray RANK does not."""

import pytest

from toolkit.errors import InputError
from toolkit.launched import is_first, nodes, processes_here, world_size


@pytest.mark.parametrize(
    ("world", "rank", "size", "first"),
    [(None, None, 1, True), ("4", "0", 4, True), ("4", "3", 4, False), (" 2 ", "1", 2, False),
     (None, "3", 1, True), ("1", "3", 1, True), ("4", None, 4, True)],
)  # fmt: skip
def test_the_first_of_those_that_work_together(
    world: str | None, rank: str | None, size: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", world), ("RANK", rank)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert (world_size(), is_first()) == (size, first)


@pytest.mark.parametrize("said", ["", "two", "-1", "1.5"])
def test_something_that_is_no_number_is_one_line(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", said)
    with pytest.raises(InputError, match=f"WORLD_SIZE is {said!r} in the environment"):
        world_size()


def test_machines_are_counted_only_among_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (nodes(), processes_here()) == (1, 1)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert (nodes(), processes_here()) == (2, 8)
