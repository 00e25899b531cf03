-- Durable background work: jobs with their journaled steps, and what background calls have cost.

-- state: pending | running | retrying (failed, to be tried again) | dead. One that has ended well is deleted.
-- agent: 0 for work that belongs to no memory. epoch: the agent's when the job was made; it commits on no other.
-- attempt: rises with every claim, fences what is committed. tries: the attempts that count towards the dead letter.
-- holder: which opening of the store runs it; one process owns the file, so another holder's job is nobody's.
-- asked: when `due` was set; a clock that stands before it has been put back, and then `due` says nothing.
-- payload: ids and numbers, never text of messages: it is replaced in place, and text would leave copies behind.
CREATE TABLE jobs (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    agent   INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    key     TEXT NOT NULL,
    state   TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    tries   INTEGER NOT NULL DEFAULT 0,
    epoch   INTEGER NOT NULL,
    due     REAL NOT NULL,
    asked   REAL NOT NULL,
    created REAL NOT NULL,
    holder  TEXT,
    error   TEXT,
    payload BLOB NOT NULL
) STRICT;

-- A lane is an agent's jobs of one kind. One that is tried again keeps its lane, so that order is kept.
CREATE UNIQUE INDEX jobs_lane ON jobs (agent, kind) WHERE state IN ('running', 'retrying');
CREATE UNIQUE INDEX jobs_key ON jobs (agent, kind, key) WHERE state = 'pending';
CREATE INDEX jobs_state ON jobs (state, due);
CREATE INDEX jobs_asked ON jobs (asked);

-- What a step of a job gave, so that it is not performed again. Text lies here: rows are appended and never changed.
CREATE TABLE steps (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    job    INTEGER NOT NULL,
    name   TEXT NOT NULL,
    at     REAL NOT NULL,
    result BLOB NOT NULL,
    UNIQUE (job, name)
) STRICT;

-- Tokens that background calls used. day: days since the epoch, UTC.
CREATE TABLE spending (
    project TEXT NOT NULL,
    day     INTEGER NOT NULL,
    calls   INTEGER NOT NULL,
    tokens  INTEGER NOT NULL,
    PRIMARY KEY (project, day)
) STRICT, WITHOUT ROWID;
