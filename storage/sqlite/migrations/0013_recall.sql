-- The numbers by which a process knows whether what it remembers of a memory is still so (storage/sql/remembered.py).

-- agents.stamp rises when what is told of a memory changes otherwise than by a new number of its order: forgetting raises
-- the epoch as well. terms.stamp: which chunks were written since; it rises within the agent.
ALTER TABLE agents ADD COLUMN stamp INTEGER NOT NULL DEFAULT 0;
ALTER TABLE terms ADD COLUMN stamp INTEGER NOT NULL DEFAULT 0;

CREATE INDEX terms_stamp ON terms (agent, stamp, chunk);

-- Here no writer can forget it. An exchange that is open tells nothing yet: readers wait for it at its number, and one
-- that the search index has passed is marked stale when it ends.
CREATE TRIGGER exchanges_told AFTER UPDATE OF standing ON exchanges WHEN OLD.state <> 'open' BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

-- A head that was made elsewhere is told once the conversation went on, unless another one begins with it.
CREATE TRIGGER exchanges_went_on AFTER UPDATE OF carried ON exchanges
WHEN NEW.head <> 0 AND OLD.carried = 0 AND NEW.carried <> 0 BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER marks_added AFTER INSERT ON marks WHEN NEW.kind IN ('head', 'stale') BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER marks_gone AFTER DELETE ON marks WHEN OLD.kind IN ('head', 'stale') BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER passages_gone AFTER UPDATE OF text ON passages BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER facts_gone AFTER UPDATE OF text ON facts BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER facts_untrue AFTER INSERT ON facts_ended BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;
