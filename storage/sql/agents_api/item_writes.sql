-- Every statement that writes the outcome of an item of a batch. `-- name:` begins one; the next line describes it.

-- name: advance
-- Takes an item out of its part, if the item is still at the given request. No row: the reply to that request was
-- written before.
UPDATE batch_items SET part = ?3, errors = ?4, expiries = ?5, sent = ?6 WHERE run = ?1 AND sent = ?2
RETURNING run

-- name: close
-- Notes that an item has ended.
UPDATE batch_items SET part = -1 WHERE run = ?

-- name: run_epoch
-- Reads the epoch of the memory of a run that may still be written.
SELECT a.epoch FROM runs r JOIN agents a ON a.id = r.agent
WHERE r.id = ? AND r.agent = ? AND r.state IN ('created', 'running')

-- name: empty_texts
-- Erases the texts that an item needs until its end; the message of its error stays.
{erase_run_texts} WHERE agent = ?1 AND agent <> 0 AND run = ?2 AND kind <> 'words'

-- name: set_steps
-- Notes how many calls of the model a run made, all of which became one exchange.
UPDATE runs SET steps = ? WHERE id = ? AND agent = ?

-- name: set_origins
-- Notes the exchange that has made the values which the calls of one run have written. Their origins have a common
-- beginning.
UPDATE block_history SET exchange = ?2, sources = ?3
WHERE substr(origin, 1, ?4) = ?5 AND block IN (
    SELECT id FROM blocks WHERE agent = ?1 UNION ALL SELECT target FROM attached WHERE kind = 'block' AND agent = ?1
)
