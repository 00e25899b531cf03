-- The last part of its counters that each process has added to the table usage, and when: a part whose commit was not answered
-- is written again, and must not be added twice.
CREATE TABLE usage_parts (
    process TEXT PRIMARY KEY,
    number  INTEGER NOT NULL,
    at      REAL NOT NULL
) STRICT, WITHOUT ROWID;
