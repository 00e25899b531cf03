-- Every statement on facts. `-- name:` begins one; the next line describes it.

-- name: insert
-- Adds a fact.
INSERT INTO facts (agent, seq, at, valid_from, key, exchange, sources, about, text, origin, standing)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
RETURNING id

-- name: same
-- Finds an equal fact that is still true.
SELECT f.id FROM facts f WHERE f.agent = ? AND f.key = ?
AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id AND x.agent = f.agent) LIMIT 1

-- name: standing_of_refreshable
-- Returns whether a fact from an exchange is a standing one. ?3: the time before which the fact must have become true.
-- No row: a newer equal fact must not replace this one, which is not so old, comes from no exchange or is muted.
SELECT f.standing FROM facts f WHERE f.id = ?1 AND f.agent = ?2 AND f.valid_from < ?3 AND f.exchange IS NOT NULL
AND NOT EXISTS (SELECT 1 FROM facts_muted m WHERE m.fact = f.id AND m.agent = f.agent)

-- name: learned_before
-- Finds an equal fact from the same exchange, true or not.
SELECT id FROM facts WHERE agent = ? AND key = ? AND exchange = ? LIMIT 1

-- name: end
-- Ends a fact. A fact that has ended already stays as it is.
INSERT INTO facts_ended (fact, agent, successor, at)
SELECT id, agent, ?, ? FROM facts WHERE id = ? AND agent = ?
ON CONFLICT DO NOTHING

-- name: learned_from
-- Reads the key of a fact, and the exchanges that it came from.
SELECT key, exchange, sources FROM facts WHERE agent = ?1 AND seq = ?2

-- name: detach
-- Removes the sources of a true fact, and its `about`, which may have words of a message.
UPDATE facts SET exchange = NULL, sources = ?3, about = '' WHERE agent = ?1 AND seq = ?2
AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = facts.id AND x.agent = facts.agent) RETURNING id

-- name: seq_of
-- Returns a fact's number.
SELECT seq FROM facts WHERE id = ? AND agent = ?

-- piece: fact
-- The columns of a fact `f`, with when it ended, the fact that is true instead, and whether a person took `f` back:
-- both were written by hand, and the fact that is true instead repeats the fact that `f` had replaced. (It is looked up
-- by its key: `successor` has no index.)
f.id, f.seq, f.text, f.about, f.at, f.valid_from, f.exchange, f.sources, x.at,
(SELECT s.seq FROM facts s WHERE s.id = x.successor AND s.agent = f.agent), f.origin,
CASE WHEN EXISTS (SELECT 1 FROM facts_muted m WHERE m.fact = f.id AND m.agent = f.agent) THEN 1 ELSE 0 END, f.standing,
CASE WHEN f.origin NOT IN ('learned', 'model') AND EXISTS (
    SELECT 1 FROM facts s JOIN facts b ON b.agent = s.agent AND b.key = s.key AND b.text = s.text
    JOIN facts_ended e ON e.fact = b.id AND e.agent = b.agent
    WHERE s.id = x.successor AND s.agent = f.agent AND e.successor = f.id
    AND s.origin NOT IN ('learned', 'model')) THEN 1 ELSE 0 END
FROM facts f LEFT JOIN facts_ended x ON x.fact = f.id AND x.agent = f.agent

-- name: mute
-- Mutes a fact. A fact that is muted already stays as it is.
INSERT INTO facts_muted (fact, agent, at) SELECT id, agent, ?3 FROM facts
WHERE agent = ?1 AND seq = ?2 ON CONFLICT DO NOTHING

-- name: unmute
-- Unmutes a fact.
DELETE FROM facts_muted WHERE agent = ?1 AND fact IN (SELECT id FROM facts WHERE agent = ?1 AND seq = ?2)

-- name: set_standing
-- Has a fact always hold (1), or no longer (0). The row stays as long as it was.
UPDATE facts SET standing = ?3 WHERE agent = ?1 AND seq = ?2

-- name: raise_rev
-- Has caches read a memory again. (No trigger does it for `standing`.)
UPDATE agents SET rev = rev + 1 WHERE id = ?

-- name: unlearned
-- Reads the exchanges from which a fact with this key was learned before it was forgotten, or lost its sources.
SELECT exchange FROM marks WHERE agent = ? AND kind = 'unlearned' AND hash = ?

-- name: at
-- Reads the fact with a number, true or not.
SELECT {fact} WHERE f.agent = ? AND f.seq = ?

-- name: existing
-- Finds which of some numbers are of facts, with the public ids of the memories, which are among some.
SELECT a.uid, f.seq FROM agents a CROSS JOIN facts f ON f.agent = a.id
WHERE a.uid {in:1:TEXT:64} AND f.seq {in:2:BIGINT:64}

-- name: of_row
-- Reads the fact of a row.
SELECT {fact} WHERE f.agent = ? AND f.id = ?

-- name: before
-- Reads the facts that a fact replaced, newest first. (`+`: looked up by row, not by agent.)
SELECT {fact}
WHERE +f.agent = ?1 AND f.id IN (SELECT e.fact FROM facts_ended e WHERE e.agent = ?1 AND e.successor = ?2)
ORDER BY f.seq DESC LIMIT 50

-- name: current
-- Reads a page of the facts that are true, newest first.
SELECT {fact}
WHERE f.agent = ?1 AND f.seq < ?2 AND x.fact IS NULL ORDER BY f.seq DESC LIMIT ?3

-- name: unmuted
-- Reads the newest facts that are true and not muted.
SELECT {fact}
WHERE f.agent = ?1 AND x.fact IS NULL
AND NOT EXISTS (SELECT 1 FROM facts_muted m WHERE m.fact = f.id AND m.agent = f.agent) ORDER BY f.seq DESC LIMIT ?2

-- name: standing
-- Reads the standing facts that are true, newest first.
SELECT {fact}
WHERE f.agent = ? AND f.standing = 1 AND x.fact IS NULL ORDER BY f.seq DESC LIMIT ?

-- name: naming
-- Reads the texts in which a person may be named, among the last ?2 facts, of those that are true, newest first.
SELECT f.text FROM (SELECT id, agent, seq, text FROM facts WHERE agent = ?1 ORDER BY seq DESC LIMIT ?2) f
WHERE (f.text LIKE '%name is %' OR f.text LIKE '% called %' OR f.text LIKE '% named %')
AND NOT EXISTS (SELECT 1 FROM facts_ended x WHERE x.fact = f.id AND x.agent = f.agent) ORDER BY f.seq DESC LIMIT 50

-- name: ended
-- Of the facts that were learned last, reads those that stopped being true.
SELECT {fact}
WHERE +f.agent = ?1 AND f.id IN (SELECT e.fact FROM facts_ended e WHERE e.agent = ?1 ORDER BY e.fact DESC LIMIT ?2)
ORDER BY f.seq DESC

-- name: all
-- Reads a page of the facts that are or were true, newest first.
SELECT {fact}
WHERE f.agent = ?1 AND f.seq < ?2 ORDER BY f.seq DESC LIMIT ?3

-- name: as_of
-- Reads a page of the facts that were true at a time, newest first.
SELECT {fact}
WHERE f.agent = ?1 AND f.seq < ?2 AND f.valid_from <= ?4 AND (x.fact IS NULL OR x.at > ?4) ORDER BY f.seq DESC LIMIT ?3

-- name: get
-- Reads the facts with some numbers, true or not.
SELECT {fact} WHERE f.agent = ?1 AND f.seq {in:2:BIGINT:64}
