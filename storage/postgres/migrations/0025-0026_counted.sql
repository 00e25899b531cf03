-- What was forgotten whole or alone does not count. Statements add a new exchange without regard to its redactions, as those of
-- older gateways do; a trigger then subtracts these.
-- oldest: 22

-- How many inputs of an exchange were forgotten alone. redactions: a JSON list in ascending order, so that the reply (-1, here
-- its minus sign) is its first. The reply has no words then.
CREATE FUNCTION redacted_inputs(redactions BYTEA) RETURNS INTEGER LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN redactions IS NULL THEN 0 ELSE json_array_length(convert_from(redactions, 'UTF8')::json)
        - CASE WHEN get_byte(redactions, 1) = 45 THEN 1 ELSE 0 END END
$$;

-- How many messages an exchange `e` counts for. A statement calls it as e.messages, which is a column in SQLite.
CREATE FUNCTION messages(e exchanges) RETURNS BIGINT LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN e.state IN ('forgotten', 'off') THEN 0
        ELSE e.span - CASE WHEN e.shown_reply IS NULL THEN 1 ELSE 0 END - redacted_inputs(e.redactions) END
$$;

CREATE FUNCTION sizes_exchange_redacted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE agents SET messages = messages - redacted_inputs(NEW.redactions) WHERE id = NEW.agent;
    UPDATE conversations SET messages = messages - redacted_inputs(NEW.redactions)
     WHERE agent = NEW.agent AND id = NEW.conversation;
    RETURN NULL;
END $$;

CREATE TRIGGER sizes_exchange_redacted AFTER INSERT ON exchanges FOR EACH ROW
    WHEN (NEW.redactions IS NOT NULL AND NEW.state NOT IN ('forgotten', 'off')) EXECUTE FUNCTION sizes_exchange_redacted();

CREATE OR REPLACE FUNCTION sizes_exchange_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    more BIGINT := CASE WHEN NEW.state IN ('forgotten', 'off') THEN 0
        ELSE NEW.span - CASE WHEN NEW.shown_reply IS NULL THEN 1 ELSE 0 END - redacted_inputs(NEW.redactions) END
        - CASE WHEN OLD.state IN ('forgotten', 'off') THEN 0
        ELSE OLD.span - CASE WHEN OLD.shown_reply IS NULL THEN 1 ELSE 0 END - redacted_inputs(OLD.redactions) END;
    longer BIGINT := CASE WHEN NEW.state IN ('forgotten', 'off') THEN 0
        ELSE coalesce(length(NEW.input), 0) + coalesce(length(NEW.shown_reply), 0) + coalesce(length(NEW."full"), 0) END
        - CASE WHEN OLD.state IN ('forgotten', 'off') THEN 0
        ELSE coalesce(length(OLD.input), 0) + coalesce(length(OLD.shown_reply), 0) + coalesce(length(OLD."full"), 0) END;
BEGIN
    IF more <> 0 OR longer <> 0 OR NEW.ended IS DISTINCT FROM OLD.ended THEN
        UPDATE agents SET messages = messages + more, bytes = bytes + longer,
            last_turn = greatest(last_turn, NEW.ended) WHERE id = OLD.agent;
        UPDATE conversations SET messages = messages + more, bytes = bytes + longer
         WHERE agent = OLD.agent AND id = OLD.conversation;
    END IF;
    RETURN NULL;
END $$;

DROP TRIGGER sizes_exchange_changed ON exchanges;
CREATE TRIGGER sizes_exchange_changed AFTER UPDATE OF state, redactions, input, shown_reply, "full" ON exchanges FOR EACH ROW
    EXECUTE FUNCTION sizes_exchange_changed();

UPDATE agents SET messages = messages - s.gone FROM (
    SELECT agent, sum(redacted_inputs(redactions)) AS gone FROM exchanges
    WHERE redactions IS NOT NULL AND state NOT IN ('forgotten', 'off') GROUP BY agent) AS s
WHERE agents.id = s.agent;
UPDATE conversations SET messages = messages - s.gone FROM (
    SELECT agent, conversation, sum(redacted_inputs(redactions)) AS gone FROM exchanges
    WHERE redactions IS NOT NULL AND state NOT IN ('forgotten', 'off') GROUP BY agent, conversation) AS s
WHERE conversations.agent = s.agent AND conversations.id = s.conversation;
