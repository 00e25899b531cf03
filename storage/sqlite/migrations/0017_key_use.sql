-- When a key was last presented, to within an hour; NULL: never, or before there was this column.
ALTER TABLE keys ADD COLUMN used REAL;
