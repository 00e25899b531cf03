-- A stored response is read by the conversation and the time that its id names.
CREATE INDEX exchanges_begun ON exchanges (conversation, begun);
