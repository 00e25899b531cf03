-- For each process, the part of its counters that it added last to the table usage, and when. A part is written again
-- after a commit without an answer, and must not be added twice.
CREATE TABLE usage_parts (
    process TEXT COLLATE "C" PRIMARY KEY,
    number  BIGINT NOT NULL,
    at      DOUBLE PRECISION NOT NULL
);
