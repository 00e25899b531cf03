-- Random keys of the database's own, each made once, as the one by which traces name users.
CREATE TABLE secrets (
    name        TEXT PRIMARY KEY NOT NULL,
    value       BLOB NOT NULL
) STRICT, WITHOUT ROWID;
