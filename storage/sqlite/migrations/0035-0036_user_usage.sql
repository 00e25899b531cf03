-- The counters of the table usage added up for each day, project and user, by triggers: whatever writes usage, they are its sums.
-- Who asks for no key, upstream or model reads a row in place of one for each of them.
CREATE TABLE user_usage (
    day INTEGER NOT NULL,
    project TEXT NOT NULL,
    "user" TEXT NOT NULL,
    requests INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    estimated_input_tokens INTEGER NOT NULL,
    estimated_output_tokens INTEGER NOT NULL,
    injected_tokens INTEGER NOT NULL,
    background_input_tokens INTEGER NOT NULL,
    background_output_tokens INTEGER NOT NULL,
    batch_input_tokens INTEGER NOT NULL,
    batch_output_tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    unpriced_tokens INTEGER NOT NULL,
    answered INTEGER NOT NULL,
    question_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, project, "user")
) STRICT, WITHOUT ROWID;

INSERT INTO user_usage (
    day, project, "user", requests, refused, errors, cancelled, calls, input_tokens, output_tokens, cached_tokens,
    cache_write_tokens, reasoning_tokens, estimated_input_tokens, estimated_output_tokens, injected_tokens,
    background_input_tokens, background_output_tokens, batch_input_tokens, batch_output_tokens, cost, unpriced_tokens,
    answered, question_tokens
)
SELECT
    day, project, "user", sum(requests), sum(refused), sum(errors), sum(cancelled), sum(calls), sum(input_tokens),
    sum(output_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(reasoning_tokens), sum(estimated_input_tokens),
    sum(estimated_output_tokens), sum(injected_tokens), sum(background_input_tokens), sum(background_output_tokens),
    sum(batch_input_tokens), sum(batch_output_tokens), sum(cost), sum(unpriced_tokens), sum(answered), sum(question_tokens)
FROM usage GROUP BY day, project, "user";

CREATE TRIGGER usage_added AFTER INSERT ON usage BEGIN
    INSERT INTO user_usage (
        day, project, "user", requests, refused, errors, cancelled, calls, input_tokens, output_tokens, cached_tokens,
        cache_write_tokens, reasoning_tokens, estimated_input_tokens, estimated_output_tokens, injected_tokens,
        background_input_tokens, background_output_tokens, batch_input_tokens, batch_output_tokens, cost, unpriced_tokens,
        answered, question_tokens
    ) VALUES (
        NEW.day, NEW.project, NEW."user", NEW.requests, NEW.refused, NEW.errors, NEW.cancelled, NEW.calls, NEW.input_tokens,
        NEW.output_tokens, NEW.cached_tokens, NEW.cache_write_tokens, NEW.reasoning_tokens, NEW.estimated_input_tokens,
        NEW.estimated_output_tokens, NEW.injected_tokens, NEW.background_input_tokens, NEW.background_output_tokens,
        NEW.batch_input_tokens, NEW.batch_output_tokens, NEW.cost, NEW.unpriced_tokens, NEW.answered, NEW.question_tokens
    ) ON CONFLICT (day, project, "user") DO UPDATE SET
        requests = user_usage.requests + excluded.requests,
        refused = user_usage.refused + excluded.refused,
        errors = user_usage.errors + excluded.errors,
        cancelled = user_usage.cancelled + excluded.cancelled,
        calls = user_usage.calls + excluded.calls,
        input_tokens = user_usage.input_tokens + excluded.input_tokens,
        output_tokens = user_usage.output_tokens + excluded.output_tokens,
        cached_tokens = user_usage.cached_tokens + excluded.cached_tokens,
        cache_write_tokens = user_usage.cache_write_tokens + excluded.cache_write_tokens,
        reasoning_tokens = user_usage.reasoning_tokens + excluded.reasoning_tokens,
        estimated_input_tokens = user_usage.estimated_input_tokens + excluded.estimated_input_tokens,
        estimated_output_tokens = user_usage.estimated_output_tokens + excluded.estimated_output_tokens,
        injected_tokens = user_usage.injected_tokens + excluded.injected_tokens,
        background_input_tokens = user_usage.background_input_tokens + excluded.background_input_tokens,
        background_output_tokens = user_usage.background_output_tokens + excluded.background_output_tokens,
        batch_input_tokens = user_usage.batch_input_tokens + excluded.batch_input_tokens,
        batch_output_tokens = user_usage.batch_output_tokens + excluded.batch_output_tokens,
        cost = user_usage.cost + excluded.cost,
        unpriced_tokens = user_usage.unpriced_tokens + excluded.unpriced_tokens,
        answered = user_usage.answered + excluded.answered,
        question_tokens = user_usage.question_tokens + excluded.question_tokens;
END;

CREATE TRIGGER usage_changed AFTER UPDATE ON usage BEGIN
    UPDATE user_usage SET
        requests = requests + NEW.requests - OLD.requests,
        refused = refused + NEW.refused - OLD.refused,
        errors = errors + NEW.errors - OLD.errors,
        cancelled = cancelled + NEW.cancelled - OLD.cancelled,
        calls = calls + NEW.calls - OLD.calls,
        input_tokens = input_tokens + NEW.input_tokens - OLD.input_tokens,
        output_tokens = output_tokens + NEW.output_tokens - OLD.output_tokens,
        cached_tokens = cached_tokens + NEW.cached_tokens - OLD.cached_tokens,
        cache_write_tokens = cache_write_tokens + NEW.cache_write_tokens - OLD.cache_write_tokens,
        reasoning_tokens = reasoning_tokens + NEW.reasoning_tokens - OLD.reasoning_tokens,
        estimated_input_tokens = estimated_input_tokens + NEW.estimated_input_tokens - OLD.estimated_input_tokens,
        estimated_output_tokens = estimated_output_tokens + NEW.estimated_output_tokens - OLD.estimated_output_tokens,
        injected_tokens = injected_tokens + NEW.injected_tokens - OLD.injected_tokens,
        background_input_tokens = background_input_tokens + NEW.background_input_tokens - OLD.background_input_tokens,
        background_output_tokens = background_output_tokens + NEW.background_output_tokens - OLD.background_output_tokens,
        batch_input_tokens = batch_input_tokens + NEW.batch_input_tokens - OLD.batch_input_tokens,
        batch_output_tokens = batch_output_tokens + NEW.batch_output_tokens - OLD.batch_output_tokens,
        cost = cost + NEW.cost - OLD.cost,
        unpriced_tokens = unpriced_tokens + NEW.unpriced_tokens - OLD.unpriced_tokens,
        answered = answered + NEW.answered - OLD.answered,
        question_tokens = question_tokens + NEW.question_tokens - OLD.question_tokens
    WHERE day = OLD.day AND project = OLD.project AND "user" = OLD."user";
END;

CREATE TRIGGER usage_gone AFTER DELETE ON usage BEGIN
    UPDATE user_usage SET
        requests = requests - OLD.requests,
        refused = refused - OLD.refused,
        errors = errors - OLD.errors,
        cancelled = cancelled - OLD.cancelled,
        calls = calls - OLD.calls,
        input_tokens = input_tokens - OLD.input_tokens,
        output_tokens = output_tokens - OLD.output_tokens,
        cached_tokens = cached_tokens - OLD.cached_tokens,
        cache_write_tokens = cache_write_tokens - OLD.cache_write_tokens,
        reasoning_tokens = reasoning_tokens - OLD.reasoning_tokens,
        estimated_input_tokens = estimated_input_tokens - OLD.estimated_input_tokens,
        estimated_output_tokens = estimated_output_tokens - OLD.estimated_output_tokens,
        injected_tokens = injected_tokens - OLD.injected_tokens,
        background_input_tokens = background_input_tokens - OLD.background_input_tokens,
        background_output_tokens = background_output_tokens - OLD.background_output_tokens,
        batch_input_tokens = batch_input_tokens - OLD.batch_input_tokens,
        batch_output_tokens = batch_output_tokens - OLD.batch_output_tokens,
        cost = cost - OLD.cost,
        unpriced_tokens = unpriced_tokens - OLD.unpriced_tokens,
        answered = answered - OLD.answered,
        question_tokens = question_tokens - OLD.question_tokens
    WHERE day = OLD.day AND project = OLD.project AND "user" = OLD."user";
    DELETE FROM user_usage WHERE day = OLD.day AND project = OLD.project AND "user" = OLD."user"
    AND NOT EXISTS (SELECT 1 FROM usage WHERE day = OLD.day AND project = OLD.project AND "user" = OLD."user");
END;
