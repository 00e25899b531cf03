-- Reads exchanges with the messages that are shown of them. `-- name:` begins a statement; the next line describes it.

-- name: shown_at
-- Finds the active exchanges that hold certain messages, as `{shown}`, but without the messages before them.
WITH wanted(seq) AS ({each:2:BIGINT:96}),
held(id) AS (
    SELECT DISTINCT (SELECT x.id FROM exchanges x
        WHERE x.agent = ?1 AND x.seq <= wanted.seq ORDER BY x.seq DESC LIMIT 1)
    FROM wanted WHERE wanted.seq IS NOT NULL
)
SELECT {content_shown}, CAST(NULL AS BIGINT), {shown_columns} FROM held CROSS JOIN exchanges p ON p.id = held.id
WHERE p.agent = ?1 AND p.active = 1 AND p.state = 'finished'

-- name: shown_since
-- Reads finished exchanges from a number on.
SELECT {shown} FROM exchanges p WHERE p.agent = ? AND p.seq >= ? AND p.state = 'finished' ORDER BY p.seq LIMIT ?

-- name: shown_unindexed
-- Reads what the search index does not know yet: exchanges below ?2 that changed since they were indexed (a message
-- that was indexed before its reply had come), and then those from ?3 on, which may still be open.
SELECT {shown} FROM marks m CROSS JOIN exchanges p ON p.id = m.exchange
WHERE m.agent = ?1 AND m.kind = 'stale' AND p.agent = ?1 AND p.seq < ?2 AND p.state = 'finished'
UNION ALL
SELECT * FROM (SELECT {shown} FROM exchanges p
    WHERE p.agent = ?1 AND p.seq >= ?3 ORDER BY p.seq LIMIT ?4) AS fresh

-- name: shown_stale
-- Reads exchanges that have changed since they were indexed.
SELECT {shown} FROM marks m CROSS JOIN exchanges p ON p.id = m.exchange
WHERE m.agent = ?1 AND m.kind = 'stale' AND m.exchange {in:2:BIGINT:64} AND p.agent = ?1

-- name: shown_recent
-- Reads the exchanges that stand, newest first.
SELECT {shown} FROM exchanges p
WHERE p.agent = ? AND p.active = 1 AND p.state = 'finished' ORDER BY p.seq DESC LIMIT ?
