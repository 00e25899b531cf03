-- Every statement on facts. `-- name:` begins one; the next line describes it.

-- name: insert
-- Adds a fact.
INSERT INTO facts (agent, seq, at, valid_from, key, exchange, sources, about, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
RETURNING id

-- name: same
-- Finds an equal fact that is still true.
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
