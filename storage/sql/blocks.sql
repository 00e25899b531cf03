-- Memory blocks, their versions, and the edits of turns.

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

-- name: block_defaults
-- Reads an agent's own blocks with the values that its profile gave them.
SELECT b.label, b.description, b.lim, b.read_only, h.value
FROM blocks b LEFT JOIN block_history h ON h.block = b.id AND h.version = 1 AND h.origin = 'default'
WHERE b.agent = ? ORDER BY b.id

-- name: block_insert_own
-- Copies a default block of the profile for a user at first use. A block that exists stays as it is.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current)
SELECT id, project, profile, ?2, ?3, ?4, ?5, ?6, 1, 0 FROM agents WHERE id = ?1
ON CONFLICT DO NOTHING RETURNING id

-- name: block_insert_shared
-- Adds a block that all users of a profile see. A block that exists stays as it is.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current)
VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, 1, 0)
ON CONFLICT DO NOTHING RETURNING id

-- name: block_differing
-- Finds memories of a profile that lack a block or have it with other settings.
SELECT a.id FROM agents a LEFT JOIN blocks b ON b.agent = a.id AND b.label = ?2
WHERE a.profile = ?1 AND a.id > ?6 AND (b.id IS NULL OR (b.description, b.lim, b.read_only) <> (?3, ?4, ?5))
ORDER BY a.id LIMIT ?7

-- name: block_follow_own
-- Gives the blocks of some memories the settings of their profile.
UPDATE blocks SET description = ?2, lim = ?3, read_only = ?4
WHERE label = ?1 AND (description, lim, read_only) <> (?2, ?3, ?4) AND agent {in:5:BIGINT:64}

-- name: block_follow_shared
-- Gives the blocks that a profile's users share the settings of the profile.
UPDATE blocks SET description = ?3, lim = ?4, read_only = ?5
WHERE agent IS NULL AND profile = CAST(?1 AS TEXT) AND label = ?2 AND (description, lim, read_only) <> (?3, ?4, ?5)

-- name: block_untouched
-- Finds shared blocks that differ from the settings, and in which nothing but the settings has written.
SELECT b.id, b.version FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent IS NULL AND b.profile = CAST(?1 AS TEXT) AND b.label = ?2 AND h.origin = ?3 AND h.value <> ?4

-- name: block_profile_projects
-- Finds the projects that use a profile.
SELECT DISTINCT project FROM agents WHERE profile = ?

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
-- Reads the newest values of a block before a version, newest first.
SELECT version, restores, at, origin, exchange, sources, value FROM block_history
WHERE block = ? AND version < ? ORDER BY version DESC LIMIT ?

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

-- name: op_insert
-- Adds a memory edit of a turn. Returns no row if the edit of this call exists.
INSERT INTO block_ops (agent, exchange, call_id, state, at, op, label, arguments, seen)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING id

-- name: op_waiting
-- Reads the labels of edits that wait until their turns are confirmed. Edits of superseded turns wait for nothing.
SELECT o.label FROM block_ops o JOIN exchanges e ON e.id = o.exchange AND +e.agent = o.agent
WHERE o.agent = ? AND o.state = 'pending' AND e.superseded = 0

-- name: op_of_exchange
-- Reads all edits of a turn, in the order they were made.
SELECT {edit} FROM block_ops WHERE agent = ? AND exchange = ? ORDER BY id

-- name: op_settle
-- Marks an edit as merged or dropped, once.
UPDATE block_ops SET state = ?, seen = NULL WHERE id = ? AND agent = ? AND state = 'pending'

-- name: followed
-- Returns the digest of the settings that the stored blocks follow.
SELECT digest FROM followed

-- name: note_followed
-- Notes the digest of the settings that the stored blocks follow now.
INSERT INTO followed (id, digest) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET digest = excluded.digest
