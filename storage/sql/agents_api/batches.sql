-- Every statement on batches. `-- name:` begins one; the next line describes it.

-- piece: batch
-- The columns of a batch `b`.
b.id, b.uid, b.project, b.state, b.created, b.ended, b.callback

-- name: insert
-- Adds a batch.
INSERT INTO batches (uid, project, state, created, callback) VALUES (?, ?, ?, ?, ?) RETURNING id

-- name: get
-- Reads a batch.
SELECT {batch} FROM batches b WHERE b.id = ?

-- name: find
-- Reads a batch by its public id, if it is the project's; ?2 NULL: any project's.
SELECT {batch} FROM batches b WHERE b.uid = ?1 AND (CAST(?2 AS TEXT) IS NULL OR b.project = ?2)

-- name: list
-- Lists batches.
SELECT {batch} FROM batches b WHERE (CAST(?1 AS TEXT) IS NULL OR b.project = ?1) AND b.id > ?2 AND b.id < ?3
ORDER BY b.id {direction} LIMIT ?4

-- name: count_states
-- Counts batches by their state.
SELECT state, count(*) FROM batches GROUP BY state

-- name: count_open_items
-- Counts the items of all batches that have not ended.
SELECT r.state, r.stop, count(*) FROM batches b CROSS JOIN batch_items i ON i.batch = b.id
LEFT JOIN runs r ON r.id = i.run AND r.agent <> 0
WHERE b.state IN ('created', 'running') GROUP BY 1, 2

-- name: set_state
-- Moves a batch that has not ended.
UPDATE batches SET state = ?2, ended = ?3 WHERE id = ?1 AND state IN ('created', 'running')

-- name: find_job
-- Finds the job of a batch: the first of its serial group, one that waits after it, or a dead one. Each of the three has
-- an index; for all jobs of a key there is none.
SELECT id FROM jobs WHERE agent = 0 AND kind = 'batch' AND CASE agent WHEN 0 THEN key ELSE '' END = ?1 AND first = 1
UNION ALL SELECT id FROM jobs WHERE agent = 0 AND kind = 'batch' AND key = ?1 AND first = 0 AND state = 'pending'
UNION ALL SELECT id FROM jobs WHERE +agent = 0 AND kind = 'batch' AND key = ?1 AND state = 'dead'

-- name: list_half_accepted
-- Lists the batches from before a time that have not ended and have no job yet.
SELECT {batch} FROM batches b WHERE b.state IN ('created', 'running') AND b.created < ?
AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.agent = 0 AND j.kind = 'batch' AND j.key = b.uid) ORDER BY b.id

-- name: known_parts
-- Reads the journal's entries about providers' batches, of all jobs.
SELECT s.result FROM steps s JOIN jobs j ON j.id = s.job WHERE j.agent = 0 AND j.kind = 'batch' AND s.name LIKE 'made-%'

-- name: journal
-- Reads the entries of a job's journal.
SELECT name, result FROM steps WHERE job = ? ORDER BY id

-- name: find_agents
-- Finds agents of a project by their public ids.
SELECT uid, id FROM agents WHERE +project = ?1 AND uid {in:2:TEXT:64}
