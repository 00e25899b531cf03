-- Queues of which processes that share a database have one at a time. One that owns its file keeps them in memory.
CREATE TABLE lines (
    name       TEXT NOT NULL PRIMARY KEY,
    holder     TEXT NOT NULL,
    held_until REAL NOT NULL,
    wanted     TEXT
) STRICT, WITHOUT ROWID;
