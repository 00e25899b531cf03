-- Lists of memories begin with the newest turns. An index on `last_turn` would be written with every turn, so one has the hour
-- of it, in hours since 1970. It has names as well, so that a search of names reads no rows but those that it finds.
ALTER TABLE agents ADD COLUMN turn_hour DOUBLE PRECISION GENERATED ALWAYS AS (floor(coalesce(last_turn, 0) / 3600)) STORED;
CREATE INDEX agents_people ON agents (substr(subject, 1, 4), turn_hour, lower(subject));
