-- Names in the words of the code. Triggers and indexes are made again: SQLite renames none of them.

DROP TRIGGER exchanges_added;
DROP TRIGGER exchanges_told;
DROP TRIGGER exchanges_went_on;
DROP TRIGGER facts_gone;
DROP TRIGGER facts_untrue;
DROP TRIGGER jobs_added;
DROP TRIGGER jobs_died;
DROP TRIGGER jobs_gone;
DROP TRIGGER jobs_revived;
DROP TRIGGER kept_attached;
DROP TRIGGER kept_attached_changed;
DROP TRIGGER kept_block_added;
DROP TRIGGER kept_block_changed;
DROP TRIGGER kept_block_gone;
DROP TRIGGER kept_conversation_changed;
DROP TRIGGER kept_conversation_gone;
DROP TRIGGER kept_detached;
DROP TRIGGER kept_exchange_changed;
DROP TRIGGER kept_exchange_gone;
DROP TRIGGER kept_mark_added;
DROP TRIGGER kept_mark_gone;
DROP TRIGGER kept_op_added;
DROP TRIGGER kept_op_changed;
DROP TRIGGER kept_op_gone;
DROP TRIGGER kept_snapshot_changed;
DROP TRIGGER kept_snapshot_gone;
DROP TRIGGER kept_value_changed;
DROP TRIGGER kept_value_gone;
DROP TRIGGER marks_added;
DROP TRIGGER marks_gone;
DROP TRIGGER passages_gone;
DROP TRIGGER run_steps_added;
DROP TRIGGER summaries_forgotten;
DROP TRIGGER summaries_gone;

DROP INDEX jobs_lane;
DROP INDEX jobs_behind;
DROP INDEX blocks_nobodys;
DROP INDEX snapshots_agent;

ALTER TABLE exchanges RENAME COLUMN hush TO redactions;
ALTER TABLE exchanges RENAME COLUMN said TO shown_reply;
ALTER TABLE exchanges RENAME COLUMN standing TO active;
ALTER TABLE exchanges RENAME COLUMN carried TO continued;
ALTER TABLE exchanges RENAME COLUMN snapshot TO section;
ALTER TABLE snapshots RENAME TO sections;
ALTER TABLE sections RENAME COLUMN versions TO known;
ALTER TABLE lines RENAME TO conversation_locks;

CREATE UNIQUE INDEX jobs_group ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END)) WHERE first = 1;
CREATE INDEX jobs_waiting ON jobs (agent, kind, (CASE agent WHEN 0 THEN key ELSE '' END), due, id)
 WHERE first = 0 AND state = 'pending';
CREATE INDEX blocks_unowned ON blocks (project, id) WHERE agent IS NULL AND profile = '';
CREATE INDEX sections_agent ON sections (agent);
