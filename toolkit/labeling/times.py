"""Read the time of a label from a row or from another tool's export."""

from datetime import UTC, datetime

from toolkit.data.records import Row
from toolkit.errors import InputError

TIMES = ("updated_at", "created_at", "inserted_at")  # the first of these that is set counts


def label_time(holder: Row, place: str = "") -> float | None:
    """Return when a label was made, in seconds since 1970; None if it has no time.

    Args:
        holder: an annotation, a response or a native row.
        place: where it is, for messages.

    Raises:
        InputError: the time cannot be read.
    """
    name = next((name for name in TIMES if holder.get(name) not in (None, "")), None)
    if name is None:
        return None
    value = holder[name]
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):  # pandas: milliseconds
            return datetime.fromtimestamp(value / 1000 if value > 1e11 else value, UTC).timestamp()
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError, OverflowError, OSError):
        raise InputError(
            f"{place}{name}: {value!r:.40}, but must be a time such as 2024-01-31T12:00:00Z"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
