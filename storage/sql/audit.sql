-- The audit: the actions of operators.

-- name: audit_add
-- Notes an action.
INSERT INTO audit (at, actor, action, memory, what) VALUES (?, ?, ?, ?, ?)

-- name: audit_read
-- Reads a page of the actions from ?7 until before ?8, the newest first. ?4 is a user, or the uid of a memory that may
-- be gone. NULL stands for all projects, and for any memory, user, action and part of a memory. `+`: only the order of
-- the ids ends a page early.
SELECT u.id, u.at, u.actor, u.action, u.memory, u.what FROM audit u
WHERE u.id < ?1 AND (CAST(?2 AS TEXT) IS NULL OR u.memory = ?2)
AND (CAST(?3 AS TEXT) IS NULL OR EXISTS (SELECT 1 FROM agents a WHERE a.uid = u.memory AND a.project = ?3))
AND (CAST(?4 AS TEXT) IS NULL OR u.memory = ?4
OR u.memory IN (SELECT a.uid FROM agents a WHERE a.subject = 'user:' || CAST(?4 AS TEXT)))
AND (CAST(?5 AS TEXT) IS NULL OR u.action = ?5) AND (CAST(?6 AS TEXT) IS NULL OR u.what = ?6)
AND +u.at >= ?7 AND +u.at < ?8
ORDER BY u.id DESC LIMIT ?9

-- name: audit_of_memory
-- Reads the last actions of some kinds on a memory, the newest first.
SELECT u.id, u.at, u.actor, u.action, u.memory, u.what FROM audit u
WHERE u.memory = ?1 AND +u.action {in:3:TEXT:8} ORDER BY u.id DESC LIMIT ?2

-- name: audit_old
-- Returns whether something is too old.
SELECT EXISTS (SELECT 1 FROM audit WHERE at < ?)

-- name: audit_age
-- Deletes a page of the entries that are too old.
DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)
