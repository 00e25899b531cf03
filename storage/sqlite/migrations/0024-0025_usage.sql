-- What requests used, added up for each day (since the epoch, UTC), project, user ('' for none), key (0 for none), upstream and
-- model (as sent; '' where none was asked). Tokens are reported or estimated; cached and written ones are part of the input,
-- reasoning of the output; cost is in billionths of the currency of the settings' prices. gateway/run/usage writes sums.
CREATE TABLE usage (
    day INTEGER NOT NULL,
    project TEXT NOT NULL,
    "user" TEXT NOT NULL,
    key INTEGER NOT NULL,
    upstream TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0,
    errors INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    calls INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    estimated_input_tokens INTEGER NOT NULL DEFAULT 0,
    estimated_output_tokens INTEGER NOT NULL DEFAULT 0,
    injected_tokens INTEGER NOT NULL DEFAULT 0,
    background_input_tokens INTEGER NOT NULL DEFAULT 0,
    background_output_tokens INTEGER NOT NULL DEFAULT 0,
    batch_input_tokens INTEGER NOT NULL DEFAULT 0,
    batch_output_tokens INTEGER NOT NULL DEFAULT 0,
    cost INTEGER NOT NULL DEFAULT 0,
    unpriced_tokens INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (day, project, "user", key, upstream, model)
) STRICT, WITHOUT ROWID;

-- The processes that write usage, with the time of their last write: each takes its part of a limit per minute.
CREATE TABLE usage_writers (
    process TEXT PRIMARY KEY,
    wrote   REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- Limits: so much of a unit in a period for a project, a key (NULL: all) or a user (NULL: all together, '*': each by itself).
-- per: 'minute', 'day', 'month'; NULL for what is under way at a time. action: 'refuse', or the name of another model.
CREATE TABLE limits (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    project TEXT NOT NULL,
    key     INTEGER,
    "user"  TEXT,
    unit    TEXT NOT NULL,
    per     TEXT,
    most    REAL NOT NULL,
    action  TEXT NOT NULL
) STRICT;

-- expires: the key opens nothing from then on. models: the names that it may ask for, as a JSON list of patterns. user: the one
-- that all its requests are of. old_digest: of the secret before, which is good until old_until.
ALTER TABLE keys ADD COLUMN expires REAL;
ALTER TABLE keys ADD COLUMN models TEXT;
ALTER TABLE keys ADD COLUMN "user" TEXT;
ALTER TABLE keys ADD COLUMN old_digest BLOB;
ALTER TABLE keys ADD COLUMN old_until REAL;
CREATE INDEX keys_old ON keys (old_digest) WHERE old_digest IS NOT NULL;
