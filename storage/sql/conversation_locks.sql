-- Every statement on lines: queues of which processes that share a database have one at a time. `-- name:` begins one;
-- the next line says what it is for. ?1 is the name of a line, ?2 who asks, ?3 the present time.

-- name: take
-- Takes a line that is free, was handed over, or is held by one whose lease has run out. No row: another one has it.
INSERT INTO lines (name, holder, held_until) VALUES (?1, ?2, {clock:3} + ?4)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until,
    wanted = CASE WHEN lines.wanted = excluded.holder THEN NULL ELSE lines.wanted END
WHERE lines.holder = excluded.holder OR lines.held_until <= {clock:3}
RETURNING name

-- name: want
-- Asks to be handed a line, if nobody did before. Returns the seconds that are left of its lease.
UPDATE lines SET wanted = coalesce(wanted, ?2) WHERE name = ?1 RETURNING held_until - {clock:3}

-- name: prolong
-- Prolongs the leases of lines.
UPDATE lines SET held_until = {clock:2} + ?3 WHERE holder = ?1 AND name {in:4:TEXT:64}

-- name: give
-- Gives a line back that nobody wants.
DELETE FROM lines WHERE name = ?1 AND holder = ?2 AND wanted IS NULL RETURNING name

-- name: hand_over
-- Hands a line to who wants it.
UPDATE lines SET holder = wanted, wanted = NULL, held_until = {clock:3} + ?4
WHERE name = ?1 AND holder = ?2 AND wanted IS NOT NULL RETURNING name

-- name: withdraw
-- Wants a line no more.
UPDATE lines SET wanted = NULL WHERE name = ?1 AND wanted = ?2

-- name: held
-- Returns those of some lines that somebody holds.
SELECT name FROM lines WHERE held_until > {clock:1} AND name {in:2:TEXT:64}

-- name: drop
-- Deletes the lines that those who died have left.
DELETE FROM lines WHERE held_until < {clock:1} - 3600
