-- The phases of a forgetting (storage/sql/erase.py).
--
-- In SQLite a row with text is emptied where it is (the pieces `erase_...`) and never deleted: SQLite would distribute
-- the rows next to a deleted row again, and copies of these would stay in the file. The emptied rows of a memory that is
-- gone have no owner (agent 0). In PostgreSQL a row that would have no owner is deleted. Both databases retain an emptied
-- row that other rows refer to as long as its agent or its block: an exchange in the path of another one, a memory
-- section that exchanges name, a version of a block and the edit that made it.

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

-- name: item_holders
-- Finds a page of the definitions with items of a memory: the definition of the conversation ?3, and the definitions
-- that have not changed since a time.
SELECT d.id FROM definitions d WHERE d.memory = ?1 AND d.memory <> 0 AND d.id > ?2 AND {holds_items}
AND (d.uid = (SELECT c.key FROM conversations c WHERE c.id = ?3 AND c.agent = ?1) OR d.updated < ?4)
ORDER BY d.id LIMIT ?5

-- name: edits_pending
-- Reads the memory edits of turns that are not confirmed yet.
SELECT exchange, call_id, arguments FROM block_ops WHERE agent = ? AND state = 'pending'

-- name: erased_done
-- Drops the marks once all that came from the exchanges is gone. Another forgetting under way in this memory may still
-- need them.
DELETE FROM marks WHERE agent = ?1 AND kind IN ('erased', 'reset', 'day', 'blocks')
AND NOT EXISTS (SELECT 1 FROM forgetting WHERE agent = ?1 AND id <> ?2)

-- name: passages_of
-- Reads a page of passages with their sources.
SELECT id, seq, at, exchange, sources, file FROM passages WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: passage_erase
-- Erases a passage.
{erase_passages} WHERE id = ?1 AND agent = ?2

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

-- name: wipe_exchanges
-- Erases a page of the exchanges of a memory that is gone.
{erase_exchanges} WHERE +agent = ?1 AND id IN (SELECT id FROM exchanges WHERE agent = ?1 ORDER BY seq LIMIT ?2)

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
DELETE FROM conversations
WHERE +agent = ?1 AND id IN (SELECT id FROM conversations WHERE agent = ?1 ORDER BY key LIMIT ?2)

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

-- name: wipe_project_texts
-- Erases the definitions of a project that belong to no memory.
{erase_definition_texts} WHERE definition IN (SELECT id FROM definitions WHERE project = ?1)

-- name: wipe_project_definitions
-- Deletes the definitions of a project that belong to no memory.
DELETE FROM definitions WHERE project = ?
