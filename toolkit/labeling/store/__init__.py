"""The labels: an SQLite file in which nothing that was acknowledged is lost, or is there twice.

item      a prompt with K completions and where they came from; a comparison, or a match between
          two contenders; perhaps gold: its best completion is known
labeler   a person, who comes with a token, or a script
lease     who is looking at which item, and the number of the form that was handed out
event     what a labeler said of an item: pick, tie, bad (all of them), skip, or undo. Events
          are only ever added; a form makes at most one
label     what holds of an item, a labeler and a turn (0, or 1 for a hidden repeat): the last
          event that was not undone. Derived, and checked against the events at every start

schema.sql   the tables
database.py  the file: connections, transactions, migrations, the check at the start
labels.py    writes one label
queue.py     which item a labeler is asked next, and the leases
reading.py   StoreReader: what was said
store.py     Store: items and people come in, labels are given and taken back
"""

from toolkit.labeling.store.database import check_writable, explain
from toolkit.labeling.store.labels import Labeler, Refused
from toolkit.labeling.store.queue import Settings, Task
from toolkit.labeling.store.reading import StoreReader
from toolkit.labeling.store.store import Store, person_name

__all__ = [
    "Labeler",
    "Refused",
    "Settings",
    "Store",
    "StoreReader",
    "Task",
    "check_writable",
    "explain",
    "person_name",
]
