-- Every statement on who reads a memory after the fact. `-- name:` begins one; the next line says what it is for.

-- name: cursor
-- Returns up to where a reader has come. The built-in learner (0) goes on from where any of them has come.
SELECT max(seq) FROM readers WHERE memory = ?1 AND (reader = ?2 OR CAST(?2 AS BIGINT) = 0)

-- name: advance
-- Moves that point.
INSERT INTO readers (memory, reader, seq, at) VALUES (?, ?, ?, ?)
ON CONFLICT (memory, reader) DO UPDATE SET seq = excluded.seq, at = excluded.at

-- name: unread
-- Reads what follows a point, whatever became of it; last its hidden rounds, and what a run makes of it: `running` is of
-- one that has not ended, `left` was left open by a process that is gone.
SELECT {spoken}, p."full", CASE
    WHEN p.state = 'open' AND EXISTS (SELECT 1 FROM conversations c WHERE c.id = p.conversation AND c.agent = p.agent AND c.tip <> 0)
    THEN CASE WHEN EXISTS (SELECT 1 FROM runs r WHERE r.agent = p.agent AND r.conversation = p.conversation
                           AND r.state IN ('created', 'running')) THEN 'running' ELSE 'left' END
    WHEN EXISTS (SELECT 1 FROM run_steps s JOIN runs r ON r.id = s.run AND r.agent = s.agent
                 WHERE s.exchange = p.id AND s.agent = p.agent AND r.state IN ('created', 'running')) THEN 'running'
    ELSE '' END
FROM exchanges p
WHERE p.agent = ? AND p.seq > ? AND p.seq <= ? ORDER BY p.seq LIMIT ?

-- name: unlearned
-- Finds memories of people with something that nobody has read, but for those of some profiles.
SELECT a.id FROM agents a
WHERE a.subject LIKE 'user:%' AND NOT coalesce(a.profile {in:2:TEXT:16}, FALSE) AND EXISTS (
    SELECT 1 FROM exchanges e WHERE e.agent = a.id AND e.state = 'finished'
    AND e.seq > coalesce((SELECT max(r.seq) FROM readers r WHERE r.memory = a.id), 0))
LIMIT ?1
