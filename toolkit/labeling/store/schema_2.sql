-- Version 2 of the store. Do not change it, because files keep it: write changes in a new script.

-- What an answer holds besides its pick (answers.py: Details), as a JSON object; NULL for nothing.
ALTER TABLE events ADD COLUMN details TEXT;

-- What the page asks of people (answers.py: Asked), once it was opened.
CREATE TABLE settings (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
);
