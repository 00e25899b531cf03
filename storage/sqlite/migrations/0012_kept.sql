-- What a process keeps of a memory between its turns is right for one epoch, one next number and one `rev`. It rises with
-- whatever a turn's look reads and a new number does not tell of; here no writer can forget it.
ALTER TABLE agents ADD COLUMN rev INTEGER NOT NULL DEFAULT 0;

-- All columns that a look reads, but `carried`: that is written with the new exchange, whose number tells of it.
CREATE TRIGGER kept_exchange_changed AFTER UPDATE OF
    agent, conversation, parent, depth, seq, run, offset, length, begun, touched, ended, stopped, state, superseded,
    standing, edits, adds, opaque, model, merged, size, head, evicted, prior, snapshot, path, reply_key, hush, inputs,
    media, reply, notes, input, said, full
ON exchanges BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER kept_exchange_gone AFTER DELETE ON exchanges BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER kept_conversation_changed AFTER UPDATE OF agent, uid, key ON conversations BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER kept_conversation_gone AFTER DELETE ON conversations BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER kept_mark_added AFTER INSERT ON marks WHEN NEW.kind IN ('head', 'tomb') BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER kept_mark_gone AFTER DELETE ON marks WHEN OLD.kind IN ('head', 'tomb') BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER kept_snapshot_changed AFTER UPDATE ON snapshots BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER kept_snapshot_gone AFTER DELETE ON snapshots BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER kept_op_added AFTER INSERT ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER kept_op_changed AFTER UPDATE ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER kept_op_gone AFTER DELETE ON block_ops BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

CREATE TRIGGER kept_attached AFTER INSERT ON attached WHEN NEW.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER kept_attached_changed AFTER UPDATE ON attached WHEN NEW.kind = 'block' OR OLD.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (NEW.agent, OLD.agent);
END;

CREATE TRIGGER kept_detached AFTER DELETE ON attached WHEN OLD.kind = 'block' BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = OLD.agent;
END;

-- Blocks that a whole profile shares are read with every look: who sees them all is more than can be told.
CREATE TRIGGER kept_block_added AFTER INSERT ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id = NEW.agent;
END;

CREATE TRIGGER kept_block_changed AFTER UPDATE ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT NEW.agent UNION SELECT OLD.agent UNION SELECT agent FROM attached WHERE kind = 'block' AND target = NEW.id);
END;

CREATE TRIGGER kept_block_gone AFTER DELETE ON blocks BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT OLD.agent UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.id);
END;

CREATE TRIGGER kept_value_changed AFTER UPDATE OF block, value ON block_history BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT agent FROM blocks WHERE id = OLD.block
        UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.block);
END;

CREATE TRIGGER kept_value_gone AFTER DELETE ON block_history BEGIN
    UPDATE agents SET rev = rev + 1 WHERE id IN (
        SELECT agent FROM blocks WHERE id = OLD.block
        UNION SELECT agent FROM attached WHERE kind = 'block' AND target = OLD.block);
END;
