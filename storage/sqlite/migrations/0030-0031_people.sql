-- Lists of memories begin with the newest turns. An index on `last_turn` would be written with every turn, so one has the hour
-- of it, in hours since 1970. It has names as well, so that a search of names reads no rows but those that it finds.
ALTER TABLE agents ADD COLUMN turn_hour REAL NOT NULL DEFAULT 0;
UPDATE agents SET turn_hour = CAST(last_turn / 3600 AS INTEGER) WHERE last_turn IS NOT NULL;
CREATE INDEX agents_people ON agents (substr(subject, 1, 4), turn_hour, lower(subject));

CREATE TRIGGER agents_turn_hour AFTER UPDATE OF last_turn ON agents
WHEN NEW.last_turn IS NOT NULL AND CAST(NEW.last_turn / 3600 AS INTEGER) <> NEW.turn_hour BEGIN
    UPDATE agents SET turn_hour = CAST(NEW.last_turn / 3600 AS INTEGER) WHERE id = NEW.id;
END;
