-- Version 1 of the store. Do not change it, because files keep it: write changes in a new script and
-- add that to MIGRATIONS in database.py. Tables and columns keep their old spelling.

-- A prompt with K completions. `taken` counts labels and leases of turn 0; an item is open while
-- `taken` is less than `wanted`. `gold` is the index of its known best completion.
CREATE TABLE items (
  id INTEGER PRIMARY KEY,
  digest TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('comparison', 'match')),
  prompt TEXT NOT NULL,
  completions TEXT NOT NULL,
  extra TEXT NOT NULL,
  gold INTEGER,
  place INTEGER NOT NULL,
  wanted INTEGER NOT NULL,
  taken INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX items_open ON items (place) WHERE taken < wanted;
CREATE INDEX items_gold ON items (place) WHERE gold IS NOT NULL;

-- A person signs in with a token, which is stored hashed. `cursor` is the place of their last item.
CREATE TABLE labellers (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL CHECK (kind IN ('person', 'script', 'admin')),
  token TEXT UNIQUE,
  cursor INTEGER NOT NULL DEFAULT -1,
  created REAL NOT NULL
);
CREATE TABLE sessions (
  hash TEXT PRIMARY KEY,
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  created REAL NOT NULL
);

-- Which labeler is looking at which item, and the number of their form.
CREATE TABLE leases (
  form TEXT PRIMARY KEY,
  item INTEGER NOT NULL REFERENCES items (id),
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  turn INTEGER NOT NULL,
  since REAL NOT NULL,
  expires REAL NOT NULL,
  UNIQUE (labeller, item, turn)
);
CREATE INDEX leases_item ON leases (item);
CREATE INDEX leases_expires ON leases (expires);

-- Answers of labelers. A form makes at most one; events are never changed or deleted.
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  form TEXT NOT NULL UNIQUE,
  item INTEGER NOT NULL REFERENCES items (id),
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  turn INTEGER NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('pick', 'tie', 'bad', 'skip', 'undo')),
  choice INTEGER,
  position INTEGER,
  reason TEXT,
  seconds REAL,
  at REAL NOT NULL,
  CHECK ((action = 'pick') = (choice IS NOT NULL))
);
CREATE INDEX events_labeller ON events (labeller, id);
CREATE TRIGGER events_stay BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are only ever added'); END;
CREATE TRIGGER events_last BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are only ever added'); END;

-- The last event of an item, a labeler and a turn that was not undone.
CREATE TABLE labels (
  item INTEGER NOT NULL REFERENCES items (id),
  labeller INTEGER NOT NULL REFERENCES labellers (id),
  turn INTEGER NOT NULL,
  event INTEGER NOT NULL UNIQUE REFERENCES events (id),
  action TEXT NOT NULL,
  choice INTEGER,
  PRIMARY KEY (item, labeller, turn)
) WITHOUT ROWID;
CREATE INDEX labels_labeller ON labels (labeller, event);
