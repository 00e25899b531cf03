-- Jobs and their steps.

-- name: raise_epoch
-- Keeps turns and jobs that began before from committing.
UPDATE agents SET epoch = epoch + 1 WHERE id = ?

-- name: pending
-- Finds the job that waits under a key.
SELECT id, epoch, payload FROM jobs WHERE agent = ? AND kind = ? AND key = ? AND state = 'pending'
{postgres:FOR UPDATE}

-- name: insert
-- Adds a job. No row: a job waits under this key. ?4: when it is due; NULL: now. ?5: the present time.
INSERT INTO jobs (agent, kind, key, state, epoch, due, asked, created, payload, first)
VALUES (?1, ?2, ?3, 'pending', ?6, coalesce(CAST(?4 AS DOUBLE PRECISION), {clock:5}), {clock:5}, {clock:5}, ?7, 0)
ON CONFLICT DO NOTHING RETURNING id

-- name: coalesce
-- Gives a waiting job the payload of a new one, and the earlier of both times. ?2: when the new one is due; NULL: now.
UPDATE jobs SET epoch = ?1, asked = {clock:3}, payload = ?4,
    due = CASE WHEN due < coalesce(CAST(?2 AS DOUBLE PRECISION), {clock:3}) THEN due
          ELSE coalesce(CAST(?2 AS DOUBLE PRECISION), {clock:3}) END
WHERE id = ?5

-- piece: job
-- The columns of a job.
id, kind, agent, key, payload, epoch, state, attempt, tries, due, created, error

-- piece: ready
-- The condition on a waiting job `j` that may begin: it is the first of its serial group. A memory that is being
-- forgotten can still be read, so none of its jobs begins.
j.first = 1 AND j.state IN ('pending', 'retrying') AND j.agent NOT IN (SELECT f.agent FROM forgetting f)

-- piece: next
-- When the next job of each of the kinds ?2 is due; NULL: no job waits. Each kind takes one step in an index, however
-- many jobs wait.
WITH k(kind) AS ({each:2:TEXT:16})
SELECT kind, (SELECT j.due FROM jobs j WHERE j.kind = k.kind AND {ready} ORDER BY j.due, j.id LIMIT 1) AS due FROM k

-- name: due_in
-- Returns in how many seconds a job can be claimed or a lease runs out. ?3, ?4: the clock by which leases are measured,
-- and its time.
SELECT min(wait) FROM (
    SELECT CASE WHEN holder = ?3 AND held_until > {clock:4} THEN held_until - {clock:4} ELSE 0.0 END AS wait
    FROM jobs WHERE state = 'running' AND kind {in:2:TEXT:16}
    UNION ALL SELECT due - {clock:1} FROM ({next}) n) w

-- name: is_clock_set_back
-- Returns whether a job waits for a time of a clock that was set back since: it is unknown when the job is due. (The
-- plus keeps SQLite from the index on state, by which it would read all jobs that wait.)
SELECT 1 FROM jobs WHERE asked > ?1 + 1 AND +state IN ('pending', 'retrying') LIMIT 1

-- name: make_due
-- Makes the jobs due that wait for a time of a clock that was set back since (`is_clock_set_back`).
UPDATE jobs SET due = ?1, asked = ?1 WHERE asked > ?1 + 1 AND +state IN ('pending', 'retrying')

-- name: next
-- Finds the kind of the next job, if that is due.
SELECT kind FROM ({next}) n WHERE due <= {clock:1} ORDER BY due LIMIT 1

-- name: expired
-- Finds jobs with expired leases: their processes were killed, or hung. Returns whether each was released.
SELECT id, tries, held_until = 0 FROM jobs
WHERE state = 'running' AND kind {in:1:TEXT:16} AND (holder <> ?2 OR held_until <= {clock:3}) ORDER BY id
{postgres:FOR UPDATE SKIP LOCKED}

-- piece: claimed
-- The columns of a job that was claimed, then the end of its lease, and whether its agent still has the epoch with which
-- the job was made.
{job}, held_until,
agent = 0 OR coalesce(epoch = (SELECT a.epoch FROM agents a WHERE a.id = jobs.agent), FALSE)

-- name: take_over
-- Claims a job that another process has left.
UPDATE jobs SET attempt = attempt + 1, tries = tries + 1, holder = ?2, held_until = {clock:3} + ?4 WHERE id = ?1
RETURNING {claimed}

-- name: claim
-- Claims the next job of a kind, if it is due. The attempt is counted here, so that an attempt that kills the process
-- counts as well.
UPDATE jobs SET state = 'running', attempt = attempt + 1, tries = tries + 1, holder = ?3, held_until = {clock:4} + ?5
WHERE id = (
    SELECT j.id FROM jobs j WHERE j.kind = ?2 AND {ready} AND j.due <= {clock:1} ORDER BY j.due, j.id LIMIT 1
    {postgres:FOR UPDATE SKIP LOCKED})
RETURNING {claimed}

-- name: claim_of
-- Claims the first job of an agent's serial group, as `claim`.
UPDATE jobs SET state = 'running', attempt = attempt + 1, tries = tries + 1, holder = ?3, held_until = {clock:4} + ?5
WHERE id = (
    SELECT j.id FROM jobs j WHERE j.agent = ?6 AND j.kind = ?2 AND {ready} AND j.due <= {clock:1} LIMIT 1
    {postgres:FOR UPDATE SKIP LOCKED})
RETURNING {claimed}

-- name: renew_lease
-- Renews the lease of an attempt that still runs, if its agent has the same epoch.
UPDATE jobs SET held_until = {clock:3} + ?4 WHERE id = ?1 AND attempt = ?2 AND state = 'running'
AND (agent = 0 OR epoch = (SELECT a.epoch FROM agents a WHERE a.id = jobs.agent))
RETURNING id

-- name: release
-- Ends the lease of an attempt, which does not count. ?3: only where it was claimed until then; NULL: in any case.
UPDATE jobs SET held_until = 0, tries = tries - 1 WHERE id = ?1 AND attempt = ?2 AND state = 'running'
AND held_until <> 0 AND held_until = coalesce(CAST(?3 AS DOUBLE PRECISION), held_until)

-- name: is_held
-- Returns whether this attempt still runs, and its agent has the same epoch.
SELECT j.agent = 0 OR coalesce(j.epoch = a.epoch, FALSE) FROM jobs j LEFT JOIN agents a ON a.id = j.agent
WHERE j.id = ? AND j.attempt = ? AND j.state = 'running'

-- name: fence
-- Returns whether this attempt still runs, and keeps others from claiming it until the transaction ends.
SELECT 1 FROM jobs WHERE id = ? AND attempt = ? AND state = 'running' {postgres:FOR UPDATE}

-- name: retrying
-- Has a job that failed or was released wait. It stays the first of its serial group until it is due. A job that was
-- hastened meanwhile is due at once.
UPDATE jobs SET state = 'retrying', asked = {clock:1}, tries = ?3, error = ?4, holder = NULL,
    due = {clock:1} + CASE asked WHEN 0 THEN 0 ELSE CAST(?2 AS DOUBLE PRECISION) END
WHERE id = ?5

-- name: dead
-- Makes a dead letter of a job that failed for good. The job leaves its serial group; its error and its steps stay.
UPDATE jobs SET state = 'dead', error = ?, holder = NULL WHERE id = ?

-- name: older_dead
-- Finds older dead letters of the same key: one is enough.
SELECT o.id FROM jobs o JOIN jobs j ON o.agent = j.agent AND o.kind = j.kind AND o.key = j.key
WHERE j.id = ? AND o.state = 'dead' AND o.id <> j.id

-- name: revive
-- Has a dead job begin its attempts again; its steps still count.
UPDATE jobs SET state = 'pending', tries = 0, due = {clock:1}, asked = {clock:1}, error = NULL WHERE id = ?2

-- name: hasten
-- Makes a waiting job due now. A running job is due as soon as it waits again (`asked` is 0 until then).
UPDATE jobs SET due = {clock:1}, asked = CASE state WHEN 'running' THEN 0 ELSE {clock:1} END WHERE id = ?2

-- name: restart
-- Starts a job again after a forgetting: it gets the new epoch, a running attempt is fenced off and does not count, and
-- no message of an error is left.
UPDATE jobs SET tries = CASE state WHEN 'running' THEN tries - 1 ELSE tries END,
    state = CASE state WHEN 'running' THEN 'retrying' ELSE state END, attempt = attempt + 1, epoch = ?, payload = ?,
    error = NULL, holder = NULL WHERE id = ?

-- name: delete
-- Deletes a job that has ended.
DELETE FROM jobs WHERE id = ?

-- name: find
-- Reads a job by its number.
SELECT {job} FROM jobs WHERE id = ?

-- name: list
-- Reads a page of jobs in a state, or of all, newest first.
SELECT {job} FROM jobs
WHERE (?1 = '' OR state = ?1) ORDER BY id DESC LIMIT ?2

-- piece: with_scope
-- Jobs before a number, with the public ids and scopes of their memories. ?2: of one project; NULL: of all, and those of
-- no memory.
SELECT j.id, j.kind, j.agent, j.key, j.payload, j.epoch, j.state, j.attempt, j.tries, j.due, j.created, j.error,
    a.uid, a.project, a.profile, a.subject
FROM jobs j LEFT JOIN agents a ON a.id = j.agent WHERE j.id < ?1 AND (CAST(?2 AS TEXT) IS NULL OR a.project = ?2)

-- name: page_dead
-- Reads a page of the jobs that have failed for good, newest first.
{with_scope} AND j.state = 'dead' ORDER BY j.id DESC LIMIT ?3

-- name: page_open
-- Reads a page of the jobs that have not failed for good. (The plus keeps SQLite from the index on state, which has
-- another order.)
{with_scope} AND +j.state <> 'dead' ORDER BY j.id DESC LIMIT ?3

-- name: of_agent
-- Reads all jobs of a memory: those that are first in their serial groups, those that wait after them, and dead ones.
-- Each of the three has an index; for all jobs of an agent there is none.
SELECT {job} FROM jobs WHERE agent = ?1 AND first = 1
UNION ALL SELECT {job} FROM jobs WHERE agent = ?1 AND first = 0 AND state = 'pending'
UNION ALL SELECT {job} FROM jobs WHERE +agent = ?1 AND state = 'dead' ORDER BY id

-- name: counts
-- Counts the jobs in each state. NULL stands for all projects.
SELECT state, count(*) FROM jobs j
WHERE CAST(?1 AS TEXT) IS NULL OR EXISTS (SELECT 1 FROM agents a WHERE a.id = j.agent AND a.project = ?1) GROUP BY state

-- name: idle
-- Finds which of some memories have had no turn since a time, and have no job of a kind that failed for good.
SELECT a.id FROM agents a WHERE a.id {in:3:BIGINT:64}
AND a.id NOT IN (SELECT j.agent FROM jobs j WHERE j.kind = ?1 AND j.state = 'dead')
AND NOT EXISTS (SELECT 1 FROM conversations c WHERE c.agent = a.id AND c.last_at > ?2)

-- name: count_failing
-- Counts the jobs that are tried again after at least ?2 failures. NULL stands for all projects.
SELECT count(*) FROM jobs j WHERE j.state = 'retrying' AND j.tries >= ?2
AND (CAST(?1 AS TEXT) IS NULL OR EXISTS (SELECT 1 FROM agents a WHERE a.id = j.agent AND a.project = ?1))

-- name: state_of
-- Reads the state of a memory's job of a kind, and when it is due; if there are several, of one that is tried again,
-- for which the others wait, and else of one that is not dead.
SELECT state, due FROM (
    SELECT state, due FROM jobs WHERE agent = ?1 AND kind = ?2 AND first = 1
    UNION ALL SELECT state, due FROM jobs WHERE agent = ?1 AND kind = ?2 AND first = 0 AND state = 'pending'
    UNION ALL SELECT state, due FROM jobs WHERE +agent = ?1 AND kind = ?2 AND state = 'dead') found
ORDER BY CASE state WHEN 'retrying' THEN 0 WHEN 'dead' THEN 2 ELSE 1 END, due LIMIT 1

-- name: step
-- Returns the result of a step.
SELECT result FROM steps WHERE job = ? AND name = ?

-- name: step_insert
-- Adds the result of a step.
INSERT INTO steps (job, name, at, result) VALUES (?1, ?2, {clock:3}, ?4)

-- name: step_list
-- Lists the steps of a job without their results.
SELECT job, name, at, length(result) FROM steps WHERE job = ? ORDER BY id

-- name: steps_delete
-- Deletes the steps of a job that has ended.
DELETE FROM steps WHERE job = ?
