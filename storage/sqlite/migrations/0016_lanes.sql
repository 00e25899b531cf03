-- first: 1 for one job of each lane: the one that runs or is to be tried again, or else the one that came first. Who asks
-- what is next looks at these alone, however many stand behind them. No dead one is first. (The default is for those that
-- are there, of which some run.)
ALTER TABLE jobs ADD COLUMN first INTEGER NOT NULL DEFAULT 1 CHECK (first = 1 OR state IN ('pending', 'dead'));

UPDATE jobs SET first = 0 WHERE id NOT IN (
    SELECT id FROM (
        SELECT id, row_number() OVER (
            PARTITION BY agent, kind, CASE agent WHEN 0 THEN key ELSE '' END ORDER BY state = 'pending', due, id) AS place
        FROM jobs WHERE state <> 'dead') AS placed
    WHERE place = 1);

DROP INDEX jobs_lane;
CREATE UNIQUE INDEX jobs_lane ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END)) WHERE first = 1;
CREATE INDEX jobs_behind ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END), due, id)
 WHERE first = 0 AND state = 'pending';
CREATE INDEX jobs_next ON jobs (kind, due, id) WHERE first = 1 AND state IN ('pending', 'retrying');

-- Here no writer can forget it. One that is added, or that was dead, is first unless there is one. When the first has
-- ended, the next one is.
CREATE TRIGGER jobs_added AFTER INSERT ON jobs BEGIN
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = NEW.id;
END;

CREATE TRIGGER jobs_revived AFTER UPDATE OF state ON jobs WHEN OLD.state = 'dead' AND NEW.state <> 'dead' BEGIN
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = NEW.id;
END;

CREATE TRIGGER jobs_died AFTER UPDATE OF state ON jobs WHEN NEW.state = 'dead' AND OLD.state <> 'dead' BEGIN
    UPDATE jobs SET first = 0 WHERE id = NEW.id;
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = (
        SELECT id FROM jobs WHERE agent = NEW.agent AND kind = NEW.kind
        AND (CASE agent WHEN 0 THEN key ELSE '' END) = (CASE NEW.agent WHEN 0 THEN NEW.key ELSE '' END)
        AND first = 0 AND state = 'pending' ORDER BY due, id LIMIT 1);
END;

CREATE TRIGGER jobs_gone AFTER DELETE ON jobs WHEN OLD.first = 1 BEGIN
    UPDATE jobs SET first = 1 WHERE id = (
        SELECT id FROM jobs WHERE agent = OLD.agent AND kind = OLD.kind
        AND (CASE agent WHEN 0 THEN key ELSE '' END) = (CASE OLD.agent WHEN 0 THEN OLD.key ELSE '' END)
        AND first = 0 AND state = 'pending' ORDER BY due, id LIMIT 1);
END;
