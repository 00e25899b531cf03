-- Finds the exchanges that go with an exchange that is forgotten.

-- name: alternatives
-- Finds the other exchanges at the place of an exchange. ?6: 1 for the active ones, 0 for those that are not.
SELECT id FROM exchanges
WHERE conversation = ?2 AND depth = ?3 AND (parent = ?4 OR (parent IS NULL AND CAST(?4 AS BIGINT) IS NULL))
AND +agent = ?1 AND id <> ?5
AND active = ?6 AND state NOT IN ('forgotten', 'off')

-- name: refused
-- Finds the earlier exchanges of a conversation that the upstream refused and that end with the message of an exchange.
-- ?3: the exchange. ?4: its depth.
SELECT e.id FROM exchanges x JOIN exchanges e ON e.agent = ?1 AND e.input_key = x.input_key
WHERE x.id = ?3 AND +x.agent = ?1 AND +e.conversation = ?2 AND +e.depth < ?4
AND e.superseded = 1 AND e.reply IS NULL AND e.active = 0 AND e.state NOT IN ('forgotten', 'off')

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
