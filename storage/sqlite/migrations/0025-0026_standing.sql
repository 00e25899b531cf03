-- A fact that always holds for its user, and that the memory section shows: a wish, a preference, an instruction. What is
-- read of them with a memory's snapshot changes with each of these rows.
ALTER TABLE facts ADD COLUMN standing INTEGER NOT NULL DEFAULT 0;

CREATE INDEX facts_standing ON facts (agent, seq) WHERE standing = 1;

CREATE TRIGGER rev_fact_ended AFTER INSERT ON facts_ended BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_fact_muted AFTER INSERT ON facts_muted BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_fact_unmuted AFTER DELETE ON facts_muted BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;
