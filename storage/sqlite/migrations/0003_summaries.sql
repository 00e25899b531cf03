-- Summaries of conversations, so that what no longer fits the window is told in short.

-- What was said on the path up to an exchange, that one included; branches from there on share it. depth: the
-- exchange's. tokens: of the text, estimated. Nothing else goes into one, so its sources are its path.
CREATE TABLE summaries (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    agent        INTEGER NOT NULL,
    conversation INTEGER NOT NULL,
    exchange     INTEGER NOT NULL,
    depth        INTEGER NOT NULL,
    at           REAL NOT NULL,
    tokens       INTEGER NOT NULL,
    model        TEXT NOT NULL,
    text         TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX summaries_exchange ON summaries (exchange) WHERE agent <> 0;
CREATE INDEX summaries_conversation ON summaries (conversation, depth) WHERE agent <> 0;

-- Whatever is forgotten of a conversation takes along each summary that may tell of it. Emptied in place and nobody's
-- (agent 0), as all text that is forgotten; here no writer can forget it.
CREATE TRIGGER summaries_forgotten AFTER UPDATE OF state, hush ON exchanges
WHEN (NEW.state = 'forgotten' AND OLD.state <> 'forgotten') OR NEW.hush IS NOT OLD.hush BEGIN
    UPDATE summaries SET agent = 0, model = '', text = ''
     WHERE conversation = NEW.conversation AND depth >= NEW.depth AND agent <> 0;
END;

CREATE INDEX summaries_agent ON summaries (agent) WHERE agent <> 0;

CREATE TRIGGER summaries_gone AFTER DELETE ON agents BEGIN
    UPDATE summaries SET agent = 0, model = '', text = '' WHERE agent = OLD.id AND agent <> 0;
END;
