-- By the time first: an index that begins with the conversation is taken for other look-ups within one.
DROP INDEX exchanges_begun;
CREATE INDEX exchanges_begun ON exchanges (begun, conversation);
