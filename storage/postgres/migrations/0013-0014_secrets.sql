-- Random keys of the database's own, each made once, as the one by which traces name users.
CREATE TABLE secrets (
    name        TEXT COLLATE "C" PRIMARY KEY,
    value       BYTEA NOT NULL
);
