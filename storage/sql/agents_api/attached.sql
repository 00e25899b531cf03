-- Every statement on objects that are attached to agents. `-- name:` begins one; the next line describes it.

-- name: attach
-- Attaches an object to an agent, after all others. An object that is attached already keeps its place.
INSERT INTO attached (agent, kind, target, place)
SELECT a.id, ?2, ?3, coalesce((SELECT max(x.place) + 1 FROM attached x WHERE x.agent = ?1 AND x.kind = ?2), 0)
FROM agents a WHERE a.id = ?1
ON CONFLICT DO NOTHING RETURNING place

-- name: detach
-- Detaches something from an agent.
DELETE FROM attached WHERE agent = ? AND kind = ? AND target = ?

-- name: detach_all
-- Detaches something from all agents.
DELETE FROM attached WHERE kind = ? AND target = ? AND agent <> 0

-- name: targets
-- Reads the objects that are attached to an agent, in order.
SELECT target FROM attached WHERE agent = ? AND kind = ? ORDER BY place, target

-- name: memories
-- Counts the archives and folders of an agent.
SELECT count(*) FROM attached WHERE agent = ? AND kind IN ('archive', 'folder')

-- name: of_agents
-- Reads the objects of a kind that are attached to several agents.
SELECT agent, target FROM attached WHERE kind = ?1 AND agent {in:2:BIGINT:64} ORDER BY agent, place, target

-- name: agents_with
-- Finds the agents of a project that have something attached.
SELECT x.agent FROM attached x JOIN agents a ON a.id = x.agent WHERE x.kind = ? AND x.target = ? AND a.project = ?
ORDER BY x.agent
