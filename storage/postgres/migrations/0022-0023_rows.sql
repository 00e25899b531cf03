-- Exchanges by their row alone: a block that several memories share may come from turns of any of them, and a forgetting asks
-- for these.
-- oldest: 22
CREATE UNIQUE INDEX exchanges_row ON exchanges (id);
