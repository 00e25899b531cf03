-- Every statement on vectors. `-- name:` begins one; the next line says what it is for.

-- name: state
-- How far an agent's order has been embedded.
SELECT model, dimension, seq, stamp FROM embedded WHERE agent = ?

-- name: begin
-- From the first number on, with this model.
INSERT INTO embedded (agent, model, dimension, seq, stamp) VALUES (?, ?, ?, 0, 1)
ON CONFLICT DO UPDATE SET model = excluded.model, dimension = excluded.dimension, seq = 0, stamp = stamp + 1

-- name: advance
-- It has come further.
UPDATE embedded SET dimension = ?, seq = ?, stamp = stamp + 1 WHERE agent = ? RETURNING stamp

-- name: look_again
-- From a number on there is something to embed anew.
UPDATE embedded SET seq = min(seq, ?), stamp = stamp + 1 WHERE agent = ?

-- name: changed
-- Its vectors are not what they were.
UPDATE embedded SET stamp = stamp + 1 WHERE agent = ? RETURNING stamp

-- name: chunks
-- Which chunks there are, and since when they are as they are.
SELECT chunk, stamp FROM vectors WHERE agent = ? AND model = ? ORDER BY chunk

-- name: get
-- One of them.
SELECT data FROM vectors WHERE agent = ? AND chunk = ? AND model = ?

-- name: any
-- One of them, whose model ever.
SELECT data, model FROM vectors WHERE agent = ? AND chunk = ?

-- name: put
-- One as it is now.
INSERT INTO vectors (agent, chunk, stamp, model, pad, data) VALUES (?, ?, ?, ?, zeroblob(1024), ?)
ON CONFLICT DO UPDATE SET stamp = excluded.stamp, model = excluded.model, data = excluded.data

-- name: drop
-- One of which nothing is left.
DELETE FROM vectors WHERE agent = ? AND chunk = ?

-- name: drop_others
-- Another model's, as far as this one has come.
DELETE FROM vectors WHERE (agent, chunk) IN (
    SELECT agent, chunk FROM vectors WHERE agent = ? AND model <> ? AND chunk <= ? LIMIT ?)

-- name: lacks
-- Whether something that is indexed was not embedded by this model.
SELECT a.indexed_seq > coalesce(e.seq, 0) FROM agents a LEFT JOIN embedded e ON e.agent = a.id AND e.model = ?
WHERE a.id = ?

-- name: behind
-- People's memories of which not all is embedded by this model. A memory that is being imported is not one yet.
SELECT a.id FROM agents a LEFT JOIN embedded e ON e.agent = a.id AND e.model = ?
WHERE a.subject LIKE 'user:%' AND a.next_seq - 1 > coalesce(e.seq, 0) LIMIT ?
