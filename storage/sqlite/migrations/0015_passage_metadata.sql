-- JSON: what a program says of a passage beside its tags. It is emptied with the text.
ALTER TABLE passages ADD COLUMN metadata TEXT;
