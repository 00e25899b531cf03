"""What Claude has and OpenAI has not, through the gateway with memory on: nothing of it is lost on the way.

Images and where the cache is marked on the way up; citations, blocks of other kinds, refusals and thoughts on the way
down, and up again where the client dropped them. The strict upstream refuses what Anthropic refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_rules import sign
from tests.doubles.anthropic_upstream import Message, StrictAnthropic, message
from tests.doubles.upstream import Call, Gate, UpstreamRequest, call_tools, say
from tests.gateway.sdk import Chat, World, agent, remember

Json = dict[str, Any]

MODEL = "claude-opus-4-6"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
DATA = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
LINK = {"type": "image_url", "image_url": {"url": "https://example.com/cat.jpg"}}
DATA_BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
LINK_BLOCK = {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.jpg"}}
MARK = {"type": "ephemeral"}
LONG_MARK = {"type": "ephemeral", "ttl": "1h"}
both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
models = pytest.mark.parametrize("model", [MODEL, "agent/helper"], ids=["transparent", "agent"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with StrictAnthropic() as upstream:
        there = (UpstreamSettings("up", "anthropic", upstream.base_url),)
        with remember(upstream, tmp_path, agent(model=MODEL), upstreams=there) as made:
            yield made


def blocks(request: UpstreamRequest, role: str) -> list[Json]:
    """Of all turns of a role, without marks."""
    return [
        {key: value for key, value in block.items() if key != "cache_control"}
        for turn in request.json["messages"]
        if turn["role"] == role
        for block in turn["content"]
    ]


def raw_reply(world: World, stream: bool, **ask: Any) -> Json:
    """A reply's message with every field it has; of a stream, its deltas put together."""
    ask = {"model": MODEL, "user": "alice", "stream": stream, **ask}
    answer = world.sdk.chat.completions.create(**ask)
    if not stream:
        found: Json = answer.choices[0].to_dict()
        return {**found["message"], "finish_reason": found["finish_reason"]}
    joined: Json = {}
    for chunk in answer:
        for choice in chunk.to_dict()["choices"]:
            for key, value in {**choice["delta"], "finish_reason": choice["finish_reason"]}.items():
                if key == "tool_calls":
                    made = joined.setdefault(key, [])
                    for piece in value:
                        if "id" in piece:
                            made.append({k: v for k, v in piece.items() if k != "index"})
                        else:
                            made[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
                elif isinstance(value, str) and isinstance(joined.get(key), str) and key != "role":
                    joined[key] += value
                elif isinstance(value, list):
                    joined[key] = [*(joined.get(key) or []), *value]
                elif value is not None or key not in joined:
                    joined[key] = value
    return joined


# -- images


@models
@both_ways
def test_images_arrive_and_stay_where_they_are(world: World, model: str, stream: bool) -> None:
    """As data and by their address, in the turn they came in and in every later one, and with a note before them."""
    world.chat(user="alice", model=model).say("My cat is called Miso, she is grey.")
    chat = world.chat(user="alice", model=model, stream=stream)
    chat.messages.append(
        {"role": "user", "content": [{"type": "text", "text": "Is this my cat Miso?"}, DATA, LINK]}
    )
    assert chat.go_on() == "Ok."
    first = blocks(world.upstream.last, "user")
    assert [block for block in first if block["type"] == "image"] == [DATA_BLOCK, LINK_BLOCK]
    assert "she is grey" in first[0]["text"], "recalled"
    assert first[0]["text"].endswith("Is this my cat Miso?")
    assert chat.say("And now?") == "Ok."
    assert blocks(world.upstream.last, "user")[: len(first)] == first
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [3]


@both_ways
def test_a_tools_image_is_its_result(world: World, stream: bool) -> None:
    world.upstream.queue(call_tools(Call("weather", {"city": "Rome"})), say("Sunny."))
    chat = world.chat(user="alice", model=MODEL, tools=[WEATHER], stream=stream)
    chat.say("Show me the weather in Rome.")
    (call,) = chat.messages[-1]["tool_calls"]
    content = [{"type": "text", "text": "A picture:"}, DATA]
    chat.messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
    assert chat.go_on() == "Sunny."
    assert blocks(world.upstream.last, "user")[-1] == {
        "type": "tool_result",
        "tool_use_id": call["id"],
        "content": [{"type": "text", "text": "A picture:"}, DATA_BLOCK],
    }


# -- what only Claude says

CITED = {
    "type": "char_location",
    "cited_text": "The cat is grey.",
    "document_index": 0,
    "document_title": "Cats",
    "start_char_index": 0,
    "end_char_index": 16,
}
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "cats"}}
FOUND = {
    "type": "web_search_tool_result",
    "tool_use_id": "srvtoolu_1",
    "content": [{"type": "web_search_result", "url": "https://example.com", "title": "Cats"}],
}

SEARCH_BLOCKS = [SEARCH, FOUND]


@models
@both_ways
def test_citations_are_stored_with_their_positions(world: World, model: str, stream: bool) -> None:
    cited = {"type": "text", "text": "It is grey.", "citations": [CITED]}
    world.upstream.queue(message({"type": "text", "text": "Well: "}, cited, text=" So."))
    reply = raw_reply(
        world, stream, model=model, messages=[{"role": "user", "content": "Which colour is the cat?"}]
    )
    assert reply["content"] == "Well: It is grey. So."
    assert reply["citations"] == [{"index": 0, "start_index": 6, "end_index": 17, "citation": CITED}]


@models
@both_ways
def test_blocks_of_other_kinds_are_stored_and_go_back(world: World, model: str, stream: bool) -> None:
    world.upstream.queue(message(SEARCH, FOUND, text="Cats are grey."), say("Yes."))
    messages: list[Any] = [{"role": "user", "content": "Search for cats."}]
    reply = raw_reply(world, stream, model=model, messages=messages)
    given = [
        {key: value for key, value in block.items() if key != "index"} for block in reply["provider_blocks"]
    ]
    assert (reply["content"], given) == ("Cats are grey.", [SEARCH, FOUND])
    # Most clients keep the text alone.
    messages += [{"role": "assistant", "content": reply["content"]}, {"role": "user", "content": "Sure?"}]
    assert raw_reply(world, stream, model=model, messages=messages)["content"] == "Yes."
    said = blocks(world.upstream.last, "assistant")
    assert said == [SEARCH, FOUND, {"type": "text", "text": "Cats are grey."}]


@models
@both_ways
def test_a_refusal_is_one_and_the_talk_goes_on(world: World, model: str, stream: bool) -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "I may not say that."}
    world.upstream.queue(
        Message(text="Well", finish_reason="content_filter", stop={"stop_details": details}), say("Sure.")
    )
    messages: list[Any] = [{"role": "user", "content": "Do something bad."}]
    reply = raw_reply(world, stream, model=model, messages=messages)
    assert (reply["content"], reply["refusal"]) == ("Well", "I may not say that.")
    assert reply["finish_reason"] == "content_filter"
    messages += [
        {"role": "assistant", "content": "Well"},
        {"role": "user", "content": "Something good, then."},
    ]
    assert raw_reply(world, stream, model=model, messages=messages)["content"] == "Sure."
    assert [block["text"] for block in blocks(world.upstream.last, "assistant")] == ["Well"]


@models
@both_ways
def test_thoughts_that_nobody_can_read_go_back_untouched(world: World, model: str, stream: bool) -> None:
    """Redacted ones too: with the call they led to, from the stored copy, since the client has none."""
    redacted = {"type": "redacted_thinking", "data": "b3BhcXVl"}
    thought = {"type": "thinking", "thinking": "Ask first.", "signature": sign("Ask first.")}
    world.upstream.queue(
        Message(text="Let me ask.", blocks=[redacted, thought], calls=[Call("weather", {"city": "Rome"})]),
        say("Sunny."),
    )
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    chat = world.chat(user="alice", model=model, tools=[WEATHER], stream=stream, extra_body=thinking)
    assert chat.say("How is the weather in Rome?") == "Let me ask."
    (call,) = chat.messages[-1]["tool_calls"]
    chat.answer(call, "sun")
    assert chat.go_on() == "Sunny."
    assert blocks(world.upstream.last, "assistant")[:3] == [
        redacted,
        thought,
        {"type": "text", "text": "Let me ask."},
    ]
    assert b"b3BhcXVl" not in "".join(map(str, chat.messages)).encode()


@models
@both_ways
def test_a_round_that_the_client_itself_sends_back_is_there_once(
    world: World, model: str, stream: bool
) -> None:
    """Thoughts, blocks of other kinds and citations, as the reply had them: an application that loses nothing."""
    thought = {"type": "thinking", "thinking": "Look it up.", "signature": sign("Look it up.")}
    cited = {"type": "text", "text": "It is grey.", "citations": [CITED]}
    world.upstream.queue(message(thought, SEARCH, FOUND, cited), say("Yes."))
    messages: list[Any] = [{"role": "user", "content": "Which colour is the cat?"}]
    reply = raw_reply(world, stream, model=model, messages=messages)
    assert reply["reasoning_content"] == "Look it up."
    assert [block["type"] for block in reply["thinking_blocks"]] == ["thinking"]
    kept = {key: value for key, value in reply.items() if key not in ("finish_reason", "refusal")}
    messages += [kept, {"role": "user", "content": "Sure?"}]
    assert raw_reply(world, stream, model=model, messages=messages)["content"] == "Yes."
    assert blocks(world.upstream.last, "assistant") == [
        thought,
        SEARCH,
        FOUND,
        {"type": "text", "text": "It is grey."},
    ]


def thought(text: str) -> Json:
    return {"type": "thinking", "thinking": text, "signature": sign(text)}


def calls(name: str, id: str, **given: Any) -> Json:
    return {"type": "tool_use", "id": id, "name": name, "input": given}


def text(said: str) -> Json:
    return {"type": "text", "text": said}


INSERT = calls("memory_insert", "t1", label="human", new_string="Likes tea.")
ROME = calls("weather", "t2", city="Rome")
OSLO = calls("weather", "t3", city="Oslo")
ADAPTIVE = {"thinking": {"type": "adaptive"}}


def kept_by(reply: Json, how: str) -> Json:
    """The message as an application sends it back."""
    reply = {key: value for key, value in reply.items() if key not in ("finish_reason", "refusal")}
    if how == "all":
        return reply
    bare = {key: reply[key] for key in ("role", "content", "tool_calls") if key in reply}
    if how == "stripped" and bare["content"]:
        bare["content"] = bare["content"].strip()
    return bare


@pytest.mark.parametrize("how", ["all", "bare", "stripped"])
@both_ways
def test_every_reply_goes_back_as_it_was_said(world: World, stream: bool, how: str) -> None:
    """Hidden rounds, thoughts between words and between calls of the gateway and of the client: each where it was."""
    said = [
        [thought("a"), text("\n\nNoting it. "), thought("b"), INSERT],
        [text(" I look "), thought("c"), calls("memory_insert", "t4", label="human", new_string="Drinks it.")],
        [text("\nat Rome. "), thought("d"), text("It is grey.\n")],
        [thought("e"), ROME, thought("f"), calls("conversation_search", "t5", query="tea"), thought("g"), OSLO],
        [*SEARCH_BLOCKS, text("\nSun "), thought("h"), text("and snow.")],
        [thought("i"), text("Let me see."), calls("conversation_search", "t6", query="tea")],
        [thought("j"), {**SEARCH, "id": "s2"}, {**FOUND, "tool_use_id": "s2"}],
        [text("So.")],
    ]  # fmt: skip
    world.upstream.queue(*[
        message(*blocks, text=None, finish_reason="tool_calls" if blocks[-1]["type"] == "tool_use" else "stop")
        for blocks in said
    ])  # fmt: skip
    messages: list[Any] = []
    ask: Json = {"model": "agent/helper", "tools": [WEATHER], "extra_body": ADAPTIVE}
    for words in ("I like tea.", "How is the weather?", "And now?", "And then?"):
        messages.append({"role": "user", "content": words})
        reply = raw_reply(world, stream, messages=messages, **ask)
        messages.append(kept_by(reply, how))
        if reply.get("tool_calls"):
            assert len(reply["tool_calls"]) >= 2
            results = [{"role": "tool", "tool_call_id": id, "content": id} for id in ("t2", "t3")]
            messages += results
            messages.append(kept_by(raw_reply(world, stream, messages=messages, **ask), how))
    assert [request.refusal for request in world.upstream.requests] == [None] * len(said)
    back = [turn["content"] for turn in world.upstream.last.json["messages"] if turn["role"] == "assistant"]
    assert [[block["type"] for block in turn] for turn in back] == [
        [block["type"] for block in turn] for turn in said[:-1]
    ]
    assert [block.get("id") for turn in back for block in turn] == [
        block.get("id") for turn in said[:-1] for block in turn
    ]
    spoken = ["".join(block.get("text", "") for block in turn).strip() for turn in back]
    assert spoken == ["".join(block.get("text", "") for block in turn).strip() for turn in said[:-1]]


@both_ways
def test_a_reply_of_hidden_rounds_that_was_cut_brings_no_blocks_back(world: World, stream: bool) -> None:
    """They came after the words that the client has left of it."""
    last = [text("I look. "), *SEARCH_BLOCKS, thought("b"), text("Cats are grey.")]
    world.upstream.queue(
        message(text("Noting. "), INSERT, text=None, finish_reason="tool_calls"),
        message(*last, text=None),
        say("Fine."),
        say("So?"),
    )
    messages: list[Any] = [{"role": "user", "content": "I like tea. Which colour are cats?"}]
    ask: Json = {"model": "agent/helper", "extra_body": ADAPTIVE}
    said = raw_reply(world, stream, messages=messages, **ask)["content"]
    assert said == "Noting. I look. Cats are grey."
    messages.append({"role": "assistant", "content": "Noting. I look."})
    # The stored reply takes this form with the first of these, and is put back in it with the second.
    for words in ("Stop.", "Go on."):
        messages.append({"role": "user", "content": words})
        reply = raw_reply(world, stream, messages=messages, **ask)
        assert blocks(world.upstream.last, "assistant")[:3] == [text("Noting. "), INSERT, text("I look.")]
        assert b"web_search" not in world.upstream.last.body
        messages.append({"role": "assistant", "content": reply["content"]})


@both_ways
def test_a_reply_without_its_hidden_rounds_brings_no_blocks_back(world: World, stream: bool) -> None:
    """Their places are counted in the text of the last round, and the client has the text of all rounds."""
    last = [text("I look. "), *SEARCH_BLOCKS, thought("b"), text("Cats are grey.")]
    world.upstream.queue(
        message(text("Noting. "), INSERT, text=None, finish_reason="tool_calls"), message(*last, text=None)
    )
    messages: list[Any] = [{"role": "user", "content": "I like tea. Which colour are cats?"}]
    ask: Json = {"model": "agent/helper", "tools": [WEATHER], "extra_body": ADAPTIVE}
    reply = kept_by(raw_reply(world, stream, messages=messages, **ask), "all")
    assert reply["thinking_blocks"]
    messages += [reply, {"role": "user", "content": "Sure?"}]
    # The tools of the rounds are not offered.
    assert raw_reply(world, stream, messages=messages, tool_choice="none", **ask)["content"] == "Ok."
    assert blocks(world.upstream.last, "assistant") == [text("Noting. I look. Cats are grey.")]


@models
def test_a_search_that_was_broken_off_does_not_lock_the_conversation(world: World, model: str) -> None:
    """The user stopped the reply before the search had found anything. The API refuses such a call."""
    never = Gate()
    begun = message(text("I look. "), SEARCH, FOUND, text("Found."), text=None, hold_after={11: never})
    world.upstream.queue(begun, say("Sure."))
    ask: Json = {"model": model, "user": "alice"}
    hello = {"role": "user", "content": "Search for cats."}
    got = ""
    stream = world.sdk.chat.completions.create(messages=[hello], stream=True, **ask)
    for chunk in stream:
        got += chunk.choices[0].delta.content or ""
        if "provider_blocks" in chunk.choices[0].delta.to_dict():
            break
    stream.close()
    world.upstream.last.gone.wait_sync()
    messages: list[Any] = [hello, {"role": "assistant", "content": got}, {"role": "user", "content": "Well?"}]
    assert raw_reply(world, False, messages=messages, **ask)["content"] == "Sure."
    assert blocks(world.upstream.last, "assistant") == [text("I look. ")]


@models
@both_ways
def test_a_paused_search_that_is_not_gone_on_with_does_not_lock_the_conversation(
    world: World, model: str, stream: bool
) -> None:
    """Most clients see a reply that stopped; the next words are the user's."""
    world.upstream.queue(
        message(text("I look. "), thought("a"), SEARCH, text=None, stop={"stop_reason": "pause_turn"}),
        say("Sure."),
    )
    chat = world.chat(user="alice", model=model, stream=stream)
    assert chat.say("Search for cats.").strip() == "I look."
    assert chat.say("Well?") == "Sure."
    assert blocks(world.upstream.last, "assistant") == [text("I look. ")]


@both_ways
def test_memory_that_changes_fails_no_conversation_with_a_newer_model(tmp_path: Path, stream: bool) -> None:
    """Its thoughts count only after the prompt for which they were made, and that has the block."""
    model = "claude-opus-5-5"
    with StrictAnthropic() as upstream:
        there = (UpstreamSettings("up", "anthropic", upstream.base_url),)
        with remember(upstream, tmp_path, agent(model=model), upstreams=there) as world:
            thinks = message(thought("a"), text="Hello.")
            upstream.queue(thinks, thinks, thinks)
            chat = world.chat(user="alice", model="agent/helper", stream=stream)
            chat.say("Hi")
            for n in range(2):
                world.write_block("alice", f"Her cat is grey, {n}.")
                assert chat.say(f"And now {n}?") == "Hello."
            assert [request.refusal for request in upstream.requests] == [None] * 3
            assert b"grey, 1" in upstream.last.body


# -- the provider's cache


def marks(request: UpstreamRequest) -> list[tuple[Any, ...]]:
    """Where a request is marked, and how: ("tools", n), ("system", n), (turn, block)."""
    body = request.json
    found: list[tuple[Any, ...]] = [
        (part, n, each["cache_control"])
        for part in ("tools", "system")
        for n, each in enumerate(body.get(part, ()))
        if "cache_control" in each
    ]
    return found + [
        (i, n, block["cache_control"])
        for i, turn in enumerate(body["messages"])
        for n, block in enumerate(turn["content"])
        if "cache_control" in block
    ]


def without_marks(value: Any) -> Any:
    if isinstance(value, list):
        return [without_marks(each) for each in value]
    if isinstance(value, dict):
        return {key: without_marks(each) for key, each in value.items() if key != "cache_control"}
    return value


@both_ways
def test_the_ends_of_what_stays_are_marked(world: World, stream: bool) -> None:
    """Tools, system and memory, the newest message and the user's before it; what is marked stays what it was."""
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "Likes tea."})), say("Noted.")
    )
    chat = world.chat("Be kind.", user="alice", model="agent/helper", stream=stream, tools=[WEATHER])
    for text in ("I like tea.", "What do I like?", "And what else?"):
        chat.say(text)
    last = None
    for request in world.upstream.chats:
        tools, system, turns = (len(request.json[part]) for part in ("tools", "system", "messages"))
        users = [i for i, turn in enumerate(request.json["messages"]) if turn["role"] == "user"]
        assert request.json["messages"][-1]["role"] == "user"
        assert 'label="human"' in request.json["system"][-1]["text"], "memory is within what is marked"
        expected = [("tools", tools - 1, MARK), ("system", system - 1, MARK)]
        expected += [(i, len(request.json["messages"][i]["content"]) - 1, MARK) for i in users[-2:]]
        assert marks(request) == expected
        assert users[-1] == turns - 1
        if last is not None:  # up to its mark, the request before is the beginning of this one
            assert without_marks(request.json["tools"]) == without_marks(last.json["tools"])
            assert without_marks(request.json["system"]) == without_marks(last.json["system"])
            before = without_marks(last.json["messages"])
            assert without_marks(request.json["messages"])[: len(before)] == before
        last = request


@pytest.mark.parametrize("is_text", [True, False], ids=["later a string", "later a list"])
@models
@both_ways
def test_the_callers_own_marks_are_all_there_are(
    world: World, model: str, stream: bool, is_text: bool
) -> None:
    """As applications place them: on the system prompt, on a tool, and on the newest message, where they move on."""
    world.chat(user="alice", model=model).say("My cat is called Miso, she is grey.")
    # A long mark may not come after a short one, in the order of tools, system and messages.
    tools = [{**WEATHER, "cache_control": LONG_MARK}]
    system = [{"type": "text", "text": "Be kind.", "cache_control": LONG_MARK}]
    talk: list[Any] = [{"role": "system", "content": system}]
    said: list[UpstreamRequest] = []
    for text in ("What is my cat Miso like?", "And her ears?", "And her tail?"):
        newest = [{"type": "text", "text": text, "cache_control": MARK}]
        asked = [*talk, {"role": "user", "content": newest}]
        raw_reply(world, stream, model=model, messages=asked, tools=tools)
        said.append(world.upstream.last)
        unmarked: Any = text if is_text else [{"type": "text", "text": text}]
        talk += [{"role": "user", "content": unmarked}, {"role": "assistant", "content": "Ok."}]
    for seen in said:
        names = [tool["name"] for tool in seen.json["tools"]]
        newest = seen.json["messages"][-1]["content"]
        assert marks(seen) == [
            ("tools", names.index("weather"), LONG_MARK),
            ("system", 0, LONG_MARK),
            (len(seen.json["messages"]) - 1, len(newest) - 1, MARK),
        ]
    first, *_, last = said
    assert "she is grey" in first.json["messages"][0]["content"][0]["text"]
    before = without_marks(first.json["messages"])
    assert without_marks(last.json["messages"])[: len(before)] == before, (
        "the prefix is the provider's to keep"
    )
    counted = world.query("SELECT count(DISTINCT conversation) FROM exchanges WHERE active <> 0")
    assert counted == [2], "a mark that moves on begins no other conversation"


@both_ways
def test_a_mark_that_leaves_an_image_changes_nothing_else(world: World, stream: bool) -> None:
    talk: list[Any] = []
    for n in range(3):
        part = {**LINK, "image_url": {"url": f"https://example.com/{n}.jpg"}}
        text = {"type": "text", "text": f"Look at number {n}."}
        asked = [*talk, {"role": "user", "content": [text, {**part, "cache_control": MARK}]}]
        raw_reply(world, stream, messages=asked)
        talk += [{"role": "user", "content": [text, part]}, {"role": "assistant", "content": "Ok."}]
    assert marks(world.upstream.last) == [(4, 1, MARK)]
    counted = world.query("SELECT count(*), count(DISTINCT conversation) FROM exchanges WHERE active <> 0")
    assert counted == [(3, 1)]


def test_who_wants_no_marks_can_place_one_of_his_own(world: World) -> None:
    """A request that asks Anthropic itself to mark it, is left to it."""
    chat = Chat(world, [], {}, {"model": MODEL, "user": "alice", "extra_body": {"cache_control": MARK}})
    chat.say("Hi")
    assert world.upstream.last.json["cache_control"] == MARK
    assert marks(world.upstream.last) == []


def test_openais_own_cache_breakpoints_are_left_out_and_named(world: World) -> None:
    mode = {"mode": "explicit"}
    part = {"type": "text", "text": "Hi", "prompt_cache_breakpoint": mode}
    reply = world.post([{"role": "user", "content": [part]}], model=MODEL, prompt_cache_options=mode)
    names = "prompt_cache_options,messages.content.prompt_cache_breakpoint"
    assert (reply.status, reply.headers["x-mnemogate-consumed"]) == (200, names)
    assert b"prompt_cache" not in world.upstream.last.body


@pytest.mark.parametrize(("asked", "mark"), [("24h", LONG_MARK), ("in_memory", MARK), (openai.omit, MARK)])
def test_how_long_is_said_in_openais_words(world: World, asked: Any, mark: Json) -> None:
    raw_reply(world, False, messages=[{"role": "user", "content": "Hi"}], prompt_cache_retention=asked)
    assert marks(world.upstream.last) == [(0, 0, mark)]
