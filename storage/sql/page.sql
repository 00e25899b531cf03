-- The statements of what the page keeps: why turns recalled what they did, what operators did, links to a memory.

-- name: recall_add
-- Notes the recall of a turn that was stored before; the first one counts.
INSERT INTO recalls (exchange, agent, at, request, data)
SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS (SELECT 1 FROM recalls WHERE exchange = ?1 AND agent = ?2)

-- name: recall_drop
-- Deletes what is noted of one.
DELETE FROM recalls WHERE exchange = ? AND agent = ?

-- piece: recall_read
-- A recall `r` with its memory and what its turn is named by.
r.exchange, r.agent, r.at, r.request, r.data, a.uid, a.project, a.profile, a.subject, c.uid, e.seq, e.model
FROM recalls r JOIN agents a ON a.id = r.agent JOIN exchanges e ON e.id = r.exchange AND e.agent = r.agent
JOIN conversations c ON c.id = e.conversation AND c.agent = e.agent

-- name: recalls_of_request
-- Finds the recalls of the requests with an id, the newest first. NULL stands for any project.
SELECT {recall_read} WHERE r.request = ?1 AND r.at >= ?2 AND (CAST(?3 AS TEXT) IS NULL OR a.project = ?3)
ORDER BY r.exchange DESC LIMIT 8

-- name: recalls_of_memory
-- Reads a page of the recalls of a memory, the newest first.
SELECT {recall_read} WHERE r.agent = ?1 AND r.exchange < ?2 AND r.at >= ?3 ORDER BY r.exchange DESC LIMIT ?4

-- name: recall_requests
-- Finds the requests of some exchanges.
SELECT exchange, request FROM recalls WHERE agent = ?1 AND at >= ?2 AND exchange {in:3:BIGINT:64}

-- name: recalls_old
-- Returns whether some are too old.
SELECT EXISTS (SELECT 1 FROM recalls WHERE at < ?)

-- name: recalls_age
-- Deletes a page of the recalls that are too old.
DELETE FROM recalls WHERE (agent, exchange) IN (SELECT agent, exchange FROM recalls WHERE at < ?1 ORDER BY at LIMIT ?2)

-- name: audit_add
-- Notes what was done.
INSERT INTO audit (at, actor, action, memory, what) VALUES (?, ?, ?, ?, ?)

-- name: audit_read
-- Reads a page of what was done, the newest first. NULL stands for any memory, and for all projects.
SELECT u.id, u.at, u.actor, u.action, u.memory, u.what FROM audit u
WHERE u.id < ?1 AND (CAST(?2 AS TEXT) IS NULL OR u.memory = ?2)
AND (CAST(?3 AS TEXT) IS NULL OR EXISTS (SELECT 1 FROM agents a WHERE a.uid = u.memory AND a.project = ?3))
ORDER BY u.id DESC LIMIT ?4

-- name: audit_old
-- Returns whether something is too old.
SELECT EXISTS (SELECT 1 FROM audit WHERE at < ?)

-- name: audit_age
-- Deletes a page of what is too old.
DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)

-- name: link_add
-- Stores a link.
INSERT INTO links (digest, agent, key, expires, rights) VALUES (?, ?, ?, ?, ?)

-- name: link_find
-- Finds a link that has not ended, with the memory that it opens. `key` 0 stands for a gateway without keys.
SELECT l.agent, l.key, l.expires, l.rights, a.uid, a.project, a.profile, a.subject, a.paused FROM links l
JOIN agents a ON a.id = l.agent
WHERE l.digest = ?1 AND l.expires > ?2
AND (CASE l.key WHEN 0 THEN NOT EXISTS (SELECT 1 FROM keys WHERE opens IS NULL OR opens NOT IN ('operator', 'operator-read'))
     ELSE EXISTS (SELECT 1 FROM keys k
                  WHERE k.id = l.key AND k.revoked IS NULL AND (k.expires IS NULL OR k.expires > ?2)) END)

-- name: links_age
-- Deletes the links that have ended.
DELETE FROM links WHERE expires < ?

-- name: pause
-- Pauses a memory, or resumes it (NULL). Turns that were planned before are refused.
UPDATE agents SET paused = ?2 WHERE id = ?1 AND (paused IS NULL) <> (CAST(?2 AS DOUBLE PRECISION) IS NULL)
