-- The last part of its counters that each process has added to the table usage, and when: a part whose commit was not answered
-- is written again, and must not be added twice.
CREATE TABLE usage_parts (
    process TEXT COLLATE "C" PRIMARY KEY,
    number  BIGINT NOT NULL,
    at      DOUBLE PRECISION NOT NULL
);
