-- Every statement on who reads a memory after the fact. `-- name:` begins one; the next line describes it.

-- name: cursor
-- Returns the number up to which a reader has read. The built-in learner (0) goes on from the highest cursor of all
-- readers. The rule (-1) does not count, since it learns far less.
SELECT max(seq) FROM readers WHERE memory = ?1 AND (reader = ?2 OR (CAST(?2 AS BIGINT) = 0 AND reader > 0))

-- name: advance
-- Sets the number up to which a reader has read.
INSERT INTO readers (memory, reader, seq, at) VALUES (?, ?, ?, ?)
ON CONFLICT (memory, reader) DO UPDATE SET seq = excluded.seq, at = excluded.at

-- name: unread
-- Reads the exchanges that follow a number, whatever became of them. The last columns are the hidden rounds, whether a
-- turn has followed (?: the kind of a user's atom), and the state of the exchange's run: `running` if it has not ended,
-- `left` if a process that is gone has left the exchange open.
SELECT {shown}, p."full", CASE WHEN EXISTS (
        SELECT 1 FROM exchanges k WHERE k.conversation = p.conversation AND k.depth = p.depth + 1 AND k.parent = p.id
        AND +k.agent = p.agent AND k.ended IS NOT NULL AND substr(k.input_key, 1, 1) = ?)
    THEN 1 ELSE 0 END, CASE
    WHEN p.state = 'open'
    AND EXISTS (SELECT 1 FROM conversations c WHERE c.id = p.conversation AND c.agent = p.agent AND c.tip <> 0)
    THEN CASE WHEN EXISTS (SELECT 1 FROM runs r WHERE r.agent = p.agent AND r.conversation = p.conversation
                           AND r.state IN ('created', 'running')) THEN 'running' ELSE 'left' END
    WHEN EXISTS (SELECT 1 FROM run_steps s JOIN runs r ON r.id = s.run AND r.agent = s.agent
                 WHERE s.exchange = p.id AND s.agent = p.agent AND r.state IN ('created', 'running')) THEN 'running'
    ELSE '' END
FROM exchanges p
WHERE p.agent = ? AND p.seq > ? AND p.seq <= ?
    AND NOT EXISTS (SELECT 1 FROM imported m WHERE m.what = 'exchange' AND m.id = p.id AND m.learns = 0)
ORDER BY p.seq LIMIT ?

-- name: unlearned
-- Finds memories of people with something that no reader has read, but for paused ones and those of some profiles.
SELECT a.id FROM agents a
WHERE a.subject LIKE 'user:%' AND a.paused IS NULL AND NOT coalesce(a.profile {in:2:TEXT:256}, FALSE) AND EXISTS (
    SELECT 1 FROM exchanges e WHERE e.agent = a.id AND e.state = 'finished' AND {learnable}
    AND e.seq > coalesce((SELECT max(r.seq) FROM readers r WHERE r.memory = a.id AND r.reader >= ?3), 0))
LIMIT ?1

-- name: sleeptime_agents
-- Finds the sleeptime agents of a memory.
SELECT r.reader FROM readers r JOIN agents a ON a.id = r.reader WHERE r.memory = ? AND r.reader <> 0 ORDER BY r.reader

-- name: of_memories
-- Reads the sleeptime agents of some memories, and how many turns each of them has to read, ?1 at most. A tool's result
-- (?2) begins no turn, and neither does a later step of a run. (The order of the counted turns leads PostgreSQL to the
-- index of the memory's exchanges; without it, it reads the exchanges of all memories.)
SELECT r.memory, r.reader, a.uid, r.seq, (SELECT count(*) FROM (
    SELECT 1 AS one FROM exchanges e
    WHERE e.agent = r.memory AND e.seq > r.seq AND e.active = 1 AND e.state = 'finished'
    AND substr(e.inputs, 3, 1) <> ?2 AND {learnable}
    AND NOT EXISTS (SELECT 1 FROM run_steps s
        WHERE s.exchange = e.id AND s.agent = e.agent AND s.number > 1) ORDER BY e.seq LIMIT ?1) t)
FROM readers r JOIN agents a ON a.id = r.reader WHERE r.reader <> 0 AND r.memory {in:3:BIGINT:64}
ORDER BY r.memory, r.reader

-- name: read_by
-- Finds the memories that a sleeptime agent reads.
SELECT memory FROM readers WHERE reader = ? ORDER BY memory

-- name: unslept
-- Finds memories with something that their sleeptime agents have not read: those of people in some profiles, and those
-- that have such agents. Paused ones are left out.
SELECT a.id FROM agents a
WHERE a.paused IS NULL AND (a.subject LIKE 'user:%' AND coalesce(a.profile {in:2:TEXT:256}, FALSE)
       OR EXISTS (SELECT 1 FROM readers r WHERE r.memory = a.id AND r.reader > 0))
AND EXISTS (
    SELECT 1 FROM exchanges e WHERE e.agent = a.id AND e.state = 'finished' AND {learnable}
    AND e.seq > coalesce((SELECT min(r.seq) FROM readers r WHERE r.memory = a.id AND r.reader > 0), 0))
LIMIT ?1

-- name: last_at
-- Returns the time of a memory's last message.
SELECT max(last_at) FROM conversations WHERE agent = ?
