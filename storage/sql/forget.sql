-- The record of a forgetting, and what it writes before its phases (erase.sql).

-- name: intend
-- Writes down the target of a forgetting, before anything else.
INSERT INTO forgetting (agent, target) VALUES (?, ?) RETURNING id

-- name: import_stop
-- Stops an import that is to be undone, whichever process performs it.
UPDATE imports SET status = 'stopped' WHERE id = ? AND status <> 'undone'

-- name: intended
-- Reads the intention of a forgetting.
SELECT agent, target FROM forgetting WHERE id = ?

-- name: unfinished
-- Finds the forgettings that were begun before a restart.
SELECT id FROM forgetting ORDER BY id

-- name: forgotten
-- Ends a forgetting, after everything else.
DELETE FROM forgetting WHERE id = ?

-- name: only_memory
-- Finds the project and the name of the user who has this memory and no other one.
SELECT a.project, substr(a.subject, 6) FROM agents a WHERE a.id = ?1 AND a.subject LIKE 'user:%' AND NOT EXISTS
    (SELECT 1 FROM agents b WHERE b.project = a.project AND b.subject = a.subject AND b.id <> a.id)

-- name: agent_delete
-- Deletes an agent. With its secret goes all that its hashes could say.
DELETE FROM agents WHERE id = ? RETURNING project, profile

-- name: imports_unname
-- Takes the names from the imports of a memory that is gone: the same files may be imported again before the rows go.
UPDATE imports SET uid = ' ' || id WHERE agent = ?

-- name: file_erase
-- Erases a file.
{erase_files} WHERE id = ? AND memory = ?
