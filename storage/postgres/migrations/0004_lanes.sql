-- oldest: 3
-- first: 1 for one job of each lane: the one that runs or is to be tried again, or else the one that came first. Who asks
-- what is next looks at these alone, however many stand behind them. No dead one is first.
ALTER TABLE jobs ADD COLUMN first BIGINT NOT NULL DEFAULT 1 CHECK (first = 1 OR state IN ('pending', 'dead'));

UPDATE jobs SET first = 0 WHERE id NOT IN (
    SELECT id FROM (
        SELECT id, row_number() OVER (
            PARTITION BY agent, kind, CASE agent WHEN 0 THEN key ELSE '' END ORDER BY state = 'pending', due, id) AS place
        FROM jobs WHERE state <> 'dead') AS placed
    WHERE place = 1);
ALTER TABLE jobs ALTER COLUMN first SET DEFAULT 0;

DROP INDEX jobs_lane;
CREATE UNIQUE INDEX jobs_lane ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END)) WHERE first = 1;
CREATE INDEX jobs_behind ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END), due, id)
   WHERE first = 0 AND state = 'pending';
CREATE INDEX jobs_next ON jobs (kind, due, id) WHERE first = 1 AND state IN ('pending', 'retrying');

-- Has a lane without a first job get one. A gateway of the version before needs it, too, which does not know of it.
CREATE FUNCTION job_lane() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    moved jobs;
BEGIN
    IF TG_OP = 'DELETE' THEN
        moved := OLD;
    ELSE
        moved := NEW;
    END IF;
    UPDATE jobs SET first = 0 WHERE id = moved.id AND state = 'dead';
    LOOP
        -- A first job that ends at this moment is waited for. The one that follows it is seen in the next round.
        PERFORM 1 FROM jobs WHERE agent = moved.agent AND kind = moved.kind
            AND (CASE agent WHEN 0 THEN key ELSE '' END) = (CASE moved.agent WHEN 0 THEN moved.key ELSE '' END)
            AND first = 1 FOR SHARE;
        IF FOUND THEN
            RETURN NULL;
        END IF;
        EXIT WHEN NOT EXISTS (
            SELECT 1 FROM jobs WHERE agent = moved.agent AND kind = moved.kind
            AND (CASE agent WHEN 0 THEN key ELSE '' END) = (CASE moved.agent WHEN 0 THEN moved.key ELSE '' END)
            AND first = 1);
    END LOOP;
    -- If another session deletes the next one at this moment, it is the one behind that.
    UPDATE jobs SET first = 1 WHERE id = (
        SELECT id FROM jobs WHERE agent = moved.agent AND kind = moved.kind
        AND (CASE agent WHEN 0 THEN key ELSE '' END) = (CASE moved.agent WHEN 0 THEN moved.key ELSE '' END)
        AND first = 0 AND state = 'pending' ORDER BY due, id LIMIT 1 FOR UPDATE);
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_added AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION job_lane();
CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs FOR EACH ROW
    WHEN ((OLD.state = 'dead') <> (NEW.state = 'dead')) EXECUTE FUNCTION job_lane();
CREATE TRIGGER jobs_gone AFTER DELETE ON jobs FOR EACH ROW WHEN (OLD.first = 1) EXECUTE FUNCTION job_lane();
