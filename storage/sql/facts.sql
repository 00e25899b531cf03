-- Every statement on facts and on how far learning has come. `-- name:` begins one; the next line says what it is for.

-- name: cursor
-- Returns up to where learning has come.
SELECT seq FROM readers WHERE memory = ? AND reader = 0

-- name: advance
-- Moves that point.
INSERT INTO readers (memory, reader, seq, at) VALUES (?, 0, ?, ?)
ON CONFLICT (memory, reader) DO UPDATE SET seq = excluded.seq, at = excluded.at

-- name: waiting
-- Finds memories of people with something that was not learned from.
SELECT a.id FROM agents a LEFT JOIN readers l ON l.memory = a.id AND l.reader = 0
WHERE a.subject LIKE 'user:%' AND EXISTS (
    SELECT 1 FROM exchanges e WHERE e.agent = a.id AND e.seq > coalesce(l.seq, 0) AND e.state = 'finished')
LIMIT ?

-- name: insert
-- Adds a fact.
INSERT INTO facts (agent, seq, at, valid_from, key, exchange, sources, about, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
RETURNING id

-- name: same
-- Finds a fact that says the same and is still true.
SELECT f.id FROM facts f WHERE f.agent = ? AND f.key = ?
AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id AND x.agent = f.agent) LIMIT 1

-- name: end
-- Ends a fact. One that has ended stays so.
INSERT INTO facts_ended (fact, agent, successor, at)
SELECT id, agent, ?, ? FROM facts WHERE id = ? AND agent = ?
ON CONFLICT DO NOTHING

-- name: seq_of
-- Returns a fact's number.
SELECT seq FROM facts WHERE id = ? AND agent = ?

-- name: current
-- Reads the facts that are true, newest first.
SELECT f.id, f.seq, f.text, f.about, f.at, f.valid_from, f.exchange, f.sources, NULL, NULL FROM facts f
WHERE f.agent = ? AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id AND x.agent = f.agent) ORDER BY f.seq DESC LIMIT ?

-- name: all
-- Reads the facts that are or were true, newest first.
SELECT f.id, f.seq, f.text, f.about, f.at, f.valid_from, f.exchange, f.sources, x.at, s.seq
FROM facts f LEFT JOIN facts_ended x ON x.fact = f.id AND x.agent = f.agent LEFT JOIN facts s ON s.id = x.successor AND s.agent = f.agent
WHERE f.agent = ? ORDER BY f.seq DESC LIMIT ?

-- name: get
-- Reads the facts with some numbers that are still true.
SELECT f.id, f.seq, f.text, f.about, f.at, f.valid_from, f.exchange, f.sources, NULL, NULL FROM facts f
WHERE f.agent = ?1 AND f.seq {in:2:BIGINT:64} AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id AND x.agent = f.agent)
