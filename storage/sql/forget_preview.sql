-- Every statement that counts what a forgetting would take. `-- name:` begins one; the next line describes it. Of a memory
-- ?1 goes the conversation ?2 (NULL: none), and the exchanges of the list ?3.

-- piece: goes
-- Whether an exchange `e` goes.
e.agent = ?1 AND (e.conversation = ?2 OR e.id {in:3:BIGINT:64})

-- piece: erased
-- The first ?4 exchanges that go, or lose a message, as far as they are there.
(SELECT e.id, e.conversation, e.depth, e.seq, e.begun, e.ended FROM exchanges e
WHERE e.conversation = ?2 AND +e.agent = ?1 AND e.state <> 'forgotten'
UNION ALL SELECT e.id, e.conversation, e.depth, e.seq, e.begun, e.ended FROM exchanges e
WHERE e.id {in:3:BIGINT:64} AND +e.agent = ?1 AND e.state <> 'forgotten' LIMIT ?4)

-- name: going_among
-- Finds those of some exchanges that go with a conversation.
SELECT e.id FROM exchanges e WHERE e.conversation = ?2 AND +e.agent = ?1 AND e.id {in:3:BIGINT:64}

-- name: fact_count (sqlite)
-- Counts the facts that came from what goes.
SELECT count(*) FROM facts f WHERE f.agent = ?1 AND EXISTS (
    SELECT 1 FROM json_each(CAST(f.sources AS TEXT)) s CROSS JOIN exchanges e ON e.id = s.value WHERE {goes})

-- name: fact_count (postgres)
SELECT count(DISTINCT f.id) FROM facts f
JOIN LATERAL jsonb_array_elements_text(convert_from(f.sources, 'UTF8')::jsonb) s(value) ON TRUE
JOIN exchanges e ON e.id = CAST(s.value AS BIGINT) WHERE f.agent = ?1 AND {goes}

-- name: facts (sqlite)
-- Reads the first ?4 of them, the newest first.
SELECT f.seq, f.text FROM facts f WHERE f.agent = ?1 AND EXISTS (
    SELECT 1 FROM json_each(CAST(f.sources AS TEXT)) s CROSS JOIN exchanges e ON e.id = s.value WHERE {goes})
ORDER BY f.seq DESC LIMIT ?4

-- name: facts (postgres)
SELECT n.seq, n.text FROM facts n WHERE n.agent = ?1 AND n.id IN (SELECT f.id FROM facts f
    JOIN LATERAL jsonb_array_elements_text(convert_from(f.sources, 'UTF8')::jsonb) s(value) ON TRUE
    JOIN exchanges e ON e.id = CAST(s.value AS BIGINT) WHERE f.agent = ?1 AND {goes})
ORDER BY n.seq DESC LIMIT ?4

-- name: passages (sqlite)
-- Counts the passages that did.
SELECT count(*) FROM passages p WHERE p.agent = ?1 AND (
    EXISTS (SELECT 1 FROM exchanges e WHERE e.id = p.exchange AND {goes}) OR EXISTS (
    SELECT 1 FROM json_each(CAST(p.sources AS TEXT)) s CROSS JOIN exchanges e ON e.id = s.value WHERE {goes}))

-- name: passages (postgres)
SELECT count(DISTINCT p.id) FROM passages p JOIN LATERAL (
    SELECT p.exchange AS id
    UNION ALL SELECT CAST(value AS BIGINT) FROM jsonb_array_elements_text(convert_from(p.sources, 'UTF8')::jsonb)
) s ON TRUE JOIN exchanges e ON e.id = s.id WHERE p.agent = ?1 AND {goes}

-- name: versions (sqlite)
-- Counts the values of a block ?4 that did, and returns the number of the first.
SELECT count(*), min(t.version) FROM block_history t WHERE t.block = ?4 AND t.origin <> '-' AND (
    EXISTS (SELECT 1 FROM exchanges e WHERE e.id = t.exchange AND {goes}) OR EXISTS (
    SELECT 1 FROM json_each(CAST(t.sources AS TEXT)) s CROSS JOIN exchanges e ON e.id = s.value WHERE {goes}))

-- name: versions (postgres)
SELECT count(DISTINCT t.version), min(t.version) FROM block_history t JOIN LATERAL (
    SELECT t.exchange AS id
    UNION ALL SELECT CAST(value AS BIGINT) FROM jsonb_array_elements_text(convert_from(t.sources, 'UTF8')::jsonb)
) s ON TRUE JOIN exchanges e ON e.id = s.id WHERE t.block = ?4 AND t.origin <> '-' AND {goes}

-- name: versions_with
-- Counts the values of a block ?2 that have a text, in small letters, and returns the number of the first.
SELECT count(*), min(t.version) FROM block_history t WHERE t.block = ?2 AND t.origin <> '-' AND {has:1:t.value}

-- name: versions_from
-- Counts the values of a block from a version on.
SELECT count(*) FROM block_history WHERE block = ?1 AND origin <> '-' AND version >= ?2

-- name: summaries
-- Counts the summaries that may cover an exchange, or of one after it, also those of forks.
SELECT count(*) FROM summaries s WHERE s.agent = ?1 AND s.agent <> 0 AND (
    (s.conversation = ?2 AND s.depth >= ?3)
    OR s.conversation IN (SELECT f.conversation FROM forks f WHERE f.agent = ?1 AND f.origin = ?2 AND f.seq >= ?4))

-- name: erased_beginnings
-- Returns where each path loses its first exchange: conversation, depth, number; and how many exchanges it loses.
SELECT conversation, min(depth), min(seq), count(*) FROM {erased} gone GROUP BY conversation

-- name: erased_times
-- Reads the exchanges and their times.
SELECT id, begun, ended FROM {erased} gone

-- name: last_number
-- Returns the last number that a memory has given out.
SELECT next_seq - 1 FROM agents WHERE id = ?

-- name: notes
-- Reads the notes from a number on; ?3 exchanges at most.
SELECT e.id, e.notes FROM exchanges e
WHERE e.agent = ?1 AND e.seq >= ?2 AND e.notes IS NOT NULL AND e.state <> 'forgotten' ORDER BY e.seq LIMIT ?3

-- name: whole
-- Counts what a whole memory has.
SELECT a.messages, (SELECT count(*) FROM facts f WHERE f.agent = a.id), (SELECT count(*) FROM passages p WHERE p.agent = a.id),
(SELECT count(*) FROM blocks b JOIN block_history h ON h.block = b.id WHERE b.agent = a.id AND h.origin <> '-'),
(SELECT count(*) FROM summaries s WHERE s.agent = a.id AND s.agent <> 0)
FROM agents a WHERE a.id = ?
