-- Finds exchanges to be erased, and erases what belongs to one.

-- name: exchanges_of
-- Finds exchanges of a conversation that are still there.
SELECT id FROM exchanges WHERE conversation = ?2 AND +agent = ?1 AND state <> 'forgotten' LIMIT ?3

-- name: exchanges_before
-- Finds exchanges that are too old.
SELECT id FROM exchanges
WHERE agent = ?1 AND state <> 'forgotten' AND coalesce(ended, stopped, begun) < ?2 ORDER BY seq LIMIT ?3

-- name: edits_erase
-- Empties the memory edits of a turn. No call has an id that begins with a blank.
UPDATE block_ops SET state = 'dropped', call_id = ' ' || id, label = '', arguments = ?3, seen = NULL
WHERE agent = ?1 AND exchange = ?2 AND length(arguments) > 2

-- name: imported_exchanges
-- Finds a page of the exchanges that an import has added.
SELECT id FROM imported WHERE import = ?1 AND what = 'exchange' AND id > ?2 ORDER BY id LIMIT ?3

-- name: waiting_erase
-- Ends the wait for the calls of a reply that is gone.
UPDATE run_steps SET waiting = NULL WHERE exchange = ? AND agent = ? AND waiting IS NOT NULL
