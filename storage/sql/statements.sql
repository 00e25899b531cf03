-- Every statement on keys, agents, blocks, passages and terms. `-- name:` begins one; the next line describes it.

-- name: key_insert
-- Adds a gateway key. No row: another process has added the same one, from the settings.
INSERT INTO keys (project, name, digest, prefix, created, memory, opens, expires, models, "user")
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id

-- name: key_find
-- Finds the key that was presented, unless it is revoked; by the secret before its last rotation, too.
SELECT id, project, name, prefix, created, revoked, memory, opens, used, expires, models, "user", old_until, digest, old_digest FROM keys WHERE (digest = ?1 OR old_digest = ?1) AND revoked IS NULL

-- name: key_list
-- Lists all keys for the operator.
SELECT id, project, name, prefix, created, revoked, memory, opens, used, expires, models, "user", old_until FROM keys ORDER BY id

-- name: key_named
-- Finds keys in use with this number or this name, the one with the number first.
SELECT id FROM keys WHERE (id = ?1 OR name = ?2) AND revoked IS NULL ORDER BY id <> ?1, id

-- name: key_revoke
-- Revokes a key. One that is revoked keeps its date.
UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL
RETURNING id, project, name, prefix, created, revoked, memory, opens, used, expires, models, "user", old_until

-- name: key_in_use
-- Reads a key that is to be changed, unless it is revoked.
SELECT id, project, name, prefix, created, revoked, memory, opens, used, expires, models, "user", old_until FROM keys
WHERE id = ? AND revoked IS NULL {postgres:FOR UPDATE}

-- name: key_change
-- Changes what a key is called and bounds it.
UPDATE keys SET name = ?2, memory = ?3, expires = ?4, models = ?5, "user" = ?6 WHERE id = ?1 AND revoked IS NULL
RETURNING id, project, name, prefix, created, revoked, memory, opens, used, expires, models, "user", old_until

-- name: key_rotate
-- Gives a key that has not expired another secret; the one that it has is good for a time.
UPDATE keys SET old_digest = digest, old_until = ?4, digest = ?2, prefix = ?3
WHERE id = ?1 AND revoked IS NULL AND coalesce(expires, ?5) >= ?5
RETURNING id, project, name, prefix, created, revoked, memory, opens, used, expires, models, "user", old_until

-- name: key_links
-- Ends the links that a key has made with the secret that it had, when that ends.
UPDATE links SET expires = ?2 WHERE key = ?1 AND expires > ?2

-- name: key_used
-- Records when a key was last presented, unless another process has just done so.
UPDATE keys SET used = ?1 WHERE id = ?2 AND (used IS NULL OR used <= ?3 OR used > ?1)

-- name: key_installed
-- Notes with which digest the settings have installed a key, however often it is rotated.
UPDATE keys SET installed = ?1 WHERE (digest = ?1 OR old_digest = ?1) AND installed IS NULL

-- name: key_of
-- Finds the key that has this digest, or had it: when it was revoked, and its digest now.
SELECT revoked, digest FROM keys WHERE digest = ?1 OR old_digest = ?1 OR installed = ?1

-- name: key_replace
-- Revokes the keys of a name that another key takes the place of.
UPDATE keys SET revoked = ? WHERE name = ? AND digest <> ? AND revoked IS NULL

-- name: key_any
-- Returns whether there ever was a key: a server whose last key was revoked must not open itself. Keys of operators
-- open the page alone, which demands one in any case.
SELECT EXISTS (SELECT 1 FROM keys WHERE opens IS NULL OR opens NOT IN ('operator', 'operator-read'))

-- name: key_any_metrics
-- Returns whether there ever was a key that opens /metrics alone.
SELECT EXISTS (SELECT 1 FROM keys WHERE opens = 'metrics')

-- name: agent_find
-- Finds the memory of a scope.
SELECT {agent} FROM agents a WHERE a.project = ? AND a.profile = ? AND a.subject = ?

-- name: agent_numbers
-- Reads the numbers by which a process knows whether what it has cached of a memory is up to date.
SELECT epoch, next_seq, indexed_seq, rev, stamp FROM agents WHERE id = ?

-- name: agent_of_uid
-- Finds a memory by its public name.
SELECT id FROM agents WHERE uid = ?

-- name: agent_by_id
-- Reads an agent.
SELECT {agent} FROM agents a WHERE a.id = ?

-- name: agent_insert
-- Adds an agent at first use. No row: another writer was first.
INSERT INTO agents (uid, project, profile, subject, secret, epoch, created) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING id

-- name: agent_take_seq
-- Takes the next number of the agent's order, under its row so that none is used twice.
UPDATE agents SET next_seq = next_seq + 1 WHERE id = ? RETURNING next_seq - 1

-- name: block_load
-- Reads the blocks that an agent sees: its own, those shared by its profile, and those attached to it, in their places.
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
-- Copies a default of the profile for a user at first use; an existing block stays as it is.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current)
SELECT id, project, profile, ?2, ?3, ?4, ?5, ?6, 1, 0 FROM agents WHERE id = ?1
ON CONFLICT DO NOTHING RETURNING id

-- name: block_insert_shared
-- Adds a block that all users of a profile see; an existing one stays as it is.
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
-- Finds shared blocks with another value than the settings', in which nothing but the settings has written.
SELECT b.id, b.version FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent IS NULL AND b.profile = CAST(?1 AS TEXT) AND b.label = ?2 AND h.origin = ?3 AND h.value <> ?4

-- name: block_profile_projects
-- Finds the projects that use a profile.
SELECT DISTINCT project FROM agents WHERE profile = ?

-- name: block_advance
-- Gives a block a new value by compare-and-set. No row: another writer has changed it since.
UPDATE blocks SET version = version + 1, current = ? WHERE id = ? AND version = ?

-- name: block_point
-- Gives a new block its first row of history as its value.
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
-- Returns which value an undo or a forgetting brought back with one.
SELECT restores FROM block_history WHERE block = ? AND version = ? AND origin IN ('undo', 'forget')

-- name: block_history_get
-- Reads one value of a block, unless it was forgotten.
SELECT value, sources FROM block_history WHERE block = ? AND version = ? AND origin <> ?

-- name: block_history_before
-- Reads the value before one, leaving out those that were forgotten.
SELECT version, value, sources FROM block_history WHERE block = ? AND version < ? AND origin <> ?
ORDER BY version DESC LIMIT 1

-- name: snapshots_of
-- Reads memory sections of an agent.
SELECT id, agent, known FROM sections WHERE agent = ? AND text <> ''

-- name: snapshots_of_conversation
-- Reads that of the path with which a stored conversation ends.
SELECT s.id, s.agent, s.known FROM conversations c JOIN exchanges e ON e.id = c.tip AND e.agent = c.agent
JOIN sections s ON s.id = e.section AND s.agent = e.agent WHERE c.agent = ? AND c.id = ? AND s.text <> ''

-- name: snapshots_showing
-- Reads those of all who see a block.
SELECT id, agent, known FROM sections WHERE text <> '' AND agent IN ({seers})

-- name: snapshot_empty
-- Empties a memory section, so that its paths take a new one.
UPDATE sections SET text = '', known = ?3 WHERE id = ?1 AND agent = ?2

-- name: op_insert
-- Adds a memory edit of a turn; the same call of the same turn is there once.
INSERT INTO block_ops (agent, exchange, call_id, state, at, op, label, arguments, seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING id

-- name: op_waiting
-- Reads the labels of edits that wait until their turns are confirmed. Those of superseded turns wait for nothing.
SELECT o.label FROM block_ops o JOIN exchanges e ON e.id = o.exchange AND +e.agent = o.agent
WHERE o.agent = ? AND o.state = 'pending' AND e.superseded = 0

-- name: op_of_exchange
-- Reads all edits of a turn, in the order they were made.
SELECT {edit} FROM block_ops
WHERE agent = ? AND exchange = ? ORDER BY id

-- name: op_settle
-- Merges or drops an edit, once.
UPDATE block_ops SET state = ?, seen = NULL WHERE id = ? AND agent = ? AND state = 'pending'

-- name: passage_insert
-- Adds an archival memory.
INSERT INTO passages (agent, seq, at, exchange, sources, file, tags, metadata, text)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id

-- name: passage_list
-- Reads a page, in order, after the one last seen.
SELECT id, seq, text, at, sources FROM passages WHERE agent = ? AND seq > ? ORDER BY seq LIMIT ?

-- piece: passage
-- What is read of a passage.
SELECT id, seq, text, at, sources, file, tags, metadata FROM passages

-- piece: passage_wanted
-- The conditions of a list of passages. ?4: a part of the text, in lower case; ?5, ?6: saved from then on, before then.
agent = ?1 AND seq > ?2 AND seq < ?3 AND {has:4:text}
AND (CAST(?5 AS DOUBLE PRECISION) IS NULL OR at >= ?5) AND (CAST(?6 AS DOUBLE PRECISION) IS NULL OR at < ?6)

-- name: passage_down
-- Lists passages, newest first.
{passage} WHERE {passage_wanted} ORDER BY seq DESC LIMIT ?7

-- name: passage_up
-- Lists them oldest first.
{passage} WHERE {passage_wanted} ORDER BY seq LIMIT ?7

-- name: passage_get
-- Reads some passages by their numbers.
{passage} WHERE agent = ?1 AND seq {in:2:BIGINT:64}

-- name: passage_count
-- Counts a memory's passages.
SELECT count(*) FROM passages WHERE agent = ?

-- name: terms_since
-- Reads the chunks of an agent's search index that were written after one with this stamp.
SELECT chunk, stamp, data FROM terms WHERE agent = ? AND stamp > ?

-- name: terms_get
-- Reads one chunk, to be rewritten.
SELECT data FROM terms WHERE agent = ? AND chunk = ?

-- name: terms_replace
-- Writes a chunk.
INSERT INTO terms (agent, chunk, data, stamp)
VALUES (?1, ?2, ?3, (SELECT coalesce(max(t.stamp), 0) + 1 FROM terms t WHERE t.agent = ?1))
ON CONFLICT (agent, chunk) DO UPDATE SET data = excluded.data, stamp = excluded.stamp

-- name: terms_between
-- Reads the chunks in a range, of which no segment has any.
SELECT chunk, stamp, data FROM terms WHERE agent = ? AND chunk >= ? AND chunk < ? ORDER BY chunk

-- name: terms_newer
-- Returns whether chunks in a range were written after one with this stamp.
SELECT EXISTS (SELECT 1 FROM terms WHERE agent = ? AND stamp > ? AND chunk >= ? AND chunk < ?)

-- name: segment_numbers
-- Reads which segments there are.
SELECT number FROM segments WHERE agent = ? AND bucket = ?

-- name: segment_documents
-- Reads the documents of all segments.
SELECT number, stamp, data FROM segments WHERE agent = ? AND bucket = ? ORDER BY number

-- name: segment_sizes
-- Reads how long some buckets are in all segments.
SELECT bucket, CAST(sum(length(data)) AS BIGINT) FROM segments WHERE agent = ?1 AND bucket {in:2:BIGINT:32} GROUP BY bucket

-- name: segment_buckets
-- Reads some buckets of all segments.
SELECT bucket, number, stamp, data FROM segments WHERE agent = ?1 AND bucket {in:2:BIGINT:32} ORDER BY bucket, number

-- name: segment_put
-- Writes a part of a segment.
INSERT INTO segments (agent, bucket, number, stamp, data) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (agent, bucket, number) DO UPDATE SET stamp = excluded.stamp, data = excluded.data

-- name: segment_drop
-- Drops a segment of which a chunk changes.
DELETE FROM segments WHERE agent = ? AND number = ?

-- name: segments_drop
-- Drops all segments of an agent.
DELETE FROM segments WHERE agent = ?

-- name: chunk_begin
-- Finds the number from which on exchanges have to be read for all numbers from ?2 on: the first one of the exchange
-- that has ?2, else ?2.
SELECT coalesce((SELECT CASE WHEN seq + span > ?2 THEN seq END FROM exchanges
    WHERE agent = ?1 AND seq <= ?2 ORDER BY seq DESC LIMIT 1), CAST(?2 AS BIGINT))

-- name: agent_indexed_again
-- Has the index go back, and what is remembered of it be read again.
UPDATE agents SET indexed_seq = ?, stamp = stamp + 1 WHERE id = ? AND indexed_seq > ?

-- name: agent_indexed
-- Notes how far the index has come.
UPDATE agents SET indexed_seq = ? WHERE id = ?

-- name: followed
-- Returns the digest of the settings that the stored blocks follow.
SELECT digest FROM followed

-- name: note_followed
-- Notes it.
INSERT INTO followed (id, digest) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET digest = excluded.digest
