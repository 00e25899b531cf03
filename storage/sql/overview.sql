-- Every statement of the operator's lists: the users with memories, and how large these are. What was forgotten, whole
-- or alone, or is off the record is not counted.

-- name: memories
-- Reads a page of the memories of people, and of named conversations without a user. NULL stands for any project.
SELECT a.id, a.uid, a.project, a.profile, a.subject, a.created,
(SELECT count(*) FROM blocks b WHERE b.agent = a.id),
(SELECT count(*) FROM facts f WHERE f.agent = a.id) - (SELECT count(*) FROM facts_ended x WHERE x.agent = a.id),
(SELECT count(*) FROM passages p WHERE p.agent = a.id)
FROM agents a WHERE (CAST(?1 AS TEXT) IS NULL OR a.project = ?1) AND a.id > ?2
AND (a.subject LIKE 'user:%' OR a.subject LIKE 'conversation:%') ORDER BY a.id LIMIT ?3

-- name: memory_sizes
-- Counts the messages of some memories.
SELECT e.agent, count(DISTINCT e.conversation), max(coalesce(e.ended, e.stopped, e.begun)), {sizes}
FROM exchanges e WHERE e.agent {in:1:BIGINT:64} AND e.state NOT IN ('forgotten', 'off') GROUP BY e.agent

-- name: scopes
-- Reads the scopes of some memories, as far as the memories are there, and the names of agents.
SELECT a.uid, a.project, a.profile, a.subject, {agent_name} FROM agents a WHERE a.uid {in:1:TEXT:64}

-- name: count_messages
-- Counts the messages of one memory.
SELECT CAST(coalesce(sum(e.messages), 0) AS BIGINT) FROM exchanges e WHERE e.agent = ?

-- name: conversations
-- Reads a page of a user's conversations, the newest first. NULL stands for any profile.
WITH RECURSIVE {profiles}
SELECT c.id, c.uid, c.key, a.project, a.profile, a.subject, c.last_at FROM profiles
CROSS JOIN agents a ON a.project = ?1 AND a.profile = profiles.name AND a.subject = ?3
JOIN conversations c ON c.agent = a.id
WHERE (CAST(?2 AS TEXT) IS NULL OR profiles.name = ?2)
AND (c.last_at < ?4 OR (c.last_at = ?4 AND c.id < ?5)) ORDER BY c.last_at DESC, c.id DESC LIMIT ?6

-- name: conversation_sizes
-- Counts the messages of some conversations.
SELECT c.id, max(coalesce(e.ended, e.stopped, e.begun)), {sizes}
FROM conversations c JOIN exchanges e ON e.conversation = c.id AND +e.agent = c.agent
WHERE c.id {in:1:BIGINT:64} AND e.state NOT IN ('forgotten', 'off') GROUP BY c.id

-- name: newest_exchanges
-- Reads the newest exchanges of which anything is left, newest first: cancelled and superseded ones as well.
SELECT {shown} FROM exchanges p WHERE p.agent = ? AND p.state NOT IN ('forgotten', 'off') ORDER BY p.seq DESC LIMIT ?

-- piece: sizes
-- Messages, the bytes of their JSON, turns, and how many of these were cancelled.
CAST(sum(e.messages) AS BIGINT),
CAST(sum(coalesce(length(e.input), 0) + coalesce(length(e.shown_reply), 0) + coalesce(length(e."full"), 0)) AS BIGINT),
count(*), CAST(sum(CASE WHEN e.state = 'cancelled' THEN 1 ELSE 0 END) AS BIGINT)
