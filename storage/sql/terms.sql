-- The terms of the search index, and its segments.

-- name: load_terms_since
-- Reads the chunks of an agent's search index that were written after a chunk with this stamp.
SELECT chunk, stamp, data FROM terms WHERE agent = ? AND stamp > ?

-- name: terms_get
-- Reads one chunk.
SELECT data FROM terms WHERE agent = ? AND chunk = ?

-- name: terms_replace
-- Writes a chunk.
INSERT INTO terms (agent, chunk, data, stamp)
VALUES (?1, ?2, ?3, (SELECT coalesce(max(t.stamp), 0) + 1 FROM terms t WHERE t.agent = ?1))
ON CONFLICT (agent, chunk) DO UPDATE SET data = excluded.data, stamp = excluded.stamp

-- name: load_terms_between
-- Reads the chunks in a range. No segment has any of them.
SELECT chunk, stamp, data FROM terms WHERE agent = ? AND chunk >= ? AND chunk < ? ORDER BY chunk

-- name: terms_newer
-- Returns whether chunks in a range were written after a chunk with this stamp.
SELECT EXISTS (SELECT 1 FROM terms WHERE agent = ? AND stamp > ? AND chunk >= ? AND chunk < ?)

-- name: segment_numbers
-- Reads the numbers of an agent's segments. Every segment has each bucket.
SELECT number FROM segments WHERE agent = ? AND bucket = ?

-- name: segment_documents
-- Reads the documents of all segments.
SELECT number, stamp, data FROM segments WHERE agent = ? AND bucket = ? ORDER BY number

-- name: segment_sizes
-- Reads the bytes of some buckets, over all segments.
SELECT bucket, CAST(sum(length(data)) AS BIGINT) FROM segments
WHERE agent = ?1 AND bucket {in:2:BIGINT:32} GROUP BY bucket

-- name: segment_buckets
-- Reads some buckets of all segments.
SELECT bucket, number, stamp, data FROM segments WHERE agent = ?1 AND bucket {in:2:BIGINT:32} ORDER BY bucket, number

-- name: segment_put
-- Writes a bucket of a segment, or its documents (bucket -1).
INSERT INTO segments (agent, bucket, number, stamp, data) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (agent, bucket, number) DO UPDATE SET stamp = excluded.stamp, data = excluded.data

-- name: segment_drop
-- Drops a segment, since one of its chunks changes.
DELETE FROM segments WHERE agent = ? AND number = ?

-- name: segments_drop
-- Drops all segments of an agent.
DELETE FROM segments WHERE agent = ?

-- name: chunk_begin
-- Finds the number from which exchanges have to be read to get all numbers from ?2 on: the first number of the exchange
-- that has ?2, or ?2.
SELECT coalesce((SELECT CASE WHEN seq + span > ?2 THEN seq END FROM exchanges
    WHERE agent = ?1 AND seq <= ?2 ORDER BY seq DESC LIMIT 1), CAST(?2 AS BIGINT))

-- name: agent_indexed_again
-- Sets the index back to a number. The stamp makes caches read the index again.
UPDATE agents SET indexed_seq = ?, stamp = stamp + 1 WHERE id = ? AND indexed_seq > ?
