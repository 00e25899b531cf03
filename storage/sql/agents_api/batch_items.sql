-- Every statement on the items of batches but those of item_writes.sql. `-- name:` begins one; the next line describes
-- it.

-- piece: item
-- The columns of an item `i`. Its run and its agent may be gone.
i.run, i.part, i.sent, i.errors, i.expiries, i.tip, i.epoch, a.uid, a.project, c.key, c.uid,
{run}
FROM batch_items i LEFT JOIN runs r ON r.id = i.run LEFT JOIN agents a ON a.id = r.agent
LEFT JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent

-- name: insert
-- Adds an item.
INSERT INTO batch_items (run, batch) VALUES (?, ?)

-- name: count
-- Counts a batch's items by the states of their runs.
SELECT r.state, r.stop, count(*) FROM batch_items i
LEFT JOIN runs r ON r.id = i.run AND r.agent <> 0 WHERE i.batch = ? GROUP BY 1, 2

-- name: list
-- Reads a page of a batch's items.
SELECT {item} WHERE i.batch = ?1 AND i.run > ?2 ORDER BY i.run LIMIT ?3

-- name: list_in_part
-- Reads a page of a batch's items that are in a part.
SELECT {item} WHERE i.batch = ?1 AND i.part = ?2 AND i.run > ?3 ORDER BY i.run LIMIT ?4

-- name: find
-- Reads an item of a batch by the public id of its run.
SELECT {item} WHERE r.uid = ?2 AND i.batch = ?1

-- name: find_by_row
-- Reads an item of a batch by its row.
SELECT {item} WHERE i.batch = ?1 AND i.run = ?2

-- name: find_of_agent
-- Reads the item of a batch that is an agent's.
SELECT {item} WHERE i.batch = ?1 AND a.uid = ?2

-- name: list_sendable
-- Lists the items of a part that have not ended, and whose memories have lost nothing since the items were put into
-- the part.
SELECT i.run FROM batch_items i JOIN runs r ON r.id = i.run JOIN agents a ON a.id = r.agent
WHERE i.batch = ? AND i.part = ? AND a.epoch = i.epoch AND r.state IN ('created', 'running')

-- name: count_in_part
-- Counts the items of a part.
SELECT count(*) FROM batch_items WHERE batch = ? AND part = ?

-- name: open_exists
-- Returns whether any item of a batch has not ended.
SELECT 1 FROM batch_items WHERE batch = ? AND part >= 0 LIMIT 1

-- name: assign
-- Puts an item that is ready into a part.
UPDATE batch_items SET part = ?2, tip = ?3, epoch = ?4 WHERE run = ?1 AND part IN (0, ?2)

-- name: list_open
-- Reads some of a batch's items that have not ended.
SELECT {item} WHERE i.batch = ?1 AND i.part >= 0 ORDER BY i.run LIMIT ?2

-- name: list_open_without_reply
-- Reads some of a batch's items that had no reply and have not ended.
SELECT {item} WHERE i.batch = ?1 AND i.part >= 0
AND NOT EXISTS (SELECT 1 FROM run_texts x
    WHERE x.agent = r.agent AND x.agent <> 0 AND x.run = r.id AND x.kind = 'round')
ORDER BY i.run LIMIT ?2

-- name: append_text
-- Adds a text to an item's run, after those of its kind. A text is never replaced by a longer one: SQLite would not
-- overwrite all of the old text.
INSERT INTO run_texts (agent, run, seq, kind, data)
SELECT ?1, ?2, coalesce(max(x.seq), -1) + 1, ?3, ?4 FROM run_texts x WHERE x.agent <> 0 AND x.run = ?2 AND x.kind = ?3

-- name: insert_text
-- Adds a text of an item that goes on. No row: the text is there, or the item or its batch has ended, or something of
-- its memory was forgotten since its request was composed.
INSERT INTO run_texts (agent, run, seq, kind, data)
SELECT r.agent, r.id, ?3, ?4, ?5
FROM runs r JOIN agents a ON a.id = r.agent JOIN batch_items i ON i.run = r.id JOIN batches b ON b.id = i.batch
WHERE r.id = ?2 AND r.agent = ?1 AND r.state IN ('created', 'running') AND b.state IN ('created', 'running')
    AND a.epoch = coalesce(i.epoch, a.epoch)
ON CONFLICT DO NOTHING RETURNING id

-- name: load_texts
-- Reads the texts of a kind of an item's run.
SELECT seq, data FROM run_texts WHERE agent = ? AND agent <> 0 AND run = ? AND kind = ? ORDER BY seq

-- name: load_error_messages
-- Reads the messages of the errors of a batch's items.
SELECT x.run, x.data FROM run_texts x JOIN batch_items i ON i.run = x.run
WHERE i.batch = ?1 AND x.agent <> 0 AND x.kind = 'words' AND x.seq = 0 AND x.run > ?2 AND x.run <= ?3

-- name: find_exchange
-- Finds the exchange that an item's run became.
SELECT s.exchange FROM run_steps s WHERE s.run = ? AND s.agent = ? ORDER BY s.number LIMIT 1
