-- Every statement on usage. `-- name:` begins one; the next line describes it. Sums by any of the key's columns are
-- made in usage.py.

-- name: add
-- Adds counters to the sums of their key.
INSERT INTO usage ({usage_row}) VALUES ({?1..28})
ON CONFLICT ({usage_key}) DO UPDATE SET
    requests = usage.requests + excluded.requests,
    refused = usage.refused + excluded.refused,
    errors = usage.errors + excluded.errors,
    cancelled = usage.cancelled + excluded.cancelled,
    calls = usage.calls + excluded.calls,
    input_tokens = usage.input_tokens + excluded.input_tokens,
    output_tokens = usage.output_tokens + excluded.output_tokens,
    cached_tokens = usage.cached_tokens + excluded.cached_tokens,
    cache_write_tokens = usage.cache_write_tokens + excluded.cache_write_tokens,
    reasoning_tokens = usage.reasoning_tokens + excluded.reasoning_tokens,
    estimated_input_tokens = usage.estimated_input_tokens + excluded.estimated_input_tokens,
    estimated_output_tokens = usage.estimated_output_tokens + excluded.estimated_output_tokens,
    injected_tokens = usage.injected_tokens + excluded.injected_tokens,
    evicted_tokens = usage.evicted_tokens + excluded.evicted_tokens,
    background_input_tokens = usage.background_input_tokens + excluded.background_input_tokens,
    background_output_tokens = usage.background_output_tokens + excluded.background_output_tokens,
    batch_input_tokens = usage.batch_input_tokens + excluded.batch_input_tokens,
    batch_output_tokens = usage.batch_output_tokens + excluded.batch_output_tokens,
    cost = usage.cost + excluded.cost,
    unpriced_tokens = usage.unpriced_tokens + excluded.unpriced_tokens,
    answered = usage.answered + excluded.answered,
    question_tokens = usage.question_tokens + excluded.question_tokens

-- name: part
-- Notes that a process adds a part of its counters. Returns no row if it has added this part before.
INSERT INTO usage_parts (process, number, at) VALUES (?1, ?2, ?3)
ON CONFLICT (process) DO UPDATE SET number = excluded.number, at = excluded.at
WHERE usage_parts.number < excluded.number
RETURNING number

-- name: parts_age
-- Drops the parts of processes that have added no counters for long.
DELETE FROM usage_parts WHERE at < ?

-- name: oldest_of_users
-- Finds the oldest day with counters of users, before a day.
SELECT day FROM usage WHERE day < ? AND "user" NOT IN ('', ?) ORDER BY day LIMIT 1

-- name: take_users
-- Deletes and returns the counters of users on a day, some rows at a time.
DELETE FROM usage WHERE ({usage_key}) IN
    (SELECT {usage_key} FROM usage WHERE day = ?1 AND "user" NOT IN ('', ?2) LIMIT ?3)
RETURNING {usage_row}

-- name: take_user
-- Deletes and returns the counters of one user. They are looked up day by day: otherwise the counters of all users
-- would be read.
WITH RECURSIVE days(day) AS (
    SELECT min(day) FROM usage
    UNION ALL
    SELECT (SELECT min(later.day) FROM usage later WHERE later.day > days.day) FROM days WHERE days.day IS NOT NULL
)
DELETE FROM usage WHERE day IN (SELECT day FROM days WHERE day IS NOT NULL) AND project = ? AND "user" = ?
RETURNING {usage_row}

-- name: background
-- Returns the tokens that a project's background calls used on a day, without the tokens of questions. ?2: NULL for
-- all projects.
SELECT CAST(coalesce(sum(background_input_tokens + background_output_tokens - question_tokens), 0) AS BIGINT)
FROM usage WHERE day = ?1 AND (CAST(?2 AS TEXT) IS NULL OR project = ?2)

-- name: batches
-- Returns the tokens that a project's batches used on a day.
SELECT CAST(coalesce(sum(batch_input_tokens + batch_output_tokens), 0) AS BIGINT)
FROM usage WHERE day = ? AND project = ?

-- name: wrote
-- Notes when a process has last written counters.
INSERT INTO usage_writers (process, wrote) VALUES (?, ?)
ON CONFLICT (process) DO UPDATE SET wrote = excluded.wrote

-- name: left
-- Drops a process that has ended.
DELETE FROM usage_writers WHERE process = ?

-- name: writers_age
-- Drops the processes that have not written for long.
DELETE FROM usage_writers WHERE wrote < ?

-- name: writers
-- Counts the processes that have written counters since a time.
SELECT count(*) FROM usage_writers WHERE wrote >= ?

-- name: limits
-- Lists all limits.
SELECT id, project, key, "user", unit, per, most, action FROM limits ORDER BY id

-- name: limit_add
-- Adds a limit. Returns its number.
INSERT INTO limits (project, key, "user", unit, per, most, action) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id

-- name: limit_change
-- Changes how much a limit allows and its action. A parameter that is NULL changes nothing.
UPDATE limits SET most = coalesce(?2, most), action = coalesce(?3, action) WHERE id = ?1

-- name: limit_remove
-- Removes a limit.
DELETE FROM limits WHERE id = ?
