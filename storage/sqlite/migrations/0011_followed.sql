-- The digest of the settings that the stored blocks follow, where processes share a database. One row.
CREATE TABLE followed (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    digest BLOB NOT NULL
) STRICT;
