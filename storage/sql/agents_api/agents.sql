-- Every statement on agents as the agents API lists them, and on their tags. `-- name:` begins one; the next line
-- describes it.

-- piece: entry
-- The columns of a memory `a` with its definition, and their tables. The memory of a profile has no definition; its
-- name is the profile's and the user's.
{agent}, {definition}
FROM agents a LEFT JOIN definitions d ON d.memory = a.id AND d.memory <> 0 AND d.kind = 'agent'
AND d.project = a.project
LEFT JOIN definition_texts t ON t.id = d.current

-- piece: filter
-- The conditions of a list of agents. ?2, ?3: between these rows; ?5: a name; ?6: a part of a name, in lower case; ?7:
-- tags, of which it has ?8 at least; ?9: why its last run ended; ?10: an identity; ?11: ?12 keys of identities. A
-- profile's memory has its profile and user as tags.
a.project = ?1 AND a.id > ?2 AND a.id < ?3 AND (d.id IS NOT NULL OR substr(a.subject, 1, 5) = 'user:')
AND (CAST(?5 AS TEXT) IS NULL OR coalesce(d.name, a.profile || ' ' || substr(a.subject, 6)) = ?5)
AND {has:6:coalesce(d.name, a.profile || ' ' || substr(a.subject, 6))}
AND (CAST(?8 AS BIGINT) = 0 OR CAST(?8 AS BIGINT) <= (
    SELECT count(*) FROM tags g WHERE g.agent = a.id AND g.project = a.project AND g.tag {in:7:TEXT:64})
    + CASE WHEN d.id IS NULL AND 'profile:' || a.profile {in:7:TEXT:64} THEN 1 ELSE 0 END
    + CASE WHEN d.id IS NULL AND a.subject {in:7:TEXT:64} THEN 1 ELSE 0 END)
AND (CAST(?9 AS TEXT) IS NULL OR ?9 = (SELECT r.stop FROM runs r WHERE r.agent = a.id ORDER BY r.id DESC LIMIT 1))
AND ((CAST(?10 AS TEXT) IS NULL AND CAST(?12 AS BIGINT) = 0) OR EXISTS (
    SELECT 1 FROM attached i JOIN definitions n ON n.id = i.target AND n.project = a.project
    WHERE i.agent = a.id AND i.kind = 'identity' AND (CAST(?10 AS TEXT) IS NULL OR n.uid = ?10)
    AND (CAST(?12 AS BIGINT) = 0 OR n.name {in:11:TEXT:64})))

-- piece: updated
-- The order of agents by their last change: the time of the change, then the row.
coalesce(d.updated, a.created)

-- piece: completed
-- The order of agents by their last answer: when their last run ended, then the row.
coalesce((SELECT max(r.ended) FROM runs r WHERE r.agent = a.id), 0)

-- name: get
-- Reads an agent of a project by its public id.
SELECT {entry} WHERE a.uid = ?1 AND a.project = ?2 AND (d.id IS NOT NULL OR substr(a.subject, 1, 5) = 'user:')

-- name: memories
-- Reads some memories of a project.
SELECT {agent} FROM agents a WHERE a.project = ?1 AND a.id {in:2:BIGINT:64}

-- name: among
-- Reads some agents by their rows.
SELECT {entry} WHERE a.id {in:1:BIGINT:64}

-- name: created
-- Lists agents by when they were made, each after its time in the order, which is 0.
SELECT 0, {entry} WHERE {filter} ORDER BY a.id {direction} LIMIT ?4

-- name: updated
-- Lists agents by when they changed, each after that time. ?13 to ?16: the times and rows between which they lie.
SELECT {updated}, {entry} WHERE {filter} AND ({updated}, a.id) > (?13, ?14) AND ({updated}, a.id) < (?15, ?16)
ORDER BY {updated} {direction}, a.id {direction} LIMIT ?4

-- name: completed
-- Lists agents by when they last answered, each after that time. Parameters as of `updated`.
SELECT {completed}, {entry} WHERE {filter} AND ({completed}, a.id) > (?13, ?14) AND ({completed}, a.id) < (?15, ?16)
ORDER BY {completed} {direction}, a.id {direction} LIMIT ?4

-- name: with_name
-- Finds up to ?3 agents of a project with a name, also as a profile's memory has it.
WITH RECURSIVE {profiles}
SELECT * FROM (SELECT d.memory FROM definitions d
    WHERE d.project = ?1 AND d.kind = 'agent' AND d.name = ?2 AND d.memory <> 0 LIMIT ?3) defined
UNION ALL SELECT a.id FROM profiles CROSS JOIN agents a ON a.project = ?1 AND a.profile = profiles.name
    AND a.subject = 'user:' || substr(CAST(?2 AS TEXT), length(profiles.name) + 2)
WHERE substr(CAST(?2 AS TEXT), 1, length(profiles.name) + 1) = profiles.name || ' '

-- name: with_tags
-- Finds agents of a project with one of these tags, up to ?3 by their own tags. The tags of profiles are not searched.
WITH RECURSIVE {profiles}
SELECT * FROM (SELECT g.agent FROM tags g
    WHERE g.project = ?1 AND g.tag {in:2:TEXT:64} AND g.agent <> 0 LIMIT ?3) tagged
UNION ALL SELECT a.id FROM profiles CROSS JOIN agents a ON a.project = ?1 AND a.profile = profiles.name
    AND a.subject {in:2:TEXT:64}

-- name: with_identity
-- Finds up to ?3 agents of a project with the identity of this public id.
SELECT i.agent FROM definitions n CROSS JOIN attached i ON i.kind = 'identity' AND i.target = n.id
WHERE +n.project = ?1 AND n.uid = ?2 LIMIT ?3

-- name: with_identity_keys
-- Finds up to ?3 agents of a project with an identity that has one of these keys.
SELECT i.agent FROM definitions n CROSS JOIN attached i ON i.kind = 'identity' AND i.target = n.id
WHERE n.project = ?1 AND n.kind = 'identity' AND n.name {in:2:TEXT:64} LIMIT ?3

-- name: few_created
-- Lists some agents as `created` does. ?13: their rows.
SELECT 0, {entry} WHERE a.id {in:13:BIGINT:64} AND {filter} ORDER BY a.id {direction} LIMIT ?4

-- name: few_updated
-- Lists some agents as `updated` does. ?17: their rows.
SELECT {updated}, {entry} WHERE a.id {in:17:BIGINT:64} AND {filter}
AND ({updated}, a.id) > (?13, ?14) AND ({updated}, a.id) < (?15, ?16)
ORDER BY {updated} {direction}, a.id {direction} LIMIT ?4

-- name: few_completed
-- Lists some agents as `completed` does. ?17: their rows.
SELECT {completed}, {entry} WHERE a.id {in:17:BIGINT:64} AND {filter}
AND ({completed}, a.id) > (?13, ?14) AND ({completed}, a.id) < (?15, ?16)
ORDER BY {completed} {direction}, a.id {direction} LIMIT ?4

-- name: cursor_created
-- Finds where an agent stands in a list by creation: its row alone.
SELECT CAST(0 AS DOUBLE PRECISION), id FROM agents WHERE uid = ? AND project = ?

-- name: cursor_updated
-- Finds where an agent stands in a list by change: when it changed, and its row.
SELECT {updated}, a.id FROM agents a LEFT JOIN definitions d ON d.memory = a.id AND d.memory <> 0 AND d.kind = 'agent'
WHERE a.uid = ? AND a.project = ?

-- name: cursor_completed
-- Finds where an agent stands in a list by answer: when its last run ended, and its row.
SELECT {completed}, a.id FROM agents a WHERE a.uid = ? AND a.project = ?

-- name: newest
-- Names the agents of a project that have a definition, newest first.
SELECT d.name, d.uid, d.created FROM definitions d WHERE d.project = ? AND d.kind = 'agent' ORDER BY d.id DESC LIMIT ?

-- name: tag
-- Tags an agent.
INSERT INTO tags (project, tag, agent) VALUES (?, ?, ?) ON CONFLICT DO NOTHING

-- name: untag
-- Takes all tags from an agent.
DELETE FROM tags WHERE agent = ?

-- name: tags_of
-- Reads the tags of several agents.
SELECT agent, tag FROM tags WHERE agent {in:1:BIGINT:64} ORDER BY agent, tag

-- name: tags
-- Lists a project's tags by name, after one and before another. ?4: a part of a tag, in lower case.
SELECT DISTINCT tag FROM tags WHERE project = ?1 AND tag > ?2 AND (CAST(?3 AS TEXT) IS NULL OR tag < ?3)
AND {has:4:tag} AND agent <> 0 ORDER BY tag {direction} LIMIT ?5
