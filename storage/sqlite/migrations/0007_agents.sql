-- Stateful agents: what is defined over REST, what belongs to an agent, and the runs of its conversations.
--
-- As everywhere: numbers and ids change in place; what people write lies in rows that are appended, and emptied in place
-- when it is forgotten. A name is like a subject or a label: it stands in indexes, and no content is put there.

-- A document that was made over REST. kind: agent | tool | mcp | conversation | block | archive | folder. uid: of a
-- kind that is a row elsewhere (a memory, a conversation, a block) that row's. memory: the agent's row, of kinds that
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
-- Tools and servers are called by name, so a project has each name once.
CREATE UNIQUE INDEX definitions_called ON definitions (project, kind, name) WHERE kind IN ('tool', 'mcp');

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

-- One send to a conversation of ours, up to its stop reason. state: created | running | completed | failed | cancelled.
-- parent: the run that waits for this one; depth: how many wait above it. batch: whose item it is. otid: keyed hash of
-- the send's own id, so that the same send is known again; one run of an agent has it.
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

-- One model call of a run, with the exchange that it made. error: the class of what went wrong, never words.
-- waiting: JSON, {call id: approval | client | held}, of calls that somebody must answer first.
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

-- A step counts in its run, and one with a stop reason ends it, unless it has ended: who comes second changes nothing.
CREATE TRIGGER run_steps_added AFTER INSERT ON run_steps BEGIN
    UPDATE runs
       SET steps = steps + 1, prompt = prompt + NEW.prompt, completion = completion + NEW.completion,
           cached = cached + NEW.cached, written = written + NEW.written, reasoning = reasoning + NEW.reasoning
     WHERE id = NEW.run AND agent = NEW.agent;
    UPDATE runs
       SET state = CASE WHEN NEW.stop = 'cancelled' THEN 'cancelled' WHEN NEW.error IS NOT NULL THEN 'failed'
                        ELSE 'completed' END,
           stop = NEW.stop, ended = NEW.ended
     WHERE id = NEW.run AND agent = NEW.agent AND NEW.stop IS NOT NULL AND state IN ('created', 'running');
END;

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

-- Who works through a memory after the fact, and up to where everything has been read. reader: 0 is the built-in
-- learner, else a sleeptime agent.
CREATE TABLE readers (
    memory INTEGER NOT NULL,
    reader INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (memory, reader)
) STRICT, WITHOUT ROWID;

INSERT INTO readers (memory, reader, seq, at) SELECT agent, 0, seq, 0 FROM learned;
DROP TABLE learned;

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

-- 0: a tree, the client's. Else one line, ours: its last exchange, -1 while it is empty.
ALTER TABLE conversations ADD COLUMN tip INTEGER NOT NULL DEFAULT 0;

-- As before, and the last exchange of a line.
DROP TRIGGER exchanges_added;
CREATE TRIGGER exchanges_added AFTER INSERT ON exchanges BEGIN
    UPDATE conversations
       SET rev = rev + 1, last_at = max(last_at, coalesce(NEW.ended, NEW.stopped, NEW.touched)),
           tip = CASE WHEN tip = 0 THEN 0 ELSE NEW.id END
     WHERE id = NEW.conversation;
    UPDATE agents SET next_seq = next_seq + NEW.span WHERE id = NEW.agent;
END;

-- A page of a project's agents, in the order in which they were made.
CREATE INDEX agents_project ON agents (project, id);

-- file: the one that it is a part of. tags: JSON list.
ALTER TABLE passages ADD COLUMN file INTEGER;
ALTER TABLE passages ADD COLUMN tags TEXT;
CREATE INDEX passages_file ON passages (file) WHERE file IS NOT NULL;

-- uid: a block's public name. One whose agent is NULL and whose profile is '' is nobody's: who has it attached sees it.
ALTER TABLE blocks ADD COLUMN uid TEXT;
UPDATE blocks SET uid = lower(hex(randomblob(16)));
CREATE UNIQUE INDEX blocks_uid ON blocks (uid);
DROP INDEX blocks_shared;
CREATE UNIQUE INDEX blocks_shared ON blocks (project, profile, label) WHERE agent IS NULL AND profile <> '';
CREATE INDEX blocks_nobodys ON blocks (project, id) WHERE agent IS NULL AND profile = '';

-- A job that belongs to no memory has a lane of its own under its key, so that one that waits holds up no other.
DROP INDEX jobs_lane;
CREATE UNIQUE INDEX jobs_lane ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END))
 WHERE state IN ('running', 'retrying');
