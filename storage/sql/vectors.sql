-- Every statement on vectors. `-- name:` begins one; the next line describes it.

-- name: progress_find
-- Returns how far an agent's memory has been embedded.
SELECT model, dimension, seq, stamp FROM embedded WHERE agent = ?

-- name: agents_with_vectors
-- Finds the agents among these that have vectors of this model.
SELECT agent FROM embedded WHERE model = ?1 AND dimension > 0 AND agent {in:2:BIGINT:64}

-- name: embedding_begin
-- Starts the embedding of an agent's memory with this model, from the first number on.
INSERT INTO embedded (agent, model, dimension, seq, stamp) VALUES (?, ?, ?, 0, 1)
ON CONFLICT (agent) DO UPDATE SET model = excluded.model, dimension = excluded.dimension, seq = 0,
    stamp = embedded.stamp + 1

-- name: cursor_advance
-- Moves the cursor of a memory on, and notes the dimension of its vectors.
UPDATE embedded SET dimension = ?, seq = ?, stamp = stamp + 1 WHERE agent = ? RETURNING stamp

-- name: cursor_move_back
-- Moves the cursor of a memory back, since something has to be embedded again.
UPDATE embedded SET seq = CASE WHEN seq < ?1 THEN seq ELSE ?1 END, stamp = stamp + 1 WHERE agent = ?2

-- name: stamp_raise
-- Raises the stamp, since an agent's vectors have changed.
UPDATE embedded SET stamp = stamp + 1 WHERE agent = ? RETURNING stamp

-- name: chunks_list
-- Lists the chunks of vectors, with the stamp of their last change.
SELECT chunk, stamp FROM vectors WHERE agent = ? AND model = ? ORDER BY chunk

-- name: chunk_find_of_model
-- Reads a chunk of vectors of this model.
SELECT data FROM vectors WHERE agent = ? AND chunk = ? AND model = ?

-- name: chunk_find
-- Reads a chunk of vectors of any model.
SELECT data, model FROM vectors WHERE agent = ? AND chunk = ?

-- name: chunk_put (sqlite)
-- Writes a chunk. The padding keeps the vectors out of the page (`vectors` in
-- storage/sqlite/migrations/0000-0020_tables.sql).
INSERT INTO vectors (agent, chunk, stamp, model, pad, data) VALUES (?, ?, ?, ?, zeroblob(1024), ?)
ON CONFLICT (agent, chunk) DO UPDATE SET stamp = excluded.stamp, model = excluded.model, data = excluded.data

-- name: chunk_put (postgres)
INSERT INTO vectors (agent, chunk, stamp, model, data) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (agent, chunk) DO UPDATE SET stamp = excluded.stamp, model = excluded.model, data = excluded.data

-- name: chunk_delete
-- Deletes an empty chunk.
DELETE FROM vectors WHERE agent = ? AND chunk = ?

-- name: chunks_delete_of_other_models
-- Deletes the chunks of other models, up to where this model has come.
DELETE FROM vectors WHERE (agent, chunk) IN (
    SELECT agent, chunk FROM vectors WHERE agent = ? AND model <> ? AND chunk <= ? LIMIT ?)

-- name: memory_lacks_vectors
-- Returns whether something that is indexed was not embedded by this model.
SELECT a.indexed_seq > coalesce(e.seq, 0) FROM agents a LEFT JOIN embedded e ON e.agent = a.id AND e.model = ?
WHERE a.id = ?

-- name: agents_unembedded
-- Finds memories of which not all is embedded by this model: those that span conversations (`Scope`) and can be
-- reached.
SELECT a.id FROM agents a LEFT JOIN embedded e ON e.agent = a.id AND e.model = ?
WHERE a.subject NOT LIKE 'conversation:%' AND a.subject NOT LIKE 'importing:%' AND a.subject NOT LIKE 'replaced:%'
    AND a.next_seq - 1 > coalesce(e.seq, 0) LIMIT ?
