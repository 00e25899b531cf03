-- Pieces that statements of several files share; `{name}` stands for one.

-- piece: columns
-- What an exchange is written with, in the order of its values.
{fixed}, input, said, "full"

-- piece: fixed
-- All of them but the content.
conversation, parent, depth, span, "offset", length, begun, touched, ended, stopped,
state, superseded, carried, standing, edits, adds, opaque, model, merged, size,
head, evicted, prior, snapshot, path, reply_key, input_key, hush, inputs, media,
reply, notes

-- piece: skeleton
-- What is read of an exchange `p` beside its content; `ORDER BY 4, 1` of a compound select is depth, id.
p.id, p.conversation, p.parent, p.depth, p.seq, p."offset", p.length, p.begun, p.touched, p.ended, p.stopped,
p.state, p.superseded, p.carried, p.standing, p.edits, p.merged, p.size, p.head, p.evicted, p.prior, p.snapshot,
p.path, p.reply_key, p.hush, p.inputs, p.media, p.reply, p.notes, p.run, p.opaque, p.model,
CASE WHEN p."full" IS NULL THEN 0 ELSE 1 END

-- piece: spoken
-- What is read of an exchange `p` whose messages are shown. First its content, then whether another conversation opened
-- with the same head, made elsewhere, and the number of the last message before it.
p.input, p.said,
CASE WHEN p.head = 0 OR p.carried = 0 THEN 0 WHEN EXISTS (
    SELECT 1 FROM marks h JOIN marks o ON o.agent = h.agent AND o.kind = 'head' AND o.hash = h.hash
    JOIN exchanges e ON e.id = o.exchange AND e.agent = o.agent
    WHERE h.agent = p.agent AND h.kind = 'head' AND h.exchange = p.id AND e.conversation <> p.conversation
) THEN 1 ELSE 0 END,
(SELECT b.seq + b.span - 1 FROM exchanges b WHERE b.id = p.parent AND b.agent = p.agent),
{skeleton}
