-- Links to a memory.

-- name: link_add
-- Stores a link.
INSERT INTO links (digest, agent, key, expires, rights) VALUES (?, ?, ?, ?, ?)

-- name: link_find
-- Finds a link that has not ended, with the memory that it opens. `key` 0 stands for a gateway without keys. A key that
-- is bound to a user since it made the link opens no other user's memory.
SELECT l.expires, l.rights, a.uid, a.project, a.profile, a.subject, a.paused FROM links l
JOIN agents a ON a.id = l.agent
WHERE l.digest = ?1 AND l.expires > ?2
AND (CASE l.key WHEN 0 THEN NOT EXISTS (SELECT 1 FROM keys
    WHERE opens IS NULL OR opens NOT IN ('operator', 'operator-read'))
     ELSE EXISTS (SELECT 1 FROM keys k
                  WHERE k.id = l.key AND k.revoked IS NULL AND (k.expires IS NULL OR k.expires > ?2)
                  AND a.subject = coalesce('user:' || k."user", a.subject)) END)

-- name: links_age
-- Deletes the links that ended more than a day ago: a clock that is ahead for hours deletes none that goes on.
DELETE FROM links WHERE expires + 86400 < ?
