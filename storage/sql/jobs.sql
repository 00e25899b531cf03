-- Every statement on jobs, steps and spending. `-- name:` begins one; the next line says what it is for.

-- name: epoch
-- What an agent's jobs must have been made on.
SELECT epoch FROM agents WHERE id = ?

-- name: pending
-- The job of that key that waits already.
SELECT id, epoch, payload, due FROM jobs WHERE agent = ? AND kind = ? AND key = ? AND state = 'pending'

-- name: insert
-- A new job.
INSERT INTO jobs (agent, kind, key, state, epoch, due, asked, created, payload)
VALUES (?, ?, ?, 'pending', ?, ?, ?, ?, ?) RETURNING id

-- name: coalesce
-- One that waits takes over what is asked now.
UPDATE jobs SET epoch = ?, due = ?, asked = ?, payload = ? WHERE id = ?

-- name: running
-- All that somebody runs, or ran when it was killed.
SELECT id, attempt, holder, kind, tries FROM jobs WHERE state = 'running' ORDER BY id

-- name: first
-- Of those in a state the one that falls due first and has nobody before it in its lane. Walks the index in order.
-- What is just being forgotten is still there to be read, so no job of that memory begins.
SELECT id, due FROM jobs j
WHERE state = ?1 AND kind IN (SELECT value FROM json_each(?2)) AND NOT EXISTS (
    SELECT 1 FROM forgetting f WHERE f.agent = j.agent)
AND (?1 = 'retrying' OR NOT EXISTS (
    SELECT 1 FROM jobs o WHERE o.agent = j.agent AND o.kind = j.kind AND o.state IN ('running', 'retrying')))
ORDER BY due, id LIMIT 1

-- name: put_back
-- One whose time was set by a clock that has been put back since: nobody can tell any more when it is due. (The plus keeps
-- SQLite from the index on state, by which it would look at all who wait.)
SELECT id, ?1 FROM jobs j
WHERE asked > ?1 + 1 AND +state IN ('pending', 'retrying') AND kind IN (SELECT value FROM json_each(?2))
AND NOT EXISTS (SELECT 1 FROM forgetting f WHERE f.agent = j.agent)
AND (state = 'retrying' OR NOT EXISTS (
    SELECT 1 FROM jobs o WHERE o.agent = j.agent AND o.kind = j.kind AND o.state IN ('running', 'retrying')))
ORDER BY asked LIMIT 1

-- name: is_current
-- Whether a job was made on what its agent knows today.
SELECT j.agent = 0 OR j.epoch = a.epoch FROM jobs j LEFT JOIN agents a ON a.id = j.agent WHERE j.id = ?

-- name: claim
-- Attempts are counted here, so that one that kills the process counts as well.
UPDATE jobs SET state = 'running', attempt = attempt + 1, tries = tries + 1, holder = ? WHERE id = ?
RETURNING id, kind, agent, key, payload, epoch, state, attempt, tries, due, created, error

-- name: fence
-- Is this attempt still the one that runs; and is its agent as it was?
SELECT j.agent = 0 OR ifnull(j.epoch = a.epoch, 0) FROM jobs j LEFT JOIN agents a ON a.id = j.agent
WHERE j.id = ? AND j.attempt = ? AND j.state = 'running'

-- name: retrying
-- It failed, or was given back: it keeps its lane until it falls due.
UPDATE jobs SET state = 'retrying', due = ?, asked = ?, tries = ?, error = ?, holder = NULL WHERE id = ?

-- name: dead
-- It failed for good: it leaves its lane and keeps its error and its steps.
UPDATE jobs SET state = 'dead', error = ?, holder = NULL WHERE id = ?

-- name: older_dead
-- One dead letter a key is enough.
SELECT o.id FROM jobs o JOIN jobs j ON o.agent = j.agent AND o.kind = j.kind AND o.key = j.key
WHERE j.id = ? AND o.state = 'dead' AND o.id <> j.id

-- name: revive
-- A dead letter is tried from the start; its steps still count.
UPDATE jobs SET state = 'pending', tries = 0, due = ?, asked = ?, error = NULL WHERE id = ?

-- name: hasten
-- One that waits falls due now.
UPDATE jobs SET due = ?, asked = ? WHERE id = ?

-- name: renew
-- A job that outlives what was forgotten: on the new epoch, what ran is fenced off, no words of errors are left.
UPDATE jobs SET state = ?, attempt = attempt + 1, epoch = ?, payload = ?, error = NULL, holder = NULL WHERE id = ?

-- name: delete
-- It has ended.
DELETE FROM jobs WHERE id = ?

-- name: get
-- One by its number.
SELECT id, kind, agent, key, payload, epoch, state, attempt, tries, due, created, error FROM jobs WHERE id = ?

-- name: list
-- A page of those in a state, or of all, newest first.
SELECT id, kind, agent, key, payload, epoch, state, attempt, tries, due, created, error FROM jobs
WHERE (?1 = '' OR state = ?1) ORDER BY id DESC LIMIT ?2

-- name: of_agent
-- All of one memory.
SELECT id, kind, agent, key, payload, epoch, state, attempt, tries, due, created, error FROM jobs
WHERE agent = ? ORDER BY id

-- name: counts
-- How many there are in each state.
SELECT state, count(*) FROM jobs GROUP BY state

-- name: step
-- What a step gave.
SELECT result FROM steps WHERE job = ? AND name = ?

-- name: step_insert
-- A step was performed.
INSERT INTO steps (job, name, at, result) VALUES (?, ?, ?, ?)

-- name: step_list
-- What a job has done so far, without what came of it.
SELECT job, name, at, length(result) FROM steps WHERE job = ? ORDER BY id

-- name: steps_delete
-- Of a job that has ended.
DELETE FROM steps WHERE job = ?

-- name: spend
-- One call more.
INSERT INTO spending (project, day, calls, tokens) VALUES (?, ?, 1, ?)
ON CONFLICT DO UPDATE SET calls = calls + 1, tokens = tokens + excluded.tokens

-- name: spent
-- What a project used on one day.
SELECT tokens FROM spending WHERE project = ? AND day = ?
