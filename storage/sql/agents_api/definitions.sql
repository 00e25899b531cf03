-- Every statement on definitions, and on agents as the agents API lists them. `-- name:` begins one; the next line says
-- what it is for.

-- piece: definition
-- What is read of a definition `d` with its text `t`.
d.id, d.uid, d.project, d.kind, d.memory, d.name, d.version, d.created, d.updated, t.body

-- piece: entry
-- A memory `a`, with its definition where it has one. A profile's memory has none, and is named after its user.
SELECT a.id, a.uid, a.project, a.profile, a.subject, a.secret, a.epoch, a.indexed_seq, a.next_seq, a.created, {definition}
FROM agents a LEFT JOIN definitions d ON d.memory = a.id AND d.memory <> 0 AND d.kind = 'agent' AND d.project = a.project
LEFT JOIN definition_texts t ON t.id = d.current

-- piece: wanted
-- The conditions of a list of agents. ?2, ?3: between these rows; ?5: a name; ?6: a part of a name, in lower case; ?7:
-- tags, of which it has ?8 at least; ?9: why its last run ended; ?10: an identity; ?11: ?12 keys of identities. A
-- profile's memory has its profile and user as tags.
a.project = ?1 AND a.id > ?2 AND a.id < ?3 AND (d.id IS NOT NULL OR substr(a.subject, 1, 5) = 'user:')
AND (CAST(?5 AS TEXT) IS NULL OR coalesce(d.name, a.profile || ' ' || substr(a.subject, 6)) = ?5)
AND {has:6:coalesce(d.name, a.profile || ' ' || substr(a.subject, 6))}
AND (CAST(?8 AS BIGINT) = 0 OR CAST(?8 AS BIGINT) <= (
    SELECT count(*) FROM tags g WHERE g.agent = a.id AND g.project = a.project AND g.tag {in:7:TEXT:64})
    + CASE WHEN d.id IS NULL AND 'profile:' || a.profile {in:7:TEXT:64} THEN 1 ELSE 0 END
    + CASE WHEN d.id IS NULL AND a.subject {in:7:TEXT:64} THEN 1 ELSE 0 END)
AND (CAST(?9 AS TEXT) IS NULL OR ?9 = (SELECT r.stop FROM runs r WHERE r.agent = a.id ORDER BY r.id DESC LIMIT 1))
AND ((CAST(?10 AS TEXT) IS NULL AND CAST(?12 AS BIGINT) = 0) OR EXISTS (
    SELECT 1 FROM attached i JOIN definitions n ON n.id = i.target AND n.project = a.project
    WHERE i.agent = a.id AND i.kind = 'identity' AND (CAST(?10 AS TEXT) IS NULL OR n.uid = ?10)
    AND (CAST(?12 AS BIGINT) = 0 OR n.name {in:11:TEXT:64})))

-- piece: updated
-- By what agents are ordered that changed: the time, then the row.
coalesce(d.updated, a.created)

-- piece: completed
-- By what agents are ordered that answered: when their last run ended.
coalesce((SELECT max(r.ended) FROM runs r WHERE r.agent = a.id), 0)

-- name: insert
-- Adds a definition without its text.
INSERT INTO definitions (uid, project, kind, memory, version, current, created, updated, name)
VALUES (?1, ?2, ?3, ?4, 1, 0, ?5, ?5, ?6) ON CONFLICT DO NOTHING RETURNING id

-- name: text_insert
-- Adds a text of a definition.
INSERT INTO definition_texts (definition, version, at, body) VALUES (?, ?, ?, ?) RETURNING id

-- name: point
-- Makes it the present one of a new definition.
UPDATE definitions SET current = ? WHERE id = ?

-- name: advance
-- Makes it the present one by compare-and-set. No row touched: another writer has changed the definition since.
UPDATE definitions SET version = version + 1, current = ?, updated = ?, name = ? WHERE id = ? AND version = ?

-- name: texts_empty (sqlite)
-- Empties the texts of a definition but one.
UPDATE definition_texts SET body = x'' WHERE definition = ?1 AND id <> ?2 AND length(body) > 0

-- name: texts_empty (postgres)
DELETE FROM definition_texts WHERE definition = ?1 AND id <> ?2

-- name: texts_drop (sqlite)
-- Empties all texts of a definition and leaves them without an owner.
UPDATE definition_texts SET body = x'', definition = 0 WHERE definition = ?1

-- name: texts_drop (postgres)
DELETE FROM definition_texts WHERE definition = ?1

-- name: delete
-- Deletes a definition. Its name is all that was in the row.
DELETE FROM definitions WHERE id = ?

-- name: touch
-- Notes that something that belongs to an agent's definition has changed.
UPDATE definitions SET version = version + 1, updated = ? WHERE memory = ? AND memory <> 0 AND kind = 'agent'

-- name: get
-- Reads a definition of a project by its public name.
SELECT {definition} FROM definitions d JOIN definition_texts t ON t.id = d.current
WHERE d.uid = ? AND d.project = ? AND d.kind = ?

-- name: versions
-- Reads which versions definitions have.
SELECT id, version FROM definitions WHERE id {in:1:BIGINT:64}

-- name: by_id
-- Reads one by its row.
SELECT {definition} FROM definitions d JOIN definition_texts t ON t.id = d.current WHERE d.id = ?

-- name: several
-- Reads several by their rows.
SELECT {definition} FROM definitions d JOIN definition_texts t ON t.id = d.current WHERE d.id {in:1:BIGINT:64}

-- name: of_memories
-- Reads the definitions of some memories.
SELECT {definition} FROM definitions d JOIN definition_texts t ON t.id = d.current
WHERE d.kind = ?1 AND d.memory <> 0 AND d.memory {in:2:BIGINT:64}

-- name: count_of
-- Counts the definitions of a kind.
SELECT count(*) FROM definitions WHERE project = ? AND kind = ?

-- name: named
-- Finds the definitions of a project with a name.
SELECT {definition} FROM definitions d JOIN definition_texts t ON t.id = d.current
WHERE d.project = ? AND d.kind = ? AND d.name = ? ORDER BY d.id LIMIT ?

-- name: list_down
-- Lists the definitions of a kind, newest first. ?5: a name; ?6: a part of a name, in lower case.
SELECT {definition} FROM definitions d JOIN definition_texts t ON t.id = d.current
WHERE d.project = ?1 AND d.kind = ?4 AND d.id > ?2 AND d.id < ?3 AND (CAST(?5 AS TEXT) IS NULL OR d.name = ?5)
AND {has:6:d.name}
ORDER BY d.id DESC LIMIT ?7

-- name: list_up
-- Lists them oldest first.
SELECT {definition} FROM definitions d JOIN definition_texts t ON t.id = d.current
WHERE d.project = ?1 AND d.kind = ?4 AND d.id > ?2 AND d.id < ?3 AND (CAST(?5 AS TEXT) IS NULL OR d.name = ?5)
AND {has:6:d.name}
ORDER BY d.id LIMIT ?7

-- name: of_memory
-- Finds the definitions that belong to a memory.
SELECT id FROM definitions WHERE memory = ? AND memory <> 0

-- name: agent_get
-- Reads an agent of a project by its public name.
{entry} WHERE a.uid = ?1 AND a.project = ?2 AND (d.id IS NOT NULL OR substr(a.subject, 1, 5) = 'user:')

-- name: memories
-- Reads some memories of a project.
SELECT id, uid, project, profile, subject, secret, epoch, indexed_seq, next_seq, created FROM agents
WHERE project = ?1 AND id {in:2:BIGINT:64}

-- name: agents_among
-- Reads some agents by their rows.
{entry} WHERE a.id {in:1:BIGINT:64}

-- name: created_down
-- Lists agents, those that were made last first.
{entry} WHERE {wanted} ORDER BY a.id DESC LIMIT ?4

-- name: created_up
-- Lists them in the order in which they were made.
{entry} WHERE {wanted} ORDER BY a.id LIMIT ?4

-- name: updated_down
-- Lists agents, those that changed last first. ?13 to ?16: the times and rows between which they lie.
{entry} WHERE {wanted} AND ({updated}, a.id) > (?13, ?14) AND ({updated}, a.id) < (?15, ?16)
ORDER BY {updated} DESC, a.id DESC LIMIT ?4

-- name: updated_up
-- Lists them the other way round.
{entry} WHERE {wanted} AND ({updated}, a.id) > (?13, ?14) AND ({updated}, a.id) < (?15, ?16)
ORDER BY {updated}, a.id LIMIT ?4

-- name: completed_down
-- Lists agents, those that answered last first.
{entry} WHERE {wanted} AND ({completed}, a.id) > (?13, ?14) AND ({completed}, a.id) < (?15, ?16)
ORDER BY {completed} DESC, a.id DESC LIMIT ?4

-- name: completed_up
-- Lists them the other way round.
{entry} WHERE {wanted} AND ({completed}, a.id) > (?13, ?14) AND ({completed}, a.id) < (?15, ?16)
ORDER BY {completed}, a.id LIMIT ?4

-- name: place_created
-- Finds where an agent stands in a list: its row alone.
SELECT CAST(0 AS DOUBLE PRECISION), id FROM agents WHERE uid = ? AND project = ?

-- name: place_updated
-- When it changed, and its row.
SELECT {updated}, a.id FROM agents a LEFT JOIN definitions d ON d.memory = a.id AND d.memory <> 0 AND d.kind = 'agent'
WHERE a.uid = ? AND a.project = ?

-- name: place_completed
-- When it answered, and its row.
SELECT {completed}, a.id FROM agents a WHERE a.uid = ? AND a.project = ?

-- name: newest
-- Names the agents of a project that have a definition, newest first.
SELECT d.name, d.uid, d.created FROM definitions d WHERE d.project = ? AND d.kind = 'agent' ORDER BY d.id DESC LIMIT ?
