-- Finds and settles conversations with memory edits that wait for them to go idle.

-- name: due
-- Finds conversations that have gone idle with memory edits that wait for it. (No index on idle conversations: it would
-- be written with every turn, and hardly any of them has anything to settle.) A conversation that moved after ?2 moved
-- before the clock was put back: it is unknown how long it has been idle, nor whether it was settled since. Of one that
-- was settled, the edits from before ?4 are due, which nothing has confirmed. A memory without a row is being
-- forgotten, page by page.
SELECT DISTINCT c.agent, c.id, c.key, c.last_at
FROM block_ops o JOIN exchanges e ON e.id = o.exchange AND +e.agent = o.agent
JOIN conversations c ON c.id = e.conversation AND +c.agent = e.agent
WHERE o.state = 'pending' AND ((c.last_at > c.settled_at OR o.at < ?4) AND c.last_at <= ?1 OR c.last_at > ?2)
    AND EXISTS (SELECT 1 FROM agents a WHERE a.id = c.agent)
ORDER BY c.last_at LIMIT ?3

-- name: next_due
-- Returns when the next conversation goes idle.
SELECT min(c.last_at)
FROM block_ops o JOIN exchanges e ON e.id = o.exchange AND +e.agent = o.agent
JOIN conversations c ON c.id = e.conversation AND +c.agent = e.agent
WHERE o.state = 'pending' AND c.last_at > c.settled_at AND EXISTS (SELECT 1 FROM agents a WHERE a.id = c.agent)

-- name: settled
-- Ends the settling of a conversation until it moves again. ?3: when it last moved; ?2: the same, or now if that time
-- is still to come.
UPDATE conversations SET settled_at = ?2, last_at = CASE WHEN last_at = ?3 THEN ?2 ELSE last_at END
WHERE id = ?1 AND agent = ?4 AND (settled_at < ?2 OR last_at = ?3)

-- name: unmerged
-- Finds an exchange of a conversation with memory edits that have not entered the blocks. (`+`: looked up by
-- conversation, not by agent.)
SELECT {skeleton} FROM exchanges p WHERE p.conversation = ? AND +p.agent = ? AND p.edits = 1 AND p.merged = '' LIMIT 1
