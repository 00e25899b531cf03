-- Every statement on stored messages as the agents API lists them. `-- name:` begins one; the next line describes it.

-- piece: row
-- An exchange `p` with its content, its conversation, and the run that it is a step of.
p.input, p.shown_reply, p."full", c.uid, c.key, CASE WHEN c.tip = p.id THEN 1 ELSE 0 END, r.uid, s.waiting, {skeleton}

-- piece: row_tables
-- The tables that the piece `row` joins to an exchange `p`.
JOIN conversations c ON c.id = p.conversation AND c.agent = +p.agent
LEFT JOIN run_steps s ON s.exchange = p.id AND s.agent = p.agent LEFT JOIN runs r ON r.id = s.run AND r.agent = p.agent

-- piece: in_past
-- The exchanges of the piece `past`.
past h CROSS JOIN exchanges p ON p.conversation = h.conversation AND +p.seq <= h.last AND +p.agent = ?1

-- piece: is_listed
-- An exchange is listed if it is active, or is being answered in a stored conversation.
(p.active = 1 OR (p.state = 'open' AND c.tip <> 0))

-- name: of_agent_down
-- Reads a memory's exchanges backwards, from the one that holds the number below ?3. ?2: none that ends before it.
SELECT {row} FROM exchanges p {row_tables}
WHERE p.agent = ?1 AND p.seq + p.span > ?2 AND p.seq < ?3 AND {is_listed} ORDER BY p.seq DESC LIMIT ?4

-- name: of_agent_up
-- Reads a memory's exchanges forwards. Parameters as of `of_agent_down`.
SELECT {row} FROM exchanges p {row_tables}
WHERE p.agent = ?1 AND p.seq >= coalesce((SELECT max(x.seq) FROM exchanges x WHERE x.agent = ?1 AND x.seq <= ?2), 0)
AND p.seq + p.span > ?2 AND p.seq < ?3 AND {is_listed} ORDER BY p.seq LIMIT ?4

-- name: of_conversation
-- Reads the exchanges of one conversation and of its past. ?2: the conversation; ?3, ?4: between these numbers. (`+`:
-- looked up by conversation, not by agent.)
WITH {past}
SELECT {row} FROM {in_past} {row_tables}
WHERE p.seq + p.span > ?3 AND p.seq < ?4 AND {is_listed} ORDER BY p.seq {direction} LIMIT ?5

-- name: in_conversation
-- Reads all exchanges of a conversation and its past that have messages, active or not, those that are forgotten, and
-- those with which forks begin.
WITH {past}
SELECT {row} FROM {in_past} {row_tables}
WHERE p.seq > ?3 AND (p.input IS NOT NULL OR p.state = 'forgotten' OR (p.state = 'off' AND p.span = 1)) ORDER BY p.seq LIMIT ?4

-- name: begun
-- Reads the exchange of a project that a response's id names, with its memory. ?2: its conversation; ?3: when it began.
SELECT {agent}, {row}
FROM exchanges p {row_tables} JOIN agents a ON a.id = p.agent
WHERE p.conversation = (SELECT n.id FROM conversations n WHERE n.uid = ?2) AND p.begun = ?3 AND a.project = ?1
ORDER BY p.id DESC LIMIT 1

-- name: owner
-- Reads the memory of a conversation of a project, and the client's own id of the conversation.
SELECT {agent}, c.key
FROM conversations c JOIN agents a ON a.id = c.agent WHERE c.uid = ?2 AND a.project = ?1

-- name: path_to
-- Reads an exchange and all above it, the oldest first.
WITH RECURSIVE up(id, parent) AS (
    SELECT e.id, e.parent FROM exchanges e WHERE e.id = ?2 AND e.agent = ?1
    UNION ALL SELECT e.id, e.parent FROM up JOIN exchanges e ON e.id = up.parent AND e.agent = ?1
)
SELECT {row} FROM up JOIN exchanges p ON p.id = up.id {row_tables} ORDER BY p.depth

-- name: newest
-- Reads the replies of a memory's last ?2 exchanges, the newest first: a conversation, when its turn began, the reply.
SELECT c.uid, p.begun, p.shown_reply FROM exchanges p
JOIN conversations c ON c.id = p.conversation AND c.agent = p.agent
WHERE p.agent = ?1 AND p.shown_reply IS NOT NULL ORDER BY p.seq DESC LIMIT ?2

-- name: of_project
-- Reads the exchanges of all agents of a project. ?2, ?3: between these rows.
SELECT {agent}, {row}
FROM exchanges p CROSS JOIN agents a ON a.id = p.agent {row_tables}
WHERE a.project = ?1 AND (a.profile = '@' OR substr(a.subject, 1, 5) = 'user:') AND p.id > ?2 AND p.id < ?3
AND {is_listed}
ORDER BY p.id {direction} LIMIT ?4

-- name: of_rows
-- Reads exchanges by their rows.
SELECT {row} FROM exchanges p {row_tables} WHERE +p.agent = ?1 AND p.id {in:2:BIGINT:64}

-- name: cursor_row
-- Finds the exchange that has or had a number, by the public id of its memory. A forgotten exchange keeps its row.
SELECT max(p.id) FROM agents a JOIN exchanges p ON p.agent = a.id
WHERE a.project = ?1 AND a.uid = ?2
AND p.seq = (SELECT max(x.seq) FROM exchanges x WHERE x.agent = a.id AND x.seq <= ?3)

-- name: at
-- Reads the exchange that holds a number.
SELECT {row} FROM exchanges p {row_tables} WHERE p.agent = ?1
AND p.seq = (SELECT max(x.seq) FROM exchanges x WHERE x.agent = ?1 AND x.seq <= ?2) AND p.seq + p.span > ?2

-- name: summaries_over (sqlite)
-- Empties the summaries that may quote an exchange ?2, also those of forks.
UPDATE summaries SET agent = 0, model = '', text = '' WHERE id IN (
    SELECT s.id FROM exchanges p
    JOIN summaries s ON s.conversation = p.conversation AND s.depth >= p.depth AND s.agent <> 0
    WHERE p.id = ?2 AND p.agent = ?1
    UNION SELECT s.id FROM exchanges p JOIN forks f ON f.agent = ?1 AND f.origin = p.conversation AND f.seq >= p.seq
        JOIN summaries s ON s.conversation = f.conversation AND s.agent <> 0 WHERE p.id = ?2 AND p.agent = ?1)

-- name: summaries_over (postgres)
DELETE FROM summaries WHERE agent = ?1 AND agent <> 0 AND id IN (
    SELECT s.id FROM exchanges p
    JOIN summaries s ON s.conversation = p.conversation AND s.depth >= p.depth AND s.agent <> 0
    WHERE p.id = ?2 AND p.agent = ?1
    UNION SELECT s.id FROM exchanges p JOIN forks f ON f.agent = ?1 AND f.origin = p.conversation AND f.seq >= p.seq
        JOIN summaries s ON s.conversation = f.conversation AND s.agent <> 0 WHERE p.id = ?2 AND p.agent = ?1)

-- name: forks_moved
-- Makes plans conflict that were made in the forks of an exchange ?2.
UPDATE conversations SET rev = rev + 1 WHERE +agent = ?1 AND id IN (
    SELECT f.conversation FROM exchanges p JOIN forks f ON f.agent = ?1 AND f.origin = p.conversation AND f.seq >= p.seq
    WHERE p.id = ?2 AND p.agent = ?1)

-- name: past
-- Reads the conversations in which the past of a conversation stands, each with the last number of the past there.
WITH {past} SELECT conversation, last FROM past

-- name: conversation_find
-- Finds a conversation by the client's name or the public id. A conversation that has lost its name is gone.
SELECT id, uid, key, rev, tip FROM conversations
WHERE agent = ?1 AND (key = ?2 OR uid = ?3) AND coalesce(substr(key, 1, 1), '') <> ' '
ORDER BY CASE WHEN key = ?2 THEN 0 ELSE 1 END LIMIT 1

-- name: tails
-- Reads the rows of `tail` for the conversations of several agents under one name. The first column is the agent.
SELECT t.agent, t.seq, t.span, t.answered, t.depth, CASE WHEN t.place = 1 THEN t.evicted END FROM (
    SELECT p.agent AS agent, p.seq AS seq, p.span AS span, CASE WHEN p.reply IS NULL THEN 0 ELSE 1 END AS answered,
        p.depth AS depth, p.evicted AS evicted, row_number() OVER (PARTITION BY p.agent ORDER BY p.seq DESC) AS place
    FROM conversations c JOIN exchanges p ON p.conversation = c.id AND +p.agent = c.agent
    WHERE c.key = ?1 AND c.agent {in:3:BIGINT:64} AND {is_listed}
) t WHERE t.place <= ?2 ORDER BY t.agent, t.seq DESC

-- name: tail
-- Reads the numbers of the newest exchanges of a conversation and its past: where each begins, how many messages it has
-- room for, and whether the last of these, the reply, is there; its depth, and what had left the window then.
WITH {past}
SELECT p.seq, p.span, CASE WHEN p.reply IS NULL THEN 0 ELSE 1 END, p.depth, p.evicted
FROM {in_past} JOIN conversations c ON c.id = p.conversation AND c.agent = +p.agent
WHERE {is_listed} ORDER BY p.seq DESC LIMIT ?3
