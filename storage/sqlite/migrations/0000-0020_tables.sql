-- The tables and indexes of a new file; the next step adds the triggers. Steps are never edited: a change is a new file.
--
-- Text lies only in tables whose ids grow (AUTOINCREMENT), so that rows are appended and hardly ever move between pages:
-- secure_delete then erases it in place when it is forgotten, where a moved row would leave a copy in its old page.
-- Small columns that change or are searched come first and content last, so that they are read without its overflow pages.
-- Foreign keys are neither declared nor enforced: each check is a look-up in every turn's transaction, and forgetting leaves
-- tombstones and deletes in an order of its own. Times are seconds since the epoch.
-- Numbers and ids change in place; text that people write lies in rows that are appended, and is emptied in place when it
-- is forgotten. Names, subjects and labels are in indexes, so they hold no content.

-- Gateway keys; only the SHA-256 of a key is stored. memory: the memory mode of its requests that ask for none; NULL: the
-- settings' mode. opens: the only thing that it opens ('metrics'); NULL: everything. used: when it was last presented, to
-- within an hour; NULL: never, or before this column existed.
CREATE TABLE keys (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    project TEXT NOT NULL,
    name    TEXT NOT NULL,
    digest  BLOB NOT NULL UNIQUE,
    prefix  TEXT NOT NULL,
    created REAL NOT NULL,
    revoked REAL,
    memory  TEXT,
    opens   TEXT,
    used    REAL
) STRICT;

-- One memory for each (project, profile, subject). secret keys its hashes; epoch rises when something is forgotten;
-- next_seq is the public order of its messages and passages; indexed_seq is how far the search index has come.
-- Caches of processes are right for some of these numbers (the next step's triggers raise them): `rev` rises with each
-- change of what a MemorySnapshot has that no new number shows, `stamp` with each change of what a search may find that
-- no new number shows.
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
    rev         INTEGER NOT NULL DEFAULT 0,
    stamp       INTEGER NOT NULL DEFAULT 0,
    UNIQUE (project, profile, subject)
) STRICT;

-- A page of a project's agents, in the order in which they were made.
CREATE INDEX agents_project ON agents (project, id);

-- key: the client's own id. rev: rises with every exchange; a turn commits on the rev it was planned on.
-- tip: 0 for a client's conversation, which is a tree; for a stored conversation its last exchange, -1 while it has none.
CREATE TABLE conversations (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    agent      INTEGER NOT NULL,
    uid        TEXT NOT NULL UNIQUE,
    key        TEXT,
    rev        INTEGER NOT NULL DEFAULT 0,
    begun      REAL NOT NULL,
    last_at    REAL NOT NULL,
    settled_at REAL NOT NULL DEFAULT 0,
    tip        INTEGER NOT NULL DEFAULT 0,
    UNIQUE (agent, key)
) STRICT;

-- One turn each: what the client sent since the last reply, and the reply. storage/records.py explains the columns.
-- span: how many of the agent's sequence numbers it takes, from seq on.
-- input_key: hash of the atoms of its last input message.
-- room, pad: rows change in place and never grow within their page (for the reason in storage/sqlite/padding.py).
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
    continued      INTEGER NOT NULL DEFAULT 0,
    active     INTEGER NOT NULL DEFAULT 0,
    edits        INTEGER NOT NULL DEFAULT 0,
    adds         INTEGER NOT NULL DEFAULT 0,
    opaque       INTEGER NOT NULL DEFAULT 0,
    model        TEXT NOT NULL DEFAULT '',
    merged       TEXT NOT NULL DEFAULT '',
    size         INTEGER NOT NULL DEFAULT 0,
    head         INTEGER NOT NULL DEFAULT 0,
    evicted      BLOB,
    prior        INTEGER,
    section     INTEGER,
    room         INTEGER NOT NULL DEFAULT 0,
    path         BLOB NOT NULL,
    reply_key    BLOB,
    input_key    BLOB,
    redactions         BLOB,
    inputs       BLOB NOT NULL,
    media        BLOB NOT NULL,
    reply        BLOB,
    notes        BLOB,
    input        BLOB,
    shown_reply         BLOB,
    full         BLOB,
    pad          BLOB
) STRICT;

CREATE INDEX exchanges_path ON exchanges (agent, path);
CREATE INDEX exchanges_reply ON exchanges (agent, reply_key) WHERE reply_key IS NOT NULL;
CREATE INDEX exchanges_input ON exchanges (agent, input_key) WHERE input_key IS NOT NULL;
CREATE INDEX exchanges_tree ON exchanges (conversation, depth, parent);
CREATE INDEX exchanges_openings ON exchanges (agent, begun) WHERE parent IS NULL AND continued = 0;
CREATE INDEX exchanges_order ON exchanges (agent, seq);

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

-- Memory sections as they were sent. known: JSON, see SentSection in storage/records.py.
CREATE TABLE sections (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    agent    INTEGER NOT NULL,
    text     TEXT NOT NULL,
    known    BLOB NOT NULL
) STRICT;

CREATE INDEX sections_agent ON sections (agent);

-- Blocks: an agent's own, or (agent is null) shared by all users of a profile. The value is not here but in the row of
-- history that `current` names: values change in place and grow, rows of history are appended.
-- uid: a block's public name. A block with agent NULL and profile '' has no owner: the agents that it is attached to see it.
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
    current     INTEGER NOT NULL,
    uid         TEXT
) STRICT;

CREATE UNIQUE INDEX blocks_own ON blocks (agent, label) WHERE agent IS NOT NULL;
CREATE UNIQUE INDEX blocks_shared ON blocks (project, profile, label) WHERE agent IS NULL AND profile <> '';
CREATE UNIQUE INDEX blocks_uid ON blocks (uid);
CREATE INDEX blocks_unowned ON blocks (project, id) WHERE agent IS NULL AND profile = '';

-- Every value a block ever had. origin: its writer. restores: the version an undo brought back.
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
-- file: the file that it is a part of. tags: JSON list. metadata: a program's own JSON, emptied with the text.
CREATE TABLE passages (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    agent    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    at       REAL NOT NULL,
    exchange INTEGER,
    sources  BLOB NOT NULL,
    text     TEXT NOT NULL,
    file     INTEGER,
    tags     TEXT,
    metadata TEXT,
    UNIQUE (agent, seq)
) STRICT;

CREATE INDEX passages_file ON passages (file) WHERE file IS NOT NULL;

-- The packed search index: keyed hashes, no text (storage/search/blob.py knows the bytes).
CREATE TABLE terms (
    agent INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    data  BLOB NOT NULL,
    stamp INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (agent, chunk)
) STRICT;

CREATE INDEX terms_stamp ON terms (agent, stamp, chunk);

-- A row that the writer replaces to find out whether writing works again.
CREATE TABLE probe (
    id     INTEGER PRIMARY KEY,
    filler BLOB NOT NULL
) STRICT;

-- state: pending | running | retrying (failed, to be tried again) | dead. One that has ended well is deleted.
-- agent: 0 for work that belongs to no memory. epoch: the agent's when the job was made; it commits on no other.
-- attempt: rises with every claim, fences what is committed. tries: the attempts that count towards the dead letter.
-- holder: which opening of the store runs it; one process owns the file, so a job of another holder is free.
-- asked: when `due` was set; a clock that stands before it has been put back, and then `due` does not count.
-- payload: ids and numbers, never text of messages: it is replaced in place, and text would leave copies.
-- held_until: when the lease of a running job ends, by the clock of `holder`: a process that owns the file has its own, which never
-- jumps; those that share a database have its clock.
-- first: 1 for one job of each serial group (an agent's jobs of one kind; without an agent, those of one key): the job
-- that runs or is to be retried, else the earliest. Only these are candidates for the next claim, however many wait after
-- them. A dead job is never first.
CREATE TABLE jobs (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    agent      INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    key        TEXT NOT NULL,
    state      TEXT NOT NULL,
    attempt    INTEGER NOT NULL DEFAULT 0,
    tries      INTEGER NOT NULL DEFAULT 0,
    epoch      INTEGER NOT NULL,
    due        REAL NOT NULL,
    asked      REAL NOT NULL,
    created    REAL NOT NULL,
    holder     TEXT,
    error      TEXT,
    payload    BLOB NOT NULL,
    held_until REAL NOT NULL DEFAULT 0,
    first      INTEGER NOT NULL DEFAULT 1 CHECK (first = 1 OR state IN ('pending', 'dead'))
) STRICT;

CREATE UNIQUE INDEX jobs_group ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END)) WHERE first = 1;
CREATE UNIQUE INDEX jobs_key ON jobs (agent, kind, key) WHERE state = 'pending';
CREATE INDEX jobs_state ON jobs (state, due);
CREATE INDEX jobs_asked ON jobs (asked);
CREATE INDEX jobs_waiting ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END), due, id)
 WHERE first = 0 AND state = 'pending';
CREATE INDEX jobs_next ON jobs (kind, due, id) WHERE first = 1 AND state IN ('pending', 'retrying');

-- The result of a job's step, so that it is not performed again. Text lies here: rows are appended and never changed.
CREATE TABLE steps (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    job    INTEGER NOT NULL,
    name   TEXT NOT NULL,
    at     REAL NOT NULL,
    result BLOB NOT NULL,
    UNIQUE (job, name)
) STRICT;

-- Tokens that background calls used; batches: those of the project's batches, which have a limit of their own. day: days
-- since the epoch, UTC.
CREATE TABLE spending (
    project TEXT NOT NULL,
    day     INTEGER NOT NULL,
    calls   INTEGER NOT NULL,
    tokens  INTEGER NOT NULL,
    batches INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (project, day)
) STRICT, WITHOUT ROWID;

-- Summaries of the path up to an exchange, including it; branches from there on share them. depth: the
-- exchange's. tokens: of the text, estimated. A summary has no other source than its path.
CREATE TABLE summaries (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    agent        INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    exchange     INTEGER NOT NULL,
    depth        INTEGER NOT NULL,
    at           REAL NOT NULL,
    tokens       INTEGER NOT NULL,
    model        TEXT NOT NULL,
    text         TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX summaries_exchange ON summaries (exchange) WHERE agent <> 0;
CREATE INDEX summaries_conversation ON summaries (conversation, depth) WHERE agent <> 0;
CREATE INDEX summaries_agent ON summaries (agent) WHERE agent <> 0;

-- A fact is never changed, so that its row never moves; when another takes its place, `facts_ended` has a row.
-- seq: of the agent's one order, shared with messages and passages. at: when it was learned; valid_from: when it was stated.
-- key: keyed hash under which an equal fact is found. exchange: where it was stated; sources: JSON list of all
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

-- Facts that are no longer true. successor: the one that took its place. at: when that was stated.
CREATE TABLE facts_ended (
    fact      INTEGER PRIMARY KEY,
    agent     INTEGER NOT NULL,
    successor INTEGER NOT NULL,
    at        REAL NOT NULL
) STRICT;

CREATE INDEX facts_ended_agent ON facts_ended (agent);

-- A blob for each 64 numbers of an agent's order (storage/search/vector_blobs.py knows the bytes). model: whose vectors they are;
-- others are not compared with one another. stamp: the agent's when the blob was written.
-- pad: a row's beginning lies in a page with others and moves with it, leaving copies; what is beyond about a thousand
-- bytes (sqlite.org/fileformat2.html, 1.6) lies in overflow pages of its own, which are erased when it gives them up.
CREATE TABLE vectors (
    agent INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    model TEXT NOT NULL,
    pad   BLOB NOT NULL,
    data  BLOB NOT NULL,
    PRIMARY KEY (agent, chunk)
) STRICT, WITHOUT ROWID;

-- How far an agent's order has been embedded. dimension: 0 while that is not known. stamp: rises with every change.
CREATE TABLE embedded (
    agent     INTEGER PRIMARY KEY,
    model     TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    stamp     INTEGER NOT NULL
) STRICT;

-- A document that was made over REST. kind: agent | tool | mcp | conversation | block | archive | folder. uid: for a
-- kind with a row of its own elsewhere (a memory, a conversation, a block) the uid of that row. memory: the agent's row, of kinds that
-- have or belong to one; else 0. current: its present text. version rises with every change.
CREATE TABLE definitions (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    uid     TEXT NOT NULL UNIQUE,
    project TEXT NOT NULL,
    kind    TEXT NOT NULL,
    memory  INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL,
    current INTEGER NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL,
    name    TEXT NOT NULL
) STRICT;

CREATE INDEX definitions_name ON definitions (project, kind, name);
CREATE INDEX definitions_order ON definitions (project, kind, id);
CREATE INDEX definitions_memory ON definitions (memory) WHERE memory <> 0;
CREATE UNIQUE INDEX definitions_called ON definitions (project, kind, name) WHERE kind IN ('tool', 'mcp', 'identity');

-- The texts of definitions: JSON. An older one is emptied once a newer one has taken its place.
CREATE TABLE definition_texts (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    definition INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    at         REAL NOT NULL,
    body       BLOB NOT NULL
) STRICT;

CREATE INDEX definition_texts_definition ON definition_texts (definition);

-- What an agent uses. kind: block | tool | archive | folder. target: the row of the block, of the tool's definition
-- (below 0: a built-in one), of the archive's or folder's memory. place: its order among those of the kind.
CREATE TABLE attached (
    agent  INTEGER NOT NULL,
    kind   TEXT NOT NULL,
    target INTEGER NOT NULL,
    place  INTEGER NOT NULL,
    PRIMARY KEY (agent, kind, target)
) STRICT, WITHOUT ROWID;

CREATE INDEX attached_target ON attached (kind, target);

CREATE TABLE tags (
    project TEXT NOT NULL,
    tag     TEXT NOT NULL,
    agent   INTEGER NOT NULL,
    PRIMARY KEY (project, tag, agent)
) STRICT, WITHOUT ROWID;

CREATE INDEX tags_agent ON tags (agent);

-- One send to a stored conversation, up to its stop reason. state: created | running | completed | failed | cancelled.
-- parent: the run that waits for this one; depth: how many wait above it. batch: the batch whose item it is. otid: keyed hash of
-- the send's own id, so that a repeated send is recognised; one run of an agent has it.
-- The counts are tokens, the sums of its steps'.
CREATE TABLE runs (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    uid          TEXT NOT NULL UNIQUE,
    agent        INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    parent       INTEGER,
    depth        INTEGER NOT NULL DEFAULT 0,
    batch        INTEGER,
    background   INTEGER NOT NULL DEFAULT 0,
    state        TEXT NOT NULL,
    stop         TEXT,
    steps        INTEGER NOT NULL DEFAULT 0,
    prompt       INTEGER NOT NULL DEFAULT 0,
    completion   INTEGER NOT NULL DEFAULT 0,
    cached       INTEGER NOT NULL DEFAULT 0,
    written      INTEGER NOT NULL DEFAULT 0,
    reasoning    INTEGER NOT NULL DEFAULT 0,
    created      REAL NOT NULL,
    begun        REAL,
    ended        REAL,
    otid         BLOB
) STRICT;

CREATE INDEX runs_agent ON runs (agent, id);
CREATE UNIQUE INDEX runs_otid ON runs (agent, otid) WHERE otid IS NOT NULL;
CREATE INDEX runs_open ON runs (state, id) WHERE state IN ('created', 'running');
CREATE INDEX runs_parent ON runs (parent) WHERE parent IS NOT NULL;
CREATE INDEX runs_batch ON runs (batch) WHERE batch IS NOT NULL;

-- One model call of a run, with the exchange that it made. error: the class of what went wrong, never a text.
-- waiting: JSON, {call id: approval | client | held}, of calls that need an answer first.
CREATE TABLE run_steps (
    exchange   INTEGER PRIMARY KEY,
    agent      INTEGER NOT NULL,
    run        INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    begun      REAL NOT NULL,
    ended      REAL,
    prompt     INTEGER NOT NULL DEFAULT 0,
    completion INTEGER NOT NULL DEFAULT 0,
    cached     INTEGER NOT NULL DEFAULT 0,
    written    INTEGER NOT NULL DEFAULT 0,
    reasoning  INTEGER NOT NULL DEFAULT 0,
    stop       TEXT,
    feedback   TEXT,
    error      TEXT,
    waiting    BLOB
) STRICT;

CREATE INDEX run_steps_run ON run_steps (run, number);
CREATE INDEX run_steps_agent ON run_steps (agent, exchange);

-- All of a run that is not, or not yet, an exchange. kind: request | call | result | event; seq: their order within one.
CREATE TABLE run_texts (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    agent INTEGER NOT NULL,
    run   INTEGER NOT NULL,
    seq   INTEGER NOT NULL,
    kind  TEXT NOT NULL,
    data  BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX run_texts_run ON run_texts (run, kind, seq) WHERE agent <> 0;
CREATE INDEX run_texts_agent ON run_texts (agent) WHERE agent <> 0;

-- The readers of a memory and the number up to which each has read. reader: 0 for the built-in learner, else a sleeptime
-- agent.
CREATE TABLE readers (
    memory INTEGER NOT NULL,
    reader INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (memory, reader)
) STRICT, WITHOUT ROWID;

-- The files of a folder; their text lies in its passages. bytes: how long the file was.
CREATE TABLE files (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    uid     TEXT NOT NULL UNIQUE,
    memory  INTEGER NOT NULL,
    state   TEXT NOT NULL,
    bytes   INTEGER NOT NULL,
    created REAL NOT NULL,
    type    TEXT NOT NULL,
    name    TEXT NOT NULL
) STRICT;

CREATE INDEX files_memory ON files (memory, id);

-- Sends to many agents at once, at a provider's own time. state: created | running | completed | failed | cancelled.
CREATE TABLE batches (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    uid      TEXT NOT NULL UNIQUE,
    project  TEXT NOT NULL,
    state    TEXT NOT NULL,
    created  REAL NOT NULL,
    ended    REAL,
    callback TEXT
) STRICT;

CREATE INDEX batches_project ON batches (project, id);

-- The items of batches. part: the part of the batch with which its request is at a provider; 0: it is ready for the next one; -1: it has ended.
-- sent: how many requests of it had their end. errors, expiries: since the last that succeeded. tip: the exchange that it
-- goes on from (0: none); epoch: of its memory then; both are NULL until it begins.
CREATE TABLE batch_items (
    run      INTEGER PRIMARY KEY,
    batch    INTEGER NOT NULL,
    part     INTEGER NOT NULL DEFAULT 0,
    sent     INTEGER NOT NULL DEFAULT 0,
    errors   INTEGER NOT NULL DEFAULT 0,
    expiries INTEGER NOT NULL DEFAULT 0,
    tip      INTEGER,
    epoch    INTEGER
) STRICT;

CREATE INDEX batch_items_part ON batch_items (batch, part, run);

-- Locks of conversations, for processes that share a database. A process that owns its file has them in memory. wanted: the
-- process that waits for the lock first.
CREATE TABLE conversation_locks (
    name       TEXT NOT NULL PRIMARY KEY,
    holder     TEXT NOT NULL,
    held_until REAL NOT NULL,
    wanted     TEXT
) STRICT, WITHOUT ROWID;

-- The digest of the settings that the stored blocks follow, where processes share a database. One row.
CREATE TABLE followed (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    digest BLOB NOT NULL
) STRICT;

-- A part of a fork's past: all of the conversation `origin` up to the number `seq`. A fork of a fork has a row for each
-- conversation above it. It begins with an exchange that is off the record and empty, whose parent is the last of its past.
CREATE TABLE forks (
    agent        INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    origin       INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    PRIMARY KEY (agent, conversation, origin)
) STRICT;

CREATE INDEX forks_origin ON forks (agent, origin, seq);
