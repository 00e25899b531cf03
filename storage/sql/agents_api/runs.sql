-- Every statement on runs and their steps, and on the conversations that runs begin. `-- name:` begins one; the next
-- line describes it.

-- piece: listed
-- A run as lists show it: with the names of its agent and its conversation.
SELECT {run}, a.uid, c.uid, c.key

-- piece: run_filter
-- The conditions of a list of runs. ?2, ?3: between these rows.
r.id > ?2 AND r.id < ?3 AND r.state {in:4:TEXT:5}
AND (CAST(?5 AS BIGINT) IS NULL OR r.conversation = ?5) AND (CAST(?6 AS BIGINT) IS NULL OR r.background = ?6)
AND (CAST(?7 AS TEXT) IS NULL OR r.stop = ?7)

-- piece: step_columns
-- The columns of a step `s`.
s.exchange, s.agent, s.run, s.number, s.begun, s.ended, s.prompt, s.completion, s.cached, s.written, s.reasoning,
s.stop, s.feedback, s.error, s.waiting

-- piece: step
-- A step `s` as lists show it: with the number and model of its exchange, and the names of its run and its agent.
SELECT {step_columns}, e.seq, e.model, r.uid, a.uid

-- piece: step_filter
-- The conditions of a list of steps. ?2, ?3: between the rows of these exchanges.
s.exchange > ?2 AND s.exchange < ?3 AND (CAST(?4 AS TEXT) IS NULL OR s.feedback = ?4)
AND (CAST(?5 AS BIGINT) IS NULL OR CASE WHEN s.feedback IS NULL THEN 0 ELSE 1 END = ?5)

-- name: insert
-- Adds a run. No row: a run of this agent has that otid.
INSERT INTO runs (uid, agent, conversation, parent, depth, batch, background, state, created, begun, otid)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING RETURNING id

-- name: release_otid
-- Takes the otid from a run that has ended, for the run that goes on in its place.
UPDATE runs SET otid = NULL WHERE id = ? AND agent = ? AND state NOT IN ('created', 'running')

-- name: conversation_begin
-- Begins a stored conversation. Returns no row if another writer was first.
INSERT INTO conversations (agent, uid, key, begun, last_at, tip) VALUES (?, ?, ?, ?, ?, -1)
ON CONFLICT DO NOTHING RETURNING id

-- name: conversation_by_key
-- Finds a conversation by its key.
SELECT id FROM conversations WHERE agent = ? AND key = ?

-- name: get
-- Reads a run of an agent.
SELECT {run} FROM runs r WHERE r.id = ? AND r.agent = ?

-- name: find
-- Reads a run by its public id, if it is the project's. NULL stands for any project.
{listed} FROM runs r JOIN agents a ON a.id = r.agent JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent
WHERE r.uid = ?1 AND (CAST(?2 AS TEXT) IS NULL OR a.project = ?2)

-- name: by_otid
-- Finds the run of a send that is sent again.
SELECT {run} FROM runs r WHERE r.agent = ? AND r.otid = ?

-- name: newest_of_conversation
-- Reads the newest run of a conversation.
SELECT {run} FROM runs r WHERE r.agent = ? AND r.conversation = ? ORDER BY r.id DESC LIMIT 1

-- name: newest_waiting
-- Reads the newest run of a conversation that waits for answers; ?3 is the run with the calls.
SELECT {run} FROM runs r
WHERE r.agent = ?1 AND r.conversation = ?2 AND (r.stop = 'requires_approval' OR r.id = ?3) ORDER BY r.id DESC LIMIT 1

-- piece: has_job
-- Whether a run `r` has a job that is not dead: the job is the first of its serial group, or waits. There is an index
-- for each.
(EXISTS (SELECT 1 FROM jobs j
    WHERE j.agent = r.agent AND j.kind = 'run' AND j.first = 1 AND j.key = r.uid AND j.state <> 'dead')
OR EXISTS (SELECT 1 FROM jobs j WHERE j.agent = r.agent AND j.kind = 'run' AND j.key = r.uid AND j.state = 'pending'))

-- name: accepted
-- Finds the runs of a conversation that go on without their clients and have not ended, oldest first. Runs that have
-- lost their jobs are left out.
SELECT {run} FROM runs r JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent
WHERE r.agent = ?1 AND r.state IN ('created', 'running') AND r.background = 1 AND r.batch IS NULL
AND (c.key = ?2 OR c.uid = ?2)
AND {has_job} ORDER BY r.id

-- name: newest_of_agents
-- Reads the newest run of each of some agents.
SELECT {run} FROM runs r
WHERE r.agent {in:1:BIGINT:64} AND r.id = (SELECT max(x.id) FROM runs x WHERE x.agent = r.agent)

-- name: begin
-- Begins a run that was only created.
UPDATE runs SET state = 'running', begun = ? WHERE id = ? AND agent = ? AND state = 'created'

-- name: note_first_exchange
-- Stores when the first exchange began of a run that was only created.
UPDATE runs SET begun = ? WHERE id = ? AND agent = ? AND state = 'created'

-- name: end
-- Ends a run that has not ended.
UPDATE runs SET state = ?, stop = ?, ended = ? WHERE id = ? AND agent = ? AND state IN ('created', 'running')

-- name: cancel_waiting
-- Cancels a run that has ended with calls that wait for answers.
UPDATE runs SET state = 'cancelled', stop = 'cancelled', ended = ?
WHERE id = ? AND agent = ? AND state = 'completed' AND stop = 'requires_approval'

-- name: open_foreground
-- Finds the runs of all agents that have not ended and for which clients wait.
{listed} FROM runs r JOIN agents a ON a.id = r.agent
LEFT JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent
WHERE r.state IN ('created', 'running') AND r.background = 0

-- name: open_background
-- Finds the runs that go on without their client and have not ended, in the order in which they were accepted; says
-- whether each has a job. Items of batches are left out, since their batch goes on with them. So are readings, since
-- their job is of the memory that they read.
{listed}, CASE WHEN {has_job} THEN 1 ELSE 0 END
FROM runs r JOIN agents a ON a.id = r.agent JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent
WHERE r.state IN ('created', 'running') AND r.background = 1 AND r.batch IS NULL
AND coalesce(substr(c.key, 1, 8), '') <> 'reading/' AND r.id > ?1
ORDER BY r.id LIMIT ?2

-- name: row_before
-- Returns the row of the run that is ?2 runs before the newest one below a row; nothing if there are not so many.
SELECT r.id FROM runs r WHERE r.id < ?1 ORDER BY r.id DESC LIMIT 1 OFFSET ?2

-- name: of_project
-- Lists a project's runs. NULL stands for any project.
{listed} FROM runs r CROSS JOIN agents a ON a.id = r.agent
JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent
WHERE (CAST(?1 AS TEXT) IS NULL OR a.project = ?1) AND {run_filter} ORDER BY r.id {direction} LIMIT ?8

-- name: open
-- Lists the runs that have not ended, as `of_project` does. ?9: the row of their agent; NULL stands for any agent. They
-- are few, while a project may have millions of runs that have ended.
{listed} FROM runs r CROSS JOIN agents a ON a.id = r.agent
JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent
WHERE r.state IN ('created', 'running') AND (CAST(?1 AS TEXT) IS NULL OR a.project = ?1)
AND (CAST(?9 AS BIGINT) IS NULL OR r.agent = ?9) AND {run_filter} ORDER BY r.id {direction} LIMIT ?8

-- name: of_agent
-- Lists an agent's runs. ?1: the agent's project.
{listed} FROM runs r JOIN agents a ON a.id = r.agent JOIN conversations c ON c.id = r.conversation AND c.agent = r.agent
WHERE r.agent = ?9 AND a.project = ?1 AND {run_filter} ORDER BY r.id {direction} LIMIT ?8

-- name: step_insert (sqlite)
-- Adds a step. A trigger counts the step in its run, and ends the run; another trigger adds the record of the step's
-- recall. `note_recall` returns ?4, and passes ?15 and ?16 to that trigger.
INSERT INTO run_steps (exchange, agent, run, number, begun, ended, prompt, completion, cached, written, reasoning, stop,
    error, waiting)
VALUES ({?1..3}, note_recall(?4, ?15, ?16), {?5..14})

-- name: step_insert (postgres)
-- Adds a step, and does what SQLite's triggers do. ?15, ?16: the step's recall, or NULL.
WITH s AS (
    INSERT INTO run_steps (exchange, agent, run, number, begun, ended, prompt, completion, cached, written, reasoning,
        stop, error, waiting)
    VALUES ({?1..14}) RETURNING *),
n AS (INSERT INTO recalls (exchange, agent, at, request, data)
    SELECT s.exchange, s.agent, coalesce(s.ended, s.begun), ?15, ?16 FROM s WHERE CAST(?16 AS BYTEA) IS NOT NULL)
UPDATE runs r SET steps = r.steps + 1, prompt = r.prompt + s.prompt, completion = r.completion + s.completion,
    cached = r.cached + s.cached, written = r.written + s.written, reasoning = r.reasoning + s.reasoning,
    state = CASE WHEN s.stop IS NULL OR r.state NOT IN ('created', 'running') THEN r.state
                 WHEN s.stop = 'cancelled' THEN 'cancelled' WHEN s.error IS NOT NULL THEN 'failed' ELSE 'completed' END,
    stop = CASE WHEN s.stop IS NULL OR r.state NOT IN ('created', 'running') THEN r.stop ELSE s.stop END,
    ended = CASE WHEN s.stop IS NULL OR r.state NOT IN ('created', 'running') THEN r.ended ELSE s.ended END
FROM s WHERE r.id = s.run AND r.agent = s.agent

-- name: steps
-- Reads the steps of a run, in order.
{step} FROM run_steps s JOIN exchanges e ON e.id = s.exchange AND e.agent = s.agent
JOIN runs r ON r.id = s.run AND r.agent = s.agent JOIN agents a ON a.id = s.agent
WHERE s.run = ? AND s.agent = ? ORDER BY s.number, s.exchange

-- name: next_unanswered
-- Finds the exchange without a reply at which a run goes on. It is no step itself. If the run has steps, it follows the
-- last one, which must not wait for answers. If the run has none, it is the exchange with which the run began.
SELECT k.id, k.seq FROM run_steps s JOIN exchanges p ON p.id = s.exchange AND p.agent = s.agent
JOIN exchanges k ON k.conversation = p.conversation AND k.depth = p.depth + 1 AND k.parent = p.id AND +k.agent = p.agent
WHERE s.run = ?1 AND s.agent = ?2 AND s.waiting IS NULL AND k.reply IS NULL
AND NOT EXISTS (SELECT 1 FROM run_steps x WHERE x.run = ?1 AND x.agent = ?2 AND x.number > s.number)
AND NOT EXISTS (SELECT 1 FROM run_steps x WHERE x.exchange = k.id AND x.agent = k.agent)
UNION ALL
SELECT k.id, k.seq FROM runs r
JOIN exchanges k ON k.conversation = r.conversation AND k.begun = r.begun AND +k.agent = r.agent
WHERE r.id = ?1 AND r.agent = ?2 AND r.steps = 0 AND k.reply IS NULL
AND NOT EXISTS (SELECT 1 FROM run_steps x WHERE x.exchange = k.id AND x.agent = k.agent) ORDER BY 2 LIMIT 1

-- name: first_exchange
-- Finds the exchange with which a run began.
SELECT k.id FROM runs r JOIN exchanges k ON k.conversation = r.conversation AND k.begun = r.begun AND +k.agent = r.agent
WHERE r.id = ?1 AND r.agent = ?2 ORDER BY k.seq DESC LIMIT 1

-- name: step_find
-- Reads a step by its agent's name and its exchange's number, if it is the project's.
{step} FROM agents a JOIN exchanges e ON e.agent = a.id AND e.seq = ?3
JOIN run_steps s ON s.exchange = e.id AND s.agent = a.id JOIN runs r ON r.id = s.run AND r.agent = s.agent
WHERE a.uid = ?2 AND a.project = ?1

-- name: steps_of_project
-- Lists a project's steps.
{step} FROM run_steps s CROSS JOIN agents a ON a.id = s.agent
JOIN exchanges e ON e.id = s.exchange AND e.agent = s.agent
JOIN runs r ON r.id = s.run AND r.agent = s.agent
WHERE a.project = ?1 AND {step_filter} ORDER BY s.exchange {direction} LIMIT ?6

-- name: steps_of_agent
-- Lists an agent's steps. ?1: the agent's project.
{step} FROM run_steps s JOIN agents a ON a.id = s.agent JOIN exchanges e ON e.id = s.exchange AND e.agent = s.agent
JOIN runs r ON r.id = s.run AND r.agent = s.agent
WHERE s.agent = ?7 AND a.project = ?1 AND {step_filter} ORDER BY s.exchange {direction} LIMIT ?6

-- name: feedback
-- Notes a judgement of a step.
UPDATE run_steps SET feedback = ? WHERE exchange = ? AND agent = ?

-- name: waiting
-- Reads the calls that wait at the end of a stored conversation.
SELECT {step_columns}
FROM conversations c JOIN run_steps s ON s.exchange = c.tip AND s.agent = c.agent
WHERE c.id = ? AND c.agent = ? AND s.waiting IS NOT NULL

-- name: waiting_of
-- Reads the calls that wait at the end of the conversations of some agents that have a name.
SELECT {step_columns}
FROM conversations c JOIN run_steps s ON s.exchange = c.tip AND s.agent = c.agent
WHERE c.key = ?1 AND c.agent {in:2:BIGINT:64} AND s.waiting IS NOT NULL

-- name: newest_step
-- Reads the newest step of a run.
SELECT {step_columns}
FROM run_steps s WHERE s.run = ? AND s.agent = ? ORDER BY s.number DESC LIMIT 1

-- name: states_before
-- Reads the states of an agent's runs before a run, the newest first.
SELECT state FROM runs WHERE agent = ? AND id < ? ORDER BY id DESC LIMIT ?

-- name: has_answered
-- Returns whether the model that was asked in a conversation of an agent has ever answered it.
SELECT CASE WHEN EXISTS (
    SELECT 1 FROM run_steps s JOIN exchanges e ON e.id = s.exchange AND e.agent = s.agent
    WHERE s.agent = ?1 AND s.error IS NULL AND e.model = (
        SELECT m.model FROM exchanges m WHERE m.conversation = ?2 AND +m.agent = ?1 ORDER BY m.seq DESC LIMIT 1))
THEN 1 ELSE 0 END
