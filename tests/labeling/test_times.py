"""What labels say, and when they were said."""

import pytest

from toolkit.errors import InputError
from toolkit.labeling.times import label_time

NOON = 1_704_110_400  # date -d 2024-01-01T12:00:00Z +%s


@pytest.mark.parametrize(
    "written",
    ["2024-01-01T12:00:00Z", "2024-01-01 12:00:00", "2024-01-01T14:00:00+02:00", NOON, NOON * 1000],
)
def test_a_time_is_the_same_however_it_is_written(written: object) -> None:
    """A time without a zone is UTC's; pandas writes milliseconds."""
    assert label_time({"created_at": written}) == NOON


def test_the_time_of_the_last_change_is_the_labels() -> None:
    holder = {"created_at": NOON, "inserted_at": 1, "updated_at": NOON + 60}
    assert label_time(holder) == NOON + 60
    assert label_time(holder | {"updated_at": None}) == NOON
    assert label_time({"updated_at": ""}) is None


@pytest.mark.parametrize("written", ["noon", True, [1], "2024-13-01", 1e300])
def test_a_time_that_is_none_is_refused_with_its_place(written: object) -> None:
    with pytest.raises(InputError, match="^f:1: updated_at: .*, but must be a time such as"):
        label_time({"updated_at": written}, "f:1: ")
