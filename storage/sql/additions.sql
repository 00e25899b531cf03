-- Finds exchanges whose additions may quote what is being forgotten.

-- name: touched
-- Reads the exchanges that lost something, with their numbers, conversations and times.
SELECT DISTINCT e.id, e.seq, e.conversation, e.begun, e.ended FROM marks m
JOIN exchanges e ON e.id = m.exchange AND e.agent = m.agent
WHERE m.agent = ? AND m.kind IN ('erased', 'reset')

-- name: forks_after
-- Finds the forks with exchanges of some conversations in their past, and the last number of the past there.
SELECT origin, conversation, seq FROM forks WHERE agent = ?1 AND origin {in:2:BIGINT:64}

-- name: gone_days
-- Reads the days of passages and facts that are gone. They are retained until what quotes them is gone too. A mark of
-- this kind has the number of its day where others have an exchange.
SELECT exchange FROM marks WHERE agent = ? AND kind = 'day'

-- name: has_rewritten_block
-- Returns whether a block had to be rewritten.
SELECT EXISTS (SELECT 1 FROM marks WHERE agent = ? AND kind = 'blocks')

-- name: begun_before
-- Finds the last exchange before a number that began before a time.
SELECT seq FROM exchanges WHERE agent = ?1 AND seq < ?2 AND begun < ?3 ORDER BY seq DESC LIMIT 1

-- name: additions
-- Finds a page of exchanges to which the gateway added something, or which follow a step of a run: the step's calls may
-- have results in them.
SELECT e.id, s.exchange FROM exchanges e LEFT JOIN run_steps s ON s.exchange = e.parent AND s.agent = ?1
WHERE e.agent = ?1 AND e.seq > ?2 AND e.id > ?3
    AND (e.notes IS NOT NULL OR e."full" IS NOT NULL OR s.exchange IS NOT NULL)
ORDER BY e.id LIMIT ?4

-- name: foreign_additions
-- Finds such exchanges of the other agents that see a block that was rewritten.
SELECT e.id, e.agent, s.exchange FROM exchanges e LEFT JOIN run_steps s ON s.exchange = e.parent AND s.agent = e.agent
WHERE e.agent <> ?1 AND e.id > ?2 AND e.agent IN (
        SELECT agent FROM blocks WHERE id IN (SELECT exchange FROM marks WHERE agent = ?1 AND kind = 'blocks')
        UNION SELECT x.agent FROM attached x WHERE x.kind = 'block'
        AND x.target IN (SELECT exchange FROM marks WHERE agent = ?1 AND kind = 'blocks'))
    AND (e.notes IS NOT NULL OR e."full" IS NOT NULL OR s.exchange IS NOT NULL)
ORDER BY e.id LIMIT ?3
