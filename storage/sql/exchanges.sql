-- Exchanges and conversations: reads snapshots and pools, and writes turns. `-- name:` begins a statement; the next line
-- describes it.

-- piece: no_skeleton
-- The skeleton's columns in a row of `memory_snapshot` that has no exchange.
NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL

-- piece: typed_skeleton
-- The skeleton's columns in the first row of `memory_snapshot`, which gives the columns their types.
CAST(NULL AS BIGINT), CAST(NULL AS BIGINT), CAST(NULL AS BIGINT), CAST(NULL AS BIGINT), CAST(NULL AS BIGINT),
CAST(NULL AS BIGINT), CAST(NULL AS BIGINT), CAST(NULL AS DOUBLE PRECISION), CAST(NULL AS DOUBLE PRECISION),
CAST(NULL AS DOUBLE PRECISION), CAST(NULL AS DOUBLE PRECISION), CAST(NULL AS TEXT), CAST(NULL AS BIGINT),
CAST(NULL AS BIGINT), CAST(NULL AS BIGINT), CAST(NULL AS BIGINT), CAST(NULL AS TEXT), CAST(NULL AS BIGINT),
CAST(NULL AS BIGINT), CAST(NULL AS BYTEA), CAST(NULL AS BIGINT), CAST(NULL AS BIGINT), CAST(NULL AS BYTEA),
CAST(NULL AS BYTEA), CAST(NULL AS BYTEA), CAST(NULL AS BYTEA), CAST(NULL AS BYTEA), CAST(NULL AS BYTEA),
CAST(NULL AS BYTEA), CAST(NULL AS BIGINT), CAST(NULL AS BIGINT), CAST(NULL AS TEXT), CAST(NULL AS BIGINT)

-- name: memory_snapshot
-- All that a request needs to know before it is answered, in one round trip. The first column names the kind of a row;
-- then come five numbers, three texts, three contents and a time, each kind in columns of its own, since PostgreSQL
-- takes their types from the first branch. ?3 is the hash of the client's list up to its last assistant message, NULL
-- where it has none; ?1 the agent, ?2 the client's conversation id, ?4 to ?6 the scope.
WITH RECURSIVE
named(id) AS (SELECT id FROM conversations WHERE agent = ?1 AND key = ?2),
p AS (
    SELECT e.* FROM exchanges e JOIN conversations c ON c.id = e.conversation AND c.agent = e.agent
    WHERE e.agent = ?1 AND e.path = ?3
      AND (c.key = ?2 OR (CAST(?2 AS TEXT) IS NULL AND {unnamed}))
    ORDER BY e.begun DESC, e.id DESC LIMIT 1
),
adds(id) AS (
    SELECT CASE WHEN p.adds <> 0 THEN p.id ELSE p.prior END FROM p
    UNION ALL
    SELECT e.prior FROM adds JOIN exchanges e ON e.id = adds.id AND e.agent = ?1 WHERE e.prior IS NOT NULL
)
SELECT 'agent', epoch, next_seq, indexed_seq, rev, stamp,
       CAST(NULL AS TEXT), CAST(NULL AS TEXT), CAST(NULL AS TEXT),
       CAST(NULL AS BYTEA), CAST(NULL AS BYTEA), CAST(NULL AS BYTEA), CAST(NULL AS DOUBLE PRECISION),
       {typed_skeleton}
FROM agents WHERE id = ?1 AND project = ?4 AND profile = ?5 AND subject = ?6
UNION ALL
SELECT 'conversation', c.id, c.rev, NULL, NULL, NULL, c.uid, c.key, NULL, NULL, NULL, NULL, NULL, {no_skeleton}
FROM conversations c WHERE c.agent = ?1 AND c.id = coalesce((SELECT conversation FROM p), (SELECT id FROM named))
UNION ALL
SELECT 'exchange',
       CASE WHEN EXISTS (
           SELECT 1 FROM exchanges k
           WHERE k.conversation = p.conversation AND k.depth = p.depth + 1 AND k.parent = p.id AND +k.agent = ?1)
       THEN 1 ELSE 0 END,
       CASE WHEN p.parent IS NULL AND EXISTS (
           SELECT 1 FROM exchanges r
           WHERE r.conversation = p.conversation AND r.depth = 0 AND r.id <> p.id AND +r.agent = ?1)
       THEN 1 ELSE 0 END,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, {skeleton}
FROM p
UNION ALL
SELECT 'addition', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       CASE WHEN p.opaque <> 0 OR p."full" IS NOT NULL THEN p.input END,
       CASE WHEN p.opaque <> 0 OR p."full" IS NOT NULL THEN p.shown_reply END, p."full", NULL, {skeleton}
FROM adds JOIN exchanges p ON p.id = adds.id AND p.agent = ?1
UNION ALL
SELECT 'prefix', 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, {no_skeleton}
FROM marks WHERE agent = ?1 AND kind = 'head' AND hash = ?3
UNION ALL
SELECT 'tombstone', 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, {no_skeleton}
WHERE EXISTS (SELECT 1 FROM marks WHERE agent = ?1 AND kind = 'tomb')
UNION ALL
SELECT 'section', s.id, NULL, NULL, NULL, NULL, s.text, NULL, NULL, s.known, NULL, NULL, NULL, {no_skeleton}
FROM p JOIN sections s ON s.id = p.section AND s.agent = ?1
UNION ALL
SELECT 'block', b.id, b.lim, b.read_only, b.version, 0, b.label, b.description, h.value, NULL, NULL, NULL, NULL,
    {no_skeleton}
FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.agent = ?1
UNION ALL
SELECT 'block', b.id, b.lim, b.read_only, b.version, 1, b.label, b.description, h.value, NULL, NULL, NULL, NULL,
    {no_skeleton}
FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent IS NULL AND b.profile <> '' AND b.project = ?4 AND b.profile = CAST(?5 AS TEXT)
UNION ALL
SELECT 'block', b.id, b.lim, b.read_only, b.version, 2 + x.place, b.label, b.description, h.value, NULL, NULL, NULL,
    NULL, {no_skeleton}
FROM attached x JOIN blocks b ON b.id = x.target JOIN block_history h ON h.id = b.current
WHERE x.agent = ?1 AND x.kind = 'block'
UNION ALL
SELECT 'edit', o.id, o.exchange, o.seen, NULL, NULL, o.call_id, o.op, o.label, o.arguments, NULL, NULL, o.at,
    {no_skeleton}
FROM block_ops o WHERE o.agent = ?1 AND o.state = 'pending'
UNION ALL
SELECT 'standing', f.seq, NULL, NULL, NULL, NULL, f.text, f.origin, NULL, NULL, NULL, NULL, f.valid_from, {no_skeleton}
FROM {standing}

-- name: cacheable_numbers
-- Reads the numbers for which a cached snapshot is right. No row: the agent shares blocks, so none of its snapshots is
-- cached.
SELECT epoch, next_seq, indexed_seq, rev, stamp FROM agents
WHERE id = ?1 AND project = ?2 AND profile = ?3 AND subject = ?4 AND NOT EXISTS (
    SELECT 1 FROM blocks WHERE agent IS NULL AND profile <> '' AND project = ?2 AND profile = CAST(?3 AS TEXT))

-- name: pool_found
-- The exchanges of every conversation without an id that a list may belong to: one that it repeats from the first
-- message on (of these the newest), one that has a reply that is in the list, one with the same question,
-- one with an opening that was not continued yet, one that began after ?9 numbers were taken. Where they are more than
-- ?3, those of conversations that the list repeats stay, and of the others the ends.
WITH repeated(conversation) AS (
    SELECT conversation FROM (SELECT conversation FROM exchanges
        WHERE agent = ?1 AND path {in:6:BYTEA:32} ORDER BY id DESC LIMIT 32) AS by_path
),
hit(conversation) AS (
    SELECT conversation FROM (SELECT conversation FROM exchanges
        WHERE agent = ?1 AND reply_key {in:4:BYTEA:64} ORDER BY id DESC LIMIT 64) AS answered
    UNION SELECT conversation FROM repeated
    UNION SELECT conversation FROM (SELECT conversation FROM exchanges
        WHERE agent = ?1 AND input_key {in:5:BYTEA:16} ORDER BY id DESC LIMIT 32) AS asked
    UNION SELECT conversation FROM (SELECT conversation FROM exchanges
        WHERE agent = ?1 AND parent IS NULL AND continued = 0 AND coalesce(ended, stopped, touched) >= ?2
        ORDER BY begun DESC LIMIT 64) AS opened
    UNION SELECT conversation FROM (SELECT conversation, parent FROM exchanges
        WHERE agent = ?1 AND seq >= ?9 ORDER BY seq DESC LIMIT 256) AS written WHERE parent IS NULL
    UNION SELECT e.conversation FROM (SELECT exchange FROM marks
        WHERE agent = ?1 AND hash {in:6:BYTEA:32} LIMIT 32) m JOIN exchanges e ON e.id = m.exchange AND e.agent = ?1
),
part(conversation, is_repeated, deepest, newest) AS (
    SELECT h.conversation, CASE WHEN h.conversation IN (SELECT conversation FROM repeated) THEN 1 ELSE 0 END,
           (SELECT max(depth) FROM exchanges e WHERE e.conversation = h.conversation AND +e.agent = ?1),
           (SELECT e.id FROM exchanges e WHERE e.conversation = h.conversation AND +e.agent = ?1
            ORDER BY e.depth DESC, e.id DESC LIMIT 1)
    FROM hit h
    WHERE (SELECT CASE WHEN {unnamed} THEN 1 END FROM conversations c WHERE c.agent = ?1 AND c.id = h.conversation) = 1
)
SELECT {last_content}, {skeleton}, part.is_repeated AS is_repeated, part.deepest - p.depth AS above_end
FROM part CROSS JOIN exchanges p
  ON p.conversation = part.conversation AND p.depth >= coalesce(?8, part.deepest - ?7, 0) AND +p.agent = ?1
UNION ALL
SELECT NULL, NULL, NULL, {skeleton}, part.is_repeated, part.deepest - p.depth FROM part CROSS JOIN exchanges p
  ON p.conversation = part.conversation AND p.depth = 0 AND +p.agent = ?1
WHERE coalesce(?8, part.deepest - ?7, 0) > 0
ORDER BY is_repeated DESC, above_end, 4 DESC LIMIT ?3

-- piece: wanted_content
-- The contents of all exchanges if ?7 is 1, else the content of the last one alone, as `{last_content}`.
CASE WHEN CAST(?7 AS BIGINT) = 1 OR (p.id = (SELECT newest FROM part) AND p.depth > 0) THEN p.input END,
CASE WHEN CAST(?7 AS BIGINT) = 1 OR (p.id = (SELECT newest FROM part) AND p.depth > 0) THEN p.shown_reply END,
CASE WHEN CAST(?7 AS BIGINT) = 1 OR (p.id = (SELECT newest FROM part) AND p.depth > 0) THEN p."full" END

-- name: conversation_of
-- Finds a conversation by the client's id, and when it last moved.
SELECT id, last_at FROM conversations WHERE agent = ? AND key = ?

-- name: conversation_insert
-- Begins a conversation. No row: its public id is taken.
INSERT INTO conversations (agent, uid, key, begun, last_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (uid) DO NOTHING RETURNING id

-- name: content
-- Reads the content of one exchange.
SELECT id, input, shown_reply, "full" FROM exchanges WHERE id = ? AND agent = ?

-- name: contents
-- Reads the contents of several exchanges.
SELECT id, input, shown_reply, "full" FROM exchanges WHERE +agent = ?1 AND id {in:2:BIGINT:64}

-- piece: matches_prefix
-- Whether a list that was made elsewhere began with the path of an exchange that is added.
CASE WHEN EXISTS (SELECT 1 FROM marks WHERE agent = ?38 AND kind = 'head' AND hash = ?25) THEN 1 ELSE 0 END

-- piece: added
-- The columns that are returned of an exchange that was added.
id, seq, {matches_prefix}

-- piece: planned
-- The conversation is as it was when a turn was planned on it: ?38 the agent, ?39 its epoch, ?40 the conversation, ?41
-- its revision (`rev`). ?42, ?43: its recall (`recalls`), or NULL; SQLite's connection has a trigger
-- that adds that row.
a.id = ?38 AND a.epoch = ?39 AND c.id = ?40 AND c.rev = ?41

-- name: exchange_add_planned (sqlite)
-- Adds a turn that was planned on a conversation. If the conversation has moved since, the last SELECT finds no row, so
-- `seq` is NULL and the table refuses the new row. `WritingConnection.insert` (storage/sqlite/operations.py) then
-- returns None. The trigger `exchanges_added` (storage/sqlite/schema.sql) raises the conversation's `rev` and the
-- agent's next number. Since triggers follow, the rows of a SELECT and those of RETURNING would be gathered in a table
-- each.
INSERT INTO exchanges ({columns}, run, agent, seq, room, pad)
VALUES ({?1..35}, (SELECT CASE WHEN next_seq = ?36 THEN ?37 ELSE next_seq END FROM agents WHERE id = ?38), ?38,
    (SELECT report_row(a.next_seq, {matches_prefix}, ?42, ?43) FROM agents a
        JOIN conversations c ON c.agent = a.id WHERE {planned}), {padded:35})

-- name: exchange_add_planned (postgres)
-- Locks the agent, then the conversation, and takes a number only if the revision was right, so that there are no gaps.
-- A transaction that waited for the lock sees the row as it is by then.
WITH {taken}
{add_taken}

-- name: exchange_add_planned_continuing (sqlite)
-- Adds a planned turn by which its parent is continued. The parent's row conflicts with itself, and so is marked.
INSERT INTO exchanges (id, {columns}, run, agent, seq, room, pad)
SELECT x.id, {?1..35}, CASE WHEN a.next_seq = ?36 THEN ?37 ELSE a.next_seq END, a.id,
    report_row(a.next_seq, {matches_prefix}, ?42, ?43), {padded:35}
FROM agents a JOIN conversations c ON c.agent = a.id CROSS JOIN (
    SELECT NULL AS id UNION ALL
    SELECT id FROM exchanges WHERE id = ?2 AND agent = ?38 AND continued = 0) x
WHERE {planned}
ON CONFLICT (id) DO UPDATE SET continued = 1

-- name: exchange_add_planned_continuing (postgres)
WITH {taken}
k AS (UPDATE exchanges SET continued = 1 FROM n WHERE exchanges.id = ?2 AND exchanges.agent = n.id),
{add_taken}

-- piece: taken
-- In PostgreSQL: the numbers `n` of a turn that was planned.
a AS (SELECT id FROM agents WHERE id = ?38 AND epoch = ?39 FOR NO KEY UPDATE),
c AS (
    UPDATE conversations SET rev = rev + 1, last_at = greatest(last_at, {moved}),
        tip = CASE WHEN tip = 0 THEN 0 ELSE nextval('exchanges_id_seq') END,
        messages = messages + {new_messages}, bytes = bytes + {new_bytes}
    FROM a WHERE conversations.id = ?40 AND conversations.agent = a.id AND rev = ?41 RETURNING tip
),
n AS (UPDATE agents SET next_seq = next_seq + ?4, {counted} FROM c
    WHERE agents.id = ?38 RETURNING agents.id, next_seq - ?4 AS seq, tip),

-- piece: add_taken
-- Adds an exchange (`e`) with the number that `n` has taken, and the record of its recall (`r`).
e AS (
    INSERT INTO exchanges (id, {columns}, run, agent, seq)
    SELECT CASE WHEN n.tip = 0 THEN nextval('exchanges_id_seq') ELSE n.tip END, {?1..35},
           CASE WHEN n.seq = ?36 THEN ?37 ELSE n.seq END, n.id, n.seq FROM n
    RETURNING id, seq, agent
),
r AS (INSERT INTO recalls (exchange, agent, at, request, data)
    SELECT e.id, e.agent, {moved}, ?42, ?43 FROM e WHERE CAST(?43 AS BYTEA) IS NOT NULL)
SELECT {added} FROM e

-- piece: moved
-- When an exchange that is added ended. The conversation takes this time as its last change.
coalesce(CAST(?9 AS DOUBLE PRECISION), ?10, ?8)

-- piece: new_messages
-- How many messages an exchange that is added counts for, and how many bytes.
CASE WHEN CAST(?11 AS TEXT) IN ('forgotten', 'off') THEN 0
ELSE ?4 - CASE WHEN CAST(?34 AS BYTEA) IS NULL THEN 1 ELSE 0 END END

-- piece: new_bytes
-- The bytes that an added exchange adds to the sums of its conversation and its agent.
CASE WHEN CAST(?11 AS TEXT) IN ('forgotten', 'off') THEN 0 ELSE coalesce(length(CAST(?33 AS BYTEA)), 0)
    + coalesce(length(CAST(?34 AS BYTEA)), 0) + coalesce(length(CAST(?35 AS BYTEA)), 0) END

-- piece: counted
-- The columns of the agent's row that an added exchange changes, besides the next number.
last_turn = greatest(last_turn, {moved}), messages = messages + {new_messages}, bytes = bytes + {new_bytes}

-- name: exchange_add (sqlite)
-- Adds a turn that was resolved inside this transaction.
INSERT INTO exchanges ({columns}, run, agent, seq, room, pad)
SELECT {?1..35}, CASE WHEN next_seq = ?36 THEN ?37 ELSE next_seq END, id, report_row(next_seq, 0, ?39, ?40), {padded:35}
FROM agents WHERE id = ?38
RETURNING {added}

-- name: exchange_add (postgres)
WITH n AS (UPDATE agents SET next_seq = next_seq + ?4, {counted} WHERE id = ?38 RETURNING id, next_seq - ?4 AS seq),
e AS (
    INSERT INTO exchanges ({columns}, run, agent, seq)
    SELECT {?1..35}, CASE WHEN n.seq = ?36 THEN ?37 ELSE n.seq END, n.id, n.seq FROM n
    RETURNING id, seq, agent, conversation, coalesce(ended, stopped, touched) AS moved
),
c AS (
    UPDATE conversations SET rev = rev + 1, last_at = greatest(last_at, e.moved),
        tip = CASE WHEN tip = 0 THEN 0 ELSE e.id END,
        messages = messages + {new_messages}, bytes = bytes + {new_bytes}
    FROM e WHERE conversations.id = e.conversation AND conversations.agent = e.agent
),
r AS (INSERT INTO recalls (exchange, agent, at, request, data)
    SELECT e.id, e.agent, e.moved, ?39, ?40 FROM e WHERE CAST(?40 AS BYTEA) IS NOT NULL)
SELECT {added} FROM e

-- name: exchange_add_numbered (sqlite)
-- Adds an exchange of an import, under the number that it has.
INSERT INTO exchanges ({columns}, run, agent, seq, room, pad) VALUES ({?1..38}, {padded:35}) RETURNING id

-- name: exchange_add_numbered (postgres)
WITH e AS (
    INSERT INTO exchanges ({columns}, run, agent, seq) VALUES ({?1..38})
    RETURNING id, agent, conversation, coalesce(ended, stopped, touched) AS moved
),
c AS (
    UPDATE conversations SET rev = rev + 1, last_at = greatest(last_at, e.moved),
        tip = CASE WHEN tip = 0 THEN 0 ELSE e.id END,
        messages = messages + {new_messages}, bytes = bytes + {new_bytes}
    FROM e WHERE conversations.id = e.conversation AND conversations.agent = e.agent
),
a AS (UPDATE agents SET {counted} FROM e WHERE agents.id = e.agent)
SELECT id FROM e

-- name: exchange_update
-- Writes a stored exchange as it is now.
{set_exchange}
WHERE id = ?38 AND agent = ?39

-- name: exchanges_continued
-- Marks stored exchanges that a later request continued, and that have not changed otherwise.
UPDATE exchanges SET continued = 1 WHERE +agent = ?1 AND id {in:2:BIGINT:64}

-- name: conversation_moved
-- Notes that something else has changed than the number of a conversation's exchanges.
UPDATE conversations SET rev = rev + 1, last_at = CASE WHEN last_at < ?1 THEN ?1 ELSE last_at END
WHERE id = ?2 AND agent = ?3

-- name: mark
-- Marks an exchange with a hash by which it has to be recognised.
INSERT INTO marks (agent, kind, hash, exchange) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING

-- name: pool_conversation
-- Reads the exchanges of one conversation, the newest if there are very many. ?4: how far up from the deepest one, ?5:
-- or from which depth on; ?6: below this depth; first exchanges always. ?7: 1: with all contents. (`+`: looked up by
-- conversation, not by agent. SQLite reads the rows in this order off the index, so that nothing is sorted.)
WITH part(deepest, newest) AS (
    SELECT depth, id FROM exchanges WHERE conversation = ?1 AND +agent = ?2 ORDER BY depth DESC, id DESC LIMIT 1
)
SELECT {wanted_content}, {skeleton} FROM exchanges p
WHERE p.conversation = ?1 AND p.depth >= coalesce(?5, (SELECT deepest FROM part) - ?4, 0)
  AND p.depth < coalesce(?6, (SELECT deepest FROM part) + 1) AND +p.agent = ?2
UNION ALL
SELECT {wanted_content}, {skeleton} FROM exchanges p
WHERE p.conversation = ?1 AND p.depth = 0 AND coalesce(?5, (SELECT deepest FROM part) - ?4, 0) > 0 AND +p.agent = ?2
ORDER BY 7 DESC, 6 DESC, 4 DESC LIMIT ?3

-- name: exchange_of_message
-- Finds the exchange that has the message of a number, and its conversation.
SELECT id, conversation FROM exchanges
WHERE agent = ?1 AND seq = (SELECT max(x.seq) FROM exchanges x WHERE x.agent = ?1 AND x.seq <= ?2) AND seq + span > ?2

-- name: exchange_get
-- Reads one exchange with its content.
SELECT p.input, p.shown_reply, p."full", {skeleton} FROM exchanges p WHERE p.id = ? AND p.agent = ?

-- name: conversation_uid
-- Returns the public id of a conversation.
SELECT uid FROM conversations WHERE id = ? AND agent = ?

-- name: forgotten_hashes
-- Finds which of some messages were forgotten. Messages off the record have such marks as well (for `has_tombstones`);
-- they are left out.
SELECT m.hash FROM marks m WHERE m.agent = ?1 AND m.kind = 'tomb' AND m.hash {in:2:BYTEA:256}
    AND NOT EXISTS (SELECT 1 FROM exchanges e WHERE e.id = m.exchange AND e.agent = ?1 AND e.state = 'off')
