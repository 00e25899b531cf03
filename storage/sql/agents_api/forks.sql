-- Every statement on forks. `-- name:` begins one; the next line describes it.

-- name: source
-- Returns the tip of a conversation, and its last exchange: of a tree the newest active one.
SELECT c.tip, CASE WHEN c.tip <> 0 THEN c.tip ELSE (
    SELECT x.id FROM exchanges x WHERE x.conversation = c.id AND +x.agent = ?1 AND x.active = 1 AND x.state = 'finished'
    ORDER BY x.seq DESC LIMIT 1) END
FROM conversations c WHERE c.id = ?2 AND c.agent = ?1

-- name: holder
-- Finds the active exchange that has the message with a number, in a conversation or its past.
WITH {past}
SELECT p.id FROM exchanges p JOIN past h ON h.conversation = p.conversation AND p.seq <= h.last
WHERE p.agent = ?1 AND p.seq = (SELECT max(x.seq) FROM exchanges x WHERE x.agent = ?1 AND x.seq <= ?3)
AND p.seq + p.span > ?3 AND p.active = 1

-- name: exchange
-- Reads an exchange with its content, and whether it belongs to an active run.
SELECT p.input, p.shown_reply, p."full", CASE WHEN EXISTS (
        SELECT 1 FROM run_steps s JOIN runs r ON r.id = s.run AND r.agent = s.agent
        WHERE s.exchange = p.id AND s.agent = p.agent AND r.state IN ('created', 'running'))
    THEN 1 ELSE 0 END, {skeleton}
FROM exchanges p WHERE p.id = ?2 AND p.agent = ?1

-- name: fork_note
-- Stores the conversations above a conversation ?2 with a past that ends at the exchange ?3; none if that is its own.
INSERT INTO forks (agent, conversation, origin, seq)
SELECT ?1, ?2, p.conversation, p.seq + p.span - 1 FROM exchanges p
WHERE p.id = ?3 AND p.agent = ?1 AND p.conversation <> ?2
UNION ALL
SELECT ?1, ?2, f.origin, f.seq FROM exchanges p JOIN forks f ON f.agent = ?1 AND f.conversation = p.conversation
WHERE p.id = ?3 AND p.agent = ?1 AND p.conversation <> ?2
ON CONFLICT DO NOTHING

-- name: source_moved
-- Makes plans conflict that were made on a conversation.
UPDATE conversations SET rev = rev + 1 WHERE id = ? AND agent = ?
