-- Counts the rows that a forgetting would erase. The forgetting erases from a memory ?1 the conversation ?2 (-1: none)
-- and the exchanges in the list ?3. The rows of all these exchanges are between ?4 and ?5, so that no other row is
-- looked up.

-- piece: goes
-- Whether an exchange `e` goes.
e.agent = ?1 AND (e.conversation = ?2 OR e.id {in:3:BIGINT:64})

-- piece: of_conversation
-- The first ?4 exchanges of the conversation, as far as they are there.
FROM exchanges e WHERE e.conversation = ?2 AND +e.agent = ?1 AND e.state <> 'forgotten' LIMIT ?4

-- piece: of_list
-- The exchanges of the list that go, or lose a message, as far as they are there.
FROM exchanges e WHERE e.id {in:3:BIGINT:64} AND +e.agent = ?1 AND e.state <> 'forgotten'

-- name: going_among
-- Finds which of some exchanges go with a conversation.
SELECT e.id FROM exchanges e WHERE e.conversation = ?2 AND +e.agent = ?1 AND e.id {in:3:BIGINT:64}

-- name: replacing
-- Finds the exchanges in the list ?3 of a memory ?1 that have others at their place, or at one of the ?2 places above it,
-- or earlier refused ones with their message.
WITH RECURSIVE up(named, id, conversation, depth, parent) AS (
    SELECT e.id, e.id, e.conversation, e.depth, e.parent FROM exchanges e WHERE e.id {in:3:BIGINT:64} AND +e.agent = ?1
    UNION ALL SELECT up.named, e.id, e.conversation, e.depth, e.parent
    FROM up JOIN exchanges n ON n.id = up.named AND +n.agent = ?1
    JOIN exchanges e ON e.id = up.parent AND e.agent = ?1
    WHERE n.depth - e.depth <= ?2
)
SELECT DISTINCT up.named FROM up WHERE EXISTS (
    SELECT 1 FROM exchanges x
    WHERE x.conversation = up.conversation AND x.depth = up.depth AND x.id <> up.id AND +x.agent = ?1
    AND (x.parent = up.parent OR (x.parent IS NULL AND up.parent IS NULL)) AND x.state NOT IN ('forgotten', 'off'))
UNION SELECT n.id FROM exchanges n CROSS JOIN exchanges x ON x.agent = ?1 AND x.input_key = n.input_key
WHERE n.id {in:3:BIGINT:64} AND +n.agent = ?1 AND +x.conversation = n.conversation AND +x.depth < n.depth
AND x.superseded = 1 AND x.reply IS NULL AND x.active = 0 AND x.state NOT IN ('forgotten', 'off')

-- piece: fact_goes
-- Whether a fact came from the target. The exchange in which the fact was stated is one of its sources, and is looked
-- up before the list of all sources.
f.agent = ?1 AND (
    f.exchange BETWEEN ?4 AND ?5 AND EXISTS (SELECT 1 FROM exchanges e WHERE e.id = f.exchange AND {goes})
    OR EXISTS (SELECT 1 FROM json_each(CAST(f.sources AS TEXT)) s CROSS JOIN exchanges e ON e.id = s.value
               WHERE s.value BETWEEN ?4 AND ?5 AND {goes}))

-- piece: from_going_facts
-- The facts that came from the target, in PostgreSQL, which joins faster than it looks for each fact. Each fact comes as
-- often as it has sources in the target.
FROM facts f JOIN LATERAL unnest(translate(convert_from(f.sources, 'UTF8'), '[]', '{}')::bigint[]) s(id) ON TRUE
JOIN exchanges e ON e.id = s.id WHERE f.agent = ?1 AND s.id BETWEEN ?4 AND ?5 AND {goes}

-- name: fact_count (sqlite)
-- Counts the facts that came from the target.
SELECT count(*) FROM facts f WHERE {fact_goes}

-- name: fact_count (postgres)
SELECT count(DISTINCT f.id) {from_going_facts}

-- name: facts (sqlite)
-- Reads the first ?6 facts that came from the target, the newest first, each with whether it is true.
SELECT f.seq, f.text, f.origin, NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id AND x.agent = f.agent)
FROM facts f WHERE {fact_goes} ORDER BY f.seq DESC LIMIT ?6

-- name: facts (postgres)
SELECT n.seq, n.text, n.origin, NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = n.id AND x.agent = n.agent)
FROM (SELECT f.id {from_going_facts} GROUP BY f.id, f.seq ORDER BY f.seq DESC LIMIT ?6) newest
JOIN facts n ON n.id = newest.id AND n.agent = ?1 ORDER BY n.seq DESC

-- name: passages (sqlite)
-- Counts the passages that came from the target. Most passages came from no exchange.
SELECT count(*) FROM passages p WHERE p.agent = ?1 AND (p.exchange IS NOT NULL OR length(p.sources) > 2) AND (
    EXISTS (SELECT 1 FROM exchanges e WHERE e.id = p.exchange AND {goes}) OR EXISTS (
    SELECT 1 FROM json_each(CAST(p.sources AS TEXT)) s CROSS JOIN exchanges e ON e.id = s.value
    WHERE s.value BETWEEN ?4 AND ?5 AND {goes}))

-- name: passages (postgres)
SELECT count(DISTINCT p.id) FROM passages p JOIN LATERAL (
    SELECT p.exchange AS id UNION ALL SELECT unnest(translate(convert_from(p.sources, 'UTF8'), '[]', '{}')::bigint[])
) s ON TRUE JOIN exchanges e ON e.id = s.id
WHERE p.agent = ?1 AND (p.exchange IS NOT NULL OR length(p.sources) > 2) AND s.id BETWEEN ?4 AND ?5 AND {goes}

-- name: versions (sqlite)
-- Counts the values of a block ?6 that came from the target, finds the number of the first, and counts all values.
SELECT count(v.gone), min(v.gone), count(*) FROM (SELECT CASE
    WHEN EXISTS (SELECT 1 FROM exchanges e WHERE e.id = t.exchange AND {goes}) OR EXISTS (
        SELECT 1 FROM json_each(CAST(t.sources AS TEXT)) s CROSS JOIN exchanges e ON e.id = s.value
        WHERE s.value BETWEEN ?4 AND ?5 AND {goes}) THEN t.version END AS gone
FROM block_history t WHERE t.block = ?6 AND t.origin <> '-') v

-- name: versions (postgres)
SELECT count(DISTINCT t.version), min(t.version),
    (SELECT count(*) FROM block_history a WHERE a.block = ?6 AND a.origin <> '-')
FROM block_history t JOIN LATERAL (
    SELECT t.exchange AS id UNION ALL SELECT unnest(translate(convert_from(t.sources, 'UTF8'), '[]', '{}')::bigint[])
) s ON TRUE JOIN exchanges e ON e.id = s.id
WHERE t.block = ?6 AND t.origin <> '-' AND s.id BETWEEN ?4 AND ?5 AND {goes}

-- name: versions_with
-- Counts the values of a block ?2 that have a text, in lower case, finds the number of the first, and counts all
-- values.
SELECT count(v.gone), min(v.gone), count(*) FROM (SELECT CASE WHEN {has:1:t.value} THEN t.version END AS gone
FROM block_history t WHERE t.block = ?2 AND t.origin <> '-') v

-- name: versions_from
-- Counts the values of a block from a version on.
SELECT count(*) FROM block_history WHERE block = ?1 AND origin <> '-' AND version >= ?2

-- name: summaries
-- Counts the summaries that may cover an exchange or one after it, also summaries of forks.
SELECT count(*) FROM summaries s WHERE s.agent = ?1 AND s.agent <> 0 AND (
    (s.conversation = ?2 AND s.depth >= ?3)
    OR s.conversation IN (SELECT f.conversation FROM forks f WHERE f.agent = ?1 AND f.origin = ?2 AND f.seq >= ?4))

-- name: erased_spans
-- Returns where each path loses its first exchange: conversation, depth, number; how many exchanges it loses, and the
-- first and the last row of these.
SELECT ?2, min(depth), min(seq), count(*), min(id), max(id) FROM (SELECT e.depth, e.seq, e.id {of_conversation}) gone
UNION ALL
SELECT e.conversation, min(e.depth), min(e.seq), count(*), min(e.id), max(e.id) {of_list} GROUP BY e.conversation

-- name: erased_times
-- Reads the exchanges and their times.
SELECT id, begun, ended FROM (SELECT e.id, e.begun, e.ended {of_conversation}) gone
UNION ALL SELECT e.id, e.begun, e.ended {of_list}

-- name: last_number
-- Returns the last number that a memory has given out.
SELECT next_seq - 1 FROM agents WHERE id = ?

-- name: notes
-- Reads the notes from a number on; ?3 exchanges at most.
SELECT e.id, e.notes FROM exchanges e
WHERE e.agent = ?1 AND e.seq >= ?2 AND e.notes IS NOT NULL AND e.state <> 'forgotten' ORDER BY e.seq LIMIT ?3

-- name: whole
-- Counts the rows of a whole memory.
SELECT a.messages, (SELECT count(*) FROM facts f WHERE f.agent = a.id),
    (SELECT count(*) FROM passages p WHERE p.agent = a.id),
(SELECT count(*) FROM blocks b JOIN block_history h ON h.block = b.id WHERE b.agent = a.id AND h.origin <> '-'),
(SELECT count(*) FROM summaries s WHERE s.agent = a.id AND s.agent <> 0)
FROM agents a WHERE a.id = ?

-- name: days_named
-- Reads the days that some facts and passages are from.
SELECT valid_from FROM facts WHERE agent = ?1 AND seq {in:2:BIGINT:64}
UNION ALL SELECT at FROM passages WHERE agent = ?1 AND seq {in:2:BIGINT:64}
