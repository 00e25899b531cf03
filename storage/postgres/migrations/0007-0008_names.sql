-- oldest: 8
-- Names in the words of the code.

ALTER TABLE exchanges RENAME COLUMN hush TO redactions;
ALTER TABLE exchanges RENAME COLUMN said TO shown_reply;
ALTER TABLE exchanges RENAME COLUMN standing TO active;
ALTER TABLE exchanges RENAME COLUMN carried TO continued;
ALTER TABLE exchanges RENAME COLUMN snapshot TO section;
ALTER TABLE snapshots RENAME TO sections;
ALTER TABLE sections RENAME COLUMN versions TO known;
ALTER TABLE lines RENAME TO conversation_locks;
ALTER INDEX snapshots_pkey RENAME TO sections_pkey;
ALTER INDEX lines_pkey RENAME TO conversation_locks_pkey;

ALTER INDEX jobs_lane RENAME TO jobs_group;
ALTER INDEX jobs_behind RENAME TO jobs_waiting;
ALTER INDEX blocks_nobodys RENAME TO blocks_unowned;

ALTER FUNCTION kept_changed() RENAME TO rev_of_old;
ALTER FUNCTION kept_added() RENAME TO rev_of_new;
ALTER FUNCTION kept_gone() RENAME TO rev_of_many;
ALTER FUNCTION kept_block() RENAME TO rev_of_block;
ALTER FUNCTION kept_value() RENAME TO rev_of_value;
ALTER FUNCTION told_changed() RENAME TO stamp_of_old;
ALTER FUNCTION told_added() RENAME TO stamp_of_new;
ALTER FUNCTION job_lane() RENAME TO job_group;

ALTER TRIGGER kept_exchange_changed ON exchanges RENAME TO rev_exchange_changed;
ALTER TRIGGER kept_exchange_gone ON exchanges RENAME TO rev_exchange_gone;
ALTER TRIGGER kept_conversation_changed ON conversations RENAME TO rev_conversation_changed;
ALTER TRIGGER kept_conversation_gone ON conversations RENAME TO rev_conversation_gone;
ALTER TRIGGER kept_mark_added ON marks RENAME TO rev_mark_added;
ALTER TRIGGER kept_mark_gone ON marks RENAME TO rev_mark_gone;
ALTER TRIGGER kept_snapshot_changed ON sections RENAME TO rev_section_changed;
ALTER TRIGGER kept_snapshot_gone ON sections RENAME TO rev_section_gone;
ALTER TRIGGER kept_op_added ON block_ops RENAME TO rev_op_added;
ALTER TRIGGER kept_op_changed ON block_ops RENAME TO rev_op_changed;
ALTER TRIGGER kept_op_gone ON block_ops RENAME TO rev_op_gone;
ALTER TRIGGER kept_attached ON attached RENAME TO rev_attached;
ALTER TRIGGER kept_attached_changed ON attached RENAME TO rev_attached_changed;
ALTER TRIGGER kept_detached ON attached RENAME TO rev_detached;
ALTER TRIGGER kept_block_added ON blocks RENAME TO rev_block_added;
ALTER TRIGGER kept_block_changed ON blocks RENAME TO rev_block_changed;
ALTER TRIGGER kept_block_gone ON blocks RENAME TO rev_block_gone;
ALTER TRIGGER kept_value_changed ON block_history RENAME TO rev_value_changed;
ALTER TRIGGER kept_value_gone ON block_history RENAME TO rev_value_gone;
ALTER TRIGGER exchanges_told ON exchanges RENAME TO stamp_exchange_changed;
ALTER TRIGGER exchanges_went_on ON exchanges RENAME TO stamp_head_continued;
ALTER TRIGGER marks_added ON marks RENAME TO stamp_mark_added;
ALTER TRIGGER marks_gone ON marks RENAME TO stamp_mark_gone;
ALTER TRIGGER passages_gone ON passages RENAME TO stamp_passage_changed;
ALTER TRIGGER facts_gone ON facts RENAME TO stamp_fact_changed;
ALTER TRIGGER facts_untrue ON facts_ended RENAME TO stamp_fact_ended;
