-- Every statement on exchanges and conversations. `-- name:` begins one; the next line says what it is for.
-- `{skeleton}` is the list of columns without content (history.py); `{n}` a run of placeholders.

-- name: look
-- All that a request needs to know before it is answered, in one round trip: rows told apart by their first column.
-- ?3 is the hash of the client's list up to its last assistant message, NULL where it has none.
WITH RECURSIVE
named(id) AS (SELECT id FROM conversations WHERE agent = ?1 AND key = ?2),
p AS (
    SELECT e.* FROM exchanges e JOIN conversations c ON c.id = e.conversation
    WHERE e.agent = ?1 AND e.path = ?3
      AND (c.key = ?2 OR (?2 IS NULL AND c.key IS NULL))
    ORDER BY e.begun DESC, e.id DESC LIMIT 1
),
adds(id) AS (
    SELECT CASE WHEN p.adds THEN p.id ELSE p.prior END FROM p
    UNION ALL
    SELECT e.prior FROM adds JOIN exchanges e ON e.id = adds.id WHERE e.prior IS NOT NULL
)
SELECT 'agent', epoch, next_seq, indexed_seq, NULL, NULL, NULL, NULL, NULL, {pad}
FROM agents WHERE id = ?1 AND project = ?4 AND profile = ?5 AND subject = ?6
UNION ALL
SELECT 'conversation', c.id, c.uid, c.key, c.rev, c.last_at, NULL, NULL, NULL, {pad}
FROM conversations c WHERE c.id = coalesce((SELECT conversation FROM p), (SELECT id FROM named))
UNION ALL
SELECT 'exchange',
       EXISTS (SELECT 1 FROM exchanges k
               WHERE k.conversation = p.conversation AND k.depth = p.depth + 1 AND k.parent = p.id),
       p.parent IS NULL AND EXISTS (
           SELECT 1 FROM exchanges r WHERE r.conversation = p.conversation AND r.depth = 0 AND r.id <> p.id),
       NULL, NULL, NULL, NULL, NULL, NULL, {skeleton}
FROM p
UNION ALL
SELECT 'addition', p.input, p.said, p.full, NULL, NULL, NULL, NULL, NULL, {skeleton}
FROM adds JOIN exchanges p ON p.id = adds.id
UNION ALL
SELECT 'head', 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, {pad}
FROM marks WHERE agent = ?1 AND kind = 'head' AND hash = ?3
UNION ALL
SELECT * FROM (
    SELECT 'tomb', 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, {pad}
    FROM marks WHERE agent = ?1 AND kind = 'tomb' LIMIT 1)
UNION ALL
SELECT 'snapshot', s.id, s.text, s.versions, NULL, NULL, NULL, NULL, NULL, {pad}
FROM p JOIN snapshots s ON s.id = p.snapshot
UNION ALL
SELECT 'block', b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.agent IS NULL, {pad}
FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.agent = ?1
UNION ALL
SELECT 'block', b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.agent IS NULL, {pad}
FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent IS NULL AND b.project = ?4 AND b.profile = ?5
UNION ALL
SELECT 'op', o.id, o.exchange, o.call_id, o.op, o.label, o.arguments, o.at, NULL, {pad}
FROM block_ops o WHERE o.agent = ?1 AND o.state = 'pending'

-- name: pool_found
-- The exchanges of every conversation without an id that a list may belong to: one that it repeats from the first
-- message on (of these the newest), one that has a reply of ours that is in the list, one with the same question,
-- one whose opening nobody continued yet.
WITH hit(conversation) AS (
    SELECT conversation FROM (SELECT conversation FROM exchanges
        WHERE agent = ?1 AND reply_key IN ({replies}) ORDER BY id DESC LIMIT 64)
    UNION SELECT conversation FROM (SELECT conversation FROM exchanges
        WHERE agent = ?1 AND path IN ({marks}) ORDER BY id DESC LIMIT 32)
    UNION SELECT conversation FROM (SELECT conversation FROM exchanges
        WHERE agent = ?1 AND input_key IN ({inputs}) ORDER BY id DESC LIMIT 32)
    UNION SELECT conversation FROM (SELECT conversation FROM exchanges
        WHERE agent = ?1 AND parent IS NULL AND carried = 0 AND touched >= ?2 ORDER BY begun DESC LIMIT 64)
    UNION SELECT e.conversation FROM (SELECT exchange FROM marks
        WHERE agent = ?1 AND hash IN ({marks}) LIMIT 32) m JOIN exchanges e ON e.id = m.exchange
)
, part(conversation, low) AS (
    SELECT c.id, coalesce({low}, (SELECT max(depth) FROM exchanges e WHERE e.conversation = c.id) - {reach}, 0)
    FROM (SELECT DISTINCT conversation FROM hit) h JOIN conversations c ON c.id = h.conversation
    WHERE c.key IS NULL
)
SELECT {skeleton} FROM part CROSS JOIN exchanges p ON p.conversation = part.conversation AND p.depth >= part.low
UNION ALL
SELECT {skeleton} FROM part CROSS JOIN exchanges p ON p.conversation = part.conversation AND p.depth = 0
WHERE part.low > 0
ORDER BY {depth} DESC, {id} DESC LIMIT ?3

-- name: conversation_of
-- A conversation by the client's id.
SELECT id FROM conversations WHERE agent = ? AND key = ?

-- name: conversation_insert
-- First turn.
INSERT INTO conversations (agent, uid, key, begun, last_at) VALUES (?, ?, ?, ?, ?) RETURNING id

-- name: epoch
-- Whether something was forgotten since; and up to where the search index knows.
SELECT epoch, indexed_seq FROM agents WHERE id = ?

-- name: content
-- What an exchange says.
SELECT id, input, said, full FROM exchanges WHERE id = ? AND agent = ?

-- name: contents
-- What several say.
SELECT id, input, said, full FROM exchanges WHERE agent = ? AND id IN ({n})

-- name: exchange_add
-- A turn, planned on a conversation that has not moved since; no row where it has.
INSERT INTO exchanges ({columns}, run, agent, seq)
SELECT {values}, CASE WHEN a.next_seq = ? THEN ? ELSE a.next_seq END, a.id, a.next_seq
FROM agents a JOIN conversations c ON c.agent = a.id
WHERE a.id = ? AND a.epoch = ? AND c.id = ? AND c.rev = ?
RETURNING id, seq

-- name: exchange_insert
-- A turn that was resolved inside this transaction.
INSERT INTO exchanges ({columns}, run, agent, seq)
SELECT {values}, CASE WHEN next_seq = ? THEN ? ELSE next_seq END, id, next_seq FROM agents WHERE id = ?
RETURNING id, seq

-- name: exchange_carry
-- A later request has finished on it.
UPDATE exchanges SET carried = 1 WHERE id = ? AND agent = ?

-- name: conversation_moved
-- Something but the number of its exchanges has changed.
UPDATE conversations SET rev = rev + 1, last_at = max(last_at, ?) WHERE id = ?

-- name: mark
-- A hash that has to be recognised.
INSERT OR IGNORE INTO marks (agent, kind, hash, exchange) VALUES (?, ?, ?, ?)

-- name: snapshot_insert
-- A memory section that was sent.
INSERT INTO snapshots (agent, text, versions) VALUES (?, ?, ?) RETURNING id

-- name: told_at
-- The exchanges that hold certain messages, by the agent's order.
WITH wanted(seq) AS (VALUES {n}),
held(id) AS (
    SELECT DISTINCT (SELECT x.id FROM exchanges x WHERE x.agent = ?1 AND x.seq <= wanted.seq ORDER BY x.seq DESC LIMIT 1)
    FROM wanted WHERE wanted.seq IS NOT NULL
)
SELECT p.input, p.said, {skeleton} FROM held CROSS JOIN exchanges p ON p.id = held.id
WHERE p.standing = 1 AND p.state = 'finished'

-- name: told_since
-- What the search index does not know yet.
SELECT p.input, p.said, {skeleton} FROM exchanges p
WHERE p.agent = ? AND p.seq >= ? AND NOT p.seq BETWEEN ? AND ? AND p.state = 'finished' ORDER BY p.seq LIMIT ?

-- name: told_unread
-- What has changed since it was indexed (a message that was indexed before its reply had come), and then the same.
SELECT p.input, p.said, {skeleton} FROM marks m CROSS JOIN exchanges p ON p.id = m.exchange
WHERE m.agent = ?1 AND m.kind = 'stale' AND p.seq < ?2 AND NOT p.seq BETWEEN ?3 AND ?4 AND p.state = 'finished'
UNION ALL
SELECT * FROM (SELECT p.input, p.said, {skeleton} FROM exchanges p
    WHERE p.agent = ?1 AND p.seq >= ?2 AND NOT p.seq BETWEEN ?3 AND ?4 AND p.state = 'finished'
    ORDER BY p.seq LIMIT ?5)

-- name: head_openings
-- In how many conversations a head made elsewhere has been an opening.
SELECT count(DISTINCT e.conversation) FROM marks m JOIN exchanges e ON e.id = m.exchange
WHERE m.agent = ? AND m.kind = 'head' AND m.hash = ?

-- name: due
-- Conversations that have gone idle with memory edits that wait for it. (No index on idle conversations: it would be
-- written with every turn, and hardly any of them has anything to settle.) What lies behind ?2 moved before the clock was
-- put back: nobody can tell how long it has been idle, nor whether it was settled since.
SELECT DISTINCT c.id, c.agent, c.key, c.last_at
FROM block_ops o JOIN exchanges e ON e.id = o.exchange JOIN conversations c ON c.id = e.conversation
WHERE o.state = 'pending' AND (c.last_at > c.settled_at AND c.last_at <= ?1 OR c.last_at > ?2)
ORDER BY c.last_at LIMIT ?3

-- name: next_due
-- When the next one will.
SELECT min(c.last_at)
FROM block_ops o JOIN exchanges e ON e.id = o.exchange JOIN conversations c ON c.id = e.conversation
WHERE o.state = 'pending' AND c.last_at > c.settled_at

-- name: settled
-- Done with it until it moves again. ?3: when it last moved, ?2: the same, or now where that is still to come.
UPDATE conversations SET settled_at = ?2, last_at = iif(last_at = ?3, ?2, last_at)
WHERE id = ?1 AND (settled_at < ?2 OR last_at = ?3)

-- name: unmerged
-- Exchanges of a conversation with memory edits that have not entered the blocks.
SELECT {skeleton} FROM exchanges p WHERE conversation = ? AND edits = 1 AND merged = '' LIMIT 1

-- name: pool_conversation
-- The exchanges of one conversation, the newest if there are very many. (`+`: looked up by conversation, not by agent.)
-- ?4: how far up from the deepest one, ?5: or from which depth on; first exchanges always.
WITH part(low) AS (
    SELECT coalesce(?5, (SELECT max(depth) FROM exchanges WHERE conversation = ?1) - ?4, 0)
)
SELECT {skeleton} FROM part CROSS JOIN exchanges p ON p.conversation = ?1 AND p.depth >= part.low WHERE +p.agent = ?2
UNION ALL
SELECT {skeleton} FROM part CROSS JOIN exchanges p ON p.conversation = ?1 AND p.depth = 0
WHERE part.low > 0 AND +p.agent = ?2
ORDER BY {depth} DESC, {id} DESC LIMIT ?3

-- name: ops_drop
-- A turn that was asked again keeps the edits of its last answer.
UPDATE block_ops SET state = 'dropped' WHERE agent = ? AND exchange = ? AND state = 'pending'

-- name: previous
-- The last message before an exchange.
SELECT seq + span - 1 FROM exchanges WHERE id = ?

-- name: agent_by_id
-- Whose a row is.
SELECT uid, project, profile, subject, secret, epoch, indexed_seq, next_seq, created FROM agents WHERE id = ?

-- name: stale
-- Indexed exchanges whose words have changed since.
SELECT exchange FROM marks WHERE agent = ? AND kind = 'stale' LIMIT ?

-- name: stale_done
-- Indexed anew.
DELETE FROM marks WHERE agent = ? AND kind = 'stale' AND exchange = ?

-- name: exchange_get
-- One with its content.
SELECT p.input, p.said, {skeleton} FROM exchanges p WHERE p.id = ? AND p.agent = ?

-- name: kept_at
-- Passages, and facts that are still true, by the agent's order.
WITH wanted(seq) AS (VALUES {n})
SELECT p.seq, p.text, p.at, 'passage', NULL, NULL FROM wanted
JOIN passages p ON p.agent = ?1 AND p.seq = wanted.seq
UNION ALL
SELECT f.seq, f.text, f.valid_from, 'fact', f.sources, e.conversation FROM wanted
JOIN facts f ON f.agent = ?1 AND f.seq = wanted.seq LEFT JOIN exchanges e ON e.id = f.exchange
WHERE NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id)

-- name: kept_since
-- Those that the search index does not know yet.
SELECT seq, text, at, 'passage', NULL, NULL FROM passages WHERE agent = ?1 AND seq >= ?2
UNION ALL
SELECT f.seq, f.text, f.valid_from, 'fact', f.sources, e.conversation
FROM facts f LEFT JOIN exchanges e ON e.id = f.exchange
WHERE f.agent = ?1 AND f.seq >= ?2 AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id)
ORDER BY 1 LIMIT ?3

-- name: recent
-- What stands, newest first.
SELECT p.input, p.said, {skeleton} FROM exchanges p
WHERE p.agent = ? AND p.standing = 1 AND p.state = 'finished' ORDER BY p.seq DESC LIMIT ?

-- name: behind
-- Agents whose search index is behind, after a restart.
SELECT id FROM agents WHERE next_seq - indexed_seq > ? LIMIT ?

-- name: head_marks
-- Under which hashes an imported head is known.
SELECT hash FROM marks WHERE agent = ? AND kind = 'head' AND exchange = ?

-- name: snapshot
-- A memory section as it was sent.
SELECT id, text, versions FROM snapshots WHERE id = ? AND agent = ?

-- name: conversation_uid
-- What a conversation is called outside.
SELECT uid FROM conversations WHERE id = ? AND agent = ?

-- name: shared_blocks
-- Blocks that all users of a profile see.
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version
FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent IS NULL AND b.project = ? AND b.profile = ? ORDER BY b.id

-- name: tombs
-- Which of some messages are off the record or forgotten.
SELECT hash FROM marks WHERE agent = ? AND kind = 'tomb' AND hash IN ({n})

-- name: unlearned
-- What follows the point where learning is, whatever became of it.
SELECT p.input, p.said, {skeleton} FROM exchanges p
WHERE p.agent = ? AND p.seq > ? AND p.seq <= ? ORDER BY p.seq LIMIT ?
