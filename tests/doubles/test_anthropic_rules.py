"""The strict Anthropic itself: what it refuses, and that Anthropic's own SDK reads what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import orjson
import pytest

from tests.doubles.anthropic_rules import PromptCache, Refused, bind, check_request, sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic, refuse, think
from tests.doubles.upstream import Call, call_tools, say
from tests.patience import PATIENCE_S

Json = dict[str, Any]

HEADERS = {"content-type": "application/json", "anthropic-version": "2026-10-21"}
OLD = {**HEADERS, "anthropic-version": "2023-06-01"}
HI = {"role": "user", "content": "Hi"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def strict(value: Json) -> Json:
    schema = {"type": "object", "properties": {"x": value}, "additionalProperties": False}
    return {"name": "f", "strict": True, "input_schema": schema}


def asks_for(schema: Json) -> Json:
    return body(output_config={"format": {"type": "json_schema", "schema": schema}})


def body(*messages: Json, **more: Any) -> Json:
    return {"model": "claude-opus-4-6", "max_tokens": 5000, "messages": list(messages) or [HI], **more}


def user(*blocks: Json) -> Json:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Json) -> Json:
    return {"role": "assistant", "content": list(blocks)}


def text(said: str, **more: Any) -> Json:
    return {"type": "text", "text": said, **more}


def use(name: str = "a") -> Json:
    return {"type": "tool_use", "id": name, "name": "f", "input": {}}


def result(name: str = "a") -> Json:
    return {"type": "tool_result", "tool_use_id": name, "content": "x"}


def image(**source: Any) -> Json:
    return user({"type": "image", "source": source})


def referring(**fields: Any) -> Json:
    return {**result(), "content": [{"type": "tool_reference", "tool_name": "g", **fields}]}


MARK = {"cache_control": {"type": "ephemeral"}}
LONG = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
CHANGED = {
    "role": "system",
    "content": [{"type": "tool_addition", "tool": {"type": "tool_reference", "name": "g"}}],
}
THINK = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
SYSTEM = {"role": "system", "content": "Be brief."}
BINDS = "claude-opus-5-5"
BINDING = {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": "drop_block"}}
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": sign("Hm.")}
SEARCH = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
REFUSED: list[tuple[str, Json, str]] = [
    ("no max_tokens", {"model": "m", "messages": [HI]}, "max_tokens: Field required"),
    ("max_tokens of another type", {"model": "m", "messages": [HI], "max_tokens": True}, "max_tokens: Input should"),
    ("a stream of another type", body(stream="yes"), "stream: Input should be a valid boolean"),
    ("unknown field", body(seed=1), "seed: Extra inputs"),
    ("empty list", {**body(), "messages": []}, "at least one message"),
    ("assistant first", body(assistant(text("x"))), "first message"),
    ("two users in a row", body(HI, HI), "must alternate"),
    ("system in the list of an old model", body(HI, SYSTEM), "not supported on this model"),
    ("system first", {**body(SYSTEM, HI), "model": "claude-opus-5"}, "first message"),
    ("empty text", body(user(text(""))), "non-whitespace"),
    ("blank string", body({"role": "user", "content": " "}), "non-empty"),
    ("no content", body(user()), "must have content"),
    ("empty system", body(system=""), "non-empty"),
    ("trailing space", {**body(HI, assistant(text("x "))), "model": "claude-sonnet-4-5"}, "trailing whitespace"),
    ("call without result", body(HI, assistant(use()), HI), "without `tool_result`"),
    ("call left open", body(HI, assistant(use())), "without `tool_result`"),
    ("half of the results", body(HI, assistant(use(), use("b")), user(result())), "without `tool_result`"),
    ("result not first", body(HI, assistant(use()), user(text("x"), result())), "must come first"),
    ("result of nothing", body(user(result("z"))), "unexpected `tool_use_id`"),
    ("result twice", body(HI, assistant(use()), user(result(), result())), "single result"),
    ("bad id", body(HI, assistant(use("a:b")), user(result("a:b"))), "match pattern"),
    ("image type", body(image(type="base64", media_type="image/tiff", data="aGk=")), "media_type"),
    ("image data", body(image(type="base64", media_type="image/png", data="?")), "base64"),
    ("image over http", body(image(type="url", url="http://x/a.png")), "HTTPS"),
    ("openai's image", body(user({"type": "image_url", "image_url": {}})), "does not match"),
    ("a long mark after a short one", body(user(text("x", **MARK), text("y", **LONG))), "must not come after"),
    ("a long mark after the system's", body(user(text("y", **LONG)), system=[text("x", **MARK)]), "must not come"),
    ("a mark of the list after two", body(user(text("x", **MARK)), **LONG), "must not come after"),
    ("a field of a mark", body(user(text("x", cache_control={"type": "ephemeral", "at": 1}))), "'ephemeral'"),
    ("context without its beta", body(context_management={"edits": []}), "context_management: Extra inputs"),
    ("servers without their beta", body(mcp_servers=[]), "mcp_servers: Extra inputs"),
    ("effort of a message", {**body(HI, {**SYSTEM, "output_config": {}}), "model": BINDS}, "output_config: Extra"),
    ("effort of a user's message", body({**HI, "output_config": {}}), "output_config: Extra inputs"),
    ("tools in the middle", {**body(HI, CHANGED), "model": BINDS}, "does not match"),
    ("document of the assistant", body(HI, assistant({"type": "document", "source": {}}), HI), "not permitted"),
    ("citations of a user's text", body(user(text("x", citations=[{}]))), "citations: not permitted"),
    ("field of a reference", body(HI, assistant(use()), user(referring(name="x"))), "tool_reference.name"),
    ("five marks", body(user(*[text("x", **MARK)] * 5)), "maximum of 4"),
    ("mark of a thought", body(HI, assistant({"type": "redacted_thinking", "data": "x", **MARK}), HI), "cache_control"),
    ("thought without signature", body(HI, assistant({"type": "thinking", "thinking": "x"}), HI), "signature"),
    (
        "thought that was touched",
        body(HI, assistant({"type": "thinking", "thinking": "y", "signature": sign("x")}), HI),
        "Invalid `signature`",
    ),
    ("call without its thought", body(HI, assistant(use()), user(result()), **THINK), "Expected `thinking`"),
    ("budget", body(thinking={"type": "enabled", "budget_tokens": 9000}), "budget_tokens"),
    ("forced call with thinking", body(tools=[TOOL], tool_choice={"type": "any"}, **THINK), "forces tool use"),
    ("temperature in the new version", body(temperature=1), "temperature: Extra inputs"),
    ("choice without tools", body(tool_choice={"type": "auto"}), "while providing tools"),
    ("choice of another", body(tools=[TOOL], tool_choice={"type": "tool", "name": "g"}), "not found"),
    ("the same tool twice", body(tools=[TOOL, TOOL]), "unique"),
    ("tool without schema", body(tools=[{"name": "f"}]), "input_schema"),
    ("union of inputs", body(tools=[{**TOOL, "input_schema": {"type": "object", "anyOf": []}}]), "at the top level"),
    ("prefill of a newer model", body(HI, assistant(text("x"))), "does not support assistant message prefill"),
    ("thought at the end", body(HI, assistant(text("x"), THOUGHT), HI), "The final block"),
    ("bare error", body(HI, assistant(use()), user({**result(), "content": "", "is_error": True})), "is_error"),
    ("budget of a newer model", {**body(**THINK), "model": "claude-opus-4-7"}, "type.enabled"),
    ("no thoughts of one that thinks", {**body(thinking={"type": "disabled"}), "model": BINDS}, "type.disabled"),
    ("binding without its beta", {**body(thinking=BINDING), "model": BINDS}, "block_binding"),
    ("forced call of a newer model", {**body(tools=[TOOL], tool_choice={"type": "any"}), "model": BINDS}, "not supp"),
    ("server's call without result", body(HI, assistant(SEARCH, text("x")), HI), "without a"),
    ("older server call", body(HI, assistant(SEARCH, use()), user(result()), assistant(text("y"))), "without a"),
    ("result of no server's call", body(HI, assistant({**FOUND}, text("x")), HI), "unexpected `tool_use_id`"),
    ("an address", body(metadata={"user_id": "ann@example.com"}), "email address"),
    ("metadata", body(metadata={"a": "b"}), "metadata"),
    ("bound in a schema", asks_for({"type": "integer", "minimum": 1, "maximum": 3}), "maximum, minimum are not"),
    ("format of a schema", asks_for({"type": "string", "format": "zip"}), "String format"),
    ("items of a schema", asks_for({"type": "array", "minItems": 2}), "minItems"),
    ("bound of a strict tool", body(tools=[strict({"type": "integer", "minimum": 1})]), "minimum are not"),
    (
        "strict tools",
        body(tools=[{**strict({"type": "string"}), "name": f"f{n}"} for n in range(21)]),
        "strict tools \\(21\\)",
    ),
    ("open schema", body(output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}}), "false"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_body_that_the_api_refuses_is_refused(sent: Json, says: str) -> None:
    with pytest.raises(Refused, match=says):
        check_request(orjson.dumps(sent), HEADERS)


HEADERS_REFUSED: list[tuple[Json, str]] = [
    ({"content-type": "application/json"}, "header is required"),
    ({**HEADERS, "anthropic-version": "2024-01-01"}, "not a valid version"),
    ({"anthropic-version": "2026-10-21"}, "Content-Type"),
    ({**HEADERS, "anthropic-beta": "a b"}, "anthropic-beta"),
]


@pytest.mark.parametrize(("headers", "says"), HEADERS_REFUSED)
def test_headers_that_the_api_refuses_are_refused(headers: Json, says: str) -> None:
    with pytest.raises(Refused, match=says):
        check_request(orjson.dumps(body()), headers)


def test_two_system_prompts_and_bodies_that_are_no_json_are_refused() -> None:
    twice = orjson.dumps(body(system="a"))[:-1] + b',"system":"b"}'
    with pytest.raises(Refused, match="there twice"):
        check_request(twice, HEADERS)
    with pytest.raises(Refused, match="not valid JSON"):
        check_request(b"{", HEADERS)


def test_the_old_version_takes_a_temperature_but_not_with_thinking() -> None:
    check_request(orjson.dumps(body(temperature=0)), OLD)
    with pytest.raises(Refused, match="`top_p` is deprecated for this model"):
        check_request(orjson.dumps({**body(top_p=0.5), "model": "claude-sonnet-5"}), OLD)
    with pytest.raises(Refused, match="cannot both be specified"):
        check_request(orjson.dumps(body(temperature=0, top_p=0.5)), OLD)
    with pytest.raises(Refused, match="temperature"):
        check_request(orjson.dumps(body(temperature=0, **THINK)), OLD)


def test_well_formed_requests_are_accepted() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": sign("Hm.")}
    sent = body(
        HI,
        assistant(thought, text("Look."), use(), use("b")),
        user(result("b"), result(), text("Quick!", **MARK)),
        tools=[{**TOOL, **MARK}],
        system=[text("Be kind.", **MARK)],
        **THINK,
    )
    assert check_request(orjson.dumps(sent), HEADERS) == sent
    late = {**body(HI, SYSTEM, assistant(text("x")), HI, SYSTEM), "model": "claude-opus-5"}
    check_request(orjson.dumps(late), HEADERS)


def test_a_beta_allows_fields_that_are_refused_without_it() -> None:
    effort = {"role": "system", "output_config": {"effort": "high"}}
    clear = {**SYSTEM, "clear_at": "next_user_message"}
    for names, messages, more in (
        ("context-management-2025-06-27", [HI], {"context_management": {"edits": []}}),
        ("mcp-client-2026-09-15, x-2026-01-01", [HI], {"mcp_servers": []}),
        ("per-turn-control-2026-07-01", [HI, effort], {}),
        ("mid-conversation-system-clear-at-2026-08-21", [HI, clear], {}),
        ("mid-conversation-tool-changes-2026-07-01", [HI, CHANGED], {}),
        ("task-budgets-2026-03-13", [HI], {"output_config": {"task_budget": {}}}),
    ):
        sent = orjson.dumps({**body(*messages, **more), "model": BINDS})
        check_request(sent, {**HEADERS, "anthropic-beta": names})
        with pytest.raises(Refused):
            check_request(sent, HEADERS)


def refusal(messages: list[Json], headers: Json = HEADERS, **more: Any) -> str:
    sent = {**body(*messages), **more}
    try:
        check_request(orjson.dumps(sent), headers)
    except Refused as refused:
        return str(refused)
    return ""


def test_a_thought_counts_only_at_its_place() -> None:
    """After the same blocks as before, and not in front of them, in the middle, without them or changed."""
    another = {**THOUGHT, "thinking": "So.", "signature": sign("So.")}
    first, said, more, second, called = bind([THOUGHT, text("a "), text("b"), another, use()], body())
    assert (first, said, more, called) == (THOUGHT, text("a "), text("b"), use())
    assert second != another
    for content, is_taken in (
        ([first, said, more, second, called], True),
        ([first, text("a b"), second, called], False),
        ([first, text("a"), more, second, called], False),
        ([first, text("a ", citations=[]), more, second, called], False),
        ([first, said, second, more, called], False),
        ([first, second, said, more, called], False),
        ([said, more, first, second, called], False),
        ([first, second, called], False),
    ):
        found = refusal([HI, assistant(*content), user(result())])
        assert ("cannot be modified" not in found) is is_taken


def test_where_text_is_joined_a_thought_counts_after_all_of_it() -> None:
    said = bind([text("a "), text("b", citations=[]), THOUGHT, use()], body(), joins_text=True)
    for content, is_taken in (
        (said, True),
        ([text("a b"), *said[2:]], True),
        ([text("a b "), *said[2:]], True),
        ([text("a c"), *said[2:]], False),
        (said[2:], False),
    ):
        found = refusal([HI, assistant(*content), user(result())])
        assert ("cannot be modified" not in found) is is_taken


def test_a_thought_of_a_newer_model_counts_only_after_the_question() -> None:
    asked: Json = {"model": BINDS, "system": "Be kind.", "tools": [TOOL]}
    (thought,) = bind([THOUGHT], {**body(HI), **asked})
    messages = [HI, assistant(thought, text("x")), HI]
    beta = {**HEADERS, "anthropic-beta": "thinking-binding-controls-2026-08-01"}
    assert refusal(messages, **asked) == ""
    assert refusal([{**HI, "content": [text("Hi", **MARK)]}, *messages[1:]], **asked) == ""
    for other in ({**asked, "system": "Be brief."}, {**asked, "tools": [TOOL, {**TOOL, "name": "g"}]}):
        assert "different conversation" in refusal(messages, **other)
        assert refusal(messages, beta, **other, thinking=BINDING) == ""
        assert refusal([HI, assistant(text("x")), HI], **other) == ""
    assert "different conversation" in refusal([user(text("Ho")), *messages[1:]], **asked)


# -- read by Anthropic's own SDK


@pytest.fixture(scope="module")
def upstream() -> Iterator[StrictAnthropic]:
    with StrictAnthropic(key="sk-ant-test") as running:
        yield running


@pytest.fixture(scope="module")
def sdk(upstream: StrictAnthropic) -> Iterator[anthropic.Anthropic]:
    made = anthropic.Anthropic(
        base_url=upstream.base_url.removesuffix("/v1"),
        api_key="sk-ant-test",
        max_retries=0,
        timeout=PATIENCE_S,
    )
    yield made
    made.close()


ASK: Json = {"model": "claude-opus-4-6", "max_tokens": 100, "messages": [HI], "tools": [TOOL]}
CUT = Call("f", {"a": "b c d"}, pieces=2)


@pytest.mark.parametrize(
    "reply",
    [
        say("Hello you"),
        call_tools(CUT, Call("f", "{}"), text="Look."),
        think("Let me see.", text="So."),
        Message(text="x", blocks=[{"type": "redacted_thinking", "data": "o"}], finish_reason="length"),
    ],
    ids=["text", "calls", "thinking", "redacted"],
)
def test_the_sdk_reads_streams_as_it_reads_messages(
    upstream: StrictAnthropic, sdk: anthropic.Anthropic, reply: Any
) -> None:
    upstream.queue(reply, reply)
    whole = sdk.messages.create(**ASK).to_dict()
    with sdk.messages.stream(**ASK) as stream:
        streamed = stream.get_final_message().to_dict()
    assert upstream.last.headers["anthropic-version"] == "2026-10-21"
    assert whole["usage"] == {**streamed["usage"], **whole["usage"]}  # type: ignore[dict-item]
    for each in (whole, streamed):
        for block in each["content"]:  # type: ignore[attr-defined]
            block.pop("id", None)
            block.pop("citations", None)
    assert whole["content"] == streamed["content"]
    assert whole["stop_reason"] == streamed["stop_reason"]


def test_the_sdk_reads_errors_and_models(upstream: StrictAnthropic, sdk: anthropic.Anthropic) -> None:
    upstream.queue(refuse(429, "rate_limit_error", "Slow down."))
    with pytest.raises(anthropic.RateLimitError, match=r"Slow down\."):
        sdk.messages.create(**ASK)
    with pytest.raises(anthropic.BadRequestError, match="must alternate"):
        sdk.messages.create(**{**ASK, "messages": [HI, HI]})
    upstream.queue(say("One two", error_after=(4, {"type": "overloaded_error", "message": "Busy."})))
    with pytest.raises(anthropic.APIStatusError, match="Busy"):
        list(sdk.messages.create(**ASK, stream=True))
    assert [model.id for model in sdk.models.list()] == upstream.models


def _asked(*words: str, mark: int = -1) -> dict[str, Any]:
    """Returns a request of some blocks, of which one has a mark."""
    content: list[dict[str, Any]] = [{"type": "text", "text": each} for each in words]
    content[mark]["cache_control"] = {"type": "ephemeral"}
    return {"messages": [{"role": "user", "content": content}]}


def test_the_cache_finds_what_stands_before_a_mark() -> None:
    cache = PromptCache()
    cache.take(_asked("one", "two"))
    cache.take(_asked("one", "two", "three"))
    assert cache.reads[0] == (0, 0)
    assert cache.reads[1][0] == cache.reads[1][1] > 0


def test_the_cache_finds_nothing_after_a_change() -> None:
    cache = PromptCache()
    cache.take(_asked("one", "two"))
    cache.take(_asked("ONE", "two", "three"))
    assert cache.reads[1][0] == 0 < cache.reads[1][1]


def test_the_cache_looks_back_twenty_blocks() -> None:
    cache = PromptCache()
    cache.take(_asked("0"))
    words = [str(number) for number in range(22)]
    cache.take(_asked(*words[:21]))
    assert cache.reads[1][0] > 0
    cache = PromptCache()
    cache.take(_asked("0"))
    cache.take(_asked(*words))
    assert cache.reads[1][0] == 0


def test_a_mark_is_no_part_of_what_is_looked_up() -> None:
    cache = PromptCache()
    cache.take(_asked("one", "two", mark=0))
    cache.take(_asked("one", "two"))
    assert cache.reads[1][0] > 0
