-- Finds the exchanges that go with an exchange that is forgotten.

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
