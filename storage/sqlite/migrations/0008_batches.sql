-- Batches: where each item stands, beside its run.

-- part: that of its batch with which its request is at a provider; 0: it is ready for the next one; -1: it has ended.
-- sent: how many requests of it had their end. errors, expiries: since the last that succeeded. tip: the exchange that it
-- goes on from (0: none); epoch: of its memory then; both are NULL until it begins.
CREATE TABLE batch_items (
    run      INTEGER PRIMARY KEY,
    batch    INTEGER NOT NULL,
    part     INTEGER NOT NULL DEFAULT 0,
    sent     INTEGER NOT NULL DEFAULT 0,
    errors   INTEGER NOT NULL DEFAULT 0,
    expiries INTEGER NOT NULL DEFAULT 0,
    tip      INTEGER,
    epoch    INTEGER
) STRICT;

CREATE INDEX batch_items_part ON batch_items (batch, part, run);

-- Tokens that a project's batches used, which have a bound of their own.
ALTER TABLE spending ADD COLUMN batches INTEGER NOT NULL DEFAULT 0;
