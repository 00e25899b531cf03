BEGIN TRANSACTION;
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
    created     REAL NOT NULL, rev INTEGER NOT NULL DEFAULT 0, stamp INTEGER NOT NULL DEFAULT 0,
    UNIQUE (project, profile, subject)
) STRICT;
INSERT INTO "agents" VALUES(1,'99a6cfdd975e4827a60819025eea0596','default','default','user:alice',X'22D89EBFACCF14367C32418F30BE59EE',0,8,0,1.79553214019193148613e+09,4,0);
CREATE TABLE attached (
    agent  INTEGER NOT NULL,
    kind   TEXT NOT NULL,
    target INTEGER NOT NULL,
    place  INTEGER NOT NULL,
    PRIMARY KEY (agent, kind, target)
) STRICT, WITHOUT ROWID;
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
CREATE TABLE batches (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    uid      TEXT NOT NULL UNIQUE,
    project  TEXT NOT NULL,
    state    TEXT NOT NULL,
    created  REAL NOT NULL,
    ended    REAL,
    callback TEXT
) STRICT;
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
INSERT INTO "block_history" VALUES(1,1,1,NULL,100.0,'default',NULL,X'5B5D','');
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
, uid TEXT) STRICT;
INSERT INTO "blocks" VALUES(1,1,'default','default','human','The user',1000,0,1,1,'544e839d6ad74c09bd435e63dd13ce90');
CREATE TABLE conversations (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    agent      INTEGER NOT NULL,
    uid        TEXT NOT NULL UNIQUE,
    key        TEXT,
    rev        INTEGER NOT NULL DEFAULT 0,
    begun      REAL NOT NULL,
    last_at    REAL NOT NULL,
    settled_at REAL NOT NULL DEFAULT 0, tip INTEGER NOT NULL DEFAULT 0,
    UNIQUE (agent, key)
) STRICT;
INSERT INTO "conversations" VALUES(1,1,'conversation 139704124296912 100.0',NULL,2,100.0,200.0,0.0,0);
INSERT INTO "conversations" VALUES(2,1,'conversation 139704124301392 200.0','named',1,200.0,200.0,0.0,0);
CREATE TABLE definition_texts (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    definition INTEGER NOT NULL,
    version    INTEGER NOT NULL,
    at         REAL NOT NULL,
    body       BLOB NOT NULL
) STRICT;
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
CREATE TABLE embedded (
    agent     INTEGER PRIMARY KEY,
    model     TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    stamp     INTEGER NOT NULL
) STRICT;
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
INSERT INTO "exchanges" VALUES(1,1,1,NULL,0,1,1,2,0,2,100.0,100.0,100.0,NULL,'finished',0,1,1,0,0,0,'','',10,0,NULL,NULL,NULL,540,X'3A1616EE5D4BF2D5D6FC9FE42E79E744',X'6168F59E2708F2AA45E95948',X'755E7F5715D0260F727BAC6F',NULL,X'0001755E7F5715D0260F727BAC6F',X'00',X'6168F59E2708F2AA45E95948',X'7B2230223A22227D',X'5B7B22726F6C65223A2275736572222C22636F6E74656E74223A224D79206361742069732063616C6C6564204D69736F2E227D5D',X'7B22726F6C65223A22617373697374616E74222C22636F6E74656E74223A2248656C6C6F204D69736F2E227D',NULL,X'000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000');
INSERT INTO "exchanges" VALUES(2,1,1,1,1,3,1,2,2,4,200.0,200.0,200.0,NULL,'finished',0,0,1,0,0,0,'','',6,0,NULL,NULL,1,540,X'80BEF2355E46016AE86456D776D01454',X'61A5B6E6DD0991E452B354B8',X'7587E9F4A7CB511B232F9004',NULL,X'00017587E9F4A7CB511B232F9004',X'00',X'61A5B6E6DD0991E452B354B8',X'7B2230223A22227D',X'5B7B22726F6C65223A2275736572222C22636F6E74656E74223A2253686520697320677265792E227D5D',X'7B22726F6C65223A22617373697374616E74222C22636F6E74656E74223A224E6F7465642E227D',NULL,X'0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000');
INSERT INTO "exchanges" VALUES(3,1,2,NULL,0,5,5,2,0,2,200.0,200.0,200.0,NULL,'finished',0,0,1,0,0,0,'','',4,0,NULL,NULL,NULL,540,X'4910B0668BDFAD55D4293DA7ED65824E',X'612F06743196000677B7F1EA',X'750C651A3AC3E4DF75FC53C0',X'5B305D',X'0001750C651A3AC3E4DF75FC53C0',X'00',X'612F06743196000677B7F1EA',X'7B2230223A22227D',X'5B7B22726F6C65223A2275736572222C22636F6E74656E74223A22416E6F746865722074616C6B2E227D5D',X'7B22726F6C65223A22617373697374616E74222C22636F6E74656E74223A225965732E227D',NULL,X'000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000');
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
CREATE TABLE facts_ended (
    fact      INTEGER PRIMARY KEY,
    agent     INTEGER NOT NULL,
    successor INTEGER NOT NULL,
    at        REAL NOT NULL
) STRICT;
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
CREATE TABLE followed (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    digest BLOB NOT NULL
) STRICT;
CREATE TABLE forgetting (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    agent  INTEGER NOT NULL,
    target BLOB NOT NULL
) STRICT;
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
, held_until REAL NOT NULL DEFAULT 0, first INTEGER NOT NULL DEFAULT 1 CHECK (first = 1 OR state IN ('pending', 'dead'))) STRICT;
INSERT INTO "jobs" VALUES(1,1,'work','one','pending',0,0,0,1.79553214020865845677e+09,1.79553214020865845677e+09,1.79553214020865845677e+09,NULL,NULL,X'7B7D',0.0,1);
INSERT INTO "jobs" VALUES(2,1,'work','two','pending',0,0,0,1.79553214020894789698e+09,1.79553214020894789698e+09,1.79553214020894789698e+09,NULL,NULL,X'7B7D',0.0,0);
CREATE TABLE keys (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    project TEXT NOT NULL,
    name    TEXT NOT NULL,
    digest  BLOB NOT NULL UNIQUE,
    prefix  TEXT NOT NULL,
    created REAL NOT NULL,
    revoked REAL
, memory TEXT, opens TEXT) STRICT;
INSERT INTO "keys" VALUES(1,'default','ann',X'DB7393A901DBB378A03A7BB1C6A1433B0F0868095FE9D2D2D0837FC017CA1303','mg-rETG',1.79553214018938183784e+09,NULL,NULL,NULL);
CREATE TABLE lines (
    name       TEXT NOT NULL PRIMARY KEY,
    holder     TEXT NOT NULL,
    held_until REAL NOT NULL,
    wanted     TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE marks (
    agent    INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    hash     BLOB NOT NULL,
    exchange INTEGER NOT NULL,
    PRIMARY KEY (agent, kind, hash, exchange)
) STRICT, WITHOUT ROWID;
CREATE TABLE passages (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    agent    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    at       REAL NOT NULL,
    exchange INTEGER,
    sources  BLOB NOT NULL,
    text     TEXT NOT NULL, file INTEGER, tags TEXT, metadata TEXT,
    UNIQUE (agent, seq)
) STRICT;
INSERT INTO "passages" VALUES(1,1,7,150.0,NULL,X'5B5D','Cats purr.',NULL,NULL,NULL);
CREATE TABLE probe (
    id     INTEGER PRIMARY KEY,
    filler BLOB NOT NULL
) STRICT;
CREATE TABLE readers (
    memory INTEGER NOT NULL,
    reader INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    at     REAL NOT NULL,
    PRIMARY KEY (memory, reader)
) STRICT, WITHOUT ROWID;
INSERT INTO "readers" VALUES(1,0,1,9.0);
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
CREATE TABLE run_texts (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    agent INTEGER NOT NULL,
    run   INTEGER NOT NULL,
    seq   INTEGER NOT NULL,
    kind  TEXT NOT NULL,
    data  BLOB NOT NULL
) STRICT;
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
CREATE TABLE snapshots (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    agent    INTEGER NOT NULL,
    text     TEXT NOT NULL,
    versions BLOB NOT NULL
) STRICT;
INSERT INTO "snapshots" VALUES(1,1,'Section.',X'7B7D');
CREATE TABLE spending (
    project TEXT NOT NULL,
    day     INTEGER NOT NULL,
    calls   INTEGER NOT NULL,
    tokens  INTEGER NOT NULL, batches INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (project, day)
) STRICT, WITHOUT ROWID;
CREATE TABLE steps (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    job    INTEGER NOT NULL,
    name   TEXT NOT NULL,
    at     REAL NOT NULL,
    result BLOB NOT NULL,
    UNIQUE (job, name)
) STRICT;
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
CREATE TABLE tags (
    project TEXT NOT NULL,
    tag     TEXT NOT NULL,
    agent   INTEGER NOT NULL,
    PRIMARY KEY (project, tag, agent)
) STRICT, WITHOUT ROWID;
CREATE TABLE terms (
    agent INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    data  BLOB NOT NULL, stamp INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (agent, chunk)
) STRICT;
CREATE TABLE vectors (
    agent INTEGER NOT NULL,
    chunk INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    model TEXT NOT NULL,
    pad   BLOB NOT NULL,
    data  BLOB NOT NULL,
    PRIMARY KEY (agent, chunk)
) STRICT, WITHOUT ROWID;
CREATE INDEX exchanges_path ON exchanges (agent, path);
CREATE INDEX exchanges_reply ON exchanges (agent, reply_key) WHERE reply_key IS NOT NULL;
CREATE INDEX exchanges_input ON exchanges (agent, input_key) WHERE input_key IS NOT NULL;
CREATE INDEX exchanges_tree ON exchanges (conversation, depth, parent);
CREATE INDEX exchanges_openings ON exchanges (agent, begun) WHERE parent IS NULL AND carried = 0;
CREATE INDEX exchanges_order ON exchanges (agent, seq);
CREATE INDEX snapshots_agent ON snapshots (agent);
CREATE UNIQUE INDEX blocks_own ON blocks (agent, label) WHERE agent IS NOT NULL;
CREATE INDEX block_ops_pending ON block_ops (agent) WHERE state = 'pending';
CREATE UNIQUE INDEX jobs_key ON jobs (agent, kind, key) WHERE state = 'pending';
CREATE INDEX jobs_state ON jobs (state, due);
CREATE INDEX jobs_asked ON jobs (asked);
CREATE UNIQUE INDEX summaries_exchange ON summaries (exchange) WHERE agent <> 0;
CREATE INDEX summaries_conversation ON summaries (conversation, depth) WHERE agent <> 0;
CREATE TRIGGER summaries_forgotten AFTER UPDATE OF state, hush ON exchanges
WHEN (NEW.state = 'forgotten' AND OLD.state <> 'forgotten') OR NEW.hush IS NOT OLD.hush BEGIN
    UPDATE summaries SET agent = 0, model = '', text = ''
     WHERE conversation = NEW.conversation AND depth >= NEW.depth AND agent <> 0;
END;
CREATE INDEX summaries_agent ON summaries (agent) WHERE agent <> 0;
CREATE TRIGGER summaries_gone AFTER DELETE ON agents BEGIN
    UPDATE summaries SET agent = 0, model = '', text = '' WHERE agent = OLD.id AND agent <> 0;
END;
CREATE INDEX facts_key ON facts (agent, key);
CREATE INDEX facts_ended_agent ON facts_ended (agent);
CREATE INDEX definitions_name ON definitions (project, kind, name);
CREATE INDEX definitions_order ON definitions (project, kind, id);
CREATE INDEX definitions_memory ON definitions (memory) WHERE memory <> 0;
CREATE INDEX definition_texts_definition ON definition_texts (definition);
CREATE INDEX attached_target ON attached (kind, target);
CREATE INDEX tags_agent ON tags (agent);
CREATE INDEX runs_agent ON runs (agent, id);
CREATE UNIQUE INDEX runs_otid ON runs (agent, otid) WHERE otid IS NOT NULL;
CREATE INDEX runs_open ON runs (state, id) WHERE state IN ('created', 'running');
CREATE INDEX runs_parent ON runs (parent) WHERE parent IS NOT NULL;
CREATE INDEX runs_batch ON runs (batch) WHERE batch IS NOT NULL;
CREATE INDEX run_steps_run ON run_steps (run, number);
CREATE INDEX run_steps_agent ON run_steps (agent, exchange);
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
CREATE UNIQUE INDEX run_texts_run ON run_texts (run, kind, seq) WHERE agent <> 0;
CREATE INDEX run_texts_agent ON run_texts (agent) WHERE agent <> 0;
CREATE INDEX files_memory ON files (memory, id);
CREATE INDEX batches_project ON batches (project, id);
CREATE TRIGGER exchanges_added AFTER INSERT ON exchanges BEGIN
    UPDATE conversations
       SET rev = rev + 1, last_at = max(last_at, coalesce(NEW.ended, NEW.stopped, NEW.touched)),
           tip = CASE WHEN tip = 0 THEN 0 ELSE NEW.id END
     WHERE id = NEW.conversation;
    UPDATE agents SET next_seq = next_seq + NEW.span WHERE id = NEW.agent;
END;
CREATE INDEX agents_project ON agents (project, id);
CREATE INDEX passages_file ON passages (file) WHERE file IS NOT NULL;
CREATE UNIQUE INDEX blocks_uid ON blocks (uid);
CREATE UNIQUE INDEX blocks_shared ON blocks (project, profile, label) WHERE agent IS NULL AND profile <> '';
CREATE INDEX blocks_nobodys ON blocks (project, id) WHERE agent IS NULL AND profile = '';
CREATE INDEX batch_items_part ON batch_items (batch, part, run);
CREATE TRIGGER kept_exchange_changed AFTER UPDATE OF
    agent, conversation, parent, depth, seq, run, offset, length, begun, touched, ended, stopped, state, superseded,
    standing, edits, adds, opaque, model, merged, size, head, evicted, prior, snapshot, path, reply_key, hush, inputs,
    media, reply, notes, input, said, full
ON exchanges BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_exchange_gone AFTER DELETE ON exchanges BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_conversation_changed AFTER UPDATE OF agent, uid, key ON conversations BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_conversation_gone AFTER DELETE ON conversations BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_mark_added AFTER INSERT ON marks WHEN NEW.kind IN ('head', 'tomb') BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;
CREATE TRIGGER kept_mark_gone AFTER DELETE ON marks WHEN OLD.kind IN ('head', 'tomb') BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_snapshot_changed AFTER UPDATE ON snapshots BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_snapshot_gone AFTER DELETE ON snapshots BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_op_added AFTER INSERT ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;
CREATE TRIGGER kept_op_changed AFTER UPDATE ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_op_gone AFTER DELETE ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_attached AFTER INSERT ON attached WHEN NEW.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;
CREATE TRIGGER kept_attached_changed AFTER UPDATE ON attached WHEN NEW.kind = 'block' OR OLD.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (NEW.agent, OLD.agent);
END;
CREATE TRIGGER kept_detached AFTER DELETE ON attached WHEN OLD.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER kept_block_added AFTER INSERT ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;
CREATE TRIGGER kept_block_changed AFTER UPDATE ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT NEW.agent UNION SELECT OLD.agent UNION SELECT agent FROM attached WHERE kind = 'block' AND target = NEW.id);
END;
CREATE TRIGGER kept_block_gone AFTER DELETE ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT OLD.agent UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.id);
END;
CREATE TRIGGER kept_value_changed AFTER UPDATE OF block, value ON block_history BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT agent FROM blocks WHERE id = OLD.block
        UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.block);
END;
CREATE TRIGGER kept_value_gone AFTER DELETE ON block_history BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT agent FROM blocks WHERE id = OLD.block
        UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.block);
END;
CREATE INDEX terms_stamp ON terms (agent, stamp, chunk);
CREATE TRIGGER exchanges_told AFTER UPDATE OF standing ON exchanges WHEN OLD.state <> 'open' BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER exchanges_went_on AFTER UPDATE OF carried ON exchanges
WHEN NEW.head <> 0 AND OLD.carried = 0 AND NEW.carried <> 0 BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER marks_added AFTER INSERT ON marks WHEN NEW.kind IN ('head', 'stale') BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;
CREATE TRIGGER marks_gone AFTER DELETE ON marks WHEN OLD.kind IN ('head', 'stale') BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER passages_gone AFTER UPDATE OF text ON passages BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER facts_gone AFTER UPDATE OF text ON facts BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;
CREATE TRIGGER facts_untrue AFTER INSERT ON facts_ended BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;
CREATE UNIQUE INDEX definitions_called ON definitions (project, kind, name) WHERE kind IN ('tool', 'mcp', 'identity');
CREATE UNIQUE INDEX jobs_lane ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END)) WHERE first = 1;
CREATE INDEX jobs_behind ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END), due, id)
 WHERE first = 0 AND state = 'pending';
CREATE INDEX jobs_next ON jobs (kind, due, id) WHERE first = 1 AND state IN ('pending', 'retrying');
CREATE TRIGGER jobs_added AFTER INSERT ON jobs BEGIN
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = NEW.id;
END;
CREATE TRIGGER jobs_revived AFTER UPDATE OF state ON jobs WHEN OLD.state = 'dead' AND NEW.state <> 'dead' BEGIN
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
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('keys',1);
INSERT INTO "sqlite_sequence" VALUES('agents',1);
INSERT INTO "sqlite_sequence" VALUES('blocks',1);
INSERT INTO "sqlite_sequence" VALUES('block_history',1);
INSERT INTO "sqlite_sequence" VALUES('conversations',2);
INSERT INTO "sqlite_sequence" VALUES('exchanges',3);
INSERT INTO "sqlite_sequence" VALUES('snapshots',1);
INSERT INTO "sqlite_sequence" VALUES('passages',1);
INSERT INTO "sqlite_sequence" VALUES('jobs',2);
COMMIT;
PRAGMA user_version = 16;
PRAGMA application_id = 1299080557;
