-- Every statement on the blocks that the settings give to users. `-- name:` begins one; the next line describes it.

-- name: of_agent
-- Reads an agent's own blocks with the values that its profile gave them.
SELECT b.label, b.description, b.lim, b.read_only, h.value
FROM blocks b LEFT JOIN block_history h ON h.block = b.id AND h.version = 1 AND h.origin = 'default'
WHERE b.agent = ? ORDER BY b.id

-- name: insert_own
-- Copies a default block of the profile for a user at first use. A block that exists stays as it is.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current)
SELECT id, project, profile, ?2, ?3, ?4, ?5, ?6, 1, 0 FROM agents WHERE id = ?1
ON CONFLICT DO NOTHING RETURNING id

-- name: insert_shared
-- Adds a block that all users of a profile see. A block that exists stays as it is.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current)
VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, 1, 0)
ON CONFLICT DO NOTHING RETURNING id

-- name: differing
-- Finds memories of a profile that lack a block or have it with other settings.
SELECT a.id FROM agents a LEFT JOIN blocks b ON b.agent = a.id AND b.label = ?2
WHERE a.profile = ?1 AND a.id > ?6 AND (b.id IS NULL OR (b.description, b.lim, b.read_only) <> (?3, ?4, ?5))
ORDER BY a.id LIMIT ?7

-- name: follow_own
-- Gives the blocks of some memories the settings of their profile.
UPDATE blocks SET description = ?2, lim = ?3, read_only = ?4
WHERE label = ?1 AND (description, lim, read_only) <> (?2, ?3, ?4) AND agent {in:5:BIGINT:64}

-- name: follow_shared
-- Gives the blocks that a profile's users share the settings of the profile.
UPDATE blocks SET description = ?3, lim = ?4, read_only = ?5
WHERE agent IS NULL AND profile = CAST(?1 AS TEXT) AND label = ?2 AND (description, lim, read_only) <> (?3, ?4, ?5)

-- name: untouched
-- Finds shared blocks that differ from the settings, and in which nothing but the settings has written.
SELECT b.id, b.version FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent IS NULL AND b.profile = CAST(?1 AS TEXT) AND b.label = ?2 AND h.origin = ?3 AND h.value <> ?4

-- name: projects
-- Finds the projects that use a profile.
SELECT DISTINCT project FROM agents WHERE profile = ?

-- name: followed
-- Returns the digest of the settings that the stored blocks follow.
SELECT digest FROM followed

-- name: note_followed
-- Notes the digest of the settings that the stored blocks follow now.
INSERT INTO followed (id, digest) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET digest = excluded.digest
