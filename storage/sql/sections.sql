-- Every statement on memory sections. `-- name:` begins one; the next line describes it.

-- name: get
-- Reads a memory section as it was sent.
SELECT id, text, known FROM sections WHERE id = ? AND agent = ?

-- name: insert
-- Stores a memory section as it was sent.
INSERT INTO sections (agent, text, known) VALUES (?, ?, ?) RETURNING id

-- name: of_agent
-- Reads the memory sections of an agent.
SELECT id, agent, known FROM sections WHERE agent = ? AND text <> ''

-- name: of_conversation
-- Reads the memory section of the path with which a stored conversation ends.
SELECT s.id, s.agent, s.known FROM conversations c JOIN exchanges e ON e.id = c.tip AND e.agent = c.agent
JOIN sections s ON s.id = e.section AND s.agent = e.agent WHERE c.agent = ? AND c.id = ? AND s.text <> ''

-- name: showing
-- Reads the memory sections of all agents that see a block.
SELECT id, agent, known FROM sections WHERE text <> '' AND agent IN ({seers})

-- name: empty
-- Empties a memory section: the next prompts of its paths get a new one.
UPDATE sections SET text = '', known = ?3 WHERE id = ?1 AND agent = ?2
