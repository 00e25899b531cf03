-- Every statement on the files of folders. A file's text lies in the passages that bear its number, in their order, and
-- nothing is left out between them.

-- piece: file
-- The columns of a file `f`.
f.id, f.uid, f.memory, f.state, f.bytes, f.created, f.type, f.name

-- name: insert
-- Adds a file before its text.
INSERT INTO files (uid, memory, state, bytes, created, type, name) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING id

-- name: set_state
-- Sets the state of a file.
UPDATE files SET state = ? WHERE id = ? AND memory = ?

-- name: get
-- Finds a file of a folder by its public id.
SELECT {file} FROM files f WHERE f.uid = ? AND f.memory = ?

-- name: find_by_name
-- Finds the files of a folder with a name, oldest first.
SELECT {file} FROM files f WHERE f.memory = ? AND f.name = ? ORDER BY f.id

-- name: names
-- Reads the names of the files of a folder.
SELECT f.name FROM files f WHERE f.memory = ?

-- name: measure_folder
-- Counts the files of a folder and their bytes, leaving out the files with a name.
SELECT count(*), coalesce(sum(f.bytes), 0) FROM files f WHERE f.memory = ?1
AND (CAST(?2 AS TEXT) IS NULL OR f.name <> ?2)

-- name: list
-- Lists the files of a folder.
SELECT {file} FROM files f WHERE f.memory = ? AND f.id > ? AND f.id < ? ORDER BY f.id {direction} LIMIT ?

-- name: list_of_folders
-- Lists the files of several folders.
SELECT {file} FROM files f WHERE f.memory {in:1:BIGINT:64} AND f.memory <> 0 ORDER BY f.memory, f.id

-- name: load_by_rows
-- Reads some files by their rows.
SELECT {file} FROM files f WHERE f.id {in:1:BIGINT:64} AND f.memory <> 0

-- name: parts
-- Reads a page of the parts of a file's text.
SELECT p.id, p.text FROM passages p WHERE p.file = ? AND p.agent = ? AND p.id > ? ORDER BY p.id LIMIT ?

-- name: count_parts
-- Counts the parts of the texts of some files.
SELECT p.file, count(*) FROM passages p WHERE p.agent = ?1 AND p.file {in:2:BIGINT:64} GROUP BY p.file

-- name: list_unfinished
-- Finds files from before a time with an unfinished text.
SELECT f.memory, f.id FROM files f WHERE f.state = ? AND f.memory <> 0 AND f.created < ? ORDER BY f.id LIMIT ?
