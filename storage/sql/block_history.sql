-- The values that blocks had.

-- name: block_versions
-- Reads all values of a block, oldest first.
SELECT version, restores, at, origin, exchange, sources, value FROM block_history WHERE block = ? ORDER BY version
