-- Every statement on conversations as the agents API knows them. `-- name:` begins one; the next line describes it.

-- piece: conversation
-- The columns of a conversation `c` with its memory `a` and its definition.
c.id, c.uid, c.key, c.rev, c.tip, c.begun, c.last_at,
    {agent},
    d.id, d.uid, d.project, d.kind, d.memory, d.name, d.version, d.created, d.updated, t.body

-- piece: definition_tables
-- The tables of the definition in the piece `conversation`.
LEFT JOIN definitions d ON d.uid = c.uid AND d.kind = 'conversation' LEFT JOIN definition_texts t ON t.id = d.current

-- piece: is_listed
-- A conversation is listed if it is an agent's, is not its default one, and was not released.
a.project = ?1 AND (a.profile = '@' OR substr(a.subject, 1, 5) = 'user:')
AND coalesce(substr(c.key, 1, 1), '') <> ' ' AND coalesce(c.key, '') <> 'default'

-- piece: order_time
-- The time by which a list is ordered. ?2: 'spoken', else by the last run.
CASE CAST(?2 AS TEXT) WHEN 'spoken' THEN c.last_at ELSE coalesce(n.ended, 0) END

-- name: get
-- Reads a conversation of a project by its public id.
SELECT {conversation} FROM conversations c JOIN agents a ON a.id = c.agent {definition_tables}
WHERE c.uid = ?1 AND a.project = ?2 AND coalesce(substr(c.key, 1, 1), '') <> ' '

-- name: of_project
-- Lists a project's conversations. Each row begins with its time in the order, here 0. ?2, ?3: between these rows;
-- ?4: how many.
SELECT 0, {conversation} FROM conversations c CROSS JOIN agents a ON a.id = c.agent {definition_tables}
WHERE {is_listed} AND c.id > ?2 AND c.id < ?3 ORDER BY c.id {direction} LIMIT ?4

-- name: of_agent
-- Lists the conversations of an agent. ?5: the agent's row; the others as of `of_project`.
SELECT 0, {conversation} FROM agents a JOIN conversations c ON c.agent = a.id {definition_tables}
WHERE a.id = ?5 AND {is_listed} AND c.id > ?2 AND c.id < ?3 ORDER BY c.id {direction} LIMIT ?4

-- name: by_time
-- Lists the conversations of the agents in rows ?8 to ?9 by a time, with which each row begins. ?3: how many;
-- ?4 to ?7: between these times and rows. When the last run of each conversation ended is read once for all conversations. (The range is of `c.agent`,
-- since PostgreSQL does not derive it from one of `a.id`.)
SELECT {order_time}, {conversation} FROM agents a JOIN conversations c ON c.agent = a.id {definition_tables}
LEFT JOIN (SELECT r.conversation, max(r.ended) AS ended FROM runs r JOIN agents b ON b.id = r.agent AND b.project = ?1
    WHERE r.agent >= ?8 AND r.agent <= ?9
    AND CAST(?2 AS TEXT) <> 'spoken' GROUP BY r.conversation) n ON n.conversation = c.id
WHERE {is_listed} AND c.agent >= ?8 AND c.agent <= ?9 AND ({order_time}, c.id) > (?4, ?5) AND ({order_time}, c.id) < (?6, ?7)
ORDER BY {order_time} {direction}, c.id {direction} LIMIT ?3

-- name: cursor
-- Returns the position of a conversation in a list by time: its time and its row.
SELECT CASE CAST(?2 AS TEXT) WHEN 'spoken' THEN c.last_at
    ELSE coalesce((SELECT max(r.ended) FROM runs r WHERE r.agent = c.agent AND r.conversation = c.id), 0) END, c.id
FROM conversations c JOIN agents a ON a.id = c.agent WHERE c.uid = ?1 AND a.project = ?3

-- name: release
-- Takes the names from a conversation, so that it is no longer found. The new name begins with a blank, which no name
-- that a client sends does.
UPDATE conversations SET key = ' ' || uid, rev = rev + 1 WHERE id = ? AND agent = ? RETURNING uid

-- name: runs_cancel
-- Ends the runs of a conversation.
UPDATE runs SET state = 'cancelled', stop = 'cancelled', ended = ?
WHERE conversation = ? AND agent = ? AND state IN ('created', 'running')
