-- Every statement of forgetting. In SQLite rows with text are erased by emptying them where they are (the pieces
-- `erase_...`), never by deleting them: a deleted row makes it deal out its neighbours again, and copies of these would
-- stay behind in the file. Emptied rows of a memory that is gone have no owner (agent 0). In PostgreSQL a row that would
-- have no owner is deleted. What others count on stays in both, emptied, as long as its agent or its block: an exchange
-- in its path, a memory section that exchanges name, a version of a block and the edit that made it.

-- piece: erase_exchanges (sqlite)
-- Erases exchanges.
UPDATE exchanges SET agent = 0, conversation = 0, parent = NULL, seq = 0, begun = 0, touched = 0, ended = NULL,
    stopped = NULL, state = 'forgotten', active = 0, edits = 0, adds = 0, opaque = 0, model = '', merged = '', size = 0,
    evicted = NULL, prior = NULL, section = NULL, room = 0, path = x'', reply_key = NULL, input_key = NULL,
    redactions = NULL, inputs = x'', media = x'', reply = NULL, notes = NULL, input = NULL,
    shown_reply = NULL, "full" = NULL, pad = NULL

-- piece: erase_exchanges (postgres)
DELETE FROM exchanges

-- piece: erase_passages (sqlite)
-- Erases passages.
UPDATE passages SET agent = -id, seq = 0, at = 0, exchange = NULL, file = NULL, tags = NULL, metadata = NULL,
    sources = x'5b5d', text = ''

-- piece: erase_passages (postgres)
DELETE FROM passages

-- piece: erase_facts (sqlite)
-- Erases facts. Those that they replaced stay untrue.
UPDATE facts SET standing = 0, agent = -id, seq = 0, at = 0, valid_from = 0, key = x'', exchange = NULL,
    sources = x'5b5d', about = '', text = ''

-- piece: erase_facts (postgres)
DELETE FROM facts

-- piece: erase_files (sqlite)
-- Erases files, which have names that people gave them.
UPDATE files SET memory = 0, state = '', bytes = 0, created = 0, type = '', name = ''

-- piece: erase_files (postgres)
DELETE FROM files

-- name: agents_of
-- Finds the memories of a project, in one profile or (NULL) any.
SELECT id FROM agents
WHERE project = ?1 AND (CAST(?2 AS TEXT) IS NULL OR profile = ?2) AND id > ?3 ORDER BY id LIMIT ?4

-- name: agents_of_subject
-- Finds the memories of a project that have the subject ?3, in one profile or (NULL) any. The profiles, which are few,
-- are found one after the other in the index of scopes: the project may have a million other subjects.
WITH RECURSIVE profiles(name) AS (
    SELECT min(a.profile) FROM agents a WHERE a.project = ?1
    UNION ALL SELECT (SELECT min(a.profile) FROM agents a WHERE a.project = ?1 AND a.profile > profiles.name)
    FROM profiles WHERE profiles.name IS NOT NULL
)
SELECT a.id FROM profiles CROSS JOIN agents a ON a.project = ?1 AND a.profile = profiles.name AND a.subject = ?3
WHERE (CAST(?2 AS TEXT) IS NULL OR profiles.name = ?2) AND +a.id > ?4 ORDER BY a.id LIMIT ?5

-- name: scope_of
-- Reads the scope of a memory.
SELECT project, profile, subject FROM agents WHERE id = ?

-- name: intend
-- Writes down the target of a forgetting, before anything else.
INSERT INTO forgetting (agent, target) VALUES (?, ?) RETURNING id

-- name: import_stop
-- Stops an import that is to be undone, whichever process performs it.
UPDATE imports SET status = 'stopped' WHERE id = ? AND status <> 'undone'

-- name: intended
-- Reads the intention of a forgetting.
SELECT agent, target FROM forgetting WHERE id = ?

-- name: unfinished
-- Finds the forgettings that were begun before a restart.
SELECT id FROM forgetting ORDER BY id

-- name: forgotten
-- Ends a forgetting, after everything else.
DELETE FROM forgetting WHERE id = ?

-- name: only_memory
-- Finds the project and the name of the user who has this memory and no other one.
SELECT a.project, substr(a.subject, 6) FROM agents a WHERE a.id = ?1 AND a.subject LIKE 'user:%' AND NOT EXISTS
    (SELECT 1 FROM agents b WHERE b.project = a.project AND b.subject = a.subject AND b.id <> a.id)

-- name: agent_delete
-- Deletes an agent. With its secret goes all that its hashes could say.
DELETE FROM agents WHERE id = ? RETURNING project, profile

-- name: imports_unname
-- Takes the names from the imports of a memory that is gone: the same files may be imported again before the rows go.
UPDATE imports SET uid = ' ' || id WHERE agent = ?

-- name: conversation_of
-- Finds a conversation by its public id or the client's name.
SELECT id FROM conversations WHERE agent = ?1 AND (uid = ?2 OR key = ?2)

-- name: messages_in
-- Counts the messages of a conversation that are still there.
SELECT CAST(coalesce(sum(e.messages), 0) AS BIGINT) FROM exchanges e WHERE e.conversation = ?2 AND +e.agent = ?1

-- name: exchanges_of
-- Finds exchanges of a conversation that are still there.
SELECT id FROM exchanges WHERE conversation = ?2 AND +agent = ?1 AND state <> 'forgotten' LIMIT ?3

-- name: exchanges_before
-- Finds exchanges that are too old.
SELECT id FROM exchanges
WHERE agent = ?1 AND state <> 'forgotten' AND coalesce(ended, stopped, begun) < ?2 ORDER BY seq LIMIT ?3

-- name: agents_before
-- Reads a page of the memories of a project in which nothing is being forgotten, and whether each holds something too
-- old. ?2: the time before which something is too old; ?5: the same where a run is open, which a forgetting would end.
SELECT a.id, CASE WHEN EXISTS (SELECT 1 FROM exchanges e
        WHERE e.agent = a.id AND e.state <> 'forgotten' AND coalesce(e.ended, e.stopped, e.begun) < a.oldest)
    OR EXISTS (SELECT 1 FROM passages p WHERE p.agent = a.id AND p.at < a.oldest)
    OR EXISTS (SELECT 1 FROM facts f WHERE f.agent = a.id AND f.valid_from < a.oldest)
    OR EXISTS (SELECT 1 FROM files f WHERE f.memory = a.id AND f.created < a.oldest)
    OR EXISTS (SELECT 1 FROM definitions d
               WHERE d.memory = a.id AND d.memory <> 0 AND {holds_items} AND d.updated < a.oldest)
    OR EXISTS (SELECT 1 FROM run_texts x JOIN runs r ON r.id = x.run AND r.agent = x.agent
               WHERE x.agent = a.id AND x.agent <> 0 AND {holds_words}
               AND r.state NOT IN ('created', 'running') AND coalesce(r.ended, r.created) < a.oldest)
    THEN 1 ELSE 0 END
FROM (
    SELECT m.id, CASE WHEN m.id IN (SELECT r.agent FROM runs r WHERE r.state IN ('created', 'running'))
                 THEN CAST(?5 AS DOUBLE PRECISION) ELSE ?2 END AS oldest
    FROM agents m WHERE m.project = ?1 AND m.id > ?3
    AND NOT EXISTS (SELECT 1 FROM forgetting f WHERE f.agent = m.id) ORDER BY m.id LIMIT ?4) a
ORDER BY a.id

-- name: item_holders
-- Finds a page of the definitions with items of a memory: the definition of the conversation ?3, and the definitions
-- that have not changed since a time.
SELECT d.id FROM definitions d WHERE d.memory = ?1 AND d.memory <> 0 AND d.id > ?2 AND {holds_items}
AND (d.uid = (SELECT c.key FROM conversations c WHERE c.id = ?3 AND c.agent = ?1) OR d.updated < ?4)
ORDER BY d.id LIMIT ?5

-- name: inactive_before
-- Finds memories that began before a time, in which no message came since. ?2: how their subjects begin.
SELECT a.id FROM agents a WHERE substr(a.subject, 1, length(?2)) = ?2 AND a.created < ?1
AND NOT EXISTS (SELECT 1 FROM forgetting f WHERE f.agent = a.id)
AND NOT EXISTS (SELECT 1 FROM conversations c WHERE c.agent = a.id AND c.last_at >= ?1)
ORDER BY a.id LIMIT ?3

-- name: alternatives
-- Finds the other exchanges at the place of an exchange. ?6: 1 for the active ones, 0 for those that are not.
SELECT id FROM exchanges
WHERE conversation = ?2 AND depth = ?3 AND (parent = ?4 OR (parent IS NULL AND CAST(?4 AS BIGINT) IS NULL))
AND +agent = ?1 AND id <> ?5
AND active = ?6 AND state NOT IN ('forgotten', 'off')

-- name: branch_touched
-- Returns when a request last repeated an exchange or went on from it. ?4, ?5: its depth, and when it was touched
-- itself.
WITH RECURSIVE branch(id, depth, touched) AS (
    SELECT CAST(?3 AS BIGINT), CAST(?4 AS BIGINT), CAST(?5 AS DOUBLE PRECISION)
    UNION ALL
    SELECT e.id, e.depth, e.touched FROM branch b JOIN exchanges e
    ON e.conversation = ?2 AND e.depth = b.depth + 1 AND e.parent = b.id AND +e.agent = ?1)
SELECT max(touched) FROM branch

-- name: inactive_after
-- Finds the exchanges that follow another one directly and are not active. ?3: their depth.
SELECT id FROM exchanges
WHERE conversation = ?2 AND depth = ?3 AND parent = ?4 AND +agent = ?1 AND active = 0
AND state NOT IN ('forgotten', 'off')

-- name: edits_erase
-- Empties the memory edits of a turn. No call has an id that begins with a blank.
UPDATE block_ops SET state = 'dropped', call_id = ' ' || id, label = '', arguments = ?3, seen = NULL
WHERE agent = ?1 AND exchange = ?2 AND length(arguments) > 2

-- name: edits_pending
-- Reads the memory edits of turns that are not confirmed yet.
SELECT exchange, call_id, arguments FROM block_ops WHERE agent = ? AND state = 'pending'

-- name: edits_pending_in_block
-- Reads the memory edits of a block that are not confirmed yet, of all memories that see the block.
SELECT {edit} FROM block_ops
WHERE state = 'pending' AND label = ?2 AND agent IN ({seers}) ORDER BY id

-- name: touched
-- Reads the exchanges that lost something, and where they stand.
SELECT DISTINCT e.id, e.seq, e.conversation, e.begun, e.ended FROM marks m
JOIN exchanges e ON e.id = m.exchange AND e.agent = m.agent
WHERE m.agent = ? AND m.kind IN ('erased', 'reset')

-- name: forks_after
-- Finds the forks with exchanges of some conversations in their past, and the last number of the past there.
SELECT origin, conversation, seq FROM forks WHERE agent = ?1 AND origin {in:2:BIGINT:64}

-- name: gone_days
-- Reads the days of passages and facts that are gone. They are retained until what quotes them is gone too. A mark of
-- this kind has the number of its day where others have an exchange.
SELECT exchange FROM marks WHERE agent = ? AND kind = 'day'

-- name: load_erased
-- Finds which of some exchanges, of any memory, are being forgotten with what came from them (an exchange marked
-- `reset` is not). A block that several memories share may come from any of them.
SELECT e.id FROM exchanges e WHERE e.id {in:1:BIGINT:64} AND (
    EXISTS (SELECT 1 FROM marks m WHERE m.agent = e.agent AND m.kind = 'erased' AND m.exchange = e.id)
    OR NOT EXISTS (SELECT 1 FROM agents a WHERE a.id = e.agent))

-- name: remaining
-- Reads the exchanges among these that have content, with all of it.
SELECT {shown} FROM exchanges p WHERE +p.agent = ?1 AND p.state NOT IN ('forgotten', 'off') AND p.id {in:2:BIGINT:64}

-- name: erased_done
-- Drops the marks once all that came from the exchanges is gone. Another forgetting under way in this memory may still
-- need them.
DELETE FROM marks WHERE agent = ?1 AND kind IN ('erased', 'reset', 'day', 'blocks')
AND NOT EXISTS (SELECT 1 FROM forgetting WHERE agent = ?1 AND id <> ?2)

-- name: is_blocks
-- Returns whether a block had to be rewritten.
SELECT EXISTS (SELECT 1 FROM marks WHERE agent = ? AND kind = 'blocks')

-- name: passages_of
-- Reads a page of passages with their sources.
SELECT id, seq, at, exchange, sources, file FROM passages WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: passage_erase
-- Erases a passage.
{erase_passages} WHERE id = ?1 AND agent = ?2

-- name: file_erase
-- Erases a file.
{erase_files} WHERE id = ? AND memory = ?

-- name: files_before
-- Erases the files that are too old.
{erase_files} WHERE memory = ? AND created < ?

-- name: facts_of
-- Reads a page of facts with their sources.
SELECT id, seq, valid_from, NULL, sources, NULL FROM facts WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: fact_erase
-- Erases a fact.
{erase_facts} WHERE id = ?1 AND agent = ?2

-- name: fact_ended_erase
-- Drops when a fact ended.
DELETE FROM facts_ended WHERE fact = ? AND agent = ?

-- name: fact_mute_erase
-- Drops that a fact is muted.
DELETE FROM facts_muted WHERE fact = ? AND agent = ?

-- name: facts_named
-- Reads the texts of some facts, which blocks may repeat, and the keys by which the facts would be learned again.
SELECT text, key, exchange, sources FROM facts WHERE agent = ?1 AND seq {in:2:BIGINT:64}

-- name: days_named
-- Reads the days that some facts and passages are from.
SELECT valid_from FROM facts WHERE agent = ?1 AND seq {in:2:BIGINT:64}
UNION ALL SELECT at FROM passages WHERE agent = ?1 AND seq {in:2:BIGINT:64}

-- name: recalls_of
-- Reads a page of a memory's recalls.
SELECT exchange, data FROM recalls WHERE agent = ? AND exchange > ? ORDER BY exchange LIMIT ?

-- name: recall_set
-- Overwrites the record of a recall by a record of as many bytes.
UPDATE recalls SET data = ? WHERE exchange = ? AND agent = ?

-- name: messages_there
-- Reads which of some numbers are in stored exchanges, with the redactions of these exchanges.
WITH wanted(seq) AS ({each:2:BIGINT:64}),
held(seq, id) AS (
    SELECT wanted.seq, (SELECT x.id FROM exchanges x
        WHERE x.agent = ?1 AND x.seq <= wanted.seq ORDER BY x.seq DESC LIMIT 1)
    FROM wanted WHERE wanted.seq IS NOT NULL
)
SELECT held.seq, e.seq, e.span, e.redactions FROM held CROSS JOIN exchanges e ON e.id = held.id
WHERE e.agent = ?1 AND held.seq < e.seq + e.span AND e.state NOT IN ('forgotten', 'off')

-- name: facts_there
-- Reads which of some numbers are of facts.
SELECT seq FROM facts WHERE agent = ?1 AND seq {in:2:BIGINT:64}

-- name: passages_there
-- Reads which of some numbers are of passages.
SELECT seq FROM passages WHERE agent = ?1 AND seq {in:2:BIGINT:64} AND text <> ''

-- name: blocks_seen
-- Finds the blocks that a memory could write, each with its owner, in the order in which they are locked: the memory's
-- own blocks, those attached to it, its profile's blocks (which no memory owns), and those of its sleeptime agents.
SELECT b.id, b.agent FROM blocks b WHERE b.agent = ?1
UNION ALL SELECT b.id, b.agent FROM blocks b
WHERE b.agent IS NULL AND b.profile <> '' AND b.project = ?2 AND b.profile = CAST(?3 AS TEXT)
UNION ALL SELECT b.id, coalesce(b.agent, 0) FROM attached x
JOIN blocks b ON b.id = x.target WHERE x.agent = ?1 AND x.kind = 'block'
UNION ALL SELECT b.id, b.agent FROM readers r JOIN blocks b ON b.agent = r.reader WHERE r.memory = ?1 AND r.reader <> 0
ORDER BY 1

-- name: block_lock
-- Locks a block before its values are read: turns of other users may be writing it.
SELECT id FROM blocks WHERE id = ? {postgres:FOR NO KEY UPDATE}

-- name: block_versions
-- Reads all values of a block, oldest first.
SELECT version, restores, at, origin, exchange, sources, value FROM block_history WHERE block = ? ORDER BY version

-- name: versions_turnless
-- Finds the values that batch items of a memory have written without a turn that is there: the turn is still to come,
-- or never will be stored.
SELECT h.version FROM block_history h
JOIN runs r ON r.uid = substr(h.origin, 6, 32) AND r.agent = ?1 AND r.batch IS NOT NULL
WHERE h.block = ?2 AND h.exchange IS NULL AND substr(h.origin, 1, 5) = 'tool:'

-- name: version_erase
-- Empties one value of a block.
UPDATE block_history SET restores = NULL, origin = ?1, exchange = NULL, sources = ?4, value = ''
WHERE block = ?2 AND version = ?3

-- name: version_rewrite
-- Gives a value of a block another text. The row keeps its length.
UPDATE block_history SET value = ?, sources = ? WHERE block = ? AND version = ?

-- piece: of_call
-- The condition on the edit of a call (?2) in an exchange (?1), which is of the agent that has the exchange.
agent = (SELECT e.agent FROM exchanges e WHERE e.id = ?1) AND exchange = ?1 AND call_id = ?2 AND length(arguments) > 2

-- name: edit_of_call
-- Reads the edit that made a version.
SELECT {edit} FROM block_ops WHERE {of_call}

-- name: edit_of_call_erase
-- Empties an edit, so that it makes no version again.
UPDATE block_ops SET state = 'dropped', call_id = ' ' || id, label = '', arguments = ?3, seen = NULL
WHERE {of_call}

-- name: raise_epochs_seeing
-- Has all who see a block take a new memory section at once.
UPDATE agents SET epoch = epoch + 1 WHERE id IN ({seers})

-- name: steps_seeing
-- Empties the journals of the jobs of all who see a block: the jobs may have read the block.
DELETE FROM steps WHERE job IN (SELECT j.id FROM jobs j WHERE j.agent IN ({seers}))

-- name: renew_seeing
-- Has the jobs of all who see a block begin again, since nothing of theirs was forgotten.
UPDATE jobs SET state = CASE state WHEN 'running' THEN 'retrying' ELSE state END, attempt = attempt + 1, error = NULL,
    holder = NULL, epoch = (SELECT a.epoch FROM agents a WHERE a.id = jobs.agent)
WHERE agent IN ({seers})

-- name: begun_before
-- Finds the last exchange before a number that began before a time.
SELECT seq FROM exchanges WHERE agent = ?1 AND seq < ?2 AND begun < ?3 ORDER BY seq DESC LIMIT 1

-- name: additions
-- Finds a page of exchanges to which the gateway added something, or which follow a step of a run: the step's calls may
-- have results in them.
SELECT e.id, s.exchange FROM exchanges e LEFT JOIN run_steps s ON s.exchange = e.parent AND s.agent = ?1
WHERE e.agent = ?1 AND e.seq > ?2 AND e.id > ?3
    AND (e.notes IS NOT NULL OR e."full" IS NOT NULL OR s.exchange IS NOT NULL)
ORDER BY e.id LIMIT ?4

-- name: foreign_additions
-- Finds the same of the other agents that see a block that was rewritten.
SELECT e.id, e.agent, s.exchange FROM exchanges e LEFT JOIN run_steps s ON s.exchange = e.parent AND s.agent = e.agent
WHERE e.agent <> ?1 AND e.id > ?2 AND e.agent IN (
        SELECT agent FROM blocks WHERE id IN (SELECT exchange FROM marks WHERE agent = ?1 AND kind = 'blocks')
        UNION SELECT x.agent FROM attached x WHERE x.kind = 'block'
        AND x.target IN (SELECT exchange FROM marks WHERE agent = ?1 AND kind = 'blocks'))
    AND (e.notes IS NOT NULL OR e."full" IS NOT NULL OR s.exchange IS NOT NULL)
ORDER BY e.id LIMIT ?3

-- name: wipe_exchanges
-- Erases a page of the exchanges of a memory that is gone.
{erase_exchanges} WHERE +agent = ?1 AND id IN (SELECT id FROM exchanges WHERE agent = ?1 LIMIT ?2)

-- name: wipe_snapshots (sqlite)
-- Empties a page of the memory sections of a memory that is gone.
UPDATE sections SET agent = 0, text = '', known = x'7b7d' WHERE id IN (SELECT id FROM sections WHERE agent = ? LIMIT ?)

-- name: wipe_snapshots (postgres)
DELETE FROM sections WHERE agent = ?1 AND id IN (SELECT id FROM sections WHERE agent = ?1 LIMIT ?2)

-- name: wipe_passages
-- Erases a page of the passages of a memory that is gone.
{erase_passages} WHERE +agent = ?1 AND id IN (SELECT id FROM passages WHERE agent = ?1 LIMIT ?2)

-- name: wipe_facts
-- Erases a page of the facts of a memory that is gone.
{erase_facts} WHERE +agent = ?1 AND id IN (SELECT id FROM facts WHERE agent = ?1 LIMIT ?2)

-- name: wipe_ops (sqlite)
-- Empties a page of the memory edits of a memory that is gone.
UPDATE block_ops SET agent = 0, exchange = -id, state = 'dropped', call_id = '', label = '', at = 0, arguments = x'',
    seen = NULL
WHERE id IN (SELECT id FROM block_ops WHERE agent = ? LIMIT ?)

-- name: wipe_ops (postgres)
DELETE FROM block_ops WHERE agent = ?1 AND id IN (SELECT id FROM block_ops WHERE agent = ?1 LIMIT ?2)

-- name: wipe_versions
-- Erases a page of the values of the blocks of a memory that is gone.
{erase_values}
WHERE id IN (SELECT h.id FROM blocks b JOIN block_history h ON h.block = b.id WHERE b.agent = ? LIMIT ?)

-- name: wipe_blocks
-- Deletes a memory's blocks, which hold no text of a user's.
DELETE FROM blocks WHERE agent = ?

-- name: wipe_shared_versions
-- Erases a page of the values of the blocks that the users of a project shared.
{erase_values}
WHERE id IN (SELECT h.id FROM blocks b JOIN block_history h ON h.block = b.id
             WHERE b.agent IS NULL AND b.project = ? LIMIT ?)

-- name: wipe_shared_blocks
-- Deletes the blocks that the users of a project shared; the next first turn makes them again.
DELETE FROM blocks WHERE agent IS NULL AND project = ?

-- name: wipe_conversations
-- Deletes a page of conversations, which hold no text.
DELETE FROM conversations WHERE id IN (SELECT id FROM conversations WHERE agent = ? LIMIT ?)

-- name: wipe_forks
-- Deletes where a memory's forks begin.
DELETE FROM forks WHERE agent = ?

-- name: wipe_marks
-- Deletes a page of hashes, which are of no use without the secret.
DELETE FROM marks WHERE (agent, kind, hash, exchange) IN
    (SELECT agent, kind, hash, exchange FROM marks WHERE agent = ? LIMIT ?)

-- name: wipe_terms
-- Deletes a page of the search index: its hashes are of no use without the secret.
DELETE FROM terms WHERE (agent, chunk) IN (SELECT agent, chunk FROM terms WHERE agent = ? LIMIT ?)

-- name: wipe_segments
-- Deletes a page of the segments of the search index.
DELETE FROM segments WHERE (agent, bucket, number) IN
    (SELECT agent, bucket, number FROM segments WHERE agent = ? LIMIT ?)

-- name: wipe_vectors
-- Deletes a page of vectors. SQLite keeps their contents in overflow pages
-- (`vectors` in storage/sqlite/migrations/0000-0020_tables.sql), so the rows may be deleted.
DELETE FROM vectors WHERE (agent, chunk) IN (SELECT agent, chunk FROM vectors WHERE agent = ? LIMIT ?)

-- name: wipe_embedded
-- Deletes how far a memory has been embedded.
DELETE FROM embedded WHERE agent = ?

-- name: wipe_ended
-- Deletes when a memory's facts ended.
DELETE FROM facts_ended WHERE agent = ?

-- name: wipe_muted
-- Deletes which of a memory's facts are muted.
DELETE FROM facts_muted WHERE agent = ?

-- name: wipe_recalls
-- Deletes a memory's recalls.
DELETE FROM recalls WHERE agent = ?

-- name: imported_exchanges
-- Finds a page of the exchanges that an import has added.
SELECT id FROM imported WHERE import = ?1 AND what = 'exchange' AND id > ?2 ORDER BY id LIMIT ?3

-- name: imported_facts
-- Finds which of some facts an import has added.
SELECT id FROM imported WHERE what = 'fact' AND import = ?1 AND id {in:2:BIGINT:128}

-- name: imported_conversation
-- Finds the next conversation to which an import has added something.
SELECT conversation FROM imported WHERE import = ?1 AND conversation > ?2 ORDER BY conversation LIMIT 1

-- name: deepest
-- Finds the deepest exchanges of a conversation, and whether an import has added each.
SELECT e.id, CASE WHEN EXISTS (SELECT 1 FROM imported i WHERE i.what = 'exchange' AND i.id = e.id AND i.import = ?3)
    THEN 1 ELSE 0 END
FROM exchanges e WHERE e.conversation = ?2 AND +e.agent = ?1 ORDER BY e.depth DESC LIMIT ?4

-- name: release
-- Erases exchanges that an import has added: nothing follows them.
{erase_exchanges} WHERE +agent = ?1 AND id {in:2:BIGINT:64}

-- name: released
-- Drops the notes that some exchanges are from an import.
DELETE FROM imported WHERE import = ?1 AND what = 'exchange' AND id {in:2:BIGINT:64}

-- name: stubbed
-- Notes that the rest of a conversation's imported exchanges stay as hashes, until they are imported again: live turns
-- follow them.
UPDATE imported SET what = 'stub' WHERE import = ?1 AND conversation = ?2 AND what = 'exchange'

-- name: conversation_released
-- Deletes a conversation in which nothing is left.
DELETE FROM conversations WHERE id = ?1 AND agent = ?2 AND NOT EXISTS (
    SELECT 1 FROM exchanges e WHERE e.conversation = ?1 AND +e.agent = ?2)

-- name: undone
-- Notes that everything is gone that an import has added.
UPDATE imports SET status = 'undone' WHERE id = ? AND agent = ?

-- name: facts_released
-- Drops the notes of facts that an import has added.
DELETE FROM imported WHERE import = ? AND what = 'fact'

-- name: wipe_imported
-- Deletes a page of the notes of rows that imports have added to a memory.
DELETE FROM imported WHERE (what, id) IN
    (SELECT m.what, m.id FROM imports i JOIN imported m ON m.import = i.id WHERE i.agent = ? LIMIT ?)

-- name: wipe_imports
-- Deletes a memory's imports.
DELETE FROM imports WHERE agent = ?

-- name: wipe_links
-- Deletes the links to a memory.
DELETE FROM links WHERE agent = ?

-- name: wipe_readers
-- Deletes the readers of a memory, and the readings of the memory's own agent.
DELETE FROM readers WHERE memory = ?1 OR reader = ?1

-- name: wipe_run_texts
-- Erases a page of the texts of a memory's runs.
{erase_run_texts} WHERE +agent = ?1 AND id IN (SELECT id FROM run_texts WHERE agent = ?1 AND agent <> 0 LIMIT ?2)

-- name: wipe_run_steps
-- Deletes a page of the steps of a memory's runs, which are numbers.
DELETE FROM run_steps WHERE exchange IN (SELECT exchange FROM run_steps WHERE agent = ? LIMIT ?)

-- name: wipe_runs
-- Deletes a page of a memory's runs.
DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE agent = ? LIMIT ?)

-- name: wipe_files (sqlite)
-- Erases a page of files. Their public ids are free again, for instance for another import.
UPDATE files SET memory = 0, state = '', bytes = 0, created = 0, type = '', name = '',
    uid = substr(hex(randomblob(length(uid))), 1, length(uid))
WHERE id IN (SELECT id FROM files WHERE memory = ? LIMIT ?)

-- name: wipe_files (postgres)
DELETE FROM files WHERE id IN (SELECT id FROM files WHERE memory = ? LIMIT ?)

-- name: wipe_block_texts
-- Erases the definitions of a memory's blocks.
{erase_definition_texts}
WHERE definition IN (SELECT d.id FROM blocks b JOIN definitions d ON d.uid = b.uid WHERE b.agent = ?)

-- name: wipe_block_details
-- Deletes the definitions of a memory's blocks.
DELETE FROM definitions WHERE kind = 'block' AND uid IN (SELECT uid FROM blocks WHERE agent = ?)

-- name: wipe_block_sharing
-- Detaches a memory's blocks from all agents.
DELETE FROM attached WHERE agent <> 0 AND kind = 'block' AND target IN (SELECT id FROM blocks WHERE agent = ?)

-- name: wipe_attached
-- Deletes the objects that are attached to a memory, and the places where the memory is attached itself.
DELETE FROM attached WHERE agent = ?1 OR (kind IN ('archive', 'folder') AND target = ?1)

-- name: waiting_erase
-- Ends the wait for the calls of a reply that is gone.
UPDATE run_steps SET waiting = NULL WHERE exchange = ? AND agent = ? AND waiting IS NOT NULL

-- name: wipe_project_texts
-- Erases the definitions of a project that belong to no memory.
{erase_definition_texts} WHERE definition IN (SELECT id FROM definitions WHERE project = ?1)

-- name: wipe_project_definitions
-- Deletes the definitions of a project that belong to no memory.
DELETE FROM definitions WHERE project = ?
