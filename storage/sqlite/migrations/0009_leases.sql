-- When the lease of a job that runs ends, by the clock of `holder`: a process that owns the file has its own, which never
-- jumps; those that share a database have its clock.
ALTER TABLE jobs ADD COLUMN held_until REAL NOT NULL DEFAULT 0;
