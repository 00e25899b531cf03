-- What people brought along from other applications. uid: made of the file's SHA-256 and the memory's scope. learns: learning
-- reads what came. touched: when it last wrote. data: JSON of counts, dates, warnings and how far it came, never of words.
CREATE TABLE imports (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    uid     TEXT NOT NULL UNIQUE,
    agent   INTEGER NOT NULL,
    format  TEXT NOT NULL,
    status  TEXT NOT NULL,
    learns  INTEGER NOT NULL,
    created REAL NOT NULL,
    touched REAL NOT NULL,
    data    BLOB NOT NULL
) STRICT;

CREATE INDEX imports_agent ON imports (agent);

-- What an import has added. what: 'exchange', 'fact', or 'stub': an exchange of an undone import without words, which turns
-- of a live conversation follow. conversation: the exchange's, 0 for a fact. learns: as of the import.
CREATE TABLE imported (
    what         TEXT NOT NULL,
    id           INTEGER NOT NULL,
    import       INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    learns       INTEGER NOT NULL,
    PRIMARY KEY (what, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX imported_order ON imported (import, id);
CREATE INDEX imported_conversation ON imported (import, conversation);
