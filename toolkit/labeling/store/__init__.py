"""The label store: an SQLite file that never loses or doubles an answer that it confirmed.

item      a prompt with K completions and their source: a comparison, or a match between two
          contenders. The best completion of a gold item is known
labeler   a person, who signs in with a token, or a script
lease     which labeler is looking at which item, and the number of their form
event     a labeler's answer to an item: pick, tie, bad (all of them), skip, or undo. Events are
          never changed or deleted, and a form makes at most one
label     the last event of an item, a labeler and a turn (0, or 1 for a hidden repeat) that was
          not undone. Labels are derived from events, and checked against them at every start

schema.sql   the tables
database.py  the file: connections, transactions, migrations, the check at the start
answers.py   what people are asked, and what an answer holds besides its pick
labels.py    writes one label
queue.py     chooses a labeler's next item, and keeps the leases
reading.py   StoreReader: reads labels and counts
store.py     Store: adds items, people and labels, and takes labels back
"""

from toolkit.labeling.store.answers import Asked, Details
from toolkit.labeling.store.database import check_writable, explain
from toolkit.labeling.store.labels import Labeler, Refused
from toolkit.labeling.store.queue import Settings, Task
from toolkit.labeling.store.reading import StoreReader
from toolkit.labeling.store.store import Store, item_digest, person_name

__all__ = [
    "Asked",
    "Details",
    "Labeler",
    "Refused",
    "Settings",
    "Store",
    "StoreReader",
    "Task",
    "check_writable",
    "explain",
    "item_digest",
    "person_name",
]
