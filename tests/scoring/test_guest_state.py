"""Calls within calls: each recipe's users' functions draw from states of their own."""

from toolkit.scoring.guest_state import new_guests
from toolkit.scoring.guests import as_guest, guests_state


def test_calls_within_calls_have_states_of_their_own() -> None:
    with new_guests():
        with as_guest("f"):
            pass
        outer = guests_state()
        assert outer is not None
        with new_guests():
            assert guests_state() is None
            with as_guest("f"):
                pass
        assert guests_state() == outer
