-- Every statement of export and import. Outside, an exchange is known by its number, a conversation by its uid.

-- name: conversation_read
-- Reads a page of an agent's conversations.
SELECT id, uid, key, begun, last_at, settled_at FROM conversations WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: exchanges
-- Reads a page of exchanges, with the numbers of those they refer to.
SELECT p.input, p.said, p."full", c.uid, (SELECT seq FROM exchanges x WHERE x.id = p.parent AND x.agent = p.agent),
       (SELECT seq FROM exchanges x WHERE x.id = p.prior AND x.agent = p.agent), {skeleton}
FROM exchanges p JOIN conversations c ON c.id = p.conversation AND c.agent = p.agent
WHERE p.agent = ? AND p.seq > ? ORDER BY p.seq LIMIT ?

-- name: block_read
-- Reads a page of an agent's own blocks.
SELECT id, label, description, lim, read_only FROM blocks WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: version_read
-- Reads a page of the values of these blocks.
SELECT h.id, b.label, h.version, h.restores, h.at, h.origin, h.exchange, h.sources, h.value
FROM blocks b JOIN block_history h ON h.block = b.id WHERE b.agent = ? AND h.id > ? ORDER BY h.id LIMIT ?

-- name: passage_read
-- Reads a page of passages.
SELECT seq, seq, at, exchange, sources, text, tags FROM passages WHERE agent = ? AND seq > ? ORDER BY seq LIMIT ?

-- name: fact_read
-- Reads a page of facts.
SELECT seq, seq, at, valid_from, exchange, sources, about, text FROM facts
WHERE agent = ? AND seq > ? ORDER BY seq LIMIT ?

-- name: ended_read
-- Reads a page of facts that have ended, and what took their place; NULL: that is forgotten, or came later.
SELECT x.fact, f.seq, x.at, s.seq
FROM facts_ended x JOIN facts f ON f.id = x.fact AND f.agent = x.agent LEFT JOIN facts s ON s.id = x.successor AND s.agent = x.agent
WHERE x.agent = ?1 AND x.fact > ?2 AND coalesce(s.seq, 0) <= ?4 ORDER BY x.fact LIMIT ?3

-- name: learned_read
-- Returns up to where learning has come. There is but one row, which moves on with what is said: nothing comes after it.
SELECT seq, seq FROM readers WHERE memory = ?1 AND reader = 0 AND seq > 0 AND CAST(?2 AS BIGINT) = 0 LIMIT ?3

-- name: edit_read
-- Reads a page of memory edits; emptied ones say nothing.
SELECT id, exchange, call_id, state, at, op, label, arguments FROM block_ops
WHERE agent = ? AND id > ? AND length(arguments) > 2 ORDER BY id LIMIT ?

-- name: seqs_of
-- Returns the numbers of some exchanges.
SELECT id, seq FROM exchanges WHERE agent = ?1 AND id {in:2:BIGINT:64}

-- name: exchanges_at
-- Finds the exchanges with some numbers.
SELECT seq, id FROM exchanges WHERE agent = ?1 AND seq {in:2:BIGINT:64}

-- name: edge
-- Returns where a memory ends now: its last number, the last row of each table whose rows have none, and how far
-- learning has come.
SELECT next_seq - 1, (SELECT max(id) FROM conversations), (SELECT max(id) FROM blocks),
       (SELECT max(id) FROM block_history), (SELECT max(id) FROM block_ops), 
       (SELECT seq FROM readers WHERE memory = agents.id AND reader = 0)
FROM agents WHERE id = ?

-- name: is_empty
-- Says whether a memory may be replaced: nothing was ever said to it, and nobody wrote to it.
SELECT NOT EXISTS (SELECT 1 FROM conversations WHERE agent = ?1)
   AND NOT EXISTS (SELECT 1 FROM passages WHERE agent = ?1)
   AND NOT EXISTS (SELECT 1 FROM blocks WHERE agent = ?1 AND version > 1)

-- name: chain
-- Reads the path to an exchange, oldest first.
WITH RECURSIVE up(id) AS (
    SELECT id FROM exchanges WHERE agent = ?1 AND seq = ?2
    UNION ALL SELECT e.parent FROM up JOIN exchanges e ON e.id = up.id AND e.agent = ?1 WHERE e.parent IS NOT NULL)
SELECT {skeleton} FROM up JOIN exchanges p ON p.id = up.id AND p.agent = ?1 ORDER BY p.depth

-- name: conversation_put
-- Adds a conversation as it was.
INSERT INTO conversations (agent, uid, key, begun, last_at, settled_at) VALUES (?, ?, ?, ?, ?, ?)

-- name: conversation_at
-- Finds a conversation by its public name, or by the one that a copy of it has.
SELECT id FROM conversations WHERE agent = ? AND uid IN (?, ?)

-- name: uid_taken
-- Says whether any memory has a conversation of that name, as where one is copied within a database.
SELECT 1 FROM conversations WHERE uid = ?

-- name: block_put
-- Adds a block, without a value yet.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current)
SELECT id, project, profile, ?2, ?3, ?4, ?5, ?6, 0, 0 FROM agents WHERE id = ?1

-- name: version_put
-- Adds a value of a block.
INSERT INTO block_history (block, version, restores, at, origin, exchange, sources, value)
SELECT id, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM blocks WHERE agent = ?1 AND label = ?2 RETURNING id, block

-- name: version_point
-- Makes it the block's present one.
UPDATE blocks SET version = ?, current = ? WHERE id = ? AND agent = ?

-- name: passage_put
-- Adds a passage with its number.
INSERT INTO passages (agent, seq, at, exchange, sources, text, tags) VALUES (?, ?, ?, ?, ?, ?, ?)

-- name: edit_put
-- Adds a memory edit as it was.
INSERT INTO block_ops (agent, exchange, call_id, state, at, op, label, arguments) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: count_to
-- Sets the next number: those that were given out before stay given.
UPDATE agents SET next_seq = ? WHERE id = ?

-- name: settle_in
-- Gives a memory to its owner.
UPDATE agents SET subject = ? WHERE id = ?

-- name: fact_put
-- Adds a fact with its number.
INSERT INTO facts (agent, seq, at, valid_from, exchange, sources, about, text, key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: ended_put
-- Ends a fact. What took its place may be forgotten.
INSERT INTO facts_ended (fact, agent, successor, at)
SELECT id, agent, coalesce((SELECT s.id FROM facts s WHERE s.agent = ?1 AND s.seq = ?4), 0), ?3
FROM facts WHERE agent = ?1 AND seq = ?2

-- name: learned_put
-- Has learning go on where it was.
INSERT INTO readers (memory, reader, seq, at) VALUES (?, 0, ?, 0)
