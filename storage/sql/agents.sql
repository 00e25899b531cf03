-- Agents, each of which owns one memory.

-- name: agent_find
-- Finds the agent of a scope.
SELECT {agent} FROM agents a WHERE a.project = ? AND a.profile = ? AND a.subject = ?

-- name: agent_numbers
-- Reads the numbers of an agent by which a process checks whether its cache is up to date.
SELECT epoch, next_seq, indexed_seq, rev, stamp FROM agents WHERE id = ?

-- name: numbers_by_uid
-- Reads the same numbers, unless the row belongs to another agent by now. ?2: the public id of the agent.
SELECT epoch, next_seq, indexed_seq, rev, stamp FROM agents WHERE id = ?1 AND uid = ?2

-- name: agent_row_by_uid
-- Finds the row of an agent by its public id.
SELECT id FROM agents WHERE uid = ?

-- name: agent_by_id
-- Reads an agent.
SELECT {agent} FROM agents a WHERE a.id = ?

-- name: agent_insert
-- Adds an agent at first use. No row: another writer was first.
INSERT INTO agents (uid, project, profile, subject, secret, epoch, created) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING id

-- name: agent_take_seq
-- Takes the next number of an agent's order. The update locks the row, so that no number is used twice.
UPDATE agents SET next_seq = next_seq + 1 WHERE id = ? RETURNING next_seq - 1

-- name: agent_indexed
-- Notes the last number that an agent's search index has.
UPDATE agents SET indexed_seq = ? WHERE id = ?

-- name: pause
-- Pauses an agent's memory at a time ?2, or resumes it (NULL). Turns that were planned before are refused.
UPDATE agents SET paused = ?2 WHERE id = ?1 AND (paused IS NULL) <> (CAST(?2 AS DOUBLE PRECISION) IS NULL)

-- name: lock_numbers
-- Reads the numbers of an agent as `agent_numbers`, and locks the row until the transaction ends.
SELECT epoch, next_seq, indexed_seq, rev, stamp FROM agents WHERE id = ? {postgres:FOR NO KEY UPDATE}

-- name: epoch
-- Returns the epoch of an agent (storage/sql/epochs.py).
SELECT epoch FROM agents WHERE id = ?

-- name: lock_epoch
-- Returns the epoch of an agent, and locks the row until the transaction ends.
SELECT epoch FROM agents WHERE id = ? {postgres:FOR NO KEY UPDATE}
