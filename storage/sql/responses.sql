-- Responses that outlive their requests, as runs of no conversation.

-- name: find
-- Reads a response in the background by its public id, with its memory. Such runs are of no stored conversation.
SELECT {agent}, {run}
FROM runs r JOIN agents a ON a.id = r.agent WHERE r.uid = ? AND a.project = ? AND r.conversation = 0

-- name: open_among
-- Finds which of some runs have not ended.
SELECT id FROM runs WHERE id {in:1:BIGINT:64} AND state IN ('created', 'running')

-- name: note_turn
-- Notes in which turn a response in the background lies.
UPDATE runs SET otid = ?3 WHERE id = ?1 AND agent = ?2

-- name: drop
-- Deletes a run.
DELETE FROM runs WHERE id = ?1 AND agent = ?2

-- name: events_drop
-- Erases the events of an attempt that was broken off, or with ?3 = '' all texts of a run.
{erase_run_texts}
WHERE agent = ?1 AND agent <> 0 AND run = ?2 AND (kind = ?3 OR CAST(?3 AS TEXT) = '')
