-- oldest: 7
-- From the schema before keys had a date of use, notes were deflated and conversations could be forked.
-- When a key was last presented, to within an hour; NULL: never, or before there was this column.
ALTER TABLE keys ADD COLUMN used DOUBLE PRECISION;
-- A program that does not know that notes may be deflated must not read them.
COMMENT ON COLUMN exchanges.notes IS 'JSON, deflated (zlib) where that is shorter';
-- A program that does not know forks would show less than their past, and give their exchanges hashes of other paths.
CREATE TABLE forks (
    agent        BIGINT NOT NULL,
    conversation BIGINT NOT NULL,
    origin       BIGINT NOT NULL,
    seq          BIGINT NOT NULL,
    PRIMARY KEY (agent, conversation, origin)
);

CREATE INDEX forks_origin ON forks (agent, origin, seq);

-- Each summary of a fork covers all of its past.
CREATE OR REPLACE FUNCTION summaries_forgotten() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM summaries WHERE agent = NEW.agent AND conversation = NEW.conversation AND depth >= NEW.depth;
    DELETE FROM summaries WHERE agent = NEW.agent AND conversation IN (
        SELECT conversation FROM forks WHERE agent = NEW.agent AND origin = NEW.conversation AND seq >= NEW.seq);
    RETURN NULL;
END $$;
