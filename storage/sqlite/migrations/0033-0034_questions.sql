-- question_tokens: the part of the background tokens by which memory was searched.
ALTER TABLE usage ADD COLUMN question_tokens INTEGER NOT NULL DEFAULT 0;
