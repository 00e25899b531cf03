-- Passages.

-- name: passage_insert
-- Adds an archival memory.
INSERT INTO passages (agent, seq, at, exchange, sources, file, tags, metadata, text)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id

-- name: passage_list
-- Reads a page of passages, in order, after the passage that was last read.
SELECT id, seq, text, at, sources FROM passages WHERE agent = ? AND seq > ? ORDER BY seq LIMIT ?

-- piece: passage
-- The columns of a passage.
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

-- piece: fact_or_muted
-- The kind of a fact `f` among the hits of a search.
CASE WHEN EXISTS (SELECT 1 FROM facts_muted m WHERE m.fact = f.id AND m.agent = f.agent) THEN 'muted' ELSE 'fact' END

-- piece: fact_exchange
-- Finds the exchange `e` from which a fact `f` was learned. A correction by a person has the sources of the old fact,
-- but no exchange.
e.id = f.exchange AND e.agent = f.agent AND f.origin IN ('learned', 'model')

-- name: passages_and_facts_at
-- Reads passages, and facts that are still true, by their numbers.
WITH wanted(seq) AS ({each:2:BIGINT:96})
SELECT p.seq, p.text, p.at, 'passage', NULL, NULL FROM wanted
JOIN passages p ON p.agent = ?1 AND p.seq = wanted.seq
UNION ALL
SELECT f.seq, f.text, f.valid_from, {fact_or_muted}, f.sources, e.conversation FROM wanted
JOIN facts f ON f.agent = ?1 AND f.seq = wanted.seq LEFT JOIN exchanges e ON {fact_exchange}
WHERE NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id AND x.agent = f.agent)

-- name: passages_and_facts_since
-- Reads the passages, and the facts that are still true, that the search index does not know yet.
SELECT seq, text, at, 'passage', NULL, NULL FROM passages WHERE agent = ?1 AND seq >= ?2
UNION ALL
SELECT f.seq, f.text, f.valid_from, {fact_or_muted}, f.sources, e.conversation
FROM facts f LEFT JOIN exchanges e ON {fact_exchange}
WHERE f.agent = ?1 AND f.seq >= ?2
AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id AND x.agent = f.agent)
ORDER BY 1 LIMIT ?3
