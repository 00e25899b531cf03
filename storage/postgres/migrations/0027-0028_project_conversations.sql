-- Conversations in the order of their rows, whatever agent has them: the list of a project reads them in this order.
-- The condition is in that list alone. With an index of all conversations the planner joins the lists of runs from it,
-- and reads all runs.
-- oldest: 22
CREATE UNIQUE INDEX conversations_row ON conversations (id) WHERE coalesce(key, '') <> 'default';
