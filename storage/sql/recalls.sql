-- Recalls: the records of the searches of turns.

-- name: recall_add
-- Notes the recall of a turn that is stored. The first recall of a turn stays.
INSERT INTO recalls (exchange, agent, at, request, data)
SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS (SELECT 1 FROM recalls WHERE exchange = ?1 AND agent = ?2)

-- name: recall_delete
-- Deletes the recall of a turn.
DELETE FROM recalls WHERE exchange = ? AND agent = ?

-- piece: recall_read
-- The columns of a recall `r`, with its memory and its turn.
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
-- Finds the requests that some exchanges answer.
SELECT exchange, request FROM recalls WHERE agent = ?1 AND at >= ?2 AND exchange {in:3:BIGINT:64}

-- name: recall_of_question
-- Finds the first recall for the question of an exchange, at the same place.
SELECT r.request, r.data FROM exchanges e JOIN exchanges s ON s.agent = e.agent AND s.conversation = e.conversation
AND s.depth = e.depth AND coalesce(s.parent, 0) = coalesce(e.parent, 0) AND s.inputs = e.inputs
JOIN recalls r ON r.exchange = s.id AND r.agent = s.agent
WHERE e.id = ?2 AND +e.agent = ?1 AND r.at >= ?3 ORDER BY r.exchange LIMIT 1

-- name: recall_exchanges
-- Reads the exchanges that answer some requests of a memory. An exchange of more than ?3 stored bytes is left out.
SELECT r.request, {shown} FROM recalls r JOIN exchanges p ON p.id = r.exchange AND p.agent = r.agent
WHERE +r.agent = ?1 AND r.at >= ?2 AND length(p.input) <= ?3 AND r.request {in:4:BYTEA:64}

-- name: recalls_old
-- Returns whether any recall is too old.
SELECT EXISTS (SELECT 1 FROM recalls WHERE at < ?)

-- name: recalls_age
-- Deletes a page of the recalls that are too old.
DELETE FROM recalls WHERE (agent, exchange) IN (SELECT agent, exchange FROM recalls WHERE at < ?1 ORDER BY at LIMIT ?2)
