-- oldest: 2
-- JSON: what a program says of a passage beside its tags. It is emptied with the text.
ALTER TABLE passages ADD COLUMN metadata TEXT COLLATE "C";

-- Also by a gateway of the version before, which does not know of it.
CREATE FUNCTION passage_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.metadata := NULL;
    RETURN NEW;
END $$;
CREATE TRIGGER passages_emptied BEFORE UPDATE OF text ON passages FOR EACH ROW
    WHEN (NEW.text = '') EXECUTE FUNCTION passage_emptied();
