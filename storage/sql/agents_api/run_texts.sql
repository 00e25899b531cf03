-- Every statement on the texts of runs. `-- name:` begins one; the next line describes it.

-- name: text_insert
-- Adds a text to a run. Returns no row if the run has a text of this kind and seq, or the run or its memory is gone.
INSERT INTO run_texts (agent, run, seq, kind, data)
SELECT r.agent, r.id, ?3, ?4, ?5 FROM runs r JOIN agents a ON a.id = r.agent WHERE r.id = ?2 AND r.agent = ?1
ON CONFLICT DO NOTHING RETURNING id

-- name: texts
-- Reads a run's texts of a kind after a seq.
SELECT seq, data FROM run_texts WHERE agent = ? AND agent <> 0 AND run = ? AND kind = ? AND seq > ?
ORDER BY seq LIMIT ?

-- name: error_messages
-- Reads the messages of the errors that ended some runs.
SELECT run, data FROM run_texts WHERE agent <> 0 AND run {in:1:BIGINT:64} AND kind = 'words' AND seq = 0

-- name: text_replace
-- Gives a text another content.
UPDATE run_texts SET data = ?5 WHERE agent = ?1 AND agent <> 0 AND run = ?2 AND kind = ?3 AND seq = ?4

-- piece: may_resume
-- A run may resume, and needs the results of its calls, if its conversation ends with a step of it that waits for
-- answers or has no stop reason since the run broke off.
EXISTS (SELECT 1 FROM conversations c JOIN run_steps s ON s.exchange = c.tip AND +s.agent = c.agent
    WHERE c.id = r.conversation AND +c.agent = r.agent AND s.run = r.id AND (s.waiting IS NOT NULL OR s.stop IS NULL))

-- piece: unneeded_texts
-- The texts that nothing needs once their runs have ended: all but the message of the error that ended a run, the
-- listing of its messages, a response, and the names of turns.
FROM run_texts x JOIN runs r ON r.id = x.run AND +r.agent = +x.agent
WHERE x.agent <> 0 AND x.kind NOT IN ('words', 'listing', 'response', 'turn')
AND NOT (x.kind IN ('call', 'result') AND {may_resume})

-- name: texts_left
-- Finds runs that ended before a time and have unneeded texts.
SELECT DISTINCT x.run, x.agent {unneeded_texts} AND r.ended < ?1 ORDER BY x.run LIMIT ?2

-- name: texts_left_next
-- Returns when the first run ended that has unneeded texts.
SELECT min(r.ended) {unneeded_texts}

-- name: texts_drop
-- Erases the unneeded texts of a run.
{erase_run_texts} WHERE +agent = ?1 AND id IN (SELECT x.id {unneeded_texts} AND +x.agent = ?1 AND x.run = ?2)

-- name: texts_of
-- Finds the texts of an agent's runs that may hold words, and which of them are calls. A run that has not ended keeps
-- its request.
SELECT x.id, CASE WHEN x.kind = 'call' THEN 1 ELSE 0 END FROM run_texts x
WHERE x.agent = ?1 AND x.agent <> 0 AND x.id > ?2 AND {holds_words}
AND (x.kind <> 'request' OR NOT EXISTS (
    SELECT 1 FROM runs r WHERE r.id = x.run AND r.agent = x.agent AND r.state IN ('created', 'running')))
ORDER BY x.id LIMIT ?3

-- name: text_erase
-- Erases a text.
{erase_run_texts} WHERE id = ?1 AND agent = ?2

-- name: call_empty
-- Empties the text of a call. The row stays, as a record that the call was made.
UPDATE run_texts SET data = ?3 WHERE id = ?1 AND agent = ?2
