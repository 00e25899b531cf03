-- Every statement on sleeptime agents and their readings. `-- name:` begins one; the next line describes it.

-- name: read_from
-- Has a sleeptime agent read a memory from a point on.
INSERT INTO readers (memory, reader, seq, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING

-- name: read_no_more
-- Has a sleeptime agent read a memory no longer.
DELETE FROM readers WHERE memory = ? AND reader = ?

-- name: reading_open
-- Finds the run of a sleeptime agent's reading that has not ended, and the public id of its conversation.
SELECT r.id, c.uid FROM runs r JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent
WHERE r.agent = ?1 AND r.state IN ('created', 'running') AND c.key >= ?2 AND c.key < ?3 ORDER BY r.id LIMIT 1

-- name: read_up_to
-- Moves a reader's cursor, if it stands where it stood when the reading began.
UPDATE readers SET seq = ?1, at = ?2 WHERE memory = ?3 AND reader = ?4 AND seq = ?5

-- name: readings_end
-- Ends the readings of a sleeptime agent: its runs in the conversations with names from ?3 on and below ?4.
UPDATE runs SET state = 'failed', stop = 'error', ended = ?1
WHERE agent = ?2 AND state IN ('created', 'running') AND conversation IN (
    SELECT c.id FROM conversations c WHERE c.agent = ?2 AND c.key >= ?3 AND c.key < ?4)

-- name: readings
-- Finds the conversations of readings that hold words and have no run under way.
SELECT c.id FROM conversations c
WHERE c.agent = ?1 AND c.key >= ?2 AND c.key < ?3 AND NOT EXISTS (
    SELECT 1 FROM runs r WHERE r.agent = c.agent AND r.conversation = c.id AND r.state IN ('created', 'running'))
ORDER BY c.id LIMIT ?4

-- name: reading_exchanges
-- Finds the exchanges of a reading that hold words.
SELECT id FROM exchanges WHERE conversation = ?1 AND +agent = ?2 AND state <> 'forgotten' ORDER BY id

-- name: reading_run
-- Finds the run of a reading.
SELECT id FROM runs WHERE conversation = ?1 AND agent = ?2 ORDER BY id DESC LIMIT 1

-- name: reading_texts
-- Erases the texts of a reading's run.
{erase_run_texts} WHERE agent = ?1 AND agent <> 0 AND run = ?2 AND kind = ?3

-- name: reading_done
-- Takes its name from the conversation of a reading, after its words are gone.
UPDATE conversations SET key = ' ' || uid WHERE id = ? AND agent = ?
