-- Every statement on summaries. `{skeleton}` is the list of an exchange's columns without content (history.py).

-- name: of
-- Those of a conversation, the ones that cover most first.
SELECT s.id, s.text, s.tokens, s.at, s.model, {skeleton}
FROM summaries s JOIN exchanges p ON p.id = s.exchange
WHERE s.conversation = ?2 AND s.agent = ?1 AND s.agent <> 0 ORDER BY s.depth DESC, s.id DESC LIMIT ?3

-- name: at
-- The one of an exchange.
SELECT s.id, s.text, s.tokens, s.at, s.model, {skeleton}
FROM summaries s JOIN exchanges p ON p.id = s.exchange
WHERE s.exchange = ?2 AND s.agent = ?1 AND s.agent <> 0

-- name: path
-- The path to an exchange, newest first, down to one that has a summary.
WITH RECURSIVE up(id, depth, parent) AS (
    SELECT id, depth, parent FROM exchanges WHERE id = ?2 AND agent = ?1
    UNION ALL
    SELECT e.id, e.depth, e.parent FROM up JOIN exchanges e ON e.id = up.parent
    WHERE NOT EXISTS (SELECT 1 FROM summaries s WHERE s.exchange = up.id AND s.agent = ?1 AND s.agent <> 0)
    LIMIT ?3
)
SELECT p.input, p.said, {skeleton} FROM up JOIN exchanges p ON p.id = up.id ORDER BY up.depth DESC

-- name: tip
-- The exchange that a conversation ended with.
SELECT e.id, e.conversation FROM exchanges e JOIN conversations c ON c.id = e.conversation
WHERE e.agent = ?1 AND e.standing = 1 AND e.state = 'finished' AND (?2 IS NULL OR c.uid = ?2 OR c.key = ?2)
ORDER BY e.seq DESC LIMIT 1

-- name: insert
-- One is enough: branches share it.
INSERT INTO summaries (agent, conversation, exchange, depth, at, tokens, model, text)
SELECT ?1, conversation, id, depth, ?3, ?4, ?5, ?6 FROM exchanges WHERE id = ?2 AND agent = ?1
ON CONFLICT DO NOTHING

-- name: project
-- Whose budget a memory is worked on with.
SELECT project FROM agents WHERE id = ?
