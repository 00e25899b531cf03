-- Every statement on the locks of conversations, for processes that share a database. `-- name:` begins one;
-- the next line describes it. ?1 is the name of a lock, ?2 the process that asks, ?3 the present time.

-- name: take
-- Takes a lock that is free, was passed on, or has a lease that has run out. No row: another process has it.
INSERT INTO conversation_locks (name, holder, held_until) VALUES (?1, ?2, {clock:3} + ?4)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until,
    wanted = CASE WHEN conversation_locks.wanted = excluded.holder THEN NULL ELSE conversation_locks.wanted END
WHERE conversation_locks.holder = excluded.holder OR conversation_locks.held_until <= {clock:3}
RETURNING name

-- name: want
-- Asks for a lock to be passed on, if no process did before. Returns the seconds that are left of its lease.
UPDATE conversation_locks SET wanted = coalesce(wanted, ?2) WHERE name = ?1 RETURNING held_until - {clock:3}

-- name: prolong
-- Prolongs the leases of locks.
UPDATE conversation_locks SET held_until = {clock:2} + ?3 WHERE holder = ?1 AND name {in:4:TEXT:64}

-- name: give
-- Releases a lock that no process waits for.
DELETE FROM conversation_locks WHERE name = ?1 AND holder = ?2 AND wanted IS NULL RETURNING name

-- name: hand_over
-- Hands a line to who wants it.
UPDATE conversation_locks SET holder = wanted, wanted = NULL, held_until = {clock:3} + ?4
WHERE name = ?1 AND holder = ?2 AND wanted IS NOT NULL RETURNING name

-- name: withdraw
-- Wants a line no more.
UPDATE conversation_locks SET wanted = NULL WHERE name = ?1 AND wanted = ?2

-- name: held
-- Returns those of some locks that are held.
SELECT name FROM conversation_locks WHERE held_until > {clock:1} AND name {in:2:TEXT:64}

-- name: drop
-- Deletes the locks of processes that have died.
DELETE FROM conversation_locks WHERE held_until < {clock:1} - 3600
