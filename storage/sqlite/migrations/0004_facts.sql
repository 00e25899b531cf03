-- What was learned from conversations, and how far learning has come.

-- A fact is never changed, so that its row never moves; when another takes its place, `facts_ended` says so.
-- seq: of the agent's one order, shared with messages and passages. at: when it was learned; valid_from: when it was said.
-- key: keyed hash under which one that says the same is found. exchange: where it was said; sources: JSON list of all
-- exchanges that it may quote.
CREATE TABLE facts (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    agent      INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    at         REAL NOT NULL,
    valid_from REAL NOT NULL,
    key        BLOB NOT NULL,
    exchange   INTEGER,
    sources    BLOB NOT NULL,
    about      TEXT NOT NULL,
    text       TEXT NOT NULL,
    UNIQUE (agent, seq)
) STRICT;

CREATE INDEX facts_key ON facts (agent, key);

-- Facts that are no longer true. successor: the one that took its place. at: when that was said.
CREATE TABLE facts_ended (
    fact      INTEGER PRIMARY KEY,
    agent     INTEGER NOT NULL,
    successor INTEGER NOT NULL,
    at        REAL NOT NULL
) STRICT;

CREATE INDEX facts_ended_agent ON facts_ended (agent);

-- Up to which of an agent's numbers everything has been read.
CREATE TABLE learned (
    agent INTEGER PRIMARY KEY,
    seq   INTEGER NOT NULL
) STRICT;
