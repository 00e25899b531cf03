-- messages: how many an exchange counts for; NEW.messages in a trigger. What was forgotten whole or alone does not count.
-- redactions: a JSON list in ascending order, so that the reply (-1) is its first. The reply has no words then.
ALTER TABLE exchanges ADD COLUMN messages INTEGER AS (CASE WHEN state IN ('forgotten', 'off') THEN 0
    ELSE span - (shown_reply IS NULL) - CASE WHEN redactions IS NULL THEN 0
        ELSE json_array_length(CAST(redactions AS TEXT)) - (CAST(redactions AS TEXT) LIKE '[-%') END END);

UPDATE conversations SET messages = (SELECT sum(e.messages) FROM exchanges e WHERE e.conversation = conversations.id)
WHERE id IN (SELECT conversation FROM exchanges WHERE redactions IS NOT NULL);
UPDATE agents SET messages = (SELECT sum(c.messages) FROM conversations c WHERE c.agent = agents.id)
WHERE id IN (SELECT agent FROM exchanges WHERE redactions IS NOT NULL);

DROP TRIGGER exchanges_added;
CREATE TRIGGER exchanges_added AFTER INSERT ON exchanges BEGIN
    UPDATE conversations
       SET rev = rev + 1, last_at = max(last_at, coalesce(NEW.ended, NEW.stopped, NEW.touched)),
           tip = CASE WHEN tip = 0 THEN 0 ELSE NEW.id END,
           messages = messages + NEW.messages,
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
     WHERE id = NEW.conversation;
    UPDATE agents
       SET next_seq = next_seq + NEW.span,
           last_turn = max(coalesce(last_turn, 0), coalesce(NEW.ended, NEW.stopped, NEW.touched)),
           messages = messages + NEW.messages,
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
     WHERE id = NEW.agent;
END;

DROP TRIGGER sizes_exchange_changed;
CREATE TRIGGER sizes_exchange_changed AFTER UPDATE OF state, redactions, input, shown_reply, full ON exchanges BEGIN
    UPDATE conversations
       SET messages = messages + NEW.messages - OLD.messages,
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
               - (OLD.state NOT IN ('forgotten', 'off')) * (coalesce(length(OLD.input), 0)
               + coalesce(length(OLD.shown_reply), 0) + coalesce(length(OLD.full), 0))
     WHERE id = OLD.conversation AND agent = OLD.agent;
    UPDATE agents
       SET messages = messages + NEW.messages - OLD.messages,
           bytes = bytes + (NEW.state NOT IN ('forgotten', 'off')) * (coalesce(length(NEW.input), 0)
               + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW.full), 0))
               - (OLD.state NOT IN ('forgotten', 'off')) * (coalesce(length(OLD.input), 0)
               + coalesce(length(OLD.shown_reply), 0) + coalesce(length(OLD.full), 0)),
           last_turn = CASE WHEN NEW.ended IS NULL THEN last_turn ELSE max(coalesce(last_turn, 0), NEW.ended) END
     WHERE id = OLD.agent;
END;
