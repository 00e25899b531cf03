-- Runs and steps in the order of their rows, whatever agent has them: the lists of a project read them in this order.
-- oldest: 22
CREATE UNIQUE INDEX runs_row ON runs (id);
CREATE UNIQUE INDEX run_steps_row ON run_steps (exchange);
