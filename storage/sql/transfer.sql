-- Every statement of export and import. Outside, an exchange is known by its number, a conversation by its uid.

-- name: conversations
-- A page of an agent's conversations.
SELECT id, uid, key, begun, last_at, settled_at FROM conversations WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: exchanges
-- A page of exchanges, with the names of what they refer to.
SELECT p.input, p.said, p.full, c.uid, (SELECT seq FROM exchanges x WHERE x.id = p.parent),
       (SELECT seq FROM exchanges x WHERE x.id = p.prior), {skeleton}
FROM exchanges p JOIN conversations c ON c.id = p.conversation
WHERE p.agent = ? AND p.seq > ? ORDER BY p.seq LIMIT ?

-- name: blocks
-- An agent's own blocks.
SELECT id, label, description, lim, read_only FROM blocks WHERE agent = ? ORDER BY id

-- name: versions
-- A page of the values of an agent's own blocks.
SELECT h.id, b.label, h.version, h.restores, h.at, h.origin, h.exchange, h.sources, h.value
FROM blocks b JOIN block_history h ON h.block = b.id WHERE b.agent = ? AND h.id > ? ORDER BY h.id LIMIT ?

-- name: passages
-- A page of passages.
SELECT seq, at, exchange, sources, text FROM passages WHERE agent = ? AND seq > ? ORDER BY seq LIMIT ?

-- name: facts
-- A page of facts.
SELECT seq, at, valid_from, exchange, sources, about, text FROM facts WHERE agent = ? AND seq > ? ORDER BY seq LIMIT ?

-- name: ended
-- A page of those that are no longer true, and what took their place; NULL: it is forgotten.
SELECT x.fact, f.seq, x.at, s.seq
FROM facts_ended x JOIN facts f ON f.id = x.fact LEFT JOIN facts s ON s.id = x.successor AND s.agent = x.agent
WHERE x.agent = ? AND x.fact > ? AND coalesce(s.seq, 0) <= ? ORDER BY x.fact LIMIT ?

-- name: learned
-- Up to where learning has come.
SELECT seq FROM learned WHERE agent = ? AND seq > ? LIMIT ?

-- name: ops
-- A page of memory edits; emptied ones say nothing.
SELECT id, exchange, call_id, state, at, op, label, arguments FROM block_ops
WHERE agent = ? AND id > ? AND length(arguments) > 2 ORDER BY id LIMIT ?

-- name: seq_of
-- An exchange's number.
SELECT seq FROM exchanges WHERE id = ? AND agent = ?

-- name: exchange_at
-- The exchange with a number.
SELECT id FROM exchanges WHERE agent = ? AND seq = ?

-- name: edge
-- Where a memory ends now: its last number, the last row of each table whose rows have none, and how far learning has come.
SELECT next_seq - 1, (SELECT max(id) FROM conversations), (SELECT max(id) FROM blocks),
       (SELECT max(id) FROM block_history), (SELECT max(id) FROM block_ops), (SELECT seq FROM learned WHERE agent = agents.id)
FROM agents WHERE id = ?

-- name: is_empty
-- Whether a memory may be replaced: nothing was ever said to it, and nobody wrote to it.
SELECT NOT EXISTS (SELECT 1 FROM conversations WHERE agent = ?1)
   AND NOT EXISTS (SELECT 1 FROM passages WHERE agent = ?1)
   AND NOT EXISTS (SELECT 1 FROM blocks WHERE agent = ?1 AND version > 1)

-- name: chain
-- The path to an exchange, oldest first.
WITH RECURSIVE up(id) AS (
    SELECT id FROM exchanges WHERE agent = ?1 AND seq = ?2
    UNION ALL SELECT e.parent FROM up JOIN exchanges e ON e.id = up.id WHERE e.parent IS NOT NULL)
SELECT p.seq, p.depth, p.offset, p.length, p.inputs, p.reply FROM up JOIN exchanges p ON p.id = up.id ORDER BY p.depth

-- name: conversation_add
-- As it was.
INSERT INTO conversations (agent, uid, key, begun, last_at, settled_at) VALUES (?, ?, ?, ?, ?, ?)

-- name: conversation_at
-- By its name outside.
SELECT id FROM conversations WHERE agent = ? AND uid = ?

-- name: uid_taken
-- Whether another memory has a conversation of that name, as it has where one is copied within a database.
SELECT 1 FROM conversations WHERE uid = ?

-- name: exchange_put
-- With its number.
INSERT INTO exchanges ({columns}, run, agent, seq) VALUES ({values}, ?, ?, ?) RETURNING id

-- name: block_add
-- Without a value yet.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, version, current)
SELECT id, project, profile, ?2, ?3, ?4, ?5, 0, 0 FROM agents WHERE id = ?1

-- name: version_add
-- The newest is the one that counts.
INSERT INTO block_history (block, version, restores, at, origin, exchange, sources, value)
SELECT id, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM blocks WHERE agent = ?1 AND label = ?2 RETURNING id, block

-- name: version_point
-- As it does here.
UPDATE blocks SET version = ?, current = ? WHERE id = ?

-- name: passage_put
-- With its number.
INSERT INTO passages (agent, seq, at, exchange, sources, text) VALUES (?, ?, ?, ?, ?, ?)

-- name: op_put
-- As it was.
INSERT INTO block_ops (agent, exchange, call_id, state, at, op, label, arguments) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: count_to
-- Numbers that were given out before stay given.
UPDATE agents SET next_seq = ? WHERE id = ?

-- name: settle_in
-- The memory is whose it should be.
UPDATE agents SET subject = ? WHERE id = ?

-- name: fact_put
-- At its number.
INSERT INTO facts (agent, seq, at, valid_from, key, exchange, sources, about, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: ended_put
-- That it is no longer true; what took its place may be forgotten.
INSERT INTO facts_ended (fact, agent, successor, at)
SELECT id, agent, coalesce((SELECT s.id FROM facts s WHERE s.agent = ?1 AND s.seq = ?3), 0), ?4
FROM facts WHERE agent = ?1 AND seq = ?2

-- name: learned_put
-- Learning goes on where it was.
INSERT INTO learned (agent, seq) VALUES (?, ?)
