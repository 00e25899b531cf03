-- The texts of a memory that the search index lacks.

-- name: under_way
-- Finds the number of the agent's last exchange, if it is open. ?2: the agent's next number.
SELECT seq FROM (SELECT seq, span, state FROM exchanges WHERE agent = ?1 ORDER BY seq DESC LIMIT 1) AS newest
WHERE state = 'open' AND seq + span = ?2

-- name: stale
-- Returns the rows of exchanges that have changed since they were indexed.
SELECT exchange FROM marks WHERE agent = ? AND kind = 'stale' LIMIT ?

-- name: stale_done
-- Notes that a stale exchange is indexed again.
DELETE FROM marks WHERE agent = ? AND kind = 'stale' AND exchange = ?

-- name: unindexed_agents
-- Finds agents with a search index that lacks messages, after a restart.
SELECT id FROM agents WHERE next_seq - indexed_seq > ? LIMIT ?
