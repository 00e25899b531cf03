-- Every statement on what belongs to agents: attached things and tags. `-- name:` begins one; the next line describes
-- it.

-- name: attach
-- Attaches something after what is attached already; what is there keeps its place.
INSERT INTO attached (agent, kind, target, place)
SELECT a.id, ?2, ?3, coalesce((SELECT max(x.place) + 1 FROM attached x WHERE x.agent = ?1 AND x.kind = ?2), 0)
FROM agents a WHERE a.id = ?1
ON CONFLICT DO NOTHING RETURNING place

-- name: detach
-- Ends that.
DELETE FROM attached WHERE agent = ? AND kind = ? AND target = ?

-- name: detach_all
-- Takes something from all agents.
DELETE FROM attached WHERE kind = ? AND target = ? AND agent <> 0

-- name: targets
-- Reads what an agent has attached, in order.
SELECT target FROM attached WHERE agent = ? AND kind = ? ORDER BY place, target

-- name: memories
-- Counts the archives and folders of an agent.
SELECT count(*) FROM attached WHERE agent = ? AND kind IN ('archive', 'folder')

-- name: of_agents
-- Reads what several agents have attached of a kind.
SELECT agent, target FROM attached WHERE kind = ?1 AND agent {in:2:BIGINT:64} ORDER BY agent, place, target

-- name: agents_with
-- Finds the agents of a project that have something attached.
SELECT x.agent FROM attached x JOIN agents a ON a.id = x.agent WHERE x.kind = ? AND x.target = ? AND a.project = ?
ORDER BY x.agent

-- name: tag
-- Tags an agent.
INSERT INTO tags (project, tag, agent) VALUES (?, ?, ?) ON CONFLICT DO NOTHING

-- name: untag
-- Takes all tags from an agent.
DELETE FROM tags WHERE agent = ?

-- name: tags_of
-- Reads the tags of several agents.
SELECT agent, tag FROM tags WHERE agent {in:1:BIGINT:64} ORDER BY agent, tag

-- name: tags_up
-- Lists a project's tags by name, after one and before another. ?4: a part of a tag, in lower case.
SELECT DISTINCT tag FROM tags WHERE project = ?1 AND tag > ?2 AND (CAST(?3 AS TEXT) IS NULL OR tag < ?3)
AND {has:4:tag} AND agent <> 0 ORDER BY tag LIMIT ?5

-- name: tags_down
-- Lists them the other way round.
SELECT DISTINCT tag FROM tags WHERE project = ?1 AND tag > ?2 AND (CAST(?3 AS TEXT) IS NULL OR tag < ?3)
AND {has:4:tag} AND agent <> 0 ORDER BY tag DESC LIMIT ?5
