-- Every statement on keys, agents, blocks, passages and terms. `-- name:` begins one; the next line says what it is for.

-- name: key_insert
-- A new gateway key.
INSERT INTO keys (project, name, digest, prefix, created) VALUES (?, ?, ?, ?, ?) RETURNING id

-- name: key_find
-- The key that was presented, revoked ones excluded.
SELECT id, project, name, prefix, created, revoked, digest FROM keys WHERE digest = ? AND revoked IS NULL

-- name: key_list
-- All keys, for the operator.
SELECT id, project, name, prefix, created, revoked FROM keys ORDER BY id

-- name: key_named
-- Those in use with this number or this name, the one with the number first.
SELECT id FROM keys WHERE (id = ?1 OR name = ?2) AND revoked IS NULL ORDER BY id <> ?1, id

-- name: key_revoke
-- One that is revoked keeps its date.
UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL
RETURNING id, project, name, prefix, created, revoked

-- name: key_any
-- Whether there ever was a key: a server whose last key was revoked must not open itself.
SELECT EXISTS (SELECT 1 FROM keys)

-- name: agent_find
-- The memory of a scope.
SELECT id, uid, secret, epoch, indexed_seq, next_seq, created FROM agents
WHERE project = ? AND profile = ? AND subject = ?

-- name: agent_insert
-- First use. Nothing is returned where somebody was faster.
INSERT INTO agents (uid, project, profile, subject, secret, epoch, created) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING id

-- name: agent_take_seq
-- The next number of the agent's order, taken under its row so that none is used twice.
UPDATE agents SET next_seq = next_seq + 1 WHERE id = ? RETURNING next_seq - 1

-- name: block_load
-- What an agent sees: its own blocks, and those shared by its profile.
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.agent IS NULL
FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.agent = ?1
UNION ALL
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.agent IS NULL
FROM agents a
JOIN blocks b ON b.agent IS NULL AND b.project = a.project AND b.profile = a.profile
JOIN block_history h ON h.id = b.current WHERE a.id = ?1
ORDER BY 1

-- name: block_get
-- One block by id.
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version
FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.id = ?

-- name: block_insert_own
-- A default of the profile, copied for a user at first use; an existing one stays as it is.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, version, current)
SELECT id, project, profile, ?2, ?3, ?4, ?5, 1, 0 FROM agents WHERE id = ?1
ON CONFLICT DO NOTHING RETURNING id

-- name: block_insert_shared
-- A block that all users of a profile see; an existing one stays as it is.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, version, current)
VALUES (NULL, ?, ?, ?, ?, ?, ?, 1, 0)
ON CONFLICT DO NOTHING RETURNING id

-- name: block_follow
-- What the settings say of a block now, for all that have it. ?3: shared by a profile's users, or each one's own.
UPDATE blocks SET description = ?4, lim = ?5, read_only = ?6
WHERE profile = ?1 AND label = ?2 AND (agent IS NULL) = ?3 AND (description, lim, read_only) <> (?4, ?5, ?6)

-- name: block_lacking
-- Who had a memory before the profile had this block.
SELECT id FROM agents a WHERE profile = ?1
AND NOT EXISTS (SELECT 1 FROM blocks b WHERE b.agent = a.id AND b.label = ?2) LIMIT ?3

-- name: block_untouched
-- Shared blocks with another value than the settings', in which nothing but the settings has written.
SELECT b.id, b.version FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent IS NULL AND b.profile = ?1 AND b.label = ?2 AND h.origin = ?3 AND h.value <> ?4

-- name: block_profile_projects
-- Where a profile is in use.
SELECT DISTINCT project FROM agents WHERE profile = ?

-- name: block_advance
-- Compare-and-set: no row means that somebody else has changed it since.
UPDATE blocks SET version = version + 1, current = ? WHERE id = ? AND version = ?

-- name: block_point
-- A new block's value is its first row of history.
UPDATE blocks SET current = ? WHERE id = ?

-- name: block_history_insert
-- One value of a block.
INSERT INTO block_history (block, version, restores, at, origin, exchange, sources, value)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id

-- name: block_history_list
-- All values of a block, newest first.
SELECT version, restores, at, origin, exchange, sources, value FROM block_history WHERE block = ? ORDER BY version DESC

-- name: block_history_version
-- One value of a block.
SELECT value, restores, sources FROM block_history WHERE block = ? AND version = ?

-- name: block_history_before
-- The value before one, those that were forgotten left out.
SELECT version, value, sources FROM block_history WHERE block = ? AND version < ? AND origin <> ?
ORDER BY version DESC LIMIT 1

-- name: op_insert
-- A memory edit of a turn; the same call of the same turn is there once.
INSERT INTO block_ops (agent, exchange, call_id, state, at, op, label, arguments) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING id

-- name: op_of_exchange
-- All edits of one turn, in the order they were made.
SELECT id, exchange, call_id, op, label, arguments, state, at FROM block_ops
WHERE agent = ? AND exchange = ? ORDER BY id

-- name: op_settle
-- Once: an edit that was merged or dropped stays so.
UPDATE block_ops SET state = ? WHERE id = ? AND state = 'pending'

-- name: passage_insert
-- A new archival memory.
INSERT INTO passages (agent, seq, at, exchange, sources, text) VALUES (?, ?, ?, ?, ?, ?) RETURNING id

-- name: passage_list
-- A page, in order, after the one last seen.
SELECT id, seq, text, at, sources FROM passages WHERE agent = ? AND seq > ? ORDER BY seq LIMIT ?

-- name: terms_load
-- An agent's whole search index.
SELECT chunk, data FROM terms WHERE agent = ? ORDER BY chunk

-- name: terms_get
-- One chunk, to be rewritten.
SELECT data FROM terms WHERE agent = ? AND chunk = ?

-- name: terms_replace
-- A chunk as it is now.
INSERT INTO terms (agent, chunk, data) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET data = excluded.data

-- name: agent_indexed
-- How far the index has come.
UPDATE agents SET indexed_seq = ? WHERE id = ?
