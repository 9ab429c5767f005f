-- Version 1 of the store. Old files keep it: what changes it is a script of its own, which goes
-- behind this one in database.py's MIGRATIONS. Names of tables and columns stay as they were first
-- spelled.

-- A prompt with K completions. `taken` counts labels and leases of turn 0; an item is open while that
-- is less than `wanted`. `gold` is the index of its known best completion.
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

-- Persons come with a token, which is kept hashed. `cursor` is the place where one was last.
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

-- Who is looking at which item, and the number of the form that was handed out.
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

-- What a labeler said of an item; a form makes at most one. Never changed, never deleted.
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

-- What holds: the last event of an item, a labeler and a turn that was not undone.
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
