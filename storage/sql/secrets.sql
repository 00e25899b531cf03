-- Statements on the database's own keys. `-- name:` begins one; the next line describes it.

-- name: find
-- Returns the key of a name.
SELECT value FROM secrets WHERE name = ?

-- name: make
-- Returns the key of a name, which is made of the value given if there is none.
INSERT INTO secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING value
