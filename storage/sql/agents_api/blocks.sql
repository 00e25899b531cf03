-- Every statement on blocks as the agents API knows them, by their public ids. `-- name:` begins one; the next line
-- describes it.

-- piece: block
-- The columns of a block `b`: with its present value, its owner, and its definition.
b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.uid, b.agent, b.profile, t.body

-- piece: block_tables
-- The tables that the piece `block` reads.
FROM blocks b JOIN block_history h ON h.id = b.current
LEFT JOIN definitions d ON d.uid = b.uid AND d.kind = 'block' LEFT JOIN definition_texts t ON t.id = d.current

-- piece: agent_count
-- How many agents have a block: its owner, and the agents that it is attached to.
(SELECT count(*) FROM attached x WHERE x.kind = 'block' AND x.target = b.id AND x.agent <> 0)
    + CASE WHEN b.agent IS NULL THEN 0 ELSE 1 END

-- piece: read_blocks
-- The beginning of a statement that reads blocks.
SELECT {block} {block_tables}

-- name: find
-- Reads a block of a project by its public id. A block is not found if all its agents are gone and it will be deleted
-- with them.
{read_blocks} WHERE b.uid = ? AND b.project = ? AND (b.agent IS NULL OR EXISTS (
    SELECT 1 FROM agents a WHERE a.id = b.agent
    UNION ALL SELECT 1 FROM attached x JOIN agents a ON a.id = x.agent WHERE x.kind = 'block' AND x.target = b.id))

-- name: list
-- Lists blocks. ?2, ?3: between these rows; ?4: a label; ?5 to ?7: parts of texts, in lower case; ?8, ?9: the fewest and
-- the most agents.
{read_blocks} WHERE b.project = ?1 AND b.id > ?2 AND b.id < ?3 AND (CAST(?4 AS TEXT) IS NULL OR b.label = ?4)
AND {has:5:b.label}
AND {has:6:b.description}
AND {has:7:h.value}
AND {agent_count} >= ?8 AND {agent_count} <= ?9 ORDER BY b.id {direction} LIMIT ?10

-- name: count
-- Counts the blocks of a project.
SELECT count(*) FROM blocks WHERE project = ?

-- name: visible
-- Reads the blocks that each of some agents sees, as `block_load` does, with their definitions.
SELECT {block}, b.agent, 0 {block_tables} WHERE b.agent {in:1:BIGINT:64}
UNION ALL
SELECT {block}, a.id, 1 {block_tables} JOIN agents a ON a.project = b.project AND a.profile = b.profile
WHERE b.agent IS NULL AND b.profile <> '' AND a.id {in:1:BIGINT:64}
UNION ALL
SELECT {block}, x.agent, 2 + x.place {block_tables} JOIN attached x ON x.target = b.id AND x.kind = 'block'
WHERE x.agent {in:1:BIGINT:64}
ORDER BY 1

-- name: seers
-- Finds the agents that see a block.
{seers} ORDER BY 1

-- name: labelled
-- Returns whether the agent ?3 sees a block of the label ?1 other than ?2.
SELECT 1 FROM blocks b WHERE b.label = ?1 AND b.id <> ?2 AND b.agent = ?3
UNION ALL SELECT 1 FROM attached x JOIN blocks b ON b.id = x.target
WHERE x.agent = ?3 AND x.kind = 'block' AND b.label = ?1 AND b.id <> ?2
UNION ALL SELECT 1 FROM agents a JOIN blocks b ON b.project = a.project AND b.profile = a.profile
WHERE a.id = ?3 AND b.agent IS NULL AND b.profile <> '' AND b.label = ?1 AND b.id <> ?2

-- name: insert
-- Adds a block without an owner.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current)
VALUES (NULL, ?, '', ?, ?, ?, ?, ?, 1, 0) RETURNING id

-- name: set_owner
-- Makes an agent the owner of a block without an owner.
UPDATE blocks SET agent = ?1, profile = (SELECT profile FROM agents a WHERE a.id = ?1) WHERE id = ?2 AND agent IS NULL

-- name: clear_owner
-- Removes the owner of an agent's own block.
UPDATE blocks SET agent = NULL, profile = '' WHERE id = ? AND agent = ?

-- name: describe
-- Changes the definition of a block.
UPDATE blocks SET label = ?, description = ?, lim = ?, read_only = ? WHERE id = ?

-- name: values_empty
-- Erases all values of a block.
{erase_values} WHERE block = ?1

-- name: delete
-- Deletes a block without values.
DELETE FROM blocks WHERE id = ?

-- name: shared_with
-- Finds the blocks that an agent and others see: attached ones, and its own that others have attached.
SELECT x.target FROM attached x WHERE x.agent = ?1 AND x.kind = 'block'
UNION SELECT b.id FROM blocks b
CROSS JOIN attached x ON x.kind = 'block' AND x.target = b.id AND x.agent <> ?1 WHERE b.agent = ?1

-- name: hand_over
-- Removes the owner of those blocks of an agent that other agents have attached.
UPDATE blocks SET agent = NULL, profile = '' WHERE agent = ?1
AND EXISTS (SELECT 1 FROM attached x WHERE x.kind = 'block' AND x.target = blocks.id AND x.agent <> ?1)

-- name: exchanges_among
-- Finds which of some exchanges are of a memory.
SELECT id FROM exchanges WHERE +agent = ?1 AND id {in:2:BIGINT:64}

-- name: version_sources
-- Writes the exchange that has made a value of a block, and all that the value came from. The row keeps its length.
UPDATE block_history SET exchange = ?3, sources = ?4 WHERE block = ?1 AND version = ?2

-- name: history
-- Reads the sources of the values of a block.
SELECT version, exchange, sources FROM block_history WHERE block = ?
