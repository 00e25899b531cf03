-- Finds what can be forgotten: memories by their scope or their age, conversations.

-- name: agents_of
-- Finds the memories of a project, in one profile or (NULL) any.
SELECT id FROM agents
WHERE project = ?1 AND (CAST(?2 AS TEXT) IS NULL OR profile = ?2) AND id > ?3 ORDER BY id LIMIT ?4

-- name: agents_of_subject
-- Finds the memories of a project that have the subject ?3, in one profile or (NULL) any.
WITH RECURSIVE {profiles}
SELECT a.id FROM profiles CROSS JOIN agents a ON a.project = ?1 AND a.profile = profiles.name AND a.subject = ?3
WHERE (CAST(?2 AS TEXT) IS NULL OR profiles.name = ?2) AND +a.id > ?4 ORDER BY a.id LIMIT ?5

-- name: conversation_of
-- Finds a conversation by its public id or the client's name.
SELECT id FROM conversations WHERE agent = ?1 AND (uid = ?2 OR key = ?2)

-- name: messages_in
-- Counts the messages of a conversation that are still there.
SELECT CAST(coalesce(sum(e.messages), 0) AS BIGINT) FROM exchanges e WHERE e.conversation = ?2 AND +e.agent = ?1

-- name: agents_before
-- Reads a page of the memories of a project in which nothing is being forgotten, and whether each holds something too
-- old. ?2: the time before which something is too old; ?5: the same where a run is open, which a forgetting would end.
-- (The order of the exchanges leads PostgreSQL to their index; for EXISTS it reads the exchanges of all memories.)
SELECT a.id, CASE WHEN (SELECT 1 FROM exchanges e
        WHERE e.agent = a.id AND e.state <> 'forgotten' AND coalesce(e.ended, e.stopped, e.begun) < a.oldest
        ORDER BY e.seq LIMIT 1) IS NOT NULL
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

-- name: inactive_before
-- Finds memories that began before a time, in which no message came since. ?2: how their subjects begin.
SELECT a.id FROM agents a WHERE substr(a.subject, 1, length(?2)) = ?2 AND a.created < ?1
AND NOT EXISTS (SELECT 1 FROM forgetting f WHERE f.agent = a.id)
AND NOT EXISTS (SELECT 1 FROM conversations c WHERE c.agent = a.id AND c.last_at >= ?1)
ORDER BY a.id LIMIT ?3
