-- Segments of large search indexes: chunks of `terms` by term, so that a query reads its own (storage/search/segment.py knows
-- the bytes). bucket: -1 has the documents. stamp: of the newest chunk. A chunk that is written drops its segment.
CREATE TABLE segments (
    agent  INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    number INTEGER NOT NULL,
    stamp  INTEGER NOT NULL,
    data   BLOB NOT NULL,
    PRIMARY KEY (agent, bucket, number)
) STRICT;
-- A program that does not know this table would leave in it what is forgotten.
