-- Every statement on the locks of conversations, for processes that share a database. `-- name:` begins one;
-- the next line describes it. ?1 is the name of a lock, ?2 the process that asks, ?3 the present time.

-- name: take
-- Takes a lock that is free, was handed over, or has a lease that has run out. No row: another process has it.
INSERT INTO conversation_locks (name, holder, held_until) VALUES (?1, ?2, {clock:3} + ?4)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until,
    wanted = CASE WHEN conversation_locks.wanted = excluded.holder THEN NULL ELSE conversation_locks.wanted END
WHERE conversation_locks.holder = excluded.holder OR conversation_locks.held_until <= {clock:3}
RETURNING name

-- name: request
-- Asks for a lock to be handed over, unless a process did before. Returns the seconds until its lease ends.
UPDATE conversation_locks SET wanted = coalesce(wanted, ?2) WHERE name = ?1 RETURNING held_until - {clock:3}

-- name: prolong
-- Prolongs the leases of locks.
UPDATE conversation_locks SET held_until = {clock:2} + ?3 WHERE holder = ?1 AND name {in:4:TEXT:64}

-- name: release
-- Releases a lock that no process waits for.
DELETE FROM conversation_locks WHERE name = ?1 AND holder = ?2 AND wanted IS NULL RETURNING name

-- name: hand_over
-- Hands a lock over to the process that asked for it.
UPDATE conversation_locks SET holder = wanted, wanted = NULL, held_until = {clock:3} + ?4
WHERE name = ?1 AND holder = ?2 AND wanted IS NOT NULL RETURNING name

-- name: withdraw
-- Withdraws a request.
UPDATE conversation_locks SET wanted = NULL WHERE name = ?1 AND wanted = ?2

-- name: held
-- Returns which of some locks are held.
SELECT name FROM conversation_locks WHERE held_until > {clock:1} AND name {in:2:TEXT:64}

-- name: drop
-- Deletes the locks of processes that have died.
DELETE FROM conversation_locks WHERE held_until < {clock:1} - 3600
