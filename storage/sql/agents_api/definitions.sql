-- Every statement on definitions. `-- name:` begins one; the next line describes it.

-- piece: definitions
-- Definitions `d`, each with its present text `t`.
SELECT {definition} FROM definitions d JOIN definition_texts t ON t.id = d.current

-- name: insert
-- Adds a definition without its text.
INSERT INTO definitions (uid, project, kind, memory, version, current, created, updated, name)
VALUES (?, ?, ?, ?, 1, 0, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id

-- name: text_insert
-- Adds a text of a definition.
INSERT INTO definition_texts (definition, version, at, body) VALUES (?, ?, ?, ?) RETURNING id

-- name: text_set
-- Makes a text the present text of a new definition.
UPDATE definitions SET current = ? WHERE id = ?

-- name: text_replace
-- Makes a text the present text of a definition if its version is still this one; else updates no row.
UPDATE definitions SET version = version + 1, current = ?, updated = ?, name = ? WHERE id = ? AND version = ?

-- name: bind
-- Binds a definition to a memory, unless the definition belongs to a memory already.
UPDATE definitions SET memory = ?1 WHERE id = ?2 AND memory = 0

-- name: texts_empty (sqlite)
-- Empties all texts of a definition but one.
UPDATE definition_texts SET body = x'' WHERE definition = ?1 AND id <> ?2 AND length(body) > 0

-- name: texts_empty (postgres)
DELETE FROM definition_texts WHERE definition = ?1 AND id <> ?2

-- name: texts_drop
-- Erases all texts of a definition.
{erase_definition_texts} WHERE definition = ?1

-- name: delete
-- Deletes a definition. The row holds no text but its name.
DELETE FROM definitions WHERE id = ?

-- name: version_raise
-- Raises the version of an agent's definition, as something that belongs to it has changed.
UPDATE definitions SET version = version + 1, updated = ? WHERE memory = ? AND memory <> 0 AND kind = 'agent'

-- name: by_uid
-- Reads a definition of a project by its public id.
{definitions} WHERE d.uid = ? AND d.project = ? AND d.kind = ?

-- name: versions
-- Reads the present versions of some definitions.
SELECT id, version FROM definitions WHERE id {in:1:BIGINT:64}

-- name: by_row
-- Reads a definition by its row.
{definitions} WHERE d.id = ?

-- name: by_rows
-- Reads several definitions by their rows.
{definitions} WHERE d.id {in:1:BIGINT:64}

-- name: by_memories
-- Reads the definitions of some memories.
{definitions} WHERE d.kind = ?1 AND d.memory <> 0 AND d.memory {in:2:BIGINT:64}

-- name: count
-- Counts the definitions of a kind.
SELECT count(*) FROM definitions WHERE project = ? AND kind = ?

-- name: by_name
-- Finds the definitions of a project with a name. Two show that the name is ambiguous.
{definitions} WHERE d.project = ? AND d.kind = ? AND d.name = ? ORDER BY d.id LIMIT 2

-- name: list
-- Lists the definitions of a kind. ?2, ?3: between these rows; ?5: a name; ?6: a part of a name, in lower case.
{definitions} WHERE d.project = ?1 AND d.kind = ?4 AND d.id > ?2 AND d.id < ?3
AND (CAST(?5 AS TEXT) IS NULL OR d.name = ?5) AND {has:6:d.name} ORDER BY d.id {direction} LIMIT ?7

-- name: conversations_unbound
-- Finds conversations with items that belong to no memory, and have not changed since a time. ?2: a project; NULL: all
-- projects.
SELECT d.id FROM definitions d WHERE {holds_items} AND d.memory = 0 AND d.updated < ?1
AND (CAST(?2 AS TEXT) IS NULL OR d.project = ?2) ORDER BY d.id LIMIT ?3 {postgres:FOR UPDATE}

-- name: rows_of_memory
-- Finds the definitions that belong to a memory.
SELECT id FROM definitions WHERE memory = ? AND memory <> 0
