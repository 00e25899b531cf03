-- Every statement on imports of other applications' exports. `-- name:` begins one; the next line describes it.

-- piece: import
-- The columns of an import `i` with the scope of its memory `a`.
i.id, i.uid, i.agent, i.format, i.status, i.created, i.touched, i.data, a.project, a.profile, a.subject
FROM imports i JOIN agents a ON a.id = i.agent

-- name: find
-- Reads the import with a public id, in a project or in any.
SELECT {import} WHERE i.uid = ?1 AND (CAST(?2 AS TEXT) IS NULL OR a.project = ?2)

-- name: list
-- Reads a page of imports, the newest first, without imports of memories that are being moved in or replaced.
SELECT {import} WHERE (CAST(?1 AS TEXT) IS NULL OR a.project = ?1) AND i.id < ?2
    AND a.subject NOT LIKE 'importing:%' AND a.subject NOT LIKE 'replaced:%' ORDER BY i.id DESC LIMIT ?3

-- name: forgotten
-- Reads the targets of the forgettings of a memory that are under way.
SELECT target FROM forgetting WHERE agent = ?

-- name: begin
-- Begins an import. One with the same public id begins again.
INSERT INTO imports (uid, agent, format, status, learns, created, touched, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7)
ON CONFLICT (uid) DO UPDATE SET format = excluded.format, status = excluded.status, learns = excluded.learns,
    touched = excluded.touched, data = excluded.data
RETURNING id

-- name: note
-- Notes how far an import has come, unless it was stopped.
UPDATE imports SET status = ?2, touched = ?3, data = ?4 WHERE id = ?1 AND status = 'running'

-- name: touch
-- Notes that an import goes on.
UPDATE imports SET touched = ?2 WHERE id = ?1 AND status = 'running'

-- name: add
-- Notes a row that an import has added.
INSERT INTO imported (what, id, import, conversation, learns) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT (what, id) DO UPDATE SET import = excluded.import, learns = excluded.learns

-- name: unstub
-- Removes the mark of an exchange that an undone import left empty, since its words are back.
DELETE FROM imported WHERE what = 'stub' AND id = ?

-- name: begun
-- Finds the conversation in which an import (?3) has last written an exchange with a path.
SELECT p.conversation FROM exchanges p JOIN imported i ON i.what = 'exchange' AND i.id = p.id
WHERE p.agent = ?1 AND p.path = ?2 AND i.import = ?3 ORDER BY p.id DESC LIMIT 1

-- name: matched
-- Finds exchanges with some paths: their skeletons, then whether their conversations were imported, whether nothing has
-- finished after them, and whether an undone import left them empty.
SELECT {skeleton}, CASE WHEN substr(c.key, 1, 7) = 'import:' THEN 1 ELSE 0 END, CASE WHEN EXISTS (
        SELECT 1 FROM exchanges k WHERE k.conversation = p.conversation AND k.depth = p.depth + 1 AND k.parent = p.id
        AND +k.agent = ?1 AND k.ended IS NOT NULL) THEN 0 ELSE 1 END,
    CASE WHEN EXISTS (SELECT 1 FROM imported s WHERE s.what = 'stub' AND s.id = p.id) THEN 1 ELSE 0 END
FROM exchanges p JOIN conversations c ON c.id = p.conversation AND c.agent = p.agent
WHERE p.agent = ?1 AND p.path {in:2:BYTEA:64} AND c.tip = 0

-- name: unanswered
-- Finds finished exchanges without a reply that ask one of some questions.
SELECT {skeleton} FROM exchanges p WHERE p.agent = ?1 AND p.input_key {in:2:BYTEA:64} AND p.reply IS NULL
    AND p.ended IS NOT NULL AND p.superseded = 0 AND p.state = 'finished'

-- name: origins
-- Reads the imports that some facts or exchanges (?2) come from: their rows, the format, and when the import began.
SELECT m.id, i.format, i.created FROM imported m JOIN imports i ON i.id = m.import
WHERE m.what = ?2 AND i.agent = ?1 AND m.id {in:3:BIGINT:64}

-- name: next_unlearned
-- Returns a row if a reader has something to read after a number.
SELECT 1 FROM exchanges e WHERE e.agent = ?1 AND e.seq > ?2 AND {learnable} ORDER BY e.seq LIMIT 1

-- name: readers_of
-- Reads the readers of a memory, and how far each has come.
SELECT reader, seq FROM readers WHERE memory = ?
