-- What the page shows and keeps: why a reply was made as it was, muted facts, paused memories, sizes, what operators did.

-- Why a turn recalled what it did: one row for a turn that looked for memory. request: the id of its request, packed
-- (storage/sql/recalls.py). data: packed numbers (gateway/core/memory/recall_record.py): no words, hashes or names.
CREATE TABLE recalls (
    exchange INTEGER PRIMARY KEY,
    agent    INTEGER NOT NULL,
    at       REAL NOT NULL,
    request  BLOB NOT NULL,
    data     BLOB NOT NULL
) STRICT;

CREATE INDEX recalls_agent ON recalls (agent);
CREATE INDEX recalls_request ON recalls (request);
CREATE INDEX recalls_at ON recalls (at);

-- Facts that stay in lists, and that no note, search tool or summary has.
CREATE TABLE facts_muted (
    fact  INTEGER PRIMARY KEY,
    agent INTEGER NOT NULL,
    at    REAL NOT NULL
) STRICT;

CREATE INDEX facts_muted_agent ON facts_muted (agent);

CREATE TRIGGER stamp_fact_muted AFTER INSERT ON facts_muted BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER stamp_fact_unmuted AFTER DELETE ON facts_muted BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

-- Who stated a fact: learned | model | operator | person.
ALTER TABLE facts ADD COLUMN origin TEXT NOT NULL DEFAULT 'learned';

-- paused: when the person asked that nothing be remembered or recalled; NULL: it is. The others are the sizes of what is
-- retained, which the writer keeps: what was forgotten whole or is off the record does not count.
ALTER TABLE agents ADD COLUMN paused REAL;
ALTER TABLE agents ADD COLUMN last_turn REAL;
ALTER TABLE agents ADD COLUMN conversations INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agents ADD COLUMN messages INTEGER NOT NULL DEFAULT 0;
ALTER TABLE agents ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN messages INTEGER NOT NULL DEFAULT 0;
ALTER TABLE conversations ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;

UPDATE conversations SET (messages, bytes) = (
    SELECT coalesce(sum(e.span - (e.shown_reply IS NULL)), 0),
           coalesce(sum(coalesce(length(e.input), 0) + coalesce(length(e.shown_reply), 0) + coalesce(length(e.full), 0)), 0)
    FROM exchanges e WHERE e.conversation = conversations.id AND e.state NOT IN ('forgotten', 'off'));
UPDATE agents SET (conversations, messages, bytes, last_turn) = (
    SELECT coalesce(sum(c.messages > 0), 0), coalesce(sum(c.messages), 0), coalesce(sum(c.bytes), 0), max(c.last_at)
    FROM conversations c WHERE c.agent = agents.id);

-- Each new exchange moves its conversation's rev, time and tip and its agent's next number, and counts in both.
DROP TRIGGER exchanges_added;
CREATE TRIGGER exchanges_added AFTER INSERT ON exchanges BEGIN
    UPDATE conversations
       SET rev = rev + 1, last_at = max(last_at, coalesce(NEW.ended, NEW.stopped, NEW.touched)),
           tip = CASE WHEN tip = 0 THEN 0 ELSE NEW.id END,
           messages = messages + (NEW.state NOT IN ('forgotten', 'off')) * (NEW.span - (NEW.shown_reply IS NULL)),
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
     WHERE id = NEW.conversation;
    UPDATE agents
       SET next_seq = next_seq + NEW.span,
           last_turn = max(coalesce(last_turn, 0), coalesce(NEW.ended, NEW.stopped, NEW.touched)),
           messages = messages + (NEW.state NOT IN ('forgotten', 'off')) * (NEW.span - (NEW.shown_reply IS NULL)),
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
     WHERE id = NEW.agent;
END;

-- A changed one counts as it is now.
CREATE TRIGGER sizes_exchange_changed AFTER UPDATE OF state, input, shown_reply, full ON exchanges BEGIN
    UPDATE conversations
       SET messages = messages + (NEW.state NOT IN ('forgotten', 'off')) * (NEW.span - (NEW.shown_reply IS NULL))
               - (OLD.state NOT IN ('forgotten', 'off')) * (OLD.span - (OLD.shown_reply IS NULL)),
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
               - (OLD.state NOT IN ('forgotten', 'off')) * (coalesce(length(OLD.input), 0)
               + coalesce(length(OLD.shown_reply), 0) + coalesce(length(OLD.full), 0))
     WHERE id = OLD.conversation AND agent = OLD.agent;
    UPDATE agents
       SET messages = messages + (NEW.state NOT IN ('forgotten', 'off')) * (NEW.span - (NEW.shown_reply IS NULL))
               - (OLD.state NOT IN ('forgotten', 'off')) * (OLD.span - (OLD.shown_reply IS NULL)),
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
               - (OLD.state NOT IN ('forgotten', 'off')) * (coalesce(length(OLD.input), 0)
               + coalesce(length(OLD.shown_reply), 0) + coalesce(length(OLD.full), 0)),
           last_turn = CASE WHEN NEW.ended IS NULL THEN last_turn ELSE max(coalesce(last_turn, 0), NEW.ended) END
     WHERE id = OLD.agent;
END;

CREATE TRIGGER sizes_conversation_changed AFTER UPDATE OF messages ON conversations
WHEN (NEW.messages > 0) <> (OLD.messages > 0) BEGIN
    UPDATE agents SET conversations = conversations + (NEW.messages > 0) - (OLD.messages > 0) WHERE id = OLD.agent;
END;

-- What operators and people did over the page. actor: the name of a key, `code` or `link`. memory: the uid of one, which
-- outlives it; what: a kind and a number, never words.
CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at     REAL NOT NULL,
    actor  TEXT NOT NULL,
    action TEXT NOT NULL,
    memory TEXT,
    what   TEXT NOT NULL
) STRICT;

CREATE INDEX audit_memory ON audit (memory, id) WHERE memory IS NOT NULL;
CREATE INDEX audit_at ON audit (at);

-- Links that open one memory to the person it is of. digest: the SHA-256 of the link's token. key: the gateway key that made
-- it, 0 without keys; the link ends with it. rights: JSON list.
CREATE TABLE links (
    digest  BLOB PRIMARY KEY,
    agent   INTEGER NOT NULL,
    key     INTEGER NOT NULL,
    expires REAL NOT NULL,
    rights  TEXT NOT NULL
) STRICT;

CREATE INDEX links_agent ON links (agent);
