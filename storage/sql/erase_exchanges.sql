-- Finds exchanges to be erased, and erases what belongs to one.

-- name: exchanges_of
-- Finds exchanges of a conversation that are still there.
SELECT id FROM exchanges WHERE conversation = ?2 AND +agent = ?1 AND state <> 'forgotten' LIMIT ?3

-- name: exchanges_before
-- Finds exchanges that are too old.
SELECT id FROM exchanges
WHERE agent = ?1 AND state <> 'forgotten' AND coalesce(ended, stopped, begun) < ?2 ORDER BY seq LIMIT ?3

-- name: alternatives
-- Finds the other exchanges at the place of an exchange. ?6: 1 for the active ones, 0 for those that are not.
SELECT id FROM exchanges
WHERE conversation = ?2 AND depth = ?3 AND (parent = ?4 OR (parent IS NULL AND CAST(?4 AS BIGINT) IS NULL))
AND +agent = ?1 AND id <> ?5
AND active = ?6 AND state NOT IN ('forgotten', 'off')

-- name: branch_touched
-- Returns when a request last repeated an exchange or went on from it. ?4, ?5: its depth, and when it was touched
-- itself.
WITH RECURSIVE branch(id, depth, touched) AS (
    SELECT CAST(?3 AS BIGINT), CAST(?4 AS BIGINT), CAST(?5 AS DOUBLE PRECISION)
    UNION ALL
    SELECT e.id, e.depth, e.touched FROM branch b JOIN exchanges e
    ON e.conversation = ?2 AND e.depth = b.depth + 1 AND e.parent = b.id AND +e.agent = ?1)
SELECT max(touched) FROM branch

-- name: inactive_after
-- Finds the exchanges that follow another one directly and are not active. ?3: their depth.
SELECT id FROM exchanges
WHERE conversation = ?2 AND depth = ?3 AND parent = ?4 AND +agent = ?1 AND active = 0
AND state NOT IN ('forgotten', 'off')

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
