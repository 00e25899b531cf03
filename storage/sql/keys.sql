-- Gateway keys.

-- piece: key
-- The columns of a key.
id, project, name, prefix, created, revoked, memory, opens, used, expires, models, "user", old_until

-- name: key_insert
-- Adds a gateway key. No row: another process has added the same key, from the settings.
INSERT INTO keys (project, name, digest, prefix, created, memory, opens, expires, models, "user")
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id

-- name: key_find
-- Finds the key that was presented, unless it is revoked; by the secret before its last rotation, too.
SELECT {key}, digest, old_digest
FROM keys WHERE (digest = ?1 OR old_digest = ?1) AND revoked IS NULL

-- name: key_list
-- Lists all keys for the operator.
SELECT {key} FROM keys
ORDER BY id

-- name: key_named
-- Finds keys in use with this number or this name, the one with the number first.
SELECT id FROM keys WHERE (id = ?1 OR name = ?2) AND revoked IS NULL ORDER BY id <> ?1, id

-- name: key_revoke
-- Revokes a key. A key that is revoked already keeps its date.
UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL
RETURNING {key}

-- name: key_in_use
-- Reads a key that is to be changed, unless it is revoked.
SELECT {key} FROM keys
WHERE id = ? AND revoked IS NULL {postgres:FOR UPDATE}

-- name: key_change
-- Changes the name and the bounds of a key.
UPDATE keys SET name = ?2, memory = ?3, expires = ?4, models = ?5, "user" = ?6 WHERE id = ?1 AND revoked IS NULL
RETURNING {key}

-- name: key_rotate
-- Gives a key that has not expired another secret; its present secret is good for a time.
UPDATE keys SET old_digest = digest, old_until = ?4, digest = ?2, prefix = ?3
WHERE id = ?1 AND revoked IS NULL AND coalesce(expires, ?5) >= ?5
RETURNING {key}

-- name: key_links
-- Ends the links that a key has made with its earlier secret, when that secret ends.
UPDATE links SET expires = ?2 WHERE key = ?1 AND expires > ?2

-- name: key_used
-- Records when a key was last presented, unless another process has just done so.
UPDATE keys SET used = ?1 WHERE id = ?2 AND (used IS NULL OR used <= ?3 OR used > ?1)

-- name: key_installed
-- Notes with which digest the settings have installed a key, however often it is rotated.
UPDATE keys SET installed = ?1 WHERE (digest = ?1 OR old_digest = ?1) AND installed IS NULL

-- name: key_of
-- Finds the key that has or had this digest: when it was revoked, and its digest now.
SELECT revoked, digest FROM keys WHERE digest = ?1 OR old_digest = ?1 OR installed = ?1

-- name: key_replace
-- Revokes the keys of a name that another key takes the place of.
UPDATE keys SET revoked = ? WHERE name = ? AND digest <> ? AND revoked IS NULL

-- name: key_any
-- Returns whether there ever was a key: a server must not open itself when its last key is revoked. Keys of operators
-- do not count: they open the page alone, which demands a key in any case.
SELECT EXISTS (SELECT 1 FROM keys WHERE opens IS NULL OR opens NOT IN ('operator', 'operator-read'))

-- name: key_any_metrics
-- Returns whether there ever was a key that opens /metrics alone.
SELECT EXISTS (SELECT 1 FROM keys WHERE opens = 'metrics')

-- name: key_numbers
-- Reads the numbers of all gateway keys by their present and earlier secrets. Each store has other numbers.
SELECT id, digest FROM keys UNION ALL SELECT id, old_digest FROM keys WHERE old_digest IS NOT NULL
