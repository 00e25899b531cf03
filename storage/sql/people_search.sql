-- The statements of the search for people by words in their memories.

-- name: agents
-- Reads some memories.
SELECT {agent} FROM agents a WHERE a.id {in:1:BIGINT:256}

-- piece: stale
-- The exchanges of some memories that have changed since they were indexed.
FROM marks m CROSS JOIN exchanges p ON p.id = m.exchange AND p.agent = m.agent
WHERE m.kind = 'stale' AND m.agent {in:1:BIGINT:256} AND p.active = 1 AND p.state = 'finished'

-- piece: new_exchanges (sqlite)
-- The exchanges of some memories that are not indexed yet. (PostgreSQL reads each memory of this form by an index,
-- whatever number of rows it estimates.)
FROM agents a CROSS JOIN exchanges p ON p.agent = a.id AND p.seq > a.indexed_seq
WHERE a.id {in:1:BIGINT:256} AND p.active = 1 AND p.state = 'finished'

-- piece: new_exchanges (postgres)
FROM agents a CROSS JOIN LATERAL (
    SELECT * FROM exchanges x WHERE x.agent = a.id AND x.seq > a.indexed_seq ORDER BY x.seq LIMIT 1000) p ON true
WHERE a.id {in:1:BIGINT:256} AND p.active = 1 AND p.state = 'finished'

-- piece: new_passages (sqlite)
-- The passages of some memories that are not indexed yet, likewise.
FROM agents a CROSS JOIN passages p ON p.agent = a.id AND p.seq > a.indexed_seq WHERE a.id {in:1:BIGINT:256}

-- piece: new_passages (postgres)
FROM agents a CROSS JOIN LATERAL (
    SELECT * FROM passages x WHERE x.agent = a.id AND x.seq > a.indexed_seq ORDER BY x.seq LIMIT 1000) p ON true
WHERE a.id {in:1:BIGINT:256}

-- piece: new_facts (sqlite)
-- The facts of some memories that are not indexed yet, likewise.
FROM agents a CROSS JOIN facts f ON f.agent = a.id AND f.seq > a.indexed_seq WHERE a.id {in:1:BIGINT:256}

-- piece: new_facts (postgres)
FROM agents a CROSS JOIN LATERAL (
    SELECT * FROM facts x WHERE x.agent = a.id AND x.seq > a.indexed_seq ORDER BY x.seq LIMIT 1000) f ON true
WHERE a.id {in:1:BIGINT:256}

-- piece: size (sqlite)
-- The characters of a passage `p`; in PostgreSQL its bytes.
length(p.text)

-- piece: size (postgres)
octet_length(p.text)

-- piece: bytes
-- The bytes of the messages of an exchange `p` as they are stored.
coalesce(length(p.input), 0) + coalesce(length(p.shown_reply), 0)

-- name: unindexed_exchanges
-- Reads the exchanges that the indexes of some memories lack. An exchange of more than ?2 stored bytes is left out.
SELECT p.agent, {shown} {stale} AND {bytes} <= ?2
UNION ALL
SELECT p.agent, {shown} {new_exchanges} AND {bytes} <= ?2

-- name: memories_with_long_texts
-- Finds the memories among these with a text that `unindexed_exchanges` or `unindexed_passages_and_facts` leaves out.
SELECT p.agent {stale} AND {bytes} > ?2
UNION
SELECT p.agent {new_exchanges} AND {bytes} > ?2
UNION
SELECT p.agent {new_passages} AND {size} > ?2

-- name: unindexed_passages_and_facts
-- Reads the passages and facts of some memories that are not indexed yet. Passages larger than ?2 are left out. Facts
-- are short.
SELECT p.agent, p.seq, p.text, p.at, 'passage', NULL, NULL {new_passages} AND {size} <= ?2
UNION ALL
SELECT f.agent, f.seq, f.text, f.valid_from, 'fact', f.sources, NULL
{new_facts} AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id AND x.agent = f.agent)

-- name: index_sizes
-- Returns the bytes of the indexes of some memories.
SELECT agent, CAST(sum(length(data)) AS BIGINT) FROM terms WHERE agent {in:1:BIGINT:256} GROUP BY agent

-- name: terms
-- Reads the indexes of some memories.
SELECT agent, chunk, data FROM terms WHERE agent {in:1:BIGINT:256}
