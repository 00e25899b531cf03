-- Every statement of the pages that show the content of a memory. `-- name:` begins one; the next line describes it.
-- Lists go on from the last row of the page before; sizes are columns that triggers keep up to date.

-- piece: sized
-- The columns of a memory `a`: its sizes, the blocks that it sees, and the facts that are true.
a.id, a.uid, a.project, a.profile, a.subject, a.created, a.last_turn, a.conversations, a.messages, a.bytes,
(SELECT count(*) FROM blocks b WHERE b.agent = a.id)
+ (SELECT count(*) FROM blocks b
    WHERE b.agent IS NULL AND b.profile <> '' AND b.project = a.project AND b.profile = a.profile)
+ (SELECT count(*) FROM attached x WHERE x.agent = a.id AND x.kind = 'block'),
(SELECT count(*) FROM facts f WHERE f.agent = a.id) - (SELECT count(*) FROM facts_ended x WHERE x.agent = a.id),
a.paused, {agent_name}
FROM agents a

-- piece: of_project
-- NULL stands for any project.
(CAST(?1 AS TEXT) IS NULL OR a.project = ?1)

-- name: memories
-- Reads a page of the memories with subjects from ?2 to ?3, in small letters; those with the newest turns come first.
-- ?2 begins with a kind of memories. The index has the hour of the last turn: those of one hour are sorted.
SELECT {sized} JOIN (
    SELECT a.id AS id, coalesce(a.last_turn, 0) AS last FROM agents a
    WHERE substr(a.subject, 1, 4) = substr(CAST(?2 AS TEXT), 1, 4)
    AND a.turn_hour <= CAST(?4 AS DOUBLE PRECISION) / 3600
    AND lower(a.subject) >= ?2 AND lower(a.subject) < ?3 AND {of_project}
    AND (coalesce(a.last_turn, 0) < ?4 OR (coalesce(a.last_turn, 0) = ?4 AND a.id < ?5))
    ORDER BY a.turn_hour DESC, last DESC, id DESC LIMIT ?6
) newest ON newest.id = a.id ORDER BY newest.last DESC, newest.id DESC

-- name: memories_by_messages
-- Reads a page as `memories` does; those with the most messages come first. No index has this order.
SELECT {sized} JOIN (
    SELECT a.id AS id, a.messages AS messages FROM agents a
    WHERE substr(a.subject, 1, 4) = substr(CAST(?2 AS TEXT), 1, 4)
    AND lower(a.subject) >= ?2 AND lower(a.subject) < ?3 AND {of_project}
    AND (a.messages < CAST(?4 AS DOUBLE PRECISION) OR (a.messages = CAST(?4 AS DOUBLE PRECISION) AND a.id < ?5))
    ORDER BY messages DESC, id DESC LIMIT ?6
) most ON most.id = a.id ORDER BY most.messages DESC, most.id DESC

-- piece: words_of_subject
-- The words of a person's subject without its kind, in small letters, each after a space.
replace(replace(replace(replace(replace(lower(substr(a.subject, 5)), ':', ' '), '.', ' '), '-', ' '), '_', ' '), '@', ' ')

-- name: people_called
-- Finds memories of people, among the ?3 with the newest turns: those with ?2, in small letters, in blocks of their own,
-- and those with ?5, words in small letters or a part of them, in their subjects.
SELECT {sized} JOIN (
    SELECT a.id AS id, coalesce(a.last_turn, 0) AS last FROM agents a
    WHERE substr(a.subject, 1, 4) = 'user' AND {of_project} ORDER BY a.turn_hour DESC, last DESC, id DESC LIMIT ?3
) newest ON newest.id = a.id
WHERE {has:5:{words_of_subject}}
OR EXISTS (SELECT 1 FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.agent = a.id AND {has:2:h.value})
ORDER BY newest.last DESC, newest.id DESC LIMIT ?4

-- name: blocks_with
-- Reads the own blocks of some memories in which ?1 stands, in small letters.
SELECT b.agent, h.value FROM blocks b JOIN block_history h ON h.id = b.current
WHERE b.agent {in:2:BIGINT:16} AND {has:1:h.value} ORDER BY b.id DESC

-- name: agents_named
-- Reads a page of the agents with names from ?2 to ?3, in small letters; those with the newest turns come first.
SELECT {sized} JOIN (
    SELECT a.id AS id, coalesce(a.last_turn, 0) AS last FROM definitions d JOIN agents a ON a.id = d.memory
    WHERE d.memory <> 0 AND d.kind = 'agent' AND lower(d.name) >= ?2 AND lower(d.name) < ?3 AND {of_project}
    AND (coalesce(a.last_turn, 0) < ?4 OR (coalesce(a.last_turn, 0) = ?4 AND a.id < ?5))
    ORDER BY last DESC, id DESC LIMIT ?6
) newest ON newest.id = a.id ORDER BY newest.last DESC, newest.id DESC

-- piece: of_uid
-- The condition on a memory `a`: it has this public id, in a project or (NULL) any.
{of_project} AND a.uid = ?2 AND (a.subject LIKE 'user:%' OR a.subject LIKE 'conversation:%' OR a.subject LIKE 'agent:%')

-- name: memory
-- Finds a memory by its public id.
SELECT a.id, a.uid, a.project, a.profile, a.subject, a.conversations, a.paused, {agent_name} FROM agents a WHERE {of_uid}

-- name: sized_memory
-- Reads a memory with its sizes, for which facts are counted.
SELECT {sized} WHERE {of_uid}

-- piece: conversation
-- Reads a conversation by its public id or the client's name.
c.id, c.uid, c.key, c.begun, c.last_at, c.messages, c.bytes FROM conversations c

-- name: conversations
-- Reads a page of the conversations in which something is left, the newest first.
SELECT {conversation} WHERE c.agent = ?1 AND c.messages > 0 AND (c.last_at < ?2 OR (c.last_at = ?2 AND c.id < ?3))
ORDER BY c.last_at DESC, c.id DESC LIMIT ?4

-- name: conversation
-- Reads one by its public id, or the client's.
SELECT {conversation} WHERE c.agent = ?1 AND (c.uid = ?2 OR c.key = ?2) ORDER BY c.uid <> ?2 LIMIT 1

-- name: deepest
-- Reads the ?3 deepest exchanges of a conversation without their content, those further up first. (The column
-- `messages` would read the content, since SQLite computes it from a column that is stored after the content.)
SELECT p.id, p.parent, p.seq, p.length, p.span, p.state, p.redactions, length(p.shown_reply) IS NULL, p.active,
coalesce(p.ended, p.stopped, p.begun)
FROM (
    SELECT id, depth FROM exchanges WHERE conversation = (SELECT id FROM conversations WHERE id = ?2 AND agent = ?1)
    ORDER BY depth DESC LIMIT ?3
) deepest CROSS JOIN exchanges p ON p.id = deepest.id WHERE +p.agent = ?1 ORDER BY deepest.depth

-- name: parents
-- Reads what each of the ?3 deepest exchanges of a conversation follows. (Only the index is read, which has no agent.)
SELECT id, parent FROM exchanges WHERE conversation = (SELECT id FROM conversations WHERE id = ?2 AND agent = ?1)
ORDER BY depth DESC LIMIT ?3

-- name: merged
-- Reads the exchanges of all branches of a conversation with numbers below ?3, the newest first; ?4 exchanges at most,
-- among its ?5 deepest.
SELECT p.input, p.shown_reply, p."full", {skeleton} FROM (
    SELECT e.id AS id, e.seq AS seq FROM (
        SELECT id FROM exchanges WHERE conversation = (SELECT id FROM conversations WHERE id = ?2 AND agent = ?1)
        ORDER BY depth DESC LIMIT ?5
    ) deepest CROSS JOIN exchanges e ON e.id = deepest.id
    WHERE +e.agent = ?1 AND e.seq < ?3 ORDER BY e.seq DESC LIMIT ?4
) newest CROSS JOIN exchanges p ON p.id = newest.id WHERE +p.agent = ?1 ORDER BY newest.seq DESC

-- name: path
-- Reads the path to an exchange, the newest first; ?3 exchanges at most.
WITH RECURSIVE up(id, parent, steps) AS (
    SELECT e.id, e.parent, 1 FROM exchanges e WHERE e.id = ?2 AND e.agent = ?1
    UNION ALL
    SELECT e.id, e.parent, up.steps + 1 FROM up
    JOIN exchanges e ON e.id = up.parent AND e.agent = ?1 WHERE up.steps < ?3
)
SELECT p.input, p.shown_reply, p."full", {skeleton} FROM up
JOIN exchanges p ON p.id = up.id AND p.agent = ?1 ORDER BY up.steps

-- name: following
-- Finds the exchange that stands ?4 steps below another, or less far where nothing more follows, along those spoken in
-- last.
WITH RECURSIVE down(id, depth, steps) AS (
    SELECT e.id, e.depth, 0 FROM exchanges e WHERE e.id = ?2 AND e.agent = ?1
    UNION ALL
    SELECT k.id, k.depth, down.steps + 1 FROM down JOIN exchanges k ON k.agent = ?1 AND k.id = (
        SELECT c.id FROM exchanges c
        WHERE c.conversation = ?3 AND +c.agent = ?1 AND c.depth = down.depth + 1 AND c.parent = down.id
        ORDER BY c.active DESC, c.seq DESC LIMIT 1
    ) WHERE down.steps < ?4
)
SELECT id FROM down ORDER BY steps DESC LIMIT 1

-- name: begun_from
-- Reads the number and the time of the first exchange of a memory from a number on.
SELECT seq, begun FROM exchanges WHERE agent = ?1 AND seq >= ?2 ORDER BY seq LIMIT 1

-- name: exchange_refs
-- Reads where some exchanges stand: the public id of the conversation, and the numbers of the first message and the
-- reply.
SELECT e.id, c.uid, e.seq, e.seq + e.span - 1 FROM exchanges e
JOIN conversations c ON c.id = e.conversation AND c.agent = e.agent
WHERE +e.agent = ?1 AND e.id {in:2:BIGINT:64}

-- name: sources
-- Reads some exchanges, and where they stand.
SELECT c.uid, {shown} FROM exchanges p JOIN conversations c ON c.id = p.conversation AND c.agent = +p.agent
WHERE +p.agent = ?1 AND p.id {in:2:BIGINT:64}

-- name: short_exchanges
-- Reads some exchanges, forgotten exchanges too. An exchange of more than ?2 stored bytes is left out.
SELECT {shown} FROM exchanges p WHERE +p.agent = ?1 AND coalesce(length(p.input), 0) <= ?2 AND p.id {in:3:BIGINT:64}

-- name: short_exchanges_of_all
-- Reads some exchanges of several memories with the memories' public ids, as `short_exchanges` does for one memory.
SELECT a.uid, {shown} FROM exchanges p CROSS JOIN agents a ON a.id = p.agent
WHERE coalesce(length(p.input), 0) <= ?1 AND p.id {in:2:BIGINT:64}

-- name: newest_exchanges
-- Finds the exchanges that stand among the last ?3 messages of a memory, the newest first.
SELECT p.id FROM exchanges p WHERE p.agent = ?1 AND p.seq >= (SELECT a.next_seq - ?3 FROM agents a WHERE a.id = ?1)
AND p.active = 1 AND p.state = 'finished' ORDER BY p.seq DESC LIMIT ?2

-- name: openings
-- Reads the first exchange of some conversations that stands. An exchange of more than ?3 stored bytes is left out.
SELECT c.uid, {shown} FROM conversations c CROSS JOIN exchanges p ON p.id = (
    SELECT e.id FROM exchanges e WHERE e.conversation = c.id AND +e.agent = ?1 AND e.active = 1 AND e.state = 'finished'
    ORDER BY e.depth LIMIT 1)
WHERE +c.agent = ?1 AND +p.agent = ?1 AND length(p.input) <= ?3 AND c.uid {in:2:TEXT:64}

-- name: blocks
-- Reads the blocks that a memory sees, each with the time and the origin of its last version, and whether others see it.
SELECT b.id, b.label, b.description, h.value, b.lim, b.read_only, b.version, b.uid, h.at, h.origin,
CASE WHEN b.agent IS NULL OR b.agent <> ?1 OR EXISTS (
    SELECT 1 FROM attached x WHERE x.kind = 'block' AND x.target = b.id AND x.agent <> ?1) THEN 1 ELSE 0 END
FROM blocks b JOIN block_history h ON h.id = b.current WHERE b.id {in:2:BIGINT:64}

-- name: earlier_versions
-- Reads the versions of some blocks before the current ones, the newest first; those that were forgotten are left out.
SELECT b.label, h.version, h.value FROM blocks b JOIN block_history h ON h.block = b.id
WHERE h.id <> b.current AND h.origin <> '-' AND b.id {in:2:BIGINT:64} ORDER BY h.id DESC LIMIT ?1

-- name: summaries
-- Reads the newest summaries of a memory.
SELECT c.uid, s.text FROM summaries s JOIN conversations c ON c.id = s.conversation AND c.agent = s.agent
WHERE s.agent = ?1 AND s.agent <> 0 ORDER BY s.id DESC LIMIT ?2

-- name: unindexed
-- Finds among the exchanges of a memory from a message's number (?2) on those with messages that no index has, with
-- their bytes, the newest first. ?3, ?4: with what the atoms of a tool's result and of a call begin; a result is the
-- first message of its exchange, and a call the last part of its reply.
SELECT e.id, length(e.input) + coalesce(length(e.shown_reply), 0) + coalesce(length(e."full"), 0)
FROM exchanges e WHERE e.agent = ?1 AND e.seq >= ?2 AND e.input IS NOT NULL AND (
    e.active = 0 OR e."full" IS NOT NULL OR e.head > 0 OR substr(e.inputs, 3, 1) = ?3
    OR substr(e.reply, length(e.reply) - ?6, 1) = ?4
    OR length(e.input) + coalesce(length(e.shown_reply), 0) > ?5
) ORDER BY e.seq DESC

-- name: whole_exchanges
-- Reads some exchanges with all their content, and where they stand.
SELECT c.uid, p.input, p.shown_reply, p."full", {skeleton}
FROM exchanges p JOIN conversations c ON c.id = p.conversation AND c.agent = +p.agent
WHERE +p.agent = ?1 AND p.id {in:2:BIGINT:64}

-- name: versions_at
-- Reads the versions of some blocks that were current at a time; one that was forgotten is left out.
SELECT b.id, h.version, h.restores, h.at, h.origin, h.exchange, h.sources, h.value
FROM blocks b JOIN block_history h ON h.id = (
    SELECT v.id FROM block_history v WHERE v.block = b.id AND v.at <= ?1 ORDER BY v.version DESC LIMIT 1
) AND h.origin <> '-'
WHERE b.id {in:2:BIGINT:64}
