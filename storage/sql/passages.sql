-- Passages.

-- name: passage_insert
-- Adds an archival memory.
INSERT INTO passages (agent, seq, at, exchange, sources, file, tags, metadata, text)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id

-- name: passage_list
-- Reads a page of passages, in order, after the passage that was last read.
SELECT id, seq, text, at, sources FROM passages WHERE agent = ? AND seq > ? ORDER BY seq LIMIT ?

-- piece: passage
-- What is read of a passage.
SELECT id, seq, text, at, sources, file, tags, metadata FROM passages

-- name: passage
-- Lists passages. ?4: a part of the text, in lower case; ?5, ?6: saved from then on, before then.
{passage} WHERE agent = ?1 AND seq > ?2 AND seq < ?3 AND {has:4:text}
AND (CAST(?5 AS DOUBLE PRECISION) IS NULL OR at >= ?5) AND (CAST(?6 AS DOUBLE PRECISION) IS NULL OR at < ?6)
ORDER BY seq {direction} LIMIT ?7

-- name: passage_get
-- Reads some passages by their numbers.
{passage} WHERE agent = ?1 AND seq {in:2:BIGINT:64}

-- name: passage_count
-- Counts a memory's passages.
SELECT count(*) FROM passages WHERE agent = ?
