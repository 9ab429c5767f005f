"""Label until there are enough picks, by a script or by waiting for people."""

import math
import time
from collections.abc import Callable

from toolkit.data.records import Row
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Store, StoreReader


def usable_picks(store: StoreReader, validation: bool) -> list[Row]:
    """Return the picks that train the reward model, with validation picks if ``validation``."""
    return [row for row in store.picks() if validation or "sides" not in row]


def unanswered(store: StoreReader, number: int) -> int:
    """Count the round's validation items that nobody has labeled."""
    return store.db.execute(
        "SELECT count(*) FROM items i WHERE json_extract(extra, '$.source.round') = ? AND "
        "json_extract(extra, '$.sides') IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM labels l WHERE l.item = i.id)",
        (number,),
    ).fetchone()[0]


def nobody_answered(store: StoreReader) -> bool:
    """Whether there is an item that nobody has labeled, even if somebody is looking at it."""
    query = (
        "SELECT 1 FROM items i WHERE gold IS NULL AND NOT EXISTS "
        "(SELECT 1 FROM labels l WHERE l.item = i.id AND l.turn = 0) LIMIT 1"
    )
    return store.db.execute(query).fetchone() is not None


def items_for(store: StoreReader, missing: int, picks: int) -> int:
    """Estimate how many items give ``missing`` picks, from the share of picks among labels."""
    said = store.db.execute("SELECT count(*) FROM labels WHERE turn = 0").fetchone()[0]
    return math.ceil(missing * max(1.0, min(5.0, said / max(1, picks))))


def label_until(
    store: Store,
    number: int,
    wanted: int,
    validation: bool,
    labeler: ScriptedLabeler | None,
    more: Callable[[int], None],
    check: Callable[[], None],
    poll: float = 5.0,
) -> list[Row]:
    """Label until there are ``wanted`` picks and no validation item of the round is left.

    The labels depend only on the store, so this may be killed and called again.

    Args:
        store: holds the round's items.
        number: number of the round.
        wanted: picks in all.
        validation: whether picks on validation items count.
        labeler: a scripted labeler, or None to wait for people.
        more: adds the given number of new items to the store.
        check: called now and then; raises to end the wait.
        poll: seconds between checks of the store while people label.

    Returns:
        All usable picks.
    """
    told = -1
    while True:
        picks = usable_picks(store, validation)
        missing = wanted - len(picks)
        open_items = unanswered(store, number)
        if missing <= 0 and not open_items:
            return picks
        check()

        if labeler is not None:
            none_left = not labeler.work(store, max(missing, 1), progress=False).items
            if none_left and missing <= 0:  # other labelers hold the open items
                return picks
        else:
            none_left = not nobody_answered(store)
            if told != len(picks):
                told = len(picks)
                print(
                    f"waiting for people: {told} of {wanted} picks are made, {open_items} "
                    "validation items are left",
                    flush=True,
                )

        # Ties and skips left too few picks. Add a tenth more items, so that one batch suffices.
        if none_left and missing > 0:
            more(math.ceil(1.1 * items_for(store, missing, len(picks))) + 2)
        elif labeler is None:
            time.sleep(poll)
