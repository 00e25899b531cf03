-- Every statement of moving a whole store into another: what no memory's export has. `-- name:` begins one; the next
-- line describes it.

-- name: memories
-- Reads a page of all memories but those that are not whole.
SELECT {agent} FROM agents a
WHERE a.id > ? AND a.subject NOT LIKE 'importing:%' AND a.subject NOT LIKE 'replaced:%' ORDER BY a.id LIMIT ?

-- name: memories_count
-- Counts all memories but those that are not whole.
SELECT count(*) FROM agents WHERE subject NOT LIKE 'importing:%' AND subject NOT LIKE 'replaced:%'

-- name: memories_from
-- Reads a page of the memories that were moved here from a database. Parameters: the mark's kind, the database's id.
SELECT {agent} FROM agents a
WHERE EXISTS (SELECT 1 FROM marks WHERE agent = a.id AND kind = ? AND hash = ?)
    AND a.id > ? AND a.subject NOT LIKE 'importing:%' AND a.subject NOT LIKE 'replaced:%' ORDER BY a.id LIMIT ?

-- name: mark_of
-- Returns the digest that was noted of a memory when it was moved here.
SELECT hash FROM marks WHERE agent = ? AND kind = ?

-- name: memory_at
-- Finds a memory by its scope.
SELECT id FROM agents WHERE project = ? AND profile = ? AND subject = ?

-- name: keys
-- Reads all gateway keys.
SELECT project, name, digest, prefix, created, revoked, memory, opens, used, expires, models, "user", old_digest,
    old_until, installed
FROM keys ORDER BY id

-- name: key_revise
-- Gives a gateway key that is here the revocation and the rotation that it has had in the source. ?4: its secret
-- before.
UPDATE keys SET digest = ?1, prefix = ?2, revoked = coalesce(revoked, ?3), old_digest = ?4, old_until = ?5
WHERE id = (SELECT id FROM keys WHERE digest IN (?1, ?4) ORDER BY digest <> ?1 LIMIT 1)

-- name: key_put
-- Adds a gateway key as it was, unless it was rotated here.
INSERT INTO keys (project, name, digest, prefix, created, revoked, memory, opens, used, expires, models, "user",
    old_digest, old_until, installed)
SELECT {?1..15} WHERE NOT EXISTS (SELECT 1 FROM keys WHERE old_digest = ?3)

-- name: usage
-- Reads a page of usage.
SELECT {usage_row} FROM usage WHERE ({usage_key}) > ({?1..6})
ORDER BY {usage_key} LIMIT ?7

-- name: usage_put
-- Adds counters as they were, unless there are counters with their key.
INSERT INTO usage ({usage_row}) VALUES ({?1..28}) ON CONFLICT DO NOTHING

-- name: limit_bounds
-- Reads the key, user, unit and period of each limit, without the amounts.
SELECT project, key, "user", unit, per FROM limits

-- name: limit_put
-- Adds a limit.
INSERT INTO limits (project, key, "user", unit, per, most, action) VALUES ({?1..7})

-- name: definitions
-- Reads a page of the tools, servers and identities that were defined.
SELECT d.id, d.project, d.kind, d.uid, d.name, d.created, t.body
FROM definitions d JOIN definition_texts t ON t.id = d.current
WHERE d.kind IN ('tool', 'mcp', 'identity') AND d.id > ? ORDER BY d.id LIMIT ?

-- name: blocks
-- Reads a page of the blocks that no memory owns.
SELECT b.id, b.project, b.profile, b.label, b.description, b.lim, b.read_only, b.uid, t.body
FROM blocks b LEFT JOIN definitions d ON d.uid = b.uid AND d.kind = 'block'
LEFT JOIN definition_texts t ON t.id = d.current
WHERE b.agent IS NULL AND b.id > ? ORDER BY b.id LIMIT ?

-- name: exchange_address
-- Returns the agent of an exchange, and its number.
SELECT a.project, a.profile, a.subject, e.seq FROM exchanges e JOIN agents a ON a.id = e.agent WHERE e.id = ?

-- name: exchange_at
-- Finds an exchange by its number.
SELECT id FROM exchanges WHERE agent = ? AND seq = ?

-- name: block_named
-- Finds the block of a public id.
SELECT id FROM blocks WHERE uid = ?

-- name: block_shared
-- Finds the block that a profile shares.
SELECT id, version FROM blocks
WHERE agent IS NULL AND profile <> '' AND project = ? AND profile = CAST(? AS TEXT) AND label = ?

-- name: block_add
-- Adds a block that no memory owns, without a value yet.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current)
VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, 0, 0) RETURNING id

-- name: block_become
-- Gives a block of the settings, to which no one has written, the public id that it had.
UPDATE blocks SET uid = ? WHERE id = ?

-- name: versions_drop
-- Takes away the value that the settings gave to a block.
DELETE FROM block_history WHERE block = ?

-- name: block_point
-- Makes a version the present one of a block.
UPDATE blocks SET version = ?, current = ? WHERE id = ?

-- name: readers
-- Reads which sleeptime agents read a memory, and how far they have come.
SELECT a.project, a.profile, a.subject, r.seq, r.at FROM readers r JOIN agents a ON a.id = r.reader
WHERE r.memory = ? AND r.reader <> 0

-- name: unfinished
-- Counts batches and runs that go on.
SELECT (SELECT count(*) FROM batches WHERE state IN ('created', 'running')),
       (SELECT count(*) FROM runs WHERE state IN ('created', 'running') AND agent <> 0)
