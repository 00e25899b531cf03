-- answered: of the requests, those that a model answered and those that ask none. Limits on requests count these. Before it was
-- counted, they took the requests that did not fail.
ALTER TABLE usage ADD COLUMN answered INTEGER NOT NULL DEFAULT 0;
UPDATE usage SET answered = max(0, requests - errors);
