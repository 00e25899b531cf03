-- Every statement of export and import. Outside, an exchange is known by its number, a conversation by its uid.

-- name: conversation_read
-- Reads a page of an agent's conversations. `tip` is 0 in a client's conversation.
SELECT id, uid, key, begun, last_at, settled_at, CASE WHEN tip = 0 THEN 0 ELSE 1 END FROM conversations
WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: exchanges
-- Reads a page of exchanges, with the numbers of the exchanges to which they refer.
SELECT p.input, p.shown_reply, p."full", c.uid,
    (SELECT seq FROM exchanges x WHERE x.id = p.parent AND x.agent = p.agent),
       (SELECT seq FROM exchanges x WHERE x.id = p.prior AND x.agent = p.agent), {skeleton}
FROM exchanges p JOIN conversations c ON c.id = p.conversation AND c.agent = p.agent
WHERE p.agent = ? AND p.seq > ? ORDER BY p.seq LIMIT ?

-- name: block_read
-- Reads a page of an agent's own blocks.
SELECT b.id, b.label, b.description, b.lim, b.read_only, b.uid, t.body
FROM blocks b LEFT JOIN definitions d ON d.uid = b.uid AND d.kind = 'block'
LEFT JOIN definition_texts t ON t.id = d.current
WHERE b.agent = ? AND b.id > ? ORDER BY b.id LIMIT ?

-- name: definition_read
-- Reads a page of a memory's definitions, without conversations with items: the ids of items are of this database.
SELECT d.id, d.kind, d.uid, d.name, d.created, d.updated, t.body FROM definitions d
JOIN definition_texts t ON t.id = d.current
WHERE d.memory = ? AND d.memory <> 0 AND d.id > ? AND NOT ({holds_items}) ORDER BY d.id LIMIT ?

-- name: file_read
-- Reads a page of a folder's files.
SELECT id, uid, state, bytes, created, type, name FROM files WHERE memory = ? AND id > ? ORDER BY id LIMIT ?

-- name: tag_read
-- Reads a page of an agent's tags, each with its number.
SELECT row_number() OVER (ORDER BY tag), tag FROM tags WHERE agent = ?1 ORDER BY tag LIMIT ?3 OFFSET ?2

-- name: attached_read
-- Reads the objects that are attached to an agent, in a fixed order.
SELECT kind, target FROM attached WHERE agent = ? ORDER BY kind, place, target LIMIT ? OFFSET ?

-- name: attached_definition
-- Reads a tool or an identity that is attached.
SELECT d.uid, d.name, t.body FROM definitions d
JOIN definition_texts t ON t.id = d.current WHERE d.id = ? AND d.kind IN ('tool', 'identity')

-- name: attached_memory
-- Reads the name of an archive or a folder that is attached.
SELECT uid FROM agents WHERE id = ?

-- name: attached_block
-- Reads a block that is attached.
SELECT b.uid, b.label, b.description, b.lim, b.read_only, h.value, t.body
FROM blocks b JOIN block_history h ON h.id = b.current
LEFT JOIN definitions d ON d.uid = b.uid AND d.kind = 'block'
LEFT JOIN definition_texts t ON t.id = d.current WHERE b.id = ?

-- name: run_read
-- Reads a page of runs.
SELECT r.id, r.uid, c.uid, r.state, r.stop, r.depth, r.background, r.created, r.begun, r.ended
FROM runs r JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent
WHERE r.agent = ? AND r.id > ? ORDER BY r.id LIMIT ?

-- name: step_read
-- Reads a page of steps, by the numbers of their exchanges.
SELECT e.seq, e.id, r.uid, s.number, s.begun, s.ended, s.prompt, s.completion, s.cached, s.written, s.reasoning, s.stop,
       s.feedback, s.error, s.waiting
FROM exchanges e JOIN run_steps s ON s.exchange = e.id AND s.agent = e.agent
JOIN runs r ON r.id = s.run AND r.agent = s.agent
WHERE e.agent = ? AND e.seq > ? ORDER BY e.seq LIMIT ?

-- name: import_read
-- Reads a page of imports from other applications.
SELECT id, uid, format, status, learns, created, touched, data FROM imports
WHERE agent = ? AND id > ? ORDER BY id LIMIT ?

-- name: imported_read
-- Reads a page of the exchanges that imports have added, by their numbers.
SELECT e.seq, e.id, i.uid, m.what, m.learns
FROM exchanges e JOIN imported m ON m.id = e.id AND m.what IN ('exchange', 'stub') JOIN imports i ON i.id = m.import
WHERE e.agent = ?1 AND e.seq > ?2 AND EXISTS (SELECT 1 FROM imports WHERE agent = ?1) ORDER BY e.seq LIMIT ?3

-- name: imported_fact_read
-- Reads a page of the facts that imports have added, by their numbers.
SELECT f.seq, f.seq, i.uid FROM facts f JOIN imported m ON m.id = f.id AND m.what = 'fact'
JOIN imports i ON i.id = m.import
WHERE f.agent = ?1 AND f.seq > ?2 AND EXISTS (SELECT 1 FROM imports WHERE agent = ?1) ORDER BY f.seq LIMIT ?3

-- name: version_read
-- Reads a page of the values of these blocks.
SELECT h.id, b.label, h.version, h.restores, h.at, h.origin, h.exchange, h.sources, h.value
FROM blocks b JOIN block_history h ON h.block = b.id WHERE b.agent = ? AND h.id > ? ORDER BY h.id LIMIT ?

-- name: passage_read
-- Reads a page of passages.
SELECT p.seq, p.seq, p.at, p.exchange, p.sources, p.text, p.tags, (SELECT f.uid FROM files f WHERE f.id = p.file),
       p.metadata
FROM passages p WHERE p.agent = ? AND p.seq > ? ORDER BY p.seq LIMIT ?

-- name: fact_read
-- Reads a page of facts.
SELECT f.seq, f.seq, f.at, f.valid_from, f.exchange, f.sources, f.about, f.text, f.origin,
       CASE WHEN EXISTS (SELECT 1 FROM facts_muted m WHERE m.fact = f.id AND m.agent = f.agent) THEN 1 ELSE 0 END,
       f.standing
FROM facts f WHERE f.agent = ? AND f.seq > ? ORDER BY f.seq LIMIT ?

-- name: ended_read
-- Reads a page of facts that have ended, and the numbers of the facts that took their place; NULL: that fact is
-- forgotten, or came later.
SELECT x.fact, f.seq, x.at, s.seq
FROM facts_ended x JOIN facts f ON f.id = x.fact AND f.agent = x.agent
LEFT JOIN facts s ON s.id = x.successor AND s.agent = x.agent
WHERE x.agent = ?1 AND x.fact > ?2 AND coalesce(s.seq, 0) <= ?4 ORDER BY x.fact LIMIT ?3

-- name: edit_read
-- Reads a page of memory edits. Emptied edits are left out, and so are those that others have replaced (`edits_drop`). An
-- edit with a result after the end of the export (?4: its last number, ?5: its last version) is pending in the export.
SELECT o.id, o.exchange, o.call_id, CASE WHEN o.state = 'merged' AND (
        EXISTS (SELECT 1 FROM block_history h
            WHERE h.id > ?5 AND h.exchange = o.exchange AND h.origin = 'tool:' || o.call_id)
        OR EXISTS (SELECT 1 FROM passages p WHERE p.agent = o.agent AND p.seq > ?4 AND p.exchange = o.exchange)
        OR EXISTS (SELECT 1 FROM facts f
            WHERE f.agent = o.agent AND f.seq > ?4 AND f.exchange = o.exchange AND f.origin = 'model'))
    THEN 'pending' ELSE o.state END, o.at, o.op, o.label, o.arguments, o.seen
FROM block_ops o
WHERE o.agent = ?1 AND o.id > ?2 AND length(o.arguments) > 2 AND substr(o.call_id, 1, 1) <> ' ' ORDER BY o.id LIMIT ?3

-- name: seqs_of
-- Returns the numbers of some exchanges.
SELECT id, seq FROM exchanges WHERE +agent = ?1 AND id {in:2:BIGINT:64}

-- name: exchanges_at
-- Finds the exchanges with some numbers.
SELECT seq, id FROM exchanges WHERE agent = ?1 AND seq {in:2:BIGINT:64}

-- name: export_end
-- Returns where a memory ends now: its last number, the last row of each table without numbers in its rows, and how far
-- learning has come, with a model and without one: the rule skips what any reader has read. In PostgreSQL keys that
-- begin with the agent are looked up by the agent: finding the last row of all would be a scan.
SELECT next_seq - 1, (SELECT max(id) FROM conversations {postgres:WHERE agent = agents.id}),
    (SELECT max(id) FROM blocks),
       (SELECT max(id) FROM block_history), (SELECT max(id) FROM block_ops {postgres:WHERE agent = agents.id}),
       (SELECT max(id) FROM definitions), (SELECT max(id) FROM files),
       (SELECT max(id) FROM runs {postgres:WHERE agent = agents.id}),
       (SELECT max(seq) FROM readers WHERE memory = agents.id AND reader >= 0),
       (SELECT max(seq) FROM readers WHERE memory = agents.id)
FROM agents WHERE id = ?

-- name: is_empty
-- Returns whether a memory may be replaced: it has no message, passage or fact, and no block was written.
SELECT (SELECT id FROM conversations WHERE agent = ?1 ORDER BY key LIMIT 1) IS NULL
   AND NOT EXISTS (SELECT 1 FROM passages WHERE agent = ?1)
   AND NOT EXISTS (SELECT 1 FROM facts WHERE agent = ?1)
   AND NOT EXISTS (SELECT 1 FROM blocks WHERE agent = ?1 AND version > 1)

-- name: load_path_end
-- Reads the end of the path to an exchange, oldest first: from the last exchange on that has a reply, since its hash is
-- that of the path up to it.
WITH RECURSIVE up(id, parent, reply) AS (
    SELECT id, parent, reply FROM exchanges WHERE agent = ?1 AND seq = ?2
    UNION ALL SELECT e.id, e.parent, e.reply FROM up JOIN exchanges e ON e.id = up.parent AND e.agent = ?1
    WHERE up.reply IS NULL)
SELECT {skeleton} FROM up JOIN exchanges p ON p.id = up.id AND p.agent = ?1 ORDER BY p.depth

-- name: conversation_put
-- Adds a conversation as it was.
INSERT INTO conversations (agent, uid, key, begun, last_at, settled_at, tip) VALUES (?, ?, ?, ?, ?, ?, ?)

-- name: conversation_at
-- Finds a conversation by its public id, or by the public id of its copy.
SELECT id FROM conversations WHERE agent = ? AND uid IN (?, ?)

-- name: conversation_taken
-- Returns whether any memory has a conversation with this public id, as when a memory is copied within a database.
SELECT 1 FROM conversations WHERE uid = ?

-- name: block_taken
-- Returns whether a block has this public id.
SELECT 1 FROM blocks WHERE uid = ?

-- name: definition_taken
-- Returns whether a definition has this public id.
SELECT 1 FROM definitions WHERE uid = ?

-- name: block_of
-- Finds a block of a project by its public id.
SELECT id FROM blocks WHERE uid = ? AND project = ?

-- name: file_taken
-- Returns whether a file has this public id.
SELECT 1 FROM files WHERE uid = ?

-- name: run_taken
-- Returns whether a run has this public id.
SELECT 1 FROM runs WHERE uid = ?

-- name: import_taken
-- Returns whether an import has this public id.
SELECT 1 FROM imports WHERE uid = ?

-- name: agent_taken
-- Returns whether a memory has this public id.
SELECT 1 FROM agents WHERE uid = ?

-- name: file_put
-- Adds a file.
INSERT INTO files (memory, uid, state, bytes, created, type, name) VALUES (?, ?, ?, ?, ?, ?, ?)

-- name: file_at
-- Finds a file by its public id, or by the public id of its copy.
SELECT id FROM files WHERE memory = ? AND uid IN (?, ?)

-- name: tag_put
-- Tags an agent, in a project that does not exist.
INSERT INTO tags (agent, project, tag) VALUES (?, ?, ?) ON CONFLICT DO NOTHING

-- name: attach_imported
-- Attaches something, under a kind that no statement asks for.
INSERT INTO attached (agent, kind, target, place)
SELECT ?1, ?2, ?3, coalesce((SELECT max(x.place) + 1 FROM attached x WHERE x.agent = ?1 AND x.kind = ?2), 0)
WHERE true ON CONFLICT DO NOTHING

-- name: run_put
-- Adds a run. Its steps follow.
INSERT INTO runs (agent, uid, conversation, state, stop, depth, background, created, begun, ended)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: run_at
-- Finds a run by its public id, or by the public id of its copy.
SELECT id FROM runs WHERE agent = ? AND uid IN (?, ?)

-- name: import_put
-- Adds an import as it was.
INSERT INTO imports (agent, uid, format, status, learns, created, touched, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: import_at
-- Finds an import by its public id, or by the public id of its copy.
SELECT id FROM imports WHERE agent = ? AND uid IN (?, ?)

-- name: imported_put
-- Notes that an import has added an exchange.
INSERT INTO imported (what, id, import, conversation, learns)
SELECT ?4, e.id, ?3, e.conversation, ?5 FROM exchanges e WHERE e.agent = ?1 AND e.id = ?2

-- name: imported_fact_put
-- Notes that an import has added a fact.
INSERT INTO imported (what, id, import, conversation, learns)
SELECT 'fact', f.id, ?3, 0, 0 FROM facts f WHERE f.agent = ?1 AND f.seq = ?2

-- name: definition_of
-- Returns whether a memory has a definition of a kind.
SELECT 1 FROM definitions WHERE memory = ? AND memory <> 0 AND kind = ?

-- name: publish_definitions
-- Moves the definitions of an import to their project.
UPDATE definitions SET project = ? WHERE memory = ? AND project = ?

-- name: publish_tags
-- Moves the tags of an import to their project.
UPDATE tags SET project = ? WHERE agent = ? AND project = ?

-- name: publish_attached
-- Gives attached objects the kinds that statements ask for.
UPDATE attached SET kind = substr(kind, ?1) WHERE agent = ?2 AND substr(kind, 1, ?1 - 1) = ?3

-- name: block_put
-- Adds a block, without a value yet.
INSERT INTO blocks (agent, project, profile, label, description, lim, read_only, uid, version, current)
SELECT id, project, profile, ?2, ?3, ?4, ?5, ?6, 0, 0 FROM agents WHERE id = ?1

-- name: version_put
-- Adds a value of a block, after the values that the block has.
INSERT INTO block_history (block, version, restores, at, origin, exchange, sources, value)
SELECT id, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM blocks WHERE agent = ?1 AND label = ?2 AND version < ?3
RETURNING id, block

-- name: version_point
-- Makes a version the present one of a block.
UPDATE blocks SET version = ?, current = ? WHERE id = ? AND agent = ?

-- name: passage_put
-- Adds a passage with its number.
INSERT INTO passages (agent, seq, at, exchange, sources, text, tags, file, metadata) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: edit_put
-- Adds a memory edit as it was.
INSERT INTO block_ops (agent, exchange, call_id, state, at, op, label, arguments, seen)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: edit_waits
-- Marks the edits of an exchange as waiting to be merged. In the source they may have been merged before the exchange
-- was read.
UPDATE exchanges SET merged = '' WHERE id = ? AND agent = ? AND merged <> ''

-- name: set_next_seq
-- Sets the next number of a memory, so that no number that was given out is given out again.
UPDATE agents SET next_seq = ?, stamp = stamp + 1 WHERE id = ?

-- name: set_created
-- Sets when a memory began. While it was imported it had the time at which the import began.
UPDATE agents SET created = ? WHERE id = ?

-- name: rename
-- Gives a memory another subject and another public id.
UPDATE agents SET subject = ?, uid = ? WHERE id = ?

-- name: fact_put
-- Adds a fact with its number.
INSERT INTO facts (agent, seq, at, valid_from, exchange, sources, about, text, origin, standing, key)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: ended_put
-- Ends a fact. The fact that took its place may be forgotten.
INSERT INTO facts_ended (fact, agent, successor, at)
SELECT id, agent, coalesce((SELECT s.id FROM facts s WHERE s.agent = ?1 AND s.seq = ?4), 0), ?3
FROM facts WHERE agent = ?1 AND seq = ?2
