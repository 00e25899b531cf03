-- Every statement of forgetting. Rows with text are emptied where they are, never deleted: a deleted row makes SQLite
-- deal out its neighbours anew, and copies of these would stay behind in the file. Emptied rows of a memory that is gone
-- belong to nobody (agent 0).

-- name: agents_of
-- Memories in a scope; NULL: whatever it is.
SELECT id, profile, subject FROM agents
WHERE project = ?1 AND (?2 IS NULL OR profile = ?2) AND (?3 IS NULL OR subject = ?3) AND id > ?4 ORDER BY id LIMIT ?5

-- name: scope_of
-- Whose a memory is.
SELECT project, profile, subject FROM agents WHERE id = ?

-- name: intend
-- Written first.
INSERT INTO forgetting (agent, target) VALUES (?, ?) RETURNING id

-- name: intended
-- What to forget.
SELECT agent, target FROM forgetting WHERE id = ?

-- name: unfinished
-- After a restart.
SELECT id FROM forgetting ORDER BY id

-- name: forgotten
-- Deleted last.
DELETE FROM forgetting WHERE id = ?

-- name: raise_epoch
-- What was begun before commits no more.
UPDATE agents SET epoch = epoch + 1 WHERE id = ?

-- name: agent_delete
-- With the secret goes what its hashes could say.
DELETE FROM agents WHERE id = ? RETURNING project, profile, subject

-- name: conversation_of
-- A conversation by its public name, or by the client's.
SELECT id FROM conversations WHERE agent = ?1 AND (uid = ?2 OR key = ?2)

-- name: exchange_of
-- The exchange that holds a message.
SELECT id FROM exchanges WHERE agent = ?1 AND seq <= ?2 AND seq + span > ?2 ORDER BY seq DESC LIMIT 1

-- name: messages_in
-- How many messages of a conversation are still there; one that was forgotten alone still counts.
SELECT coalesce(sum(span - 1 + (said IS NOT NULL)), 0) FROM exchanges
WHERE conversation = ?2 AND +agent = ?1 AND state NOT IN ('forgotten', 'off')

-- name: name_of
-- The public name of a conversation.
SELECT uid FROM conversations WHERE id = ?

-- name: exchanges_of
-- Of one conversation, those that are still there.
SELECT id FROM exchanges WHERE conversation = ?2 AND +agent = ?1 AND state <> 'forgotten' LIMIT ?3

-- name: exchanges_before
-- Those that are too old.
SELECT id FROM exchanges
WHERE agent = ?1 AND state <> 'forgotten' AND coalesce(ended, stopped, begun) < ?2 ORDER BY seq LIMIT ?3

-- name: agents_before
-- Memories of a project that hold something too old.
SELECT a.id FROM agents a WHERE a.project = ?1 AND a.id > ?3 AND (
    EXISTS (SELECT 1 FROM exchanges e
            WHERE e.agent = a.id AND e.state <> 'forgotten' AND coalesce(e.ended, e.stopped, e.begun) < ?2)
    OR EXISTS (SELECT 1 FROM passages p WHERE p.agent = a.id AND p.at < ?2))
ORDER BY a.id LIMIT ?4

-- name: alternatives
-- What has no standing at the place of an exchange.
SELECT id FROM exchanges
WHERE conversation = ?2 AND depth = ?3 AND parent IS ?4 AND +agent = ?1 AND id <> ?5
AND standing = 0 AND state NOT IN ('forgotten', 'off')

-- name: exchange_full
-- What an exchange hid.
SELECT full FROM exchanges WHERE id = ?

-- name: ops_erase
-- The memory edits of a turn.
UPDATE block_ops SET state = 'dropped', call_id = id, label = '', arguments = x'7b7d'
WHERE agent = ? AND exchange = ? AND length(arguments) > 2

-- name: touched
-- Exchanges that lost something, and where they stand.
SELECT e.id, e.seq, e.conversation, e.begun, e.ended FROM marks m JOIN exchanges e ON e.id = m.exchange
WHERE m.agent = ? AND m.kind = 'erased'

-- name: gone_days
-- Days of passages that are gone, kept until what quotes them is gone too.
SELECT exchange FROM marks WHERE agent = ? AND kind = 'day'

-- name: is_erased
-- Whether an exchange, of whatever memory, is being forgotten.
SELECT EXISTS (SELECT 1 FROM marks m JOIN exchanges e ON e.id = ?1
               WHERE m.agent = e.agent AND m.kind = 'erased' AND m.exchange = ?1)
    OR EXISTS (SELECT 1 FROM exchanges WHERE id = ?1 AND agent NOT IN (SELECT id FROM agents))

-- name: erased_done
-- All that came from them is gone as well; another one under way in the same memory may still need to know.
DELETE FROM marks WHERE agent = ?1 AND kind IN ('erased', 'day', 'blocks')
AND NOT EXISTS (SELECT 1 FROM forgetting WHERE agent = ?1 AND id <> ?2)

-- name: is_blocks
-- Whether a block had to be written anew.
SELECT EXISTS (SELECT 1 FROM marks WHERE agent = ? AND kind = 'blocks')

-- name: passages_of
-- A page of passages with their sources.
SELECT id, seq, at, exchange, sources FROM passages WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: passage_erase
-- Emptied; nobody's from now on.
UPDATE passages SET agent = -id, seq = 0, at = 0, exchange = NULL, sources = x'5b5d', text = '' WHERE id = ?

-- name: facts_of
-- A page of facts with their sources.
SELECT id, seq, valid_from, sources FROM facts WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: fact_erase
-- Emptied; nobody's from now on. What it took the place of stays untrue.
UPDATE facts SET agent = -id, seq = 0, at = 0, valid_from = 0, key = x'', exchange = NULL, sources = x'5b5d', about = '',
    text = '' WHERE id = ?

-- name: fact_ended_erase
-- Nor is it known when it ended.
DELETE FROM facts_ended WHERE fact = ?

-- name: blocks_seen
-- Blocks that a memory could write: its own and its profile's.
SELECT b.id FROM blocks b WHERE b.agent = ?1
UNION ALL SELECT b.id FROM blocks b WHERE b.agent IS NULL AND b.project = ?2 AND b.profile = ?3

-- name: block_versions
-- All values of a block, oldest first.
SELECT version, restores, origin, exchange, sources, value FROM block_history WHERE block = ? ORDER BY version

-- name: version_erase
-- One value of a block.
UPDATE block_history SET restores = NULL, origin = ?, exchange = NULL, sources = x'5b5d', value = ''
WHERE block = ? AND version = ?

-- name: op_done
-- The edit that made a version.
SELECT id, exchange, call_id, op, label, arguments, state, at FROM block_ops
WHERE exchange = ? AND call_id = ? AND length(arguments) > 2

-- name: snapshots_erase
-- Memory sections that show what is gone: each path takes a new one.
UPDATE snapshots SET text = '', versions = CAST(json_object('blocks', json('{}'), 'tools',
    json_extract(CAST(versions AS TEXT), '$.tools'), 'epoch', -1) AS BLOB)
WHERE agent = ? AND text <> ''

-- name: snapshots_erase_shared
-- The same for all who see a shared block.
UPDATE snapshots SET text = '', versions = CAST(json_object('blocks', json('{}'), 'tools',
    json_extract(CAST(versions AS TEXT), '$.tools'), 'epoch', -1) AS BLOB)
WHERE text <> '' AND agent IN (SELECT id FROM agents WHERE project = ? AND profile = ?)

-- name: raise_epochs_shared
-- And they take them at once.
UPDATE agents SET epoch = epoch + 1 WHERE project = ? AND profile = ?

-- name: additions
-- A page of what we added to turns.
SELECT id FROM exchanges WHERE agent = ?1 AND seq > ?2 AND id > ?3 AND (notes IS NOT NULL OR full IS NOT NULL)
ORDER BY id LIMIT ?4

-- name: block_owner
-- NULL: it is shared.
SELECT agent FROM blocks WHERE id = ?

-- name: wipe_exchanges
-- A page of a memory that is gone.
UPDATE exchanges SET agent = 0, conversation = 0, parent = NULL, seq = 0, begun = 0, touched = 0, ended = NULL,
    stopped = NULL, state = 'forgotten', standing = 0, edits = 0, adds = 0, opaque = 0, model = '', merged = '', size = 0,
    evicted = NULL, prior = NULL, snapshot = NULL, room = 0, path = x'', reply_key = NULL, input_key = NULL, hush = NULL,
    inputs = x'', media = x'', reply = NULL, notes = NULL, input = NULL, said = NULL, full = NULL, pad = NULL
WHERE id IN (SELECT id FROM exchanges WHERE agent = ? LIMIT ?)

-- name: wipe_snapshots
-- The same.
UPDATE snapshots SET agent = 0, text = '', versions = x'7b7d' WHERE id IN (SELECT id FROM snapshots WHERE agent = ? LIMIT ?)

-- name: wipe_passages
-- The same.
UPDATE passages SET agent = -id, seq = 0, at = 0, exchange = NULL, sources = x'5b5d', text = ''
WHERE id IN (SELECT id FROM passages WHERE agent = ? LIMIT ?)

-- name: wipe_facts
-- The same.
UPDATE facts SET agent = -id, seq = 0, at = 0, valid_from = 0, key = x'', exchange = NULL, sources = x'5b5d', about = '',
    text = '' WHERE id IN (SELECT id FROM facts WHERE agent = ? LIMIT ?)

-- name: wipe_ops
-- The same.
UPDATE block_ops SET agent = 0, exchange = -id, state = 'dropped', call_id = '', label = '', at = 0, arguments = x''
WHERE id IN (SELECT id FROM block_ops WHERE agent = ? LIMIT ?)

-- name: wipe_versions
-- The same.
UPDATE block_history SET block = -id, version = 0, restores = NULL, at = 0, origin = '', exchange = NULL,
    sources = x'5b5d', value = ''
WHERE id IN (SELECT h.id FROM blocks b JOIN block_history h ON h.block = b.id WHERE b.agent = ? LIMIT ?)

-- name: wipe_blocks
-- These hold no text of a user's.
DELETE FROM blocks WHERE agent = ?

-- name: wipe_shared_versions
-- What users of a project shared.
UPDATE block_history SET block = -id, version = 0, restores = NULL, at = 0, origin = '', exchange = NULL,
    sources = x'5b5d', value = ''
WHERE id IN (SELECT h.id FROM blocks b JOIN block_history h ON h.block = b.id
             WHERE b.agent IS NULL AND b.project = ? LIMIT ?)

-- name: wipe_shared_blocks
-- Made anew at the next first turn.
DELETE FROM blocks WHERE agent IS NULL AND project = ?

-- name: wipe_conversations
-- These neither.
DELETE FROM conversations WHERE id IN (SELECT id FROM conversations WHERE agent = ? LIMIT ?)

-- name: wipe_marks
-- Hashes, of use to nobody.
DELETE FROM marks WHERE agent = ?

-- name: wipe_terms
-- Likewise.
DELETE FROM terms WHERE agent = ?

-- name: wipe_vectors
-- A page; what is said by vectors lies in overflow pages (0005_vectors.sql), so these rows may go.
DELETE FROM vectors WHERE (agent, chunk) IN (SELECT agent, chunk FROM vectors WHERE agent = ? LIMIT ?)

-- name: wipe_embedded
-- Numbers alone.
DELETE FROM embedded WHERE agent = ?

-- name: wipe_ended
-- Numbers alone.
DELETE FROM facts_ended WHERE agent = ?

-- name: wipe_learned
-- Likewise.
DELETE FROM learned WHERE agent = ?
