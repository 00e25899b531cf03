-- Agents: the rows of memories.

-- name: agent_find
-- Finds the memory of a scope.
SELECT {agent} FROM agents a WHERE a.project = ? AND a.profile = ? AND a.subject = ?

-- name: agent_numbers
-- Reads the numbers by which a process checks whether its cache of a memory is up to date.
SELECT epoch, next_seq, indexed_seq, rev, stamp FROM agents WHERE id = ?

-- name: numbers_of_named
-- Reads these numbers unless the row belongs to another memory. ?2: the public id of the memory that is meant.
SELECT epoch, next_seq, indexed_seq, rev, stamp FROM agents WHERE id = ?1 AND uid = ?2

-- name: agent_of_uid
-- Finds a memory by its public id.
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

-- name: agent_indexed
-- Notes how far the index has come.
UPDATE agents SET indexed_seq = ? WHERE id = ?

-- name: pause
-- Pauses a memory, or resumes it (NULL). Turns that were planned before are refused.
UPDATE agents SET paused = ?2 WHERE id = ?1 AND (paused IS NULL) <> (CAST(?2 AS DOUBLE PRECISION) IS NULL)

-- name: lock_numbers
-- Reads the numbers of an agent as `agent_numbers`; they stay these until the transaction ends.
SELECT epoch, next_seq, indexed_seq, rev, stamp FROM agents WHERE id = ? {postgres:FOR NO KEY UPDATE}

-- name: epoch
-- Returns the epoch of an agent (storage/sql/epochs.py).
SELECT epoch FROM agents WHERE id = ?

-- name: lock_epoch
-- Returns the epoch of an agent; it stays that until the transaction ends.
SELECT epoch FROM agents WHERE id = ? {postgres:FOR NO KEY UPDATE}
