-- The triggers, which hold for every statement: no writer of rows has to remember what they do.

-- Each new exchange moves its conversation's rev, time and tip and its agent's next number, without a statement of the
-- turn's own.
CREATE TRIGGER exchanges_added AFTER INSERT ON exchanges BEGIN
    UPDATE conversations
       SET rev = rev + 1, last_at = max(last_at, coalesce(NEW.ended, NEW.stopped, NEW.touched)),
           tip = CASE WHEN tip = 0 THEN 0 ELSE NEW.id END
     WHERE id = NEW.conversation;
    UPDATE agents SET next_seq = next_seq + NEW.span WHERE id = NEW.agent;
END;

-- Forgetting in a conversation empties each summary that may quote it, and those of its forks, of which each covers all of
-- the fork's past. Emptied rows belong to no agent (0).
CREATE TRIGGER summaries_forgotten AFTER UPDATE OF state, redactions ON exchanges
WHEN (NEW.state = 'forgotten' AND OLD.state <> 'forgotten') OR NEW.redactions IS NOT OLD.redactions BEGIN
    UPDATE summaries SET agent = 0, model = '', text = ''
     WHERE conversation = NEW.conversation AND depth >= NEW.depth AND agent <> 0;
    UPDATE summaries SET agent = 0, model = '', text = ''
     WHERE agent <> 0 AND conversation IN (
        SELECT conversation FROM forks WHERE agent = NEW.agent AND origin = NEW.conversation AND seq >= NEW.seq);
END;

CREATE TRIGGER summaries_gone AFTER DELETE ON agents BEGIN
    UPDATE summaries SET agent = 0, model = '', text = '' WHERE agent = OLD.id AND agent <> 0;
END;

-- A step counts in its run, and one with a stop reason ends it, unless it has ended: a second stop changes nothing.
CREATE TRIGGER run_steps_added AFTER INSERT ON run_steps BEGIN
    UPDATE runs
       SET steps = steps + 1, prompt = prompt + NEW.prompt, completion = completion + NEW.completion,
           cached = cached + NEW.cached, written = written + NEW.written, reasoning = reasoning + NEW.reasoning
     WHERE id = NEW.run AND agent = NEW.agent;
    UPDATE runs
       SET state = CASE WHEN NEW.stop = 'cancelled' THEN 'cancelled' WHEN NEW.error IS NOT NULL THEN 'failed'
                        ELSE 'completed' END,
           stop = NEW.stop, ended = NEW.ended
     WHERE id = NEW.run AND agent = NEW.agent AND NEW.stop IS NOT NULL AND state IN ('created', 'running');
END;

-- `rev` rises with each change of a row that a MemorySnapshot is made of. All columns count but `continued`, which is
-- written together with a new exchange and its number.
CREATE TRIGGER rev_exchange_changed AFTER UPDATE OF
    agent, conversation, parent, depth, seq, run, offset, length, begun, touched, ended, stopped, state, superseded,
    active, edits, adds, opaque, model, merged, size, head, evicted, prior, section, path, reply_key, redactions, inputs,
    media, reply, notes, input, shown_reply, full
ON exchanges BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_exchange_gone AFTER DELETE ON exchanges BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_conversation_changed AFTER UPDATE OF agent, uid, key ON conversations BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_conversation_gone AFTER DELETE ON conversations BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_mark_added AFTER INSERT ON marks WHEN NEW.kind IN ('head', 'tomb') BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_mark_gone AFTER DELETE ON marks WHEN OLD.kind IN ('head', 'tomb') BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_section_changed AFTER UPDATE ON sections BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_section_gone AFTER DELETE ON sections BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_op_added AFTER INSERT ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_op_changed AFTER UPDATE ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_op_gone AFTER DELETE ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER rev_attached AFTER INSERT ON attached WHEN NEW.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_attached_changed AFTER UPDATE ON attached WHEN NEW.kind = 'block' OR OLD.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (NEW.agent, OLD.agent);
END;

CREATE TRIGGER rev_detached AFTER DELETE ON attached WHEN OLD.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

-- Blocks that a whole profile shares are read with every snapshot: the agents that see them are too many to update.
CREATE TRIGGER rev_block_added AFTER INSERT ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER rev_block_changed AFTER UPDATE ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT NEW.agent UNION SELECT OLD.agent UNION SELECT agent FROM attached WHERE kind = 'block' AND target = NEW.id);
END;

CREATE TRIGGER rev_block_gone AFTER DELETE ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT OLD.agent UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.id);
END;

CREATE TRIGGER rev_value_changed AFTER UPDATE OF block, value ON block_history BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT agent FROM blocks WHERE id = OLD.block
        UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.block);
END;

CREATE TRIGGER rev_value_gone AFTER DELETE ON block_history BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT agent FROM blocks WHERE id = OLD.block
        UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.block);
END;

-- `stamp` rises with each change of what a search may find. An open exchange is not found yet: readers wait for it at its
-- number, and if the search index has passed it, it is marked stale when it ends.
CREATE TRIGGER stamp_exchange_changed AFTER UPDATE OF active ON exchanges WHEN OLD.state <> 'open' BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

-- Messages that were made elsewhere are found once the conversation was continued, unless another one begins with them.
CREATE TRIGGER stamp_head_continued AFTER UPDATE OF continued ON exchanges
WHEN NEW.head <> 0 AND OLD.continued = 0 AND NEW.continued <> 0 BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER stamp_mark_added AFTER INSERT ON marks WHEN NEW.kind IN ('head', 'stale') BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER stamp_mark_gone AFTER DELETE ON marks WHEN OLD.kind IN ('head', 'stale') BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER stamp_passage_changed AFTER UPDATE OF text ON passages BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER stamp_fact_changed AFTER UPDATE OF text ON facts BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER stamp_fact_ended AFTER INSERT ON facts_ended BEGIN
    UPDATE agents SET stamp = stamp + 1 WHERE id = NEW.agent;
END;

-- A job that is added or revived becomes the first of its group if there is none. When the first ends, the next one is
-- first.
CREATE TRIGGER jobs_added AFTER INSERT ON jobs BEGIN
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = NEW.id;
END;

CREATE TRIGGER jobs_revived AFTER UPDATE OF state ON jobs WHEN OLD.state = 'dead' AND NEW.state <> 'dead' BEGIN
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = NEW.id;
END;

CREATE TRIGGER jobs_died AFTER UPDATE OF state ON jobs WHEN NEW.state = 'dead' AND OLD.state <> 'dead' BEGIN
    UPDATE jobs SET first = 0 WHERE id = NEW.id;
    UPDATE OR IGNORE jobs SET first = 1 WHERE id = (
        SELECT id FROM jobs WHERE agent = NEW.agent AND kind = NEW.kind
        AND (CASE agent WHEN 0 THEN key ELSE '' END) = (CASE NEW.agent WHEN 0 THEN NEW.key ELSE '' END)
        AND first = 0 AND state = 'pending' ORDER BY due, id LIMIT 1);
END;

CREATE TRIGGER jobs_gone AFTER DELETE ON jobs WHEN OLD.first = 1 BEGIN
    UPDATE jobs SET first = 1 WHERE id = (
        SELECT id FROM jobs WHERE agent = OLD.agent AND kind = OLD.kind
        AND (CASE agent WHEN 0 THEN key ELSE '' END) = (CASE OLD.agent WHEN 0 THEN OLD.key ELSE '' END)
        AND first = 0 AND state = 'pending' ORDER BY due, id LIMIT 1);
END;
