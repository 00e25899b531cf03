-- The first schema. Migrations are never edited once released: a change is a new file with the next number.
--
-- Text lies only in tables whose ids grow (AUTOINCREMENT), so that rows are appended and hardly ever move between pages:
-- secure_delete then erases it in place when it is forgotten, where a moved row would leave a copy in its old page.
-- Small columns that change or are searched come first and content last, so that they are read without its overflow pages.
-- Foreign keys are neither declared nor enforced: each check is a look-up in every turn's transaction, and forgetting keeps
-- tombstones and deletes in an order of its own. Times are seconds since the epoch.

-- Gateway keys; only the SHA-256 of a key is kept.
CREATE TABLE keys (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    project TEXT NOT NULL,
    name    TEXT NOT NULL,
    digest  BLOB NOT NULL UNIQUE,
    prefix  TEXT NOT NULL,
    created REAL NOT NULL,
    revoked REAL
) STRICT;

-- One memory for each (project, profile, subject). secret keys its hashes; epoch rises when something is forgotten;
-- next_seq is the public order of its messages and passages; indexed_seq is how far the search index has come.
CREATE TABLE agents (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    uid         TEXT NOT NULL UNIQUE,
    project     TEXT NOT NULL,
    profile     TEXT NOT NULL,
    subject     TEXT NOT NULL,
    secret      BLOB NOT NULL,
    epoch       INTEGER NOT NULL DEFAULT 0,
    next_seq    INTEGER NOT NULL DEFAULT 1,
    indexed_seq INTEGER NOT NULL DEFAULT 0,
    created     REAL NOT NULL,
    UNIQUE (project, profile, subject)
) STRICT;

-- key: the client's own id. rev: rises with every exchange; a turn commits on the rev it was planned on.
CREATE TABLE conversations (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    agent      INTEGER NOT NULL,
    uid        TEXT NOT NULL UNIQUE,
    key        TEXT,
    rev        INTEGER NOT NULL DEFAULT 0,
    begun      REAL NOT NULL,
    last_at    REAL NOT NULL,
    settled_at REAL NOT NULL DEFAULT 0,
    UNIQUE (agent, key)
) STRICT;

-- One turn each: what the client sent since our last reply, and our reply. See storage/records.py for the columns.
-- span: how many of the agent's sequence numbers it takes, from seq on.
-- input_key: hash of the atoms of its last input message.
-- room, pad: rows change in place and never grow within their page (storage/sqlite/padding.py says why).
CREATE TABLE exchanges (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    agent        INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    parent       INTEGER,
    depth        INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    run          INTEGER NOT NULL DEFAULT 0,
    span         INTEGER NOT NULL,
    offset       INTEGER NOT NULL,
    length       INTEGER NOT NULL DEFAULT 0,
    begun        REAL NOT NULL,
    touched      REAL NOT NULL,
    ended        REAL,
    stopped      REAL,
    state        TEXT NOT NULL,
    superseded   INTEGER NOT NULL DEFAULT 0,
    carried      INTEGER NOT NULL DEFAULT 0,
    standing     INTEGER NOT NULL DEFAULT 0,
    edits        INTEGER NOT NULL DEFAULT 0,
    adds         INTEGER NOT NULL DEFAULT 0,
    opaque       INTEGER NOT NULL DEFAULT 0,
    model        TEXT NOT NULL DEFAULT '',
    merged       TEXT NOT NULL DEFAULT '',
    size         INTEGER NOT NULL DEFAULT 0,
    head         INTEGER NOT NULL DEFAULT 0,
    evicted      BLOB,
    prior        INTEGER,
    snapshot     INTEGER,
    room         INTEGER NOT NULL DEFAULT 0,
    path         BLOB NOT NULL,
    reply_key    BLOB,
    input_key    BLOB,
    hush         BLOB,
    inputs       BLOB NOT NULL,
    media        BLOB NOT NULL,
    reply        BLOB,
    notes        BLOB,
    input        BLOB,
    said         BLOB,
    full         BLOB,
    pad          BLOB
) STRICT;

CREATE INDEX exchanges_path ON exchanges (agent, path);
CREATE INDEX exchanges_reply ON exchanges (agent, reply_key) WHERE reply_key IS NOT NULL;
CREATE INDEX exchanges_input ON exchanges (agent, input_key) WHERE input_key IS NOT NULL;
CREATE INDEX exchanges_tree ON exchanges (conversation, depth, parent);
CREATE INDEX exchanges_openings ON exchanges (agent, begun) WHERE parent IS NULL AND carried = 0;
CREATE INDEX exchanges_order ON exchanges (agent, seq);

-- The conversation's rev and the agent's next number move with every exchange and never otherwise; here it takes
-- no statement of the turn's own, and no writer can forget it.
CREATE TRIGGER exchanges_added AFTER INSERT ON exchanges BEGIN
    UPDATE conversations
       SET rev = rev + 1, last_at = max(last_at, coalesce(NEW.ended, NEW.stopped, NEW.touched))
     WHERE id = NEW.conversation;
    UPDATE agents SET next_seq = next_seq + NEW.span WHERE id = NEW.agent;
END;

-- Hashes that mark an exchange: 'head' of what an imported list began with, 'tomb' of what is off the record or forgotten.
CREATE TABLE marks (
    agent    INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    hash     BLOB NOT NULL,
    exchange INTEGER NOT NULL,
    PRIMARY KEY (agent, kind, hash, exchange)
) STRICT, WITHOUT ROWID;

-- What is being forgotten: written first and deleted last, so that a process that dies in between goes on with it.
-- target: JSON of ids, never of names or words.
CREATE TABLE forgetting (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    agent  INTEGER NOT NULL,
    target BLOB NOT NULL
) STRICT;

-- Memory sections as they were sent. versions: JSON, label to block version.
CREATE TABLE snapshots (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    agent    INTEGER NOT NULL,
    text     TEXT NOT NULL,
    versions BLOB NOT NULL
) STRICT;

CREATE INDEX snapshots_agent ON snapshots (agent);

-- Blocks: an agent's own, or (agent is null) shared by all users of a profile. The value is not here but in the row of
-- history that `current` names: values change in place and grow, rows of history are appended.
CREATE TABLE blocks (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    agent       INTEGER,
    project     TEXT NOT NULL,
    profile     TEXT NOT NULL,
    label       TEXT NOT NULL,
    description TEXT NOT NULL,
    lim         INTEGER NOT NULL,
    read_only   INTEGER NOT NULL,
    version     INTEGER NOT NULL,
    current     INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX blocks_own ON blocks (agent, label) WHERE agent IS NOT NULL;
CREATE UNIQUE INDEX blocks_shared ON blocks (project, profile, label) WHERE agent IS NULL;

-- Every value a block ever had. origin: who wrote it. restores: the version an undo brought back.
-- sources: JSON list of the exchanges the value came from.
CREATE TABLE block_history (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    block    INTEGER NOT NULL,
    version  INTEGER NOT NULL,
    restores INTEGER,
    at       REAL NOT NULL,
    origin   TEXT NOT NULL,
    exchange INTEGER,
    sources  BLOB NOT NULL,
    value    TEXT NOT NULL,
    UNIQUE (block, version)
) STRICT;

-- Memory edits of a turn, as operations: pending until the turn is confirmed, then merged or dropped.
CREATE TABLE block_ops (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    agent     INTEGER NOT NULL,
    exchange  INTEGER NOT NULL,
    call_id   TEXT NOT NULL,
    state     TEXT NOT NULL,
    at        REAL NOT NULL,
    op        TEXT NOT NULL,
    label     TEXT NOT NULL,
    arguments BLOB NOT NULL,
    UNIQUE (agent, exchange, call_id)
) STRICT;

CREATE INDEX block_ops_pending ON block_ops (agent) WHERE state = 'pending';

-- Archival memories; seq is of the agent's one order, shared with its messages.
CREATE TABLE passages (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    agent    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    at       REAL NOT NULL,
    exchange INTEGER,
    sources  BLOB NOT NULL,
    text     TEXT NOT NULL,
    UNIQUE (agent, seq)
) STRICT;

-- The packed search index: keyed hashes, no text (storage/search/blob.py knows the bytes).
CREATE TABLE terms (
    agent INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    data  BLOB NOT NULL,
    PRIMARY KEY (agent, chunk)
) STRICT;

-- What the writer writes to find out whether writing works again.
CREATE TABLE probe (
    id     INTEGER PRIMARY KEY,
    filler BLOB NOT NULL
) STRICT;
