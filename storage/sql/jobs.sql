-- Every statement on jobs, steps and spending. `-- name:` begins one; the next line says what it is for.

-- name: epoch
-- Returns the epoch that an agent's jobs must have been made on.
SELECT epoch FROM agents WHERE id = ?

-- name: pending
-- Finds the job that waits under a key.
SELECT id, epoch, payload, due FROM jobs WHERE agent = ? AND kind = ? AND key = ? AND state = 'pending'

-- name: insert
-- Adds a job.
INSERT INTO jobs (agent, kind, key, state, epoch, due, asked, created, payload)
VALUES (?, ?, ?, 'pending', ?, ?, ?, ?, ?) RETURNING id

-- name: coalesce
-- Gives one that waits what is asked now.
UPDATE jobs SET epoch = ?, due = ?, asked = ?, payload = ? WHERE id = ?

-- name: running
-- Finds all jobs that somebody runs, or ran when it was killed.
SELECT id, attempt, holder, kind, tries FROM jobs WHERE state = 'running' ORDER BY id

-- name: first
-- Finds the job in a state that falls due first and has none before it in its lane. It walks the index in order. A
-- memory that is being forgotten can still be read, so none of its jobs begins.
SELECT id, due FROM jobs j
WHERE state = CAST(?1 AS TEXT) AND kind {in:2:TEXT:16} AND NOT EXISTS (
    SELECT 1 FROM forgetting f WHERE f.agent = j.agent)
AND (?1 = 'retrying' OR NOT EXISTS (
    SELECT 1 FROM jobs o WHERE o.agent = j.agent AND o.kind = j.kind AND o.state IN ('running', 'retrying')
    AND (CASE o.agent WHEN 0 THEN o.key ELSE '' END) = (CASE j.agent WHEN 0 THEN j.key ELSE '' END)))
ORDER BY due, id LIMIT 1

-- name: put_back
-- Finds a job whose time was set by a clock that has been put back since: nobody knows any more when it is due. (The
-- plus keeps SQLite from the index on state, by which it would look at all who wait.)
SELECT id FROM jobs j
WHERE asked > ?1 AND +state IN ('pending', 'retrying') AND kind {in:2:TEXT:16}
AND NOT EXISTS (SELECT 1 FROM forgetting f WHERE f.agent = j.agent)
AND (state = 'retrying' OR NOT EXISTS (
    SELECT 1 FROM jobs o WHERE o.agent = j.agent AND o.kind = j.kind AND o.state IN ('running', 'retrying')
    AND (CASE o.agent WHEN 0 THEN o.key ELSE '' END) = (CASE j.agent WHEN 0 THEN j.key ELSE '' END)))
ORDER BY asked LIMIT 1

-- name: is_current
-- Says whether a job was made on what its agent knows today.
SELECT j.agent = 0 OR j.epoch = a.epoch FROM jobs j LEFT JOIN agents a ON a.id = j.agent WHERE j.id = ?

-- name: claim
-- Claims a job. Attempts are counted here, so that one that kills the process counts as well.
UPDATE jobs SET state = 'running', attempt = attempt + 1, tries = tries + 1, holder = ? WHERE id = ?
RETURNING id, kind, agent, key, payload, epoch, state, attempt, tries, due, created, error

-- name: fence
-- Says whether this attempt still runs, and its agent is as it was.
SELECT j.agent = 0 OR coalesce(j.epoch = a.epoch, FALSE) FROM jobs j LEFT JOIN agents a ON a.id = j.agent
WHERE j.id = ? AND j.attempt = ? AND j.state = 'running'

-- name: retrying
-- Puts back a job that failed or was released. It keeps its lane until it falls due.
UPDATE jobs SET state = 'retrying', due = ?, asked = ?, tries = ?, error = ?, holder = NULL WHERE id = ?

-- name: dead
-- Buries a job that failed for good. It leaves its lane and keeps its error and its steps.
UPDATE jobs SET state = 'dead', error = ?, holder = NULL WHERE id = ?

-- name: older_dead
-- Finds older dead letters of the same key: one is enough.
SELECT o.id FROM jobs o JOIN jobs j ON o.agent = j.agent AND o.kind = j.kind AND o.key = j.key
WHERE j.id = ? AND o.state = 'dead' AND o.id <> j.id

-- name: revive
-- Tries a dead letter from the start; its steps still count.
UPDATE jobs SET state = 'pending', tries = 0, due = ?, asked = ?, error = NULL WHERE id = ?

-- name: hasten
-- Has one that waits fall due now.
UPDATE jobs SET due = ?, asked = ? WHERE id = ?

-- name: renew
-- Keeps a job beyond what was forgotten: on the new epoch, a running attempt fenced off and not counted, no words of
-- errors left.
UPDATE jobs SET tries = CASE state WHEN 'running' THEN tries - 1 ELSE tries END, state = ?, attempt = attempt + 1,
    epoch = ?, payload = ?, error = NULL, holder = NULL WHERE id = ?

-- name: delete
-- Deletes a job that has ended.
DELETE FROM jobs WHERE id = ?

-- name: get
-- Reads a job by its number.
SELECT id, kind, agent, key, payload, epoch, state, attempt, tries, due, created, error FROM jobs WHERE id = ?

-- name: list
-- Reads a page of jobs in a state, or of all, newest first.
SELECT id, kind, agent, key, payload, epoch, state, attempt, tries, due, created, error FROM jobs
WHERE (?1 = '' OR state = ?1) ORDER BY id DESC LIMIT ?2

-- name: of_agent
-- Reads all jobs of a memory.
SELECT id, kind, agent, key, payload, epoch, state, attempt, tries, due, created, error FROM jobs
WHERE agent = ? ORDER BY id

-- name: counts
-- Counts the jobs in each state.
SELECT state, count(*) FROM jobs GROUP BY state

-- name: step
-- Returns the result of a step.
SELECT result FROM steps WHERE job = ? AND name = ?

-- name: step_insert
-- Adds the result of a step.
INSERT INTO steps (job, name, at, result) VALUES (?, ?, ?, ?)

-- name: step_list
-- Lists the steps of a job without their results.
SELECT job, name, at, length(result) FROM steps WHERE job = ? ORDER BY id

-- name: steps_delete
-- Deletes the steps of a job that has ended.
DELETE FROM steps WHERE job = ?

-- name: spend
-- Counts one call more.
INSERT INTO spending (project, day, calls, tokens) VALUES (?, ?, 1, ?)
ON CONFLICT (project, day) DO UPDATE SET calls = spending.calls + 1, tokens = spending.tokens + excluded.tokens

-- name: spent
-- Returns the tokens that a project used on a day.
SELECT tokens FROM spending WHERE project = ? AND day = ?
