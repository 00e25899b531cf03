-- Segments of large search indexes: chunks of `terms` by term, so that a query reads its own (storage/search/segment.py knows
-- the bytes). bucket: -1 has the documents. stamp: of the newest chunk. A chunk that is written drops its segment.
CREATE TABLE segments (
    agent       BIGINT NOT NULL,
    bucket      BIGINT NOT NULL,
    number      BIGINT NOT NULL,
    stamp       BIGINT NOT NULL,
    data        BYTEA NOT NULL,
    PRIMARY KEY (agent, bucket, number)
);

-- Hashes do not compress, and are read whole.
ALTER TABLE segments ALTER COLUMN data SET STORAGE EXTERNAL;
