-- From the schema before keys had a date of use, notes were deflated and conversations could be forked. Notes may be deflated
-- (zlib) from here on: a program that does not know that must not open the file.
ALTER TABLE keys ADD COLUMN used REAL;

-- A part of a fork's past: all of the conversation `origin` up to the number `seq`. A fork of a fork has a row for each
-- conversation above it. It begins with an exchange that is off the record and empty, whose parent is the last of its past.
CREATE TABLE forks (
    agent        INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    origin       INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    PRIMARY KEY (agent, conversation, origin)
) STRICT;

CREATE INDEX forks_origin ON forks (agent, origin, seq);

-- Each summary of a fork covers all of its past.
DROP TRIGGER summaries_forgotten;
CREATE TRIGGER summaries_forgotten AFTER UPDATE OF state, hush ON exchanges
WHEN (NEW.state = 'forgotten' AND OLD.state <> 'forgotten') OR NEW.hush IS NOT OLD.hush BEGIN
    UPDATE summaries SET agent = 0, model = '', text = ''
     WHERE conversation = NEW.conversation AND depth >= NEW.depth AND agent <> 0;
    UPDATE summaries SET agent = 0, model = '', text = ''
     WHERE agent <> 0 AND conversation IN (
        SELECT conversation FROM forks WHERE agent = NEW.agent AND origin = NEW.conversation AND seq >= NEW.seq);
END;
