-- Every statement on the memory edits of turns. `-- name:` begins one; the next line describes it.

-- name: edit_insert
-- Adds a memory edit of a turn. Returns no row if the edit of this call exists.
INSERT INTO block_ops (agent, exchange, call_id, state, at, op, label, arguments, seen)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING id

-- name: edits_of_exchange
-- Reads all edits of a turn, in the order they were made.
SELECT {edit} FROM block_ops WHERE agent = ? AND exchange = ? ORDER BY id

-- name: pending_labels
-- Reads the labels of pending edits. Those of superseded turns are left out.
SELECT o.label FROM block_ops o JOIN exchanges e ON e.id = o.exchange AND +e.agent = o.agent
WHERE o.agent = ? AND o.state = 'pending' AND e.superseded = 0

-- name: edit_settle
-- Marks an edit as merged or dropped, once.
UPDATE block_ops SET state = ?, seen = NULL WHERE id = ? AND agent = ? AND state = 'pending'

-- name: edits_drop
-- Drops the edits of an answer that was asked for again. Only the edits of the last answer count, and its calls may
-- have the same ids.
UPDATE block_ops SET state = 'dropped', call_id = ' ' || id, seen = NULL
WHERE agent = ? AND exchange = ? AND state = 'pending'

-- name: edits_expire
-- Drops the edits of a conversation from before a time that are still not confirmed: their turns are superseded.
UPDATE block_ops SET state = 'dropped', seen = NULL
WHERE agent = ?1 AND state = 'pending' AND at < ?3
AND exchange IN (SELECT id FROM exchanges WHERE conversation = ?2 AND +agent = ?1)
