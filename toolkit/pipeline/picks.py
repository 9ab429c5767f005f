"""Label until there are enough picks: by a script, or by people who are waited for."""

import math
import time
from collections.abc import Callable

from toolkit.data.records import Row
from toolkit.labeling.labelers import ScriptedLabeler
from toolkit.labeling.store import Store, StoreReader


def usable_picks(store: StoreReader, validation: bool) -> list[Row]:
    """All picks in the store that train the reward model: validation items', if they join."""
    return [row for row in store.picks() if validation or "sides" not in row]


def unanswered(store: StoreReader, number: int) -> int:
    """Validation items of this round of which nobody has said anything yet."""
    return store.db.execute(
        "SELECT count(*) FROM items i WHERE json_extract(extra, '$.source.round') = ? AND "
        "json_extract(extra, '$.sides') IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM labels l WHERE l.item = i.id)",
        (number,),
    ).fetchone()[0]


def nobody_answered(store: StoreReader) -> bool:
    """Whether there is an item of which nobody has said anything, on somebody's screen or not."""
    query = (
        "SELECT 1 FROM items i WHERE gold IS NULL AND NOT EXISTS "
        "(SELECT 1 FROM labels l WHERE l.item = i.id AND l.turn = 0) LIMIT 1"
    )
    return store.db.execute(query).fetchone() is not None


def items_for(store: StoreReader, missing: int, picks: int) -> int:
    """How many items bring so many picks, by the share of labels so far that were picks."""
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

    What is said depends on the store alone, so it may be killed and called again.

    Args:
        store: with the round's items.
        number: of the round.
        wanted: picks in all.
        validation: whether those on validation items count.
        labeler: a script, or None to wait for people.
        more: called with a number of items, brings so many new ones into the store.
        check: called now and then; raises to end the wait.
        poll: seconds between looks at the store while people label.

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
            if none_left and missing <= 0:  # what is open, others hold
                return picks
        else:
            none_left = not nobody_answered(store)
            if told != len(picks):
                told = len(picks)
                print(
                    f"waiting for people: {told} of {wanted} picks, {open_items} validation "
                    "items to go",
                    flush=True,
                )

        # Ties and skips leave too few: a tenth more than should do, so that it is soon enough.
        if none_left and missing > 0:
            more(math.ceil(1.1 * items_for(store, missing, len(picks))) + 2)
        elif labeler is None:
            time.sleep(poll)
