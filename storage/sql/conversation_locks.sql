-- Every statement on the locks of conversations, for processes that share a database. `-- name:` begins one;
-- the next line describes it. ?1 is the name of a lock, ?2 the process that asks, ?3 the present time.

-- name: acquire
-- Acquires a lock that is free or was handed over, or renews a lock that this process has. No row: another process has
-- it.
INSERT INTO conversation_locks (name, holder, held_until) VALUES (?1, ?2, {clock:3} + ?4)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until,
    wanted = CASE WHEN conversation_locks.wanted = excluded.holder THEN NULL ELSE conversation_locks.wanted END
WHERE conversation_locks.holder = excluded.holder
RETURNING name

-- name: find_ended_lease
-- Returns the time at which the lease of a lock ended. No row: the lease has not ended.
SELECT held_until FROM conversation_locks WHERE name = ?1 AND held_until <= {clock:2}

-- name: take_over
-- Takes a lock over if its lease ended at ?5. No row: the lock was renewed or acquired since.
UPDATE conversation_locks
SET holder = ?2, held_until = {clock:3} + ?4, wanted = CASE WHEN wanted = ?2 THEN NULL ELSE wanted END
WHERE name = ?1 AND held_until = CAST(?5 AS DOUBLE PRECISION) RETURNING name

-- name: request_handover
-- Asks for a lock to be handed over, unless a process did before. Returns the seconds until its lease ends.
UPDATE conversation_locks SET wanted = coalesce(wanted, ?2) WHERE name = ?1 RETURNING held_until - {clock:3}

-- name: renew
-- Renews the leases of some locks, and returns these locks.
UPDATE conversation_locks SET held_until = {clock:2} + ?3 WHERE holder = ?1 AND name {in:4:TEXT:64} RETURNING name

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

-- name: load_held
-- Returns the locks among these that are not free, and whether their leases go on.
SELECT name, held_until > {clock:1} FROM conversation_locks WHERE name {in:2:TEXT:64}

-- name: delete_expired
-- Deletes the locks with leases that ended more than an hour ago.
DELETE FROM conversation_locks WHERE held_until < {clock:1} - 3600
