-- Pieces that statements of several files share; `{name}` stands for one.

-- piece: agent
-- The columns of an agent `a`, in the order of its record.
a.id, a.uid, a.project, a.profile, a.subject, a.secret, a.epoch, a.indexed_seq, a.next_seq, a.created, a.paused

-- piece: profiles
-- The profiles of the project ?1, which are few. They are found one after the other in the index of scopes: the project
-- may have a million people.
profiles(name) AS (
    SELECT min(a.profile) FROM agents a WHERE a.project = ?1
    UNION ALL SELECT (SELECT min(a.profile) FROM agents a WHERE a.project = ?1 AND a.profile > profiles.name)
    FROM profiles WHERE profiles.name IS NOT NULL
)

-- piece: agent_name
-- The name of the agent with a memory `a`, if it is one of the agents API.
(SELECT d.name FROM definitions d WHERE d.memory = a.id AND d.memory <> 0 AND d.kind = 'agent')

-- piece: columns
-- The columns and values with which an exchange is written, in their order: the lines of `fixed` begin with ?1, ?11, ?21
-- and ?31, the content is ?33 to ?35. In the statements that add an exchange (exchanges.sql) follow:
--   ?36       its number as it was planned
--   ?37       its `run` (`Exchange.gapless_from`) where it gets that number; where it gets another, `run` is that one
--   ?38       its agent
--   ?39, ?40  of `exchange_add`, its recall (`recalls`), or NULL
--   ?39-?43   of `exchange_add_planned`, as `planned` has them
-- `exchange_add_numbered` has ?36 for `run`, ?37 for the agent, and ?38 for the number.
{fixed}, input, shown_reply, "full"

-- piece: fixed
-- The columns of the piece `columns` but the content.
conversation, parent, depth, span, "offset", length, begun, touched, ended, stopped,
state, superseded, continued, active, edits, adds, opaque, model, merged, size,
head, evicted, prior, section, path, reply_key, input_key, redactions, inputs, media,
reply, notes

-- piece: skeleton
-- The columns of an exchange `p` apart from its content; `ORDER BY 4, 1` of a compound select is depth, id.
p.id, p.conversation, p.parent, p.depth, p.seq, p."offset", p.length, p.begun, p.touched, p.ended, p.stopped,
p.state, p.superseded, p.continued, p.active, p.edits, p.merged, p.size, p.head AS prefix_length, p.evicted, p.prior,
p.section, p.path, p.reply_key, p.redactions, p.inputs, p.media, p.reply, p.notes, p.run AS gapless_from,
p.opaque, p.model, CASE WHEN p."full" IS NULL THEN 0 ELSE 1 END

-- piece: last_content
-- The content of the deepest exchange of a conversation, the newest of several (`part`). Clients cut, edit or repeat
-- the last messages, and the rules compare their text then. An opening is mostly compared by its hashes.
CASE WHEN p.id = part.newest AND p.depth > 0 THEN p.input END,
CASE WHEN p.id = part.newest AND p.depth > 0 THEN p.shown_reply END,
CASE WHEN p.id = part.newest AND p.depth > 0 THEN p."full" END

-- piece: content_shown
-- The content of an exchange `p`, and whether another conversation opened with the same prefix, made elsewhere (column
-- and mark `head`).
p.input, p.shown_reply,
CASE WHEN p.head = 0 OR p.continued = 0 THEN 0 WHEN EXISTS (
    SELECT 1 FROM marks h JOIN marks o ON o.agent = h.agent AND o.kind = 'head' AND o.hash = h.hash
    JOIN exchanges e ON e.id = o.exchange AND e.agent = o.agent
    WHERE h.agent = p.agent AND h.kind = 'head' AND h.exchange = p.id AND e.conversation <> p.conversation
) THEN 1 ELSE 0 END

-- piece: shown_columns
-- The columns that decide which messages of an exchange `p` are shown, with their times and roles.
p.id, p.conversation, p.seq, p.begun, p.touched, p.ended, p.stopped, p.state, p.active, p.continued, p.head,
p.redactions, p.inputs, p.reply

-- piece: shown
-- The columns of an exchange `p` to show its messages: the content, the number of the last message before it, the
-- rest.
{content_shown},
(SELECT b.seq + b.span - 1 FROM exchanges b WHERE b.id = p.parent AND b.agent = p.agent),
{shown_columns}

-- piece: holds_words
-- The condition on a text `x` of a run that may hold words: an empty one does not, nor does how messages are listed,
-- nor the name of a turn.
length(x.data) > 2 AND x.kind NOT IN ('listing', 'turn')

-- piece: past
-- The conversations in which the past of the conversation ?2 of the memory ?1 stands, each with the last number of it
-- there: itself, and where it is a fork those above it.
past(conversation, last) AS (
    SELECT CAST(?2 AS BIGINT), CAST(9223372036854775807 AS BIGINT)
    UNION ALL SELECT origin, seq FROM forks WHERE agent = ?1 AND conversation = ?2
)

-- piece: new_input
-- Content of an exchange that changes. ?37: content that was not loaded stays; ?36: it has hidden rounds.
CASE WHEN ?37 <> 0 THEN coalesce(?33, input) ELSE ?33 END

-- piece: new_shown_reply
-- The shown reply that an update leaves.
CASE WHEN ?37 <> 0 THEN coalesce(?34, shown_reply) ELSE ?34 END

-- piece: new_full
-- The full reply that an update leaves.
CASE WHEN ?36 <> 0 AND ?37 <> 0 THEN coalesce(?35, "full") WHEN ?36 <> 0 THEN ?35 END

-- piece: set_exchange (sqlite)
-- Writes a stored exchange as it is now, within its row's room: storage/sqlite/padding.py says why, and from where the
-- numbers are. One that goes to overflow pages has no more room than its head takes from then on: others may lie where
-- it was longer.
UPDATE exchanges SET ({fixed}) = ({?1..32}), input = {new_input}, shown_reply = {new_shown_reply}, "full" = {new_full},
    (room, pad) = (
        SELECT CASE WHEN n >= room THEN 440 ELSE room END,
            zeroblob(CASE WHEN n >= room THEN 344 + 4092 * max(1, (n + 3747) / 4092) - n
                             WHEN room - n <= 58 THEN room - n - 1 ELSE max(57, room - n - 2) END)
        FROM (SELECT {size:32} + sum(CASE WHEN c IS NULL THEN 1 WHEN length(c) < 58 THEN length(c) + 1
                                    WHEN length(c) < 8186 THEN length(c) + 2 WHEN length(c) < 1048570 THEN length(c) + 3
                                    ELSE length(c) + 4 END) AS n
              FROM (SELECT {new_input} AS c UNION ALL SELECT {new_shown_reply} UNION ALL SELECT {new_full})))

-- piece: set_exchange (postgres)
UPDATE exchanges SET ({fixed}) = ({?1..32}), input = {new_input}, shown_reply = {new_shown_reply}, "full" = {new_full}

-- piece: unnamed
-- Whether a conversation `c` may continue a list without an id: it has no id of the client's, or an import gave it one.
(c.key IS NULL OR substr(c.key, 1, 7) = 'import:')

-- piece: learnable
-- Whether readers may read an exchange `e`. An imported exchange may be read only if the import asked for it.
NOT EXISTS (SELECT 1 FROM imported m WHERE m.what = 'exchange' AND m.id = e.id AND m.learns = 0)

-- piece: run
-- The columns of a run `r`.
r.id, r.uid, r.agent, r.conversation, r.state, r.created, r.parent, r.depth, r.batch, r.background, r.stop, r.steps,
r.prompt, r.completion, r.cached, r.written, r.reasoning, r.begun, r.ended, r.otid

-- piece: seers
-- The agents that see the block ?1: its owner, those it is attached to, and all agents of its profile if it is shared.
SELECT b.agent FROM blocks b JOIN agents a ON a.id = b.agent WHERE b.id = ?1
UNION SELECT x.agent FROM attached x JOIN agents a ON a.id = x.agent WHERE x.kind = 'block' AND x.target = ?1
UNION SELECT a.id FROM blocks b JOIN agents a ON a.project = b.project AND a.profile = b.profile
WHERE b.id = ?1 AND b.agent IS NULL AND b.profile <> ''

-- piece: erase_values (sqlite)
-- Erases values of blocks, as erase.sql says.
UPDATE block_history SET block = -id, version = 0, restores = NULL, at = 0, origin = '', exchange = NULL,
    sources = x'5b5d', value = ''

-- piece: erase_values (postgres)
DELETE FROM block_history

-- piece: erase_run_texts (sqlite)
-- Erases texts of runs.
UPDATE run_texts SET agent = 0, run = 0, data = x''

-- piece: erase_run_texts (postgres)
DELETE FROM run_texts

-- piece: erase_definition_texts (sqlite)
-- Erases texts of definitions.
UPDATE definition_texts SET body = x'', definition = 0

-- piece: erase_definition_texts (postgres)
DELETE FROM definition_texts

-- piece: edit
-- The columns of a memory edit.
id, exchange, call_id, op, label, arguments, state, at, seen

-- piece: holds_items
-- The condition on a definition `d` of a conversation with items.
d.kind = 'conversation' AND substr(d.uid, 1, 5) = 'conv_'

-- piece: definition
-- The columns of a definition `d` with its text `t`.
d.id, d.uid, d.project, d.kind, d.memory, d.name, d.version, d.created, d.updated, t.body

-- piece: standing
-- The newest standing facts `f` of an agent (?1) that are true and not muted: as many as are compared with what is
-- learned (`facts.py`). A section has room for a tenth of them, and shows the nearest to a message.
(SELECT s.seq, s.text, s.valid_from, s.origin FROM facts s
 WHERE s.agent = ?1 AND s.standing = 1
   AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = s.id AND x.agent = s.agent)
   AND NOT EXISTS (SELECT 1 FROM facts_muted m WHERE m.fact = s.id AND m.agent = s.agent)
 ORDER BY s.seq DESC LIMIT 100) f

-- piece: usage_key
-- The key of a row of usage: the fields of `UsageKey`.
day, project, "user", key, upstream, model

-- piece: usage_row
-- The columns of a row of usage, and added: its key, then `COUNTERS`.
{usage_key}, requests, refused, errors, cancelled, calls, input_tokens, output_tokens, cached_tokens,
cache_write_tokens, reasoning_tokens, estimated_input_tokens, estimated_output_tokens, injected_tokens,
evicted_tokens, background_input_tokens, background_output_tokens, batch_input_tokens, batch_output_tokens, cost,
unpriced_tokens, answered, question_tokens

-- piece: erase_files (sqlite)
-- Erases files, which have names that people gave them.
UPDATE files SET memory = 0, state = '', bytes = 0, created = 0, type = '', name = ''

-- piece: erase_files (postgres)
DELETE FROM files
