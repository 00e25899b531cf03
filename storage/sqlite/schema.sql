-- The schema of a new database. For reading: the program makes it by the files in `migrations`.
-- The comment over a table says what one row is. Each memory is a row of `agents`; a number in `agent` or `memory` is
-- the row's id. The number is 0 where a row belongs to no memory, or no longer: storage/sql/erase.sql empties such
-- rows in SQLite, and indexes leave them out (`agent <> 0`). A time is in seconds since the epoch. Triggers `rev_*` and
-- `stamp_*` raise numbers of an agent by which caches notice a change.

-- A memory, with the numbers by which caches notice its changes, and its sums of messages and bytes.
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
    paused REAL,
    last_turn REAL,
    conversations INTEGER NOT NULL DEFAULT 0,
    messages INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    turn_hour REAL NOT NULL DEFAULT 0,
    UNIQUE (project, profile, subject)
) STRICT;

CREATE INDEX agents_people ON agents (substr(subject, 1, 4), turn_hour, lower(subject));

CREATE INDEX agents_project ON agents (project, id);

CREATE TRIGGER agents_turn_hour AFTER UPDATE OF last_turn ON agents
WHEN NEW.last_turn IS NOT NULL AND CAST(NEW.last_turn / 3600 AS INTEGER) <> NEW.turn_hour BEGIN
    UPDATE agents SET turn_hour = CAST(NEW.last_turn / 3600 AS INTEGER) WHERE id = NEW.id;
END;

CREATE TRIGGER summaries_gone AFTER DELETE ON agents BEGIN
    UPDATE summaries SET agent = 0, model = '', text = '' WHERE agent = OLD.id AND agent <> 0;
END;

-- A block, tool, archive, folder or identity that an agent has, by its place among those of its kind.
CREATE TABLE attached (
    agent  INTEGER NOT NULL,
    kind   TEXT NOT NULL,
    target INTEGER NOT NULL,
    place  INTEGER NOT NULL,
    PRIMARY KEY (agent, kind, target)
) STRICT, WITHOUT ROWID;

CREATE INDEX attached_target ON attached (kind, target);

CREATE TRIGGER rev_attached AFTER INSERT ON attached WHEN NEW.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_attached_changed AFTER UPDATE ON attached WHEN NEW.kind = 'block' OR OLD.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (NEW.agent, OLD.agent);
END;

CREATE TRIGGER rev_detached AFTER DELETE ON attached WHEN OLD.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

-- What an operator or a person did to a memory or a key, in kinds and numbers.
CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at     REAL NOT NULL,
    actor  TEXT NOT NULL,
    action TEXT NOT NULL,
    memory TEXT,
    what   TEXT NOT NULL
) STRICT;

CREATE INDEX audit_at ON audit (at);

CREATE INDEX audit_memory ON audit (memory, id) WHERE memory IS NOT NULL;

-- An item of a batch. Its request and its reply are in `run_texts`.
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

-- A batch of sends to agents.
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

-- A value that a block has or had.
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

CREATE TRIGGER rev_value_changed AFTER UPDATE OF block, value ON block_history BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT agent FROM blocks WHERE id = OLD.block
        UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.block);
END;

CREATE TRIGGER rev_value_gone AFTER DELETE ON block_history BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT agent FROM blocks WHERE id = OLD.block
        UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.block);
END;

-- A memory edit of a turn. It is merged into its block when the turn is confirmed.
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
    seen INTEGER,
    UNIQUE (agent, exchange, call_id)
) STRICT;

CREATE INDEX block_ops_pending ON block_ops (agent) WHERE state = 'pending';

CREATE TRIGGER rev_op_added AFTER INSERT ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_op_changed AFTER UPDATE ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_op_gone AFTER DELETE ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

-- A block. `current` is the row of its value in `block_history`.
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

CREATE TRIGGER rev_block_added AFTER INSERT ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_block_changed AFTER UPDATE ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT NEW.agent UNION SELECT OLD.agent UNION SELECT agent FROM attached WHERE kind = 'block' AND target = NEW.id);
END;

CREATE TRIGGER rev_block_gone AFTER DELETE ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT OLD.agent UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.id);
END;

-- A lock of one conversation. `wanted`: the process that gets it next.
CREATE TABLE conversation_locks (
    name       TEXT NOT NULL PRIMARY KEY,
    holder     TEXT NOT NULL,
    held_until REAL NOT NULL,
    wanted     TEXT
) STRICT, WITHOUT ROWID;

-- A conversation. `key` is the client's id, `tip` the last exchange of a stored conversation.
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
    messages INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (agent, key)
) STRICT;

CREATE TRIGGER rev_conversation_changed AFTER UPDATE OF agent, uid, key ON conversations BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_conversation_gone AFTER DELETE ON conversations BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER sizes_conversation_changed AFTER UPDATE OF messages ON conversations
WHEN (NEW.messages > 0) <> (OLD.messages > 0) BEGIN
    UPDATE agents SET conversations = conversations + (NEW.messages > 0) - (OLD.messages > 0) WHERE id = OLD.agent;
END;

-- A JSON body of a definition. All but the present one are emptied or deleted.
CREATE TABLE definition_texts (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    definition INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    at         REAL NOT NULL,
    body       BLOB NOT NULL
) STRICT;

CREATE INDEX definition_texts_definition ON definition_texts (definition);

-- A document of the agents API. `current` is the row of its body in `definition_texts`.
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

CREATE UNIQUE INDEX definitions_called ON definitions (project, kind, name) WHERE kind IN ('tool', 'mcp', 'identity');

CREATE INDEX definitions_memory ON definitions (memory) WHERE memory <> 0;

CREATE INDEX definitions_name ON definitions (project, kind, name);

CREATE INDEX definitions_order ON definitions (project, kind, id);

-- How far a memory has vectors. `seq`: the number of the last message that was embedded.
CREATE TABLE embedded (
    agent     INTEGER PRIMARY KEY,
    model     TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    stamp     INTEGER NOT NULL
) STRICT;

-- What a client sent since the last reply, with the reply to it (`Exchange` of `storage/records.py`).
CREATE TABLE exchanges (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    agent        INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    parent       INTEGER,
    depth        INTEGER NOT NULL,  -- 0 of an opening
    seq          INTEGER NOT NULL,  -- the number of its first message; a memory counts its messages
    run          INTEGER NOT NULL DEFAULT 0,  -- its path has each number of the memory from this one on
    span         INTEGER NOT NULL,  -- its numbers: one for each input and one for the reply
    offset       INTEGER NOT NULL,  -- the atoms of the path before it
    length       INTEGER NOT NULL DEFAULT 0,  -- the messages of the path, its own included
    begun        REAL NOT NULL,
    touched      REAL NOT NULL,  -- when a request last began with it, repeated or continued it
    ended        REAL,
    stopped      REAL,  -- when its cancelled request was cut
    state        TEXT NOT NULL,
    superseded   INTEGER NOT NULL DEFAULT 0,  -- 1: another exchange has taken its place
    continued      INTEGER NOT NULL DEFAULT 0,  -- 1: a later request with a new user message went on from it
    active     INTEGER NOT NULL DEFAULT 0,  -- 1: its messages are shown and recalled
    edits        INTEGER NOT NULL DEFAULT 0,  -- 1: memory edits were made in it
    adds         INTEGER NOT NULL DEFAULT 0,  -- 1: it has a note, hidden rounds or fields of its provider
    opaque       INTEGER NOT NULL DEFAULT 0,  -- 1: the reply has fields that only its provider reads
    model        TEXT NOT NULL DEFAULT '',  -- the upstream and model of the reply
    merged       TEXT NOT NULL DEFAULT '',  -- why its edits were merged, `carried` or `idle`
    size         INTEGER NOT NULL DEFAULT 0,  -- the characters of the reply, without white space
    head         INTEGER NOT NULL DEFAULT 0,  -- the messages of an opening that were made elsewhere
    evicted      BLOB,  -- the part of the path that its request left out
    prior        INTEGER,  -- its nearest ancestor with `adds`
    section     INTEGER,  -- the memory section that it was sent with
    room         INTEGER NOT NULL DEFAULT 0,  -- the most bytes of the row in its page (storage/sqlite/padding.py)
    path         BLOB NOT NULL,  -- the hash of all atoms of the path
    reply_key    BLOB,  -- the key by which its reply is found
    input_key    BLOB,  -- the key by which its last input is found
    redactions         BLOB,  -- the positions of redacted inputs, in order; -1: the reply
    inputs       BLOB NOT NULL,  -- the atoms of its inputs
    media        BLOB NOT NULL,  -- the digests of their images and sounds
    reply        BLOB,  -- the atoms of the reply
    notes        BLOB,  -- what was recalled for its inputs
    input        BLOB,  -- its inputs as JSON; NULL in a tombstone
    shown_reply         BLOB,  -- the reply as the client has it, as JSON
    full         BLOB,  -- all messages of the reply; NULL: `shown_reply` is all
    pad          BLOB,  -- zeros that fill `room`
    messages INTEGER AS (CASE WHEN state IN ('forgotten', 'off') THEN 0
    ELSE span - (shown_reply IS NULL) - CASE WHEN redactions IS NULL THEN 0
        ELSE json_array_length(CAST(redactions AS TEXT)) - (CAST(redactions AS TEXT) LIKE '[-%') END END)) STRICT;

CREATE INDEX exchanges_begun ON exchanges (begun, conversation);

CREATE INDEX exchanges_input ON exchanges (agent, input_key) WHERE input_key IS NOT NULL;

CREATE INDEX exchanges_openings ON exchanges (agent, begun) WHERE parent IS NULL AND continued = 0;

CREATE INDEX exchanges_order ON exchanges (agent, seq);

CREATE INDEX exchanges_path ON exchanges (agent, path);

CREATE INDEX exchanges_reply ON exchanges (agent, reply_key) WHERE reply_key IS NOT NULL;

CREATE INDEX exchanges_tree ON exchanges (conversation, depth, parent);

CREATE TRIGGER exchanges_added AFTER INSERT ON exchanges BEGIN
    UPDATE conversations
       SET rev = rev + 1, last_at = max(last_at, coalesce(NEW.ended, NEW.stopped, NEW.touched)),
           tip = CASE WHEN tip = 0 THEN 0 ELSE NEW.id END,
           messages = messages + NEW.messages,
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
     WHERE id = NEW.conversation;
    UPDATE agents
       SET next_seq = next_seq + NEW.span,
           last_turn = max(coalesce(last_turn, 0), coalesce(NEW.ended, NEW.stopped, NEW.touched)),
           messages = messages + NEW.messages,
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
     WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_exchange_changed AFTER UPDATE OF
    agent, conversation, parent, depth, seq, run, offset, length, begun, touched, ended, stopped, state, superseded,
    active, edits, adds, opaque, model, merged, size, head, evicted, prior, section, path, reply_key, redactions, inputs,
    media, reply, notes, input, shown_reply, full
ON exchanges BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_exchange_gone AFTER DELETE ON exchanges BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER sizes_exchange_changed AFTER UPDATE OF state, redactions, input, shown_reply, full ON exchanges BEGIN
    UPDATE conversations
       SET messages = messages + NEW.messages - OLD.messages,
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
               - (OLD.state NOT IN ('forgotten', 'off')) * (coalesce(length(OLD.input), 0)
               + coalesce(length(OLD.shown_reply), 0) + coalesce(length(OLD.full), 0))
     WHERE id = OLD.conversation AND agent = OLD.agent;
    UPDATE agents
       SET messages = messages + NEW.messages - OLD.messages,
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
               - (OLD.state NOT IN ('forgotten', 'off')) * (coalesce(length(OLD.input), 0)
               + coalesce(length(OLD.shown_reply), 0) + coalesce(length(OLD.full), 0)),
           last_turn = CASE WHEN NEW.ended IS NULL THEN last_turn ELSE max(coalesce(last_turn, 0), NEW.ended) END
     WHERE id = OLD.agent;
END;

CREATE TRIGGER stamp_exchange_changed AFTER UPDATE OF active ON exchanges WHEN OLD.state <> 'open' BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER stamp_head_continued AFTER UPDATE OF continued ON exchanges
WHEN NEW.head <> 0 AND OLD.continued = 0 AND NEW.continued <> 0 BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER summaries_forgotten AFTER UPDATE OF state, redactions ON exchanges
WHEN (NEW.state = 'forgotten' AND OLD.state <> 'forgotten') OR NEW.redactions IS NOT OLD.redactions BEGIN
    UPDATE summaries SET agent = 0, model = '', text = ''
     WHERE conversation = NEW.conversation AND depth >= NEW.depth AND agent <> 0;
    UPDATE summaries SET agent = 0, model = '', text = ''
     WHERE agent <> 0 AND conversation IN (
        SELECT conversation FROM forks WHERE agent = NEW.agent AND origin = NEW.conversation AND seq >= NEW.seq);
END;

-- A fact that was learned or stated.
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
    origin TEXT NOT NULL DEFAULT 'learned',
    standing INTEGER NOT NULL DEFAULT 0,
    UNIQUE (agent, seq)
) STRICT;

CREATE INDEX facts_key ON facts (agent, key);

CREATE INDEX facts_standing ON facts (agent, seq) WHERE standing = 1;

CREATE TRIGGER stamp_fact_changed AFTER UPDATE OF text ON facts BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

-- A fact that is no longer true, and the number of the fact that is true instead.
CREATE TABLE facts_ended (
    fact      INTEGER PRIMARY KEY,
    agent     INTEGER NOT NULL,
    successor INTEGER NOT NULL,
    at        REAL NOT NULL
) STRICT;

CREATE INDEX facts_ended_agent ON facts_ended (agent);

CREATE TRIGGER rev_fact_ended AFTER INSERT ON facts_ended BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER stamp_fact_ended AFTER INSERT ON facts_ended BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;

-- A fact that is left out of notes, search tools and summaries.
CREATE TABLE facts_muted (
    fact  INTEGER PRIMARY KEY,
    agent INTEGER NOT NULL,
    at    REAL NOT NULL
) STRICT;

CREATE INDEX facts_muted_agent ON facts_muted (agent);

CREATE TRIGGER rev_fact_muted AFTER INSERT ON facts_muted BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_fact_unmuted AFTER DELETE ON facts_muted BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER stamp_fact_muted AFTER INSERT ON facts_muted BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER stamp_fact_unmuted AFTER DELETE ON facts_muted BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

-- A file of a folder. Its text is in `passages`.
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

-- The digest of the settings that the stored blocks follow. One row.
CREATE TABLE followed (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    digest BLOB NOT NULL
) STRICT;

-- A forgetting under way. The row goes when everything of its target is erased.
CREATE TABLE forgetting (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    agent  INTEGER NOT NULL,
    target BLOB NOT NULL
) STRICT;

-- A conversation `origin` that a fork has a past in: the exchanges up to the number `seq`.
CREATE TABLE forks (
    agent        INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    origin       INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    PRIMARY KEY (agent, conversation, origin)
) STRICT;

CREATE INDEX forks_origin ON forks (agent, origin, seq);

-- An exchange or a fact that an import has added; as `stub` an exchange that an undone import left.
CREATE TABLE imported (
    what         TEXT NOT NULL,
    id           INTEGER NOT NULL,
    import       INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    learns       INTEGER NOT NULL,
    PRIMARY KEY (what, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX imported_conversation ON imported (import, conversation);

CREATE INDEX imported_order ON imported (import, id);

-- An import of another application's file, with its progress.
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

-- A job that waits, runs or has failed. A finished job is deleted.
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

CREATE INDEX jobs_asked ON jobs (asked);

CREATE UNIQUE INDEX jobs_group ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END)) WHERE first = 1;

CREATE UNIQUE INDEX jobs_key ON jobs (agent, kind, key) WHERE state = 'pending';

CREATE INDEX jobs_next ON jobs (kind, due, id) WHERE first = 1 AND state IN ('pending', 'retrying');

CREATE INDEX jobs_state ON jobs (state, due);

CREATE INDEX jobs_waiting ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END), due, id)
 WHERE first = 0 AND state = 'pending';

CREATE TRIGGER jobs_added AFTER INSERT ON jobs BEGIN
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = NEW.id;
END;

CREATE TRIGGER jobs_died AFTER UPDATE OF state ON jobs WHEN NEW.state = 'dead' AND OLD.state <> 'dead' BEGIN
    UPDATE jobs SET first = 0 WHERE id = NEW.id;
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = (
        SELECT id FROM jobs WHERE agent = NEW.agent AND kind = NEW.kind
        AND (CASE agent WHEN 0 THEN key ELSE '' END) = (CASE NEW.agent WHEN 0 THEN NEW.key ELSE '' END)
        AND first = 0 AND state = 'pending' ORDER BY due, id LIMIT 1);
END;

CREATE TRIGGER jobs_gone AFTER DELETE ON jobs WHEN OLD.first = 1 BEGIN
    UPDATE jobs SET first = 1 WHERE id = (
        SELECT id FROM jobs WHERE agent = OLD.agent AND kind = OLD.kind
        AND (CASE agent WHEN 0 THEN key ELSE '' END) = (CASE OLD.agent WHEN 0 THEN OLD.key ELSE '' END)
        AND first = 0 AND state = 'pending' ORDER BY due, id LIMIT 1);
END;

CREATE TRIGGER jobs_revived AFTER UPDATE OF state ON jobs WHEN OLD.state = 'dead' AND NEW.state <> 'dead' BEGIN
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = NEW.id;
END;

-- A gateway key, by the digest of its secret.
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
    used    REAL,
    expires REAL,
    models TEXT, "user" TEXT,
    old_digest BLOB,
    old_until REAL,
    installed BLOB) STRICT;

CREATE INDEX keys_old ON keys (old_digest) WHERE old_digest IS NOT NULL;

-- A limit on the use of a project, a key or a user.
CREATE TABLE limits (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    project TEXT NOT NULL,
    key     INTEGER,
    "user"  TEXT,
    unit    TEXT NOT NULL,
    per     TEXT,
    most    REAL NOT NULL,
    action  TEXT NOT NULL
) STRICT;

-- A link that opens a memory to its person until it expires.
CREATE TABLE links (
    digest  BLOB PRIMARY KEY,
    agent   INTEGER NOT NULL,
    key     INTEGER NOT NULL,
    expires REAL NOT NULL,
    rights  TEXT NOT NULL
) STRICT;

CREATE INDEX links_agent ON links (agent);

-- A mark of an exchange (`MarkKind` of `storage/records.py`).
CREATE TABLE marks (
    agent    INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    hash     BLOB NOT NULL,
    exchange INTEGER NOT NULL,
    PRIMARY KEY (agent, kind, hash, exchange)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER rev_mark_added AFTER INSERT ON marks WHEN NEW.kind IN ('head', 'tomb') BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_mark_gone AFTER DELETE ON marks WHEN OLD.kind IN ('head', 'tomb') BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER stamp_mark_added AFTER INSERT ON marks WHEN NEW.kind IN ('head', 'stale') BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER stamp_mark_gone AFTER DELETE ON marks WHEN OLD.kind IN ('head', 'stale') BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

-- A text in an archive, or a part of a file.
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

CREATE TRIGGER stamp_passage_changed AFTER UPDATE OF text ON passages BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

-- Empty. A check of the disk writes a row and deletes it.
CREATE TABLE probe (
    id     INTEGER PRIMARY KEY,
    filler BLOB NOT NULL
) STRICT;

-- How far a memory was read by the learner (0), by the rule that learns (-1) or by a sleeptime agent.
CREATE TABLE readers (
    memory INTEGER NOT NULL,
    reader INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (memory, reader)
) STRICT, WITHOUT ROWID;

-- What a turn recalled, and why.
CREATE TABLE recalls (
    exchange INTEGER PRIMARY KEY,
    agent    INTEGER NOT NULL,
    at       REAL NOT NULL,
    request  BLOB NOT NULL,
    data     BLOB NOT NULL
) STRICT;

CREATE INDEX recalls_agent ON recalls (agent);

CREATE INDEX recalls_at ON recalls (at);

CREATE INDEX recalls_request ON recalls (request);

-- A model call of a run. `exchange` has its messages.
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

CREATE INDEX run_steps_agent ON run_steps (agent, exchange);

CREATE INDEX run_steps_run ON run_steps (run, number);

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

-- A part of a run that is not, or not yet, in an exchange, such as its request or one of its events.
CREATE TABLE run_texts (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    agent INTEGER NOT NULL,
    run   INTEGER NOT NULL,
    seq   INTEGER NOT NULL,
    kind  TEXT NOT NULL,
    data  BLOB NOT NULL
) STRICT;

CREATE INDEX run_texts_agent ON run_texts (agent) WHERE agent <> 0;

CREATE UNIQUE INDEX run_texts_run ON run_texts (run, kind, seq) WHERE agent <> 0;

-- A send to a stored conversation, from its message to its stop reason.
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

CREATE INDEX runs_batch ON runs (batch) WHERE batch IS NOT NULL;

CREATE INDEX runs_open ON runs (state, id) WHERE state IN ('created', 'running');

CREATE UNIQUE INDEX runs_otid ON runs (agent, otid) WHERE otid IS NOT NULL;

CREATE INDEX runs_parent ON runs (parent) WHERE parent IS NOT NULL;

-- A random key that all processes of the database share.
CREATE TABLE secrets (
    name        TEXT PRIMARY KEY NOT NULL,
    value       BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- A memory section as it was sent in a system prompt.
CREATE TABLE sections (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    agent    INTEGER NOT NULL,
    text     TEXT NOT NULL,
    known    BLOB NOT NULL
) STRICT;

CREATE INDEX sections_agent ON sections (agent);

CREATE TRIGGER rev_section_changed AFTER UPDATE ON sections BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_section_gone AFTER DELETE ON sections BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

-- A part of a long memory's search index: the documents of a segment (bucket -1), or one of its buckets.
CREATE TABLE segments (
    agent  INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    number INTEGER NOT NULL,
    stamp  INTEGER NOT NULL,
    data   BLOB NOT NULL,
    PRIMARY KEY (agent, bucket, number)
) STRICT;

-- No longer written: the tokens of a day are in `usage`.
CREATE TABLE spending (
    project TEXT NOT NULL,
    day     INTEGER NOT NULL,
    calls   INTEGER NOT NULL,
    tokens  INTEGER NOT NULL,
    batches INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (project, day)
) STRICT, WITHOUT ROWID;

-- A step that a job has performed, with its result.
CREATE TABLE steps (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    job    INTEGER NOT NULL,
    name   TEXT NOT NULL,
    at     REAL NOT NULL,
    result BLOB NOT NULL,
    UNIQUE (job, name)
) STRICT;

-- A summary of a conversation up to an exchange.
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

CREATE INDEX summaries_agent ON summaries (agent) WHERE agent <> 0;

CREATE INDEX summaries_conversation ON summaries (conversation, depth) WHERE agent <> 0;

CREATE UNIQUE INDEX summaries_exchange ON summaries (exchange) WHERE agent <> 0;

-- A tag of an agent.
CREATE TABLE tags (
    project TEXT NOT NULL,
    tag     TEXT NOT NULL,
    agent   INTEGER NOT NULL,
    PRIMARY KEY (project, tag, agent)
) STRICT, WITHOUT ROWID;

CREATE INDEX tags_agent ON tags (agent);

-- A chunk of a memory's search index.
CREATE TABLE terms (
    agent INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    data  BLOB NOT NULL,
    stamp INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (agent, chunk)
) STRICT;

CREATE INDEX terms_stamp ON terms (agent, stamp, chunk);

-- The counters of a day, by project, user, key, upstream and model. Triggers add them up in `user_usage`.
CREATE TABLE usage (
    day INTEGER NOT NULL,
    project TEXT NOT NULL,
    "user" TEXT NOT NULL,
    key INTEGER NOT NULL,
    upstream TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0,
    errors INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    calls INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    estimated_input_tokens INTEGER NOT NULL DEFAULT 0,
    estimated_output_tokens INTEGER NOT NULL DEFAULT 0,
    injected_tokens INTEGER NOT NULL DEFAULT 0,
    background_input_tokens INTEGER NOT NULL DEFAULT 0,
    background_output_tokens INTEGER NOT NULL DEFAULT 0,
    batch_input_tokens INTEGER NOT NULL DEFAULT 0,
    batch_output_tokens INTEGER NOT NULL DEFAULT 0,
    cost INTEGER NOT NULL DEFAULT 0,
    unpriced_tokens INTEGER NOT NULL DEFAULT 0,
    answered INTEGER NOT NULL DEFAULT 0,
    question_tokens INTEGER NOT NULL DEFAULT 0,
    evicted_tokens INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (day, project, "user", key, upstream, model)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER usage_added AFTER INSERT ON usage BEGIN
    INSERT INTO user_usage (
        day, project, "user", requests, refused, errors, cancelled, calls, input_tokens, output_tokens, cached_tokens,
        cache_write_tokens, reasoning_tokens, estimated_input_tokens, estimated_output_tokens, injected_tokens, evicted_tokens,
        background_input_tokens, background_output_tokens, batch_input_tokens, batch_output_tokens, cost, unpriced_tokens,
        answered, question_tokens
    ) VALUES (
        NEW.day, NEW.project, NEW."user", NEW.requests, NEW.refused, NEW.errors, NEW.cancelled, NEW.calls, NEW.input_tokens,
        NEW.output_tokens, NEW.cached_tokens, NEW.cache_write_tokens, NEW.reasoning_tokens, NEW.estimated_input_tokens,
        NEW.estimated_output_tokens, NEW.injected_tokens, NEW.evicted_tokens, NEW.background_input_tokens, NEW.background_output_tokens,
        NEW.batch_input_tokens, NEW.batch_output_tokens, NEW.cost, NEW.unpriced_tokens, NEW.answered, NEW.question_tokens
    ) ON CONFLICT (day, project, "user") DO UPDATE SET
        requests = user_usage.requests + excluded.requests,
        refused = user_usage.refused + excluded.refused,
        errors = user_usage.errors + excluded.errors,
        cancelled = user_usage.cancelled + excluded.cancelled,
        calls = user_usage.calls + excluded.calls,
        input_tokens = user_usage.input_tokens + excluded.input_tokens,
        output_tokens = user_usage.output_tokens + excluded.output_tokens,
        cached_tokens = user_usage.cached_tokens + excluded.cached_tokens,
        cache_write_tokens = user_usage.cache_write_tokens + excluded.cache_write_tokens,
        reasoning_tokens = user_usage.reasoning_tokens + excluded.reasoning_tokens,
        estimated_input_tokens = user_usage.estimated_input_tokens + excluded.estimated_input_tokens,
        estimated_output_tokens = user_usage.estimated_output_tokens + excluded.estimated_output_tokens,
        injected_tokens = user_usage.injected_tokens + excluded.injected_tokens,
        evicted_tokens = user_usage.evicted_tokens + excluded.evicted_tokens,
        background_input_tokens = user_usage.background_input_tokens + excluded.background_input_tokens,
        background_output_tokens = user_usage.background_output_tokens + excluded.background_output_tokens,
        batch_input_tokens = user_usage.batch_input_tokens + excluded.batch_input_tokens,
        batch_output_tokens = user_usage.batch_output_tokens + excluded.batch_output_tokens,
        cost = user_usage.cost + excluded.cost,
        unpriced_tokens = user_usage.unpriced_tokens + excluded.unpriced_tokens,
        answered = user_usage.answered + excluded.answered,
        question_tokens = user_usage.question_tokens + excluded.question_tokens;
END;

CREATE TRIGGER usage_changed AFTER UPDATE ON usage BEGIN
    UPDATE user_usage SET
        requests = requests + NEW.requests - OLD.requests,
        refused = refused + NEW.refused - OLD.refused,
        errors = errors + NEW.errors - OLD.errors,
        cancelled = cancelled + NEW.cancelled - OLD.cancelled,
        calls = calls + NEW.calls - OLD.calls,
        input_tokens = input_tokens + NEW.input_tokens - OLD.input_tokens,
        output_tokens = output_tokens + NEW.output_tokens - OLD.output_tokens,
        cached_tokens = cached_tokens + NEW.cached_tokens - OLD.cached_tokens,
        cache_write_tokens = cache_write_tokens + NEW.cache_write_tokens - OLD.cache_write_tokens,
        reasoning_tokens = reasoning_tokens + NEW.reasoning_tokens - OLD.reasoning_tokens,
        estimated_input_tokens = estimated_input_tokens + NEW.estimated_input_tokens - OLD.estimated_input_tokens,
        estimated_output_tokens = estimated_output_tokens + NEW.estimated_output_tokens - OLD.estimated_output_tokens,
        injected_tokens = injected_tokens + NEW.injected_tokens - OLD.injected_tokens,
        evicted_tokens = evicted_tokens + NEW.evicted_tokens - OLD.evicted_tokens,
        background_input_tokens = background_input_tokens + NEW.background_input_tokens - OLD.background_input_tokens,
        background_output_tokens = background_output_tokens + NEW.background_output_tokens - OLD.background_output_tokens,
        batch_input_tokens = batch_input_tokens + NEW.batch_input_tokens - OLD.batch_input_tokens,
        batch_output_tokens = batch_output_tokens + NEW.batch_output_tokens - OLD.batch_output_tokens,
        cost = cost + NEW.cost - OLD.cost,
        unpriced_tokens = unpriced_tokens + NEW.unpriced_tokens - OLD.unpriced_tokens,
        answered = answered + NEW.answered - OLD.answered,
        question_tokens = question_tokens + NEW.question_tokens - OLD.question_tokens
    WHERE day = OLD.day AND project = OLD.project AND "user" = OLD."user";
END;

CREATE TRIGGER usage_gone AFTER DELETE ON usage BEGIN
    UPDATE user_usage SET
        requests = requests - OLD.requests,
        refused = refused - OLD.refused,
        errors = errors - OLD.errors,
        cancelled = cancelled - OLD.cancelled,
        calls = calls - OLD.calls,
        input_tokens = input_tokens - OLD.input_tokens,
        output_tokens = output_tokens - OLD.output_tokens,
        cached_tokens = cached_tokens - OLD.cached_tokens,
        cache_write_tokens = cache_write_tokens - OLD.cache_write_tokens,
        reasoning_tokens = reasoning_tokens - OLD.reasoning_tokens,
        estimated_input_tokens = estimated_input_tokens - OLD.estimated_input_tokens,
        estimated_output_tokens = estimated_output_tokens - OLD.estimated_output_tokens,
        injected_tokens = injected_tokens - OLD.injected_tokens,
        evicted_tokens = evicted_tokens - OLD.evicted_tokens,
        background_input_tokens = background_input_tokens - OLD.background_input_tokens,
        background_output_tokens = background_output_tokens - OLD.background_output_tokens,
        batch_input_tokens = batch_input_tokens - OLD.batch_input_tokens,
        batch_output_tokens = batch_output_tokens - OLD.batch_output_tokens,
        cost = cost - OLD.cost,
        unpriced_tokens = unpriced_tokens - OLD.unpriced_tokens,
        answered = answered - OLD.answered,
        question_tokens = question_tokens - OLD.question_tokens
    WHERE day = OLD.day AND project = OLD.project AND "user" = OLD."user";
    DELETE FROM user_usage WHERE day = OLD.day AND project = OLD.project AND "user" = OLD."user"
    AND NOT EXISTS (SELECT 1 FROM usage WHERE day = OLD.day AND project = OLD.project AND "user" = OLD."user");
END;

-- The number of the last part of a process's counters that was added, so that none is added twice.
CREATE TABLE usage_parts (
    process TEXT PRIMARY KEY,
    number  INTEGER NOT NULL,
    at      REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- When a process last added counters.
CREATE TABLE usage_writers (
    process TEXT PRIMARY KEY,
    wrote   REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- The counters of a user's day.
CREATE TABLE user_usage (
    day INTEGER NOT NULL,
    project TEXT NOT NULL,
    "user" TEXT NOT NULL,
    requests INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    estimated_input_tokens INTEGER NOT NULL,
    estimated_output_tokens INTEGER NOT NULL,
    injected_tokens INTEGER NOT NULL,
    background_input_tokens INTEGER NOT NULL,
    background_output_tokens INTEGER NOT NULL,
    batch_input_tokens INTEGER NOT NULL,
    batch_output_tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    unpriced_tokens INTEGER NOT NULL,
    answered INTEGER NOT NULL,
    question_tokens INTEGER NOT NULL,
    evicted_tokens INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (day, project, "user")
) STRICT, WITHOUT ROWID;

-- The vectors of a chunk of a memory's messages.
CREATE TABLE vectors (
    agent INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    model TEXT NOT NULL,
    pad   BLOB NOT NULL,
    data  BLOB NOT NULL,
    PRIMARY KEY (agent, chunk)
) STRICT, WITHOUT ROWID;
