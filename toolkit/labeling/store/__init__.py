"""The store of labels."""

from toolkit.labeling.store.store import (
    MIGRATIONS,
    REFUSED,
    Labeler,
    Refused,
    Settings,
    Store,
    check_writable,
    cure,
    draw,
    person_name,
    shown_order,
)

__all__ = [
    "MIGRATIONS", "REFUSED", "Labeler", "Refused", "Settings", "Store", "check_writable", "cure",
    "draw", "person_name", "shown_order",
]  # fmt: skip
