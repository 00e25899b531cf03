-- Every statement on summaries. `-- name:` begins one; the next line describes it.

-- name: of_conversation
-- Reads the summaries of a conversation up to a depth, those that cover most first.
SELECT s.id, s.text, s.tokens, s.at, s.model, {skeleton}
FROM summaries s JOIN exchanges p ON p.id = s.exchange AND p.agent = s.agent
WHERE s.conversation = ?2 AND s.agent = ?1 AND s.agent <> 0 AND s.depth <= ?3 ORDER BY s.depth DESC, s.id DESC LIMIT ?4

-- name: of_exchange
-- Reads the summary of an exchange.
SELECT s.id, s.text, s.tokens, s.at, s.model, {skeleton}
FROM summaries s JOIN exchanges p ON p.id = s.exchange AND p.agent = s.agent
WHERE s.exchange = ?2 AND s.agent = ?1 AND s.agent <> 0

-- name: path
-- Reads the path to an exchange, oldest first, from the last exchange that has a summary; the oldest ?3 exchanges at most.
WITH RECURSIVE up(id, depth, parent) AS (
    SELECT id, depth, parent FROM exchanges WHERE id = ?2 AND agent = ?1
    UNION ALL
    SELECT e.id, e.depth, e.parent FROM up JOIN exchanges e ON e.id = up.parent AND e.agent = ?1
    WHERE NOT EXISTS (SELECT 1 FROM summaries s WHERE s.exchange = up.id AND s.agent = ?1 AND s.agent <> 0)
),
oldest(id, depth) AS (SELECT id, depth FROM up ORDER BY depth LIMIT ?3)
SELECT p.input, p.shown_reply, NULL, {skeleton} FROM oldest
JOIN exchanges p ON p.id = oldest.id AND p.agent = ?1 ORDER BY oldest.depth

-- name: last_exchange
-- Finds the exchange that a conversation ended with.
SELECT e.id, e.conversation FROM exchanges e JOIN conversations c ON c.id = e.conversation AND c.agent = e.agent
WHERE e.agent = ?1 AND e.active = 1 AND e.state = 'finished' AND (CAST(?2 AS TEXT) IS NULL OR c.uid = ?2 OR c.key = ?2)
ORDER BY e.seq DESC LIMIT 1

-- name: insert
-- Adds the summary of an exchange. No row: it has a summary, which branches share.
INSERT INTO summaries (agent, conversation, exchange, depth, at, tokens, model, text)
SELECT ?1, conversation, id, depth, ?3, ?4, ?5, ?6 FROM exchanges WHERE id = ?2 AND agent = ?1
ON CONFLICT DO NOTHING

-- name: project
-- Returns the project that pays for work on a memory from its budget.
SELECT project FROM agents WHERE id = ?

-- name: of_exchanges
-- Reads the summaries of some exchanges.
SELECT s.id, s.text, s.tokens, s.at, s.model, {skeleton}
FROM summaries s JOIN exchanges p ON p.id = s.exchange AND p.agent = s.agent
WHERE s.agent = ?1 AND s.agent <> 0 AND s.exchange {in:2:BIGINT:64}

-- name: bump_rev
-- Notes that a stored conversation has changed, unless it has changed since it was read.
UPDATE conversations SET rev = rev + 1 WHERE id = ? AND agent = ? AND rev = ? AND tip = ?
