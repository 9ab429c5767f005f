"""How much memory there is: on cards by name and size, and here."""

import pytest

from toolkit.errors import InputError
from toolkit.models.cards import CARDS, free_room, room_of


@pytest.mark.parametrize(
    ("said", "gigabytes"),
    [
        ("24GB", 24),
        ("24 gb", 24),
        ("4090", 24),
        ("RTX 4090", 24),
        ("NVIDIA GeForce RTX 4090", 24),
        ("rtx-3060", 12),
        ("L40S", 48),
        ("RTX A6000", 48),
        ("RTX 6000 Ada", 48),
        ("a100-40gb", 40),
        ("A100 80GB", 80),
        ("a100_80g", 80),
        ("h100", 80),
        ("Tesla T4", 16),
        ("7.5gb", 7.5),
    ],
)
def test_a_card_is_known_by_name_or_size(said: str, gigabytes: float) -> None:
    """A tenth and what CUDA takes are held back of the memory as it is sold."""
    room = room_of(said)
    assert room.size == gigabytes * 10**9
    assert room.usable == pytest.approx(0.9 * gigabytes * 1e9 - 500 * 2**20, abs=1)
    assert "held back are" in room.line() and "(10%)" in room.line() and "assumed" in room.line()


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("a100", "say a100-40gb or a100-80gb"),
        ("4090-48gb", "no card is known as 4090-48gb"),
        ("9999", "no card is known as 9999"),
        ("80", "no card is known as 80"),
        ("", "no card is known"),
        ("four", "for example 24GB"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_would_be(said: str, answer: str) -> None:
    with pytest.raises(InputError, match=answer):
        room_of(said)


def test_every_card_of_the_table_can_be_asked_for() -> None:
    for name, sizes in CARDS.items():
        for size in sizes:
            assert room_of(f"{name} {size}GB").size == size * 10**9


def test_cards_before_ampere_have_no_bf16() -> None:
    assert [room_of(name).bf16 for name in ("t4", "v100-16gb", "a10", "3090")] == [
        False,
        False,
        True,
        True,
    ]


def test_nothing_is_held_back_on_a_cpu() -> None:
    room = free_room("cpu")
    assert 0 < room.size == room.usable
    assert room.line() == f"CPU, {room.size / 2**20:,.0f} MiB free"
