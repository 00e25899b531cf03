-- answered: of the requests, those that a model answered and those that ask none. Limits on requests count these. Before it was
-- counted, they took the requests that did not fail. An older program may run beside it: what it counts is not in this column.
-- oldest: 16
ALTER TABLE usage ADD COLUMN answered BIGINT NOT NULL DEFAULT 0;
UPDATE usage SET answered = greatest(0, requests - errors);
