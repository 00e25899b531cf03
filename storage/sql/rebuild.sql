-- The versions of blocks that came from erased content.

-- name: edits_pending_in_block
-- Reads the memory edits of a block that are not confirmed yet, of all memories that see the block.
SELECT {edit} FROM block_ops
WHERE state = 'pending' AND label = ?2 AND agent IN ({seers}) ORDER BY id

-- name: select_erased
-- Finds which of some exchanges, of any memory, are being forgotten with what came from them (an exchange with the mark
-- `reset` is not). A block that several memories share may come from the exchanges of each.
SELECT e.id FROM exchanges e WHERE e.id {in:1:BIGINT:64} AND (
    EXISTS (SELECT 1 FROM marks m WHERE m.agent = e.agent AND m.kind = 'erased' AND m.exchange = e.id)
    OR NOT EXISTS (SELECT 1 FROM agents a WHERE a.id = e.agent))

-- name: remaining
-- Reads those of some exchanges that have content.
SELECT {shown} FROM exchanges p WHERE +p.agent = ?1 AND p.state NOT IN ('forgotten', 'off') AND p.id {in:2:BIGINT:64}

-- name: profile_of
-- Reads the project and the profile of a memory.
SELECT project, profile FROM agents WHERE id = ?

-- name: writable_blocks
-- Finds the blocks that a memory could write, each with its owner, in the order in which they are locked: the memory's
-- own blocks, those attached to it, its profile's blocks (which no memory owns), and those of its sleeptime agents.
SELECT b.id, b.agent FROM blocks b WHERE b.agent = ?1
UNION ALL SELECT b.id, b.agent FROM blocks b
WHERE b.agent IS NULL AND b.profile <> '' AND b.project = ?2 AND b.profile = CAST(?3 AS TEXT)
UNION ALL SELECT b.id, b.agent FROM attached x
JOIN blocks b ON b.id = x.target WHERE x.agent = ?1 AND x.kind = 'block'
UNION ALL SELECT b.id, b.agent FROM readers r JOIN blocks b ON b.agent = r.reader WHERE r.memory = ?1 AND r.reader <> 0
ORDER BY 1

-- name: block_lock
-- Locks a block before its values are read: turns of other users may be writing it.
SELECT id FROM blocks WHERE id = ? {postgres:FOR NO KEY UPDATE}

-- name: versions_turnless
-- Finds the values that batch items of a memory have written and that belong to no stored turn: the turn is stored later
-- or never.
SELECT h.version FROM block_history h
JOIN runs r ON r.uid = substr(h.origin, 6, 32) AND r.agent = ?1 AND r.batch IS NOT NULL
WHERE h.block = ?2 AND h.exchange IS NULL AND substr(h.origin, 1, 5) = 'tool:'

-- name: version_erase
-- Empties one value of a block.
UPDATE block_history SET restores = NULL, origin = ?1, exchange = NULL, sources = ?4, value = ''
WHERE block = ?2 AND version = ?3

-- name: version_rewrite
-- Gives a value of a block another text. The row keeps its length.
UPDATE block_history SET value = ?, sources = ? WHERE block = ? AND version = ?

-- piece: of_call
-- The condition on the edit of a call (?2) in an exchange (?1), which is of the agent that has the exchange.
agent = (SELECT e.agent FROM exchanges e WHERE e.id = ?1) AND exchange = ?1 AND call_id = ?2 AND length(arguments) > 2

-- name: edit_of_call
-- Reads the edit that made a version.
SELECT {edit} FROM block_ops WHERE {of_call}

-- name: edit_of_call_erase
-- Empties an edit, so that it makes no version again.
UPDATE block_ops SET state = 'dropped', call_id = ' ' || id, label = '', arguments = ?3, seen = NULL
WHERE {of_call}
