-- A program that does not know the mark would write facts without it.
ALTER TABLE facts ADD COLUMN standing BIGINT NOT NULL DEFAULT 0;

CREATE INDEX facts_standing ON facts (agent, seq) WHERE standing = 1;

CREATE TRIGGER rev_fact_ended AFTER INSERT ON facts_ended FOR EACH ROW EXECUTE FUNCTION rev_of_new();
CREATE TRIGGER rev_fact_muted AFTER INSERT ON facts_muted FOR EACH ROW EXECUTE FUNCTION rev_of_new();
CREATE TRIGGER rev_fact_unmuted AFTER DELETE ON facts_muted FOR EACH ROW EXECUTE FUNCTION rev_of_old();
