-- Every statement on stored conversations, which are one path each. `-- name:` begins one; the next line describes it.

-- piece: is_found
-- A conversation is found unless it was released: then its name begins with a blank.
coalesce(substr(key, 1, 1), '') <> ' '

-- name: head
-- All that a send needs to know but the words of its conversation. The first column names the kind of a row; then come
-- five numbers, three texts, a content and a time. ?1 the agent; the conversation has the key ?2 or the public id ?3;
-- ?4 to ?6 the scope; ?7 how many turns are counted that its sleeptime agents have not read, ?8 the mark of what began
-- none. A tree goes on from its newest active exchange, with the pending edits. (The order of the counted turns leads
-- PostgreSQL to the index of the agent's exchanges; without it, it reads the exchanges of all agents.)
WITH c AS (
    SELECT id, uid, key, rev, tip FROM conversations WHERE agent = ?1 AND key = ?2
    UNION ALL SELECT id, uid, key, rev, tip FROM conversations
    WHERE agent = ?1 AND uid = ?3 AND {is_found}
),
p AS (
    SELECT e.id, e.depth, e.section, e.evicted FROM c
    JOIN exchanges e ON e.agent = ?1 AND e.id = CASE WHEN c.tip <> 0 THEN c.tip ELSE (
        SELECT x.id FROM exchanges x
        WHERE x.conversation = c.id AND +x.agent = ?1 AND x.active = 1 AND x.state = 'finished'
        ORDER BY x.seq DESC LIMIT 1) END
)
SELECT 'agent', epoch, next_seq, indexed_seq, rev, stamp,
       CAST(NULL AS TEXT), CAST(NULL AS TEXT), CAST(NULL AS TEXT), CAST(NULL AS BYTEA), CAST(NULL AS DOUBLE PRECISION)
FROM agents WHERE id = ?1 AND project = ?4 AND profile = ?5 AND subject = ?6
UNION ALL SELECT 'conversation', id, rev, tip, NULL, NULL, uid, key, NULL, NULL, NULL FROM c
UNION ALL SELECT 'last', id, depth, NULL, NULL, NULL, NULL, NULL, NULL, evicted, NULL FROM p
UNION ALL
SELECT 'section', s.id, NULL, NULL, NULL, NULL, s.text, NULL, NULL, s.known, NULL
FROM p JOIN sections s ON s.id = p.section AND s.agent = ?1
UNION ALL
SELECT 'block', b.id, b.lim, b.read_only, b.version, 0, b.label, b.description, h.value, NULL, NULL
FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.agent = ?1
UNION ALL
SELECT 'block', b.id, b.lim, b.read_only, b.version, 1, b.label, b.description, h.value, NULL, NULL
FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent IS NULL AND b.profile <> '' AND b.project = ?4 AND b.profile = CAST(?5 AS TEXT)
UNION ALL
SELECT 'block', b.id, b.lim, b.read_only, b.version, 2 + x.place, b.label, b.description, h.value, NULL, NULL
FROM attached x JOIN blocks b ON b.id = x.target JOIN block_history h ON h.id = b.current
WHERE x.agent = ?1 AND x.kind = 'block'
UNION ALL
SELECT 'edit', o.id, o.exchange, o.seen, NULL, NULL, o.call_id, o.op, o.label, o.arguments, o.at
FROM c JOIN block_ops o ON c.tip = 0 AND o.agent = ?1 AND o.state = 'pending'
UNION ALL
SELECT 'standing', f.seq, NULL, NULL, NULL, NULL, f.text, f.origin, NULL, NULL, f.valid_from
FROM {standing}
UNION ALL
SELECT 'reader', r.reader, (SELECT count(*) FROM (
        SELECT 1 AS one FROM exchanges e
        WHERE e.agent = ?1 AND e.seq > r.seq AND e.active = 1 AND e.state = 'finished' AND substr(e.inputs, 3, 1) <> ?8
        AND NOT EXISTS (SELECT 1 FROM run_steps s
            WHERE s.exchange = e.id AND s.agent = e.agent AND s.number > 1) ORDER BY e.seq LIMIT ?7) t),
    CASE WHEN (SELECT x.state FROM runs x
        WHERE x.agent = r.reader ORDER BY x.id DESC LIMIT 1) IN ('created', 'running') THEN 1
         ELSE 0 END, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM readers r WHERE r.memory = ?1 AND r.reader > 0 AND CAST(?7 AS BIGINT) > 0

-- name: path
-- The path to an exchange with its words, and the summaries of its conversation. ?2 the conversation; ?3 the exchange;
-- ?4 the depth from which on it is read; ?5 how many summaries.
WITH RECURSIVE up(id, parent) AS (
    SELECT id, parent FROM exchanges WHERE id = ?3 AND agent = ?1
    UNION ALL
    SELECT e.id, e.parent FROM up JOIN exchanges e ON e.id = up.parent AND e.agent = ?1 WHERE e.depth >= ?4
),
{past},
newest(id) AS (
    SELECT s.id FROM past h CROSS JOIN summaries s ON s.conversation = h.conversation AND +s.agent = ?1 AND s.agent <> 0
    CROSS JOIN exchanges x ON x.id = s.exchange AND x.agent = s.agent AND x.seq <= h.last
    ORDER BY s.depth DESC, s.id DESC LIMIT ?5
)
SELECT 'exchange', CAST(NULL AS BIGINT), CAST(NULL AS TEXT), CAST(NULL AS BIGINT), CAST(NULL AS DOUBLE PRECISION),
       CAST(NULL AS TEXT), p.input, p.shown_reply, p."full", {skeleton}
FROM up JOIN exchanges p ON p.id = up.id AND p.agent = ?1
UNION ALL
SELECT 'summary', s.id, s.text, s.tokens, s.at, s.model, NULL, NULL, NULL, {skeleton}
FROM newest JOIN summaries s ON s.id = newest.id JOIN exchanges p ON p.id = s.exchange AND p.agent = s.agent
ORDER BY 13

-- name: adopt
-- Makes a client's conversation a stored one, which goes on from one of its exchanges, unless it was moved since it was
-- read.
UPDATE conversations SET tip = ?1 WHERE id = ?2 AND agent = ?3 AND rev = ?4 AND tip = 0

-- name: continue
-- Marks an exchange that a stored conversation goes on from; its memory edits enter the blocks with it.
UPDATE exchanges SET continued = 1, merged = CASE WHEN edits <> 0 AND merged = '' THEN 'continued' ELSE merged END
WHERE id = ? AND agent = ?

-- name: step_finish (sqlite)
-- Writes the end of a step into its exchange. Returns up to where the search index knows. No row: something was
-- forgotten, or another process has taken the conversation over: it has ended the step, or failed the run ?41.
{set_exchange}
WHERE id = ?38 AND agent = ?39 AND state = 'open'
AND EXISTS (SELECT 1 FROM agents a WHERE a.id = ?39 AND a.epoch = ?40)
AND EXISTS (SELECT 1 FROM runs r WHERE r.id = ?41 AND r.agent = ?39 AND r.state <> 'failed')
RETURNING (SELECT indexed_seq FROM agents WHERE id = ?39)

-- name: step_finish (postgres)
WITH a AS (
    SELECT g.id AS agent_id, g.indexed_seq FROM agents g
    JOIN runs r ON r.id = ?41 AND r.agent = g.id AND r.state <> 'failed'
    WHERE g.id = ?39 AND g.epoch = ?40 FOR NO KEY UPDATE)
{set_exchange}
FROM a WHERE id = ?38 AND agent = a.agent_id AND state = 'open'
RETURNING a.indexed_seq

-- name: step_abandon
-- Ends a step that was left open by a process that is gone.
{set_exchange}
WHERE id = ?38 AND agent = ?39 AND state = 'open'

-- name: step_stop
-- Notes, for a stored step, why its run ended and which answers its calls wait for. Returns the run.
UPDATE run_steps SET stop = ?1, waiting = coalesce(?2, waiting) WHERE exchange = ?3 AND agent = ?4
AND EXISTS (SELECT 1 FROM agents a WHERE a.id = ?4 AND a.epoch = ?5) RETURNING run

-- name: conversation_named
-- Reads a conversation by the client's name or its public id, unless it was released.
SELECT id, uid, key, rev, tip FROM conversations WHERE agent = ?1 AND key = ?2
UNION ALL SELECT id, uid, key, rev, tip FROM conversations
WHERE agent = ?1 AND uid = ?3 AND {is_found}
