-- Memory blocks and their versions.

-- name: block_load
-- Reads the blocks that an agent sees, in this order: its own, those shared by its profile, those attached to it.
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.uid, 0
FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.agent = ?1
UNION ALL
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.uid, 1
FROM agents a
JOIN blocks b ON b.agent IS NULL AND b.profile <> '' AND b.project = a.project AND b.profile = a.profile
JOIN block_history h ON h.id = b.current WHERE a.id = ?1
UNION ALL
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.uid, 2 + x.place
FROM attached x JOIN blocks b ON b.id = x.target JOIN block_history h ON h.id = b.current
WHERE x.agent = ?1 AND x.kind = 'block'
ORDER BY 1

-- name: block_get
-- Reads a block.
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.uid
FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.id = ?

-- name: block_advance
-- Gives a block a new value if its version is still this one; else updates no row.
UPDATE blocks SET version = version + 1, current = ? WHERE id = ? AND version = ?

-- name: block_point
-- Makes the first row of history of a new block its value.
UPDATE blocks SET current = ? WHERE id = ?

-- name: block_history_insert
-- Adds a value of a block.
INSERT INTO block_history (block, version, restores, at, origin, exchange, sources, value)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id

-- name: block_history_list
-- Reads the newest values of a block before a version, newest first, without the versions of an origin.
SELECT version, restores, at, origin, exchange, sources, value FROM block_history
WHERE block = ? AND version < ? AND origin <> ? ORDER BY version DESC LIMIT ?

-- name: block_history_restores
-- Returns the version from which an undo or a forgetting restored the value of a version.
SELECT restores FROM block_history WHERE block = ? AND version = ? AND origin IN ('undo', 'forget')

-- name: block_history_get
-- Reads one value of a block, unless it was forgotten.
SELECT value, sources FROM block_history WHERE block = ? AND version = ? AND origin <> ?

-- name: block_history_before
-- Reads the value before a version. Values that were forgotten are left out.
SELECT version, value, sources FROM block_history WHERE block = ? AND version < ? AND origin <> ?
ORDER BY version DESC LIMIT 1

-- name: shared_blocks
-- Reads the blocks that all users of a profile see.
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.uid
FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent IS NULL AND b.profile <> '' AND b.project = ? AND b.profile = CAST(? AS TEXT) ORDER BY b.id
