"""Sends, streams, lists, runs and steps by the client's own methods."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pytest
from letta_client import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    NotFoundError,
    UnprocessableEntityError,
)
from msgspec.structs import replace

from gateway.agents.runs.message_listing import AgentMessages
from gateway.core.turn.events import FORGOTTEN_LOSS
from gateway.operations import make_operations
from gateway.settings import UpstreamSettings
from storage.listing import Page
from storage.records import Agent
from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import (
    Call,
    Gate,
    Reply,
    StrictUpstream,
    UpstreamRequest,
    call_tools,
    fail,
    insert,
    raw,
    say,
)
from tests.gateway.sdk import agent as profile
from tests.rows import each_row
from tests.server import QUIET

pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

WEATHER = {"name": "get_weather", "description": "", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def kinds(messages: Any) -> list[str]:
    return [each.message_type for each in messages]


def joined(events: list[Any]) -> list[tuple[str, str, str]]:
    """Returns (id, otid, text or call) of the messages of a stream, its pieces joined."""
    found: dict[tuple[str, str], str] = {}
    for each in events:
        if each.message_type in ("stop_reason", "usage_statistics", "ping"):
            continue
        said = getattr(each, "content", None) or getattr(each, "reasoning", None) or ""
        call = getattr(each, "tool_call", None)
        said = said or (call.name + call.arguments if call else getattr(each, "tool_return", ""))
        found[each.id, each.otid] = found.get((each.id, each.otid), "") + said
    return [(id, otid, said) for (id, otid), said in found.items()]


def test_a_message_is_answered(world: LettaWorld) -> None:
    agent = world.agent(system="You help.")
    world.upstream.queue(say("Hello."), say("Still here."))
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    (said,) = reply.messages
    assert (said.message_type, said.content) == ("assistant_message", "Hello.")
    assert reply.stop_reason.stop_reason == "end_turn"
    assert (reply.usage.step_count, reply.usage.completion_tokens) == (1, 1)
    world.letta.agents.messages.create(agent.id, messages=[{"role": "user", "content": "Are you there?"}])
    system, *rest = world.upstream.last.messages
    assert system["content"].startswith("You help.")
    assert "Name: Ann" in system["content"]
    assert [m["content"] for m in rest] == ["Hi", "Hello.", "Are you there?"]
    assert world.upstream.last.json["model"] == "m"


@pytest.mark.parametrize("mode", ["off", "Read"])
def test_a_send_that_must_not_be_remembered_is_refused(world: LettaWorld, mode: str) -> None:
    """It was stored, and what its sender wished passed over."""
    agent = world.letta.agents.create(name="ann", model="m")
    headers = {"content-type": "application/json", "x-mnemogate-memory": mode}
    item = {"messages": [{"role": "user", "content": "Do not keep this."}]}
    for path, body in (
        (f"agents/{agent.id}/messages", item),
        (f"agents/{agent.id}/messages/async", item),
        (f"conversations/{agent.id}/messages", item),
        ("messages/batches", {"requests": [{"agent_id": agent.id, **item}]}),
    ):
        reply = world.world.gateway.ask("POST", f"/v1/{path}", orjson.dumps(body), headers)
        assert (reply.status, "stored" in reply.body.decode()) == (400, True), path
    assert world.world.query("SELECT count(*) FROM exchanges") == [0]
    assert world.letta.agents.messages.create(
        agent.id, input="Hi.", extra_headers={"x-mnemogate-memory": "strict"}
    )


def test_a_tool_is_called_and_its_result_shown(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(call_tools(insert("Cat: Miso"), text="One moment."), say("Noted."))
    reply = world.letta.agents.messages.create(agent.id, input="My cat is Miso.")
    assert kinds(reply.messages) == [
        "assistant_message",
        "tool_call_message",
        "tool_return_message",
        "assistant_message",
    ]
    _, called, returned, _ = reply.messages
    assert called.tool_call.name == "memory_insert"
    assert (returned.status, returned.name) == ("success", "memory_insert")
    assert returned.tool_call_id == called.tool_call.tool_call_id
    assert "Cat: Miso" in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value


@pytest.mark.parametrize("by_token", [False, True])
def test_the_streamed_messages_are_the_listed_ones(world: LettaWorld, by_token: bool) -> None:
    agent = world.agent()
    world.upstream.queue(
        call_tools(insert("Cat: Miso"), text="One moment."), say("Noted.", tokens=["No", "ted."])
    )
    events = list(world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=by_token))
    assert kinds(events)[-2:] == ["stop_reason", "usage_statistics"]
    pieces = [each for each in events if each.message_type == "assistant_message"]
    assert len(pieces) > 2 if by_token else len(pieces) == 2
    told, *listed = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    assert told.message_type == "user_message"
    assert joined(events) == joined(listed)
    assert len({otid for _, otid, _ in joined(listed)}) == 4


def test_messages_are_listed_page_by_page(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(call_tools(insert("a"), text="Well."), say("Done."), say("Bye."))
    for text in ("Hi", "Bye"):
        world.letta.agents.messages.create(agent.id, input=text)
    whole = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    for limit in (1, 2, 3):
        assert spoken(world.letta.agents.messages.list(agent.id, order="asc", limit=limit)) == whole
    only = spoken(
        world.letta.agents.messages.list(
            agent.id,
            limit=1,
            order="asc",
            include_return_message_types=["tool_return_message", "user_message"],
        )
    )
    assert kinds(only) == ["user_message", "tool_return_message", "user_message"]
    assert spoken(world.letta.agents.messages.list(agent.id, conversation_id="default", order="asc")) == whole


def test_messages_of_a_rare_type_are_looked_for_a_page_at_a_time(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = world.agent(tools=["memory_insert"]).id
    world.upstream.queue(call_tools(insert("a"), text="Well."), say("Done."))
    for n in range(8):
        world.letta.agents.messages.create(agent, input=f"Message {n}")
    real, read = AgentMessages.list_agent_messages, list[int]()

    async def listing(messages: AgentMessages, agent: Agent, page: Page[Any], **asked: Any) -> Any:
        read.append(page.limit)
        return await real(messages, agent, page, **asked)

    monkeypatch.setattr(AgentMessages, "list_agent_messages", listing)
    rare: Any = ["tool_return_message", "user_message"]
    (result,) = world.letta.agents.messages.list(agent, limit=1, include_return_message_types=rare[:1]).items
    assert result.message_type == "tool_return_message"
    assert len(read) == 2
    found = world.letta.agents.messages.list(agent, limit=2, order="asc", include_return_message_types=rare)
    assert len(list(found)) == 9


def test_before_a_message_is_what_is_older(world: LettaWorld) -> None:
    """As a front end loads what stands above: `before` the oldest message that it has."""
    agent, letta_ = world.agent().id, world.letta
    for text in ("One", "Two", "Three"):
        letta_.agents.messages.create(agent, input=text)
    types: Any = ["user_message", "assistant_message"]
    lists: tuple[tuple[Callable[..., Any], bool], ...] = (
        (lambda **asked: spoken(letta_.agents.messages.list(agent, **asked).items), False),
        (
            lambda **asked: spoken(
                letta_.agents.messages.list(agent, include_return_message_types=types, **asked).items
            ),
            False,
        ),
        (letta_.messages.list, False),
        (lambda **asked: spoken(letta_.conversations.messages.list(agent, **asked).items), True),
    )
    for listed, newest_first in lists:
        step = -1 if newest_first else 1
        whole = listed(limit=100)[::step]
        seen = whole[-1:]
        while page := listed(before=seen[0].id, limit=2):
            seen = [*page[::step], *seen]
        assert seen == whole
        older, newer, between = whole[1].id, whole[4].id, whole[2:4]
        assert listed(after=older, before=newer) == between[::step]
        assert listed(after=newer, before=older) == (between[::step] if newest_first else [])
        assert listed(after=older, before=newer, order="asc") == between
    reply = letta_.agents.messages.create(agent, input="Four").messages[-1]
    found = letta_.runs.messages.list(str(reply.run_id), order="desc", before=reply.id)
    assert kinds(found.items) == ["user_message"]


def test_the_newest_messages_are_listed_oldest_first(world: LettaWorld) -> None:
    """0.16.8 answers a list of One, Two and Three so, with a reply to each: `?limit=2` with [Three, reply],
    `?limit=2&order=desc` too, `before` the last one with [reply of Two, Three]. So the client's own pager ends after
    the newest page. `after` the reply of One it answers [Three, reply] as well, and `before` the last one with
    `order=asc` [One, reply]: there a page adjoins its cursor here, else a client that goes on from it skips rows.
    """
    agent = world.agent()
    for text in ("One", "Two", "Three"):
        world.upstream.queue(say(f"To {text}"))
        world.letta.agents.messages.create(agent.id, input=text)

    def listed(**query: Any) -> list[Any]:
        return [each.content for each in spoken(world.letta.agents.messages.list(agent.id, **query).items)]

    whole = ["One", "To One", "Two", "To Two", "Three", "To Three"]
    ids = [each.id for each in spoken(world.letta.agents.messages.list(agent.id))]
    assert listed() == listed(order="asc") == whole
    assert listed(limit=2) == listed(limit=2, order="desc") == ["Three", "To Three"]
    assert listed(limit=2, before=ids[-1]) == ["To Two", "Three"]
    assert listed(limit=2, after=ids[1]) == ["Two", "To Two"]
    assert listed(limit=2, after=ids[1], order="asc") == ["Two", "To Two"]
    assert listed(limit=2, before=ids[-1], order="asc") == ["To Two", "Three"]
    pages: Any = world.letta.agents.messages.list(agent.id, limit=2)
    assert [each.content for each in pages] == ["Three", "To Three"]
    # What was said before it, as far as that goes back.
    pages = world.letta.agents.messages.list(agent.id, limit=2, before=ids[-2]).iter_pages()
    assert [[each.content for each in spoken(page.items)] for page in pages] == [
        ["Two", "To Two"],
        ["One", "To One"],
        [],
        [],
    ]


def test_a_page_of_a_runs_messages_has_room_for_a_long_run(world: LettaWorld) -> None:
    """0.16.8 gives a hundred where the query says nothing, and programs without the client ask for no second page."""
    agent = world.agent()
    world.upstream.queue(*[call_tools(Call("conversation_search", {"query": "x"})) for _ in range(30)])
    reply = world.letta.agents.messages.create(agent.id, input="Search.")
    run = str(reply.messages[-1].run_id)  # type: ignore[union-attr]
    status, listed = world.ask("GET", f"/v1/runs/{run}/messages")
    assert (status, len(listed)) == (200, 1 + 2 * 30 + 1)


def test_the_messages_of_a_run_and_of_a_step_come_page_by_page(world: LettaWorld) -> None:
    """Several messages that are shown of one reply have one id, after which the next page begins."""
    agent = world.agent()
    thought = {"reasoning_content": "A greeting."}
    world.upstream.queue(call_tools(insert("a"), text="Well."), say("Hello.", delta=thought))
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    run_id, step_id = str(reply.messages[-1].run_id), str(reply.messages[-1].step_id)
    for method, id in ((world.letta.runs.messages, run_id), (world.letta.steps.messages, step_id)):
        whole = method.list(id, order="asc").items
        assert kinds(whole)[-2:] == ["reasoning_message", "assistant_message"]
        for limit in (1, 2, 3):
            assert [*islice(method.list(id, order="asc", limit=limit), 20)] == whole
            assert [*islice(method.list(id, order="desc", limit=limit), 20)] == whole[::-1]
        assert [*method.list(id, before=whole[-1].id, order="asc")] == whole[:-2]


@pytest.mark.parametrize("is_last", [True, False])
def test_the_results_with_which_a_run_ends_are_shown_with_it(world: LettaWorld, is_last: bool) -> None:
    """Also where something else was said since."""
    agent = world.agent(tool_rules=[{"type": "exit_loop", "tool_name": "memory_insert"}])
    ends, messages = call_tools(insert("a")), world.letta.agents.messages
    world.upstream.queue(ends, ends)
    live = messages.create(agent.id, input="Keep a.", extra_headers={"x-stainless-retry-count": "0"})
    assert kinds(live.messages) == ["tool_call_message", "tool_return_message"]
    again = messages.create(agent.id, input="Keep a.", extra_headers={"x-stainless-retry-count": "1"})
    assert again.messages == live.messages
    beside = messages.create(agent.id, input="Keep it.", background=True)
    assert kinds(beside.messages) == kinds(live.messages)
    if not is_last:
        messages.create(agent.id, input="Hi")
    for reply in (live, beside):
        told = list(world.letta.runs.messages.list(str(reply.messages[0].run_id)))
        assert [each.id for each in told[1:]] == [each.id for each in reply.messages]


@pytest.mark.parametrize("count", ["00", "none"])
def test_a_count_of_no_retries_makes_a_run(world: LettaWorld, count: str) -> None:
    agent, messages = world.agent(), world.letta.agents.messages
    first = messages.create(agent.id, input="Hi")
    second = messages.create(agent.id, input="Hi", extra_headers={"x-stainless-retry-count": count})
    assert second.messages[0].run_id != first.messages[0].run_id


@pytest.mark.parametrize("options", [{}, {"stream_tokens": True}, {"background": True}])
def test_results_are_streamed_under_the_ids_that_lists_have(
    world: LettaWorld, options: dict[str, Any]
) -> None:
    """In the order in which they are stored, which is not that in which they came; also those that end the run."""
    agent = world.agent(tool_rules=[{"type": "exit_loop", "tool_name": "memory_insert"}])
    searches, unread = Call("conversation_search", {"query": "a"}), Call("conversation_search", '{"query"')
    world.upstream.queue(call_tools(searches, unread), call_tools(insert("a"), searches))
    events = list(world.letta.agents.messages.stream(agent.id, input="Keep a.", **options))
    _, *listed = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    assert kinds(listed).count("tool_return_message") == 4
    assert joined(events) == joined(listed)


@pytest.mark.parametrize("by_token", [False, True])
def test_all_calls_next_to_one_that_waits_are_streamed(world: LettaWorld, by_token: bool) -> None:
    """Those that were refused at once, too, whose results come with the answers."""
    agent = world.agent(tool_rules=[{"type": "requires_approval", "tool_name": "memory_insert"}])
    world.upstream.queue(
        call_tools(Call("nothing"), Call("conversation_search", {"query": "a"}), insert("a"))
    )
    events = list(world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=by_token))
    _, *listed = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    assert joined(events) == joined(listed)
    assert [[call.name for call in each.tool_calls] for each in events[:2]] == [
        ["nothing", "conversation_search"],
        ["memory_insert"],
    ]


@pytest.mark.parametrize("way", ["whole", "stream", "background", "async"])
@pytest.mark.parametrize(
    ("rules", "options", "stop"),
    [
        ([{"type": "exit_loop", "tool_name": "memory_insert"}], {}, "tool_rule"),
        ([], {"max_steps": 1}, "max_steps"),
    ],
)
def test_a_run_ends_with_the_call_that_was_approved(
    world: LettaWorld, way: str, rules: list[Any], options: dict[str, Any], stop: str
) -> None:
    """It has no step of its own; what the tool did is stored and shown all the same, of the step that made the call."""
    agent = world.agent(tool_rules=[*rules, {"type": "requires_approval", "tool_name": "memory_insert"}])
    messages = world.letta.agents.messages
    world.upstream.queue(call_tools(insert("Cat: Miso"), text="May I?"))
    messages.create(agent.id, input="Keep it.")
    answer: Any = {"messages": [{"type": "approval", "approve": True, "otid": "yes"}], **options}
    told: list[Any] = []
    if way == "stream":
        *told, end, _ = messages.stream(agent.id, **answer)
        assert end.stop_reason == stop
    elif way == "async":
        run = messages.create_async(agent.id, **answer)
        told = list(world.letta.runs.messages.stream(run.id))
        assert told.pop(-2).stop_reason == stop
        told = told[:-1]
    else:
        reply = messages.create(agent.id, **answer, background=way == "background")
        assert reply.stop_reason.stop_reason == stop
        told = list(reply.messages)
    assert kinds(told) == ["approval_response_message", "tool_return_message"]
    *_, asked, decided, returned = messages.list(agent.id, order="asc")
    assert joined(told) == joined([decided, returned])
    assert {each.step_id for each in (asked, decided, returned, *told)} == {asked.step_id}
    newest = world.letta.runs.list(agent_id=agent.id).items[0]
    assert (newest.status, newest.stop_reason) == ("completed", stop)
    assert joined(list(world.letta.runs.messages.list(newest.id))) == joined(told)
    assert joined(messages.create(agent.id, **answer).messages) == joined(told)
    assert "Cat: Miso" in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
    assert messages.create(agent.id, input="Go on.").messages[0].content == "Ok."
    assert [m["role"] for m in world.upstream.last.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "user",
    ]


def test_successive_approvals_run_no_call_twice(world: LettaWorld) -> None:
    """What was approved is done, though another call of the same reply has to be approved then."""
    approve = [{"type": "requires_approval", "tool_name": t} for t in ("memory_insert", "memory_replace")]
    child = {
        "type": "conditional",
        "tool_name": "conversation_search",
        "child_output_mapping": {},
        "default_child": "memory_replace",
    }
    agent = world.agent(tool_rules=[*approve, child])
    replace_it = Call(
        "memory_replace", {"label": "human", "old_string": "Ann", "new_string": "Anna"}, "second"
    )
    search = Call("conversation_search", {"query": "cats"})
    world.upstream.queue(call_tools(insert("Cat: Miso", "first"), search, replace_it), say("Done."))
    messages = world.letta.agents.messages
    reply = messages.create(agent.id, input="Keep it.")
    for id in ("first", "second"):
        (*_, asked) = messages.list(agent.id, order="asc")
        assert [each.tool_call_id for each in asked.tool_calls] == [id]
        given = {"type": "approval", "tool_call_id": id, "approve": True}
        answer: Any = {"type": "approval", "approvals": [given]}
        reply = messages.create(agent.id, messages=[answer])
    # What the first one did is reported with the second.
    assert kinds(reply.messages).count("tool_return_message") == 3
    assert reply.messages[-1].content == "Done."
    value = world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
    assert value.splitlines() == ["Name: Anna", "Cat: Miso"]


def test_a_call_that_was_not_run_does_not_count_after_an_approval(world: LettaWorld) -> None:
    """Of two calls next to it one may run: the other one's refusal is no call."""
    once = {"type": "max_count_per_step", "tool_name": "memory_insert", "max_count_limit": 1}
    agent = world.agent(tool_rules=[once, {"type": "requires_approval", "tool_name": "memory_replace"}])
    messages = world.letta.agents.messages
    replace_it = Call("memory_replace", {"label": "human", "old_string": "Ann", "new_string": "Anna"}, "r")
    world.upstream.queue(call_tools(insert("Cat", "one"), replace_it, insert("Dog", "two")), say("Done."))
    messages.create(agent.id, input="Keep it.")
    reply = messages.create(agent.id, messages=[{"type": "approval", "approve": True}])
    returned = [each for each in reply.messages if each.message_type == "tool_return_message"]
    assert [(each.tool_call_id, each.status) for each in returned] == [
        ("one", "success"), ("r", "success"), ("two", "error"),
    ]  # fmt: skip
    value = world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
    assert value.splitlines() == ["Name: Anna", "Cat"]


def test_a_call_that_was_not_run_is_still_due_after_a_pause(world: LettaWorld) -> None:
    rules: list[Any] = [
        {"type": "required_before_exit", "tool_name": "memory_replace"},
        {"type": "parent_last_tool", "tool_name": "memory_insert", "children": ["memory_replace"]},
    ]
    agent, messages = world.agent(tool_rules=rules), world.letta.agents.messages
    replace_it = Call("memory_replace", {"label": "human", "old_string": "Ann", "new_string": "Anna"}, "r1")
    again = Call("memory_replace", replace_it.arguments, "r2")
    # It is forbidden by itself, the model would end without it, and makes it in its place then.
    world.upstream.queue(
        call_tools(Call("get_weather", {}, "w"), replace_it), say("Bye."),
        call_tools(insert("Cat", "i"), again), say("Done."),
    )  # fmt: skip
    messages.create(agent.id, input="Weather?", client_tools=[WEATHER])
    sun: Any = {"type": "tool", "tool_call_id": "w", "status": "success", "tool_return": "sunny"}
    answer: Any = {"type": "approval", "approvals": [sun]}
    reply = messages.create(agent.id, messages=[answer], client_tools=[WEATHER])
    said = [each.content for each in reply.messages if each.message_type == "assistant_message"]
    assert said == ["Bye.", "Done."]
    assert "Name: Anna" in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value


@pytest.mark.parametrize("before", [[], ["Hello."]])
def test_calls_whose_question_is_forgotten_wait_no_more(world: LettaWorld, before: list[str]) -> None:
    """No provider takes a result without its call, and the call goes with its question."""
    agent = world.agent(tool_rules=[{"type": "requires_approval", "tool_name": "memory_insert"}])
    messages = world.letta.agents.messages
    for text in before:
        messages.create(agent.id, input=text)
    world.upstream.queue(call_tools(insert("a")))
    messages.create(agent.id, input="Keep it.")
    *_, asked, _ = messages.list(agent.id, order="asc")
    world.letta.delete(f"/v1/agents/{agent.id}/messages/{asked.id}", cast_to=object)
    with pytest.raises(BadRequestError, match="forgotten"):
        messages.create(agent.id, messages=[{"type": "approval", "approve": True}])
    assert world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value == "Name: Ann"
    assert messages.create(agent.id, input="Go on.").messages[0].content == "Ok."


def test_results_of_calls_that_were_not_run_are_shown(world: LettaWorld) -> None:
    """Also where the run ends with them."""
    agent, messages = world.agent(), world.letta.agents.messages
    refused = call_tools(Call("nothing"), Call("memory_insert", '{"label'), text="Well.")
    world.upstream.queue(refused, refused)
    reply = messages.create(agent.id, input="Hi", max_steps=1)
    shown = ["assistant_message", "tool_call_message", "tool_return_message", "tool_return_message"]
    assert kinds(reply.messages) == shown
    assert [each.status for each in reply.messages[2:]] == ["error", "error"]
    events = list(messages.stream(agent.id, input="Hi", max_steps=1))
    listed = spoken(messages.list(agent.id, order="asc"))
    assert joined(listed[1:5]) == joined(reply.messages)
    assert joined(events) == joined(listed[6:])
    assert messages.create(agent.id, input="Go on.").messages[0].content == "Ok."


@pytest.mark.parametrize("place", range(6))
def test_calls_stay_with_their_results_where_a_message_is_forgotten(world: LettaWorld, place: int) -> None:
    """Replies that say something by a call, too. No provider takes a result without its call."""
    agent, messages = world.agent(agent_type="memgpt_v2_agent"), world.letta.agents.messages
    told = Call("send_message", {"message": "Noted."})
    world.upstream.queue(call_tools(insert("a"), told), call_tools(insert("b"), told))
    for text in ("Keep a.", "Keep b."):
        messages.create(agent.id, input=text)
    listed = spoken(messages.list(agent.id, order="asc"))
    assert kinds(listed[:4]) == [
        "user_message",
        "assistant_message",
        "tool_call_message",
        "tool_return_message",
    ]
    world.letta.delete(f"/v1/agents/{agent.id}/messages/{listed[place].id}", cast_to=object)
    (said,) = messages.create(agent.id, input="Go on.").messages
    assert said.content == "Ok."
    if place < 4:
        sent = world.upstream.last.messages
        calls = [call["id"] for m in sent for call in m.get("tool_calls", ())]
        assert len(calls[-2:]) == 2
        assert calls[-2:] == [m["tool_call_id"] for m in sent if m["role"] == "tool"][-2:]


def test_a_message_gets_another_text_and_is_forgotten(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(say("Hello."))
    world.letta.agents.messages.create(agent.id, input="I am Bob.")
    told, answered = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    path = f"/v1/agents/{agent.id}/messages/{told.id}"
    wrong = {"content": "I am Ann.", "message_type": "assistant_message"}
    assert world.ask("PATCH", path, wrong)[0] == 400
    right = {"content": "I am Ann.", "message_type": "user_message"}
    status, changed = world.ask("PATCH", path, right)
    assert (status, changed["content"], changed["id"]) == (200, "I am Ann.", told.id)
    world.letta.agents.messages.create(agent.id, input="Who?")
    assert [m["content"] for m in world.upstream.last.messages[1:]] == ["I am Ann.", "Hello.", "Who?"]
    assert world.ask("DELETE", path)[0] == 200
    assert world.ask("GET", f"/v1/messages/{told.id}")[0] == 404
    assert world.letta.messages.retrieve(answered.id)[0].content == "Hello."
    world.letta.agents.messages.create(agent.id, input="And now?")
    assert "I am Ann." not in str(world.upstream.last.messages)


@pytest.mark.both
@pytest.mark.parametrize("otid", ["1", None])
def test_a_message_is_forgotten_with_its_refused_send(world: LettaWorld, otid: str | None) -> None:
    agent, messages = world.agent(), world.letta.agents.messages
    sent: Any = [{"role": "user", "content": "I am Bob.", **({"otid": otid} if otid else {})}]
    world.upstream.queue(fail(400))
    with pytest.raises(BadRequestError):
        messages.create(agent.id, messages=sent)
    messages.create(agent.id, messages=sent)
    told = spoken(messages.list(agent.id, order="asc"))[0]
    world.letta.delete(f"/v1/agents/{agent.id}/messages/{told.id}", cast_to=object)
    assert "Bob" not in str(world.world.query("SELECT input FROM exchanges"))


def test_a_stream_that_a_forgetting_ends_names_it(world: LettaWorld) -> None:
    agent, messages = world.agent(), world.letta.agents.messages
    messages.create(agent.id, input="I am Bob.")
    told = spoken(messages.list(agent.id, order="asc"))[0]
    gate = Gate()
    world.upstream.queue(call_tools(insert("a"), hold_before_headers=gate))
    arrived = world.upstream.request_gate(len(world.upstream.requests) + 1)
    path, body = f"/v1/agents/{agent.id}/messages/stream", b'{"input": "Keep it."}'
    with ThreadPoolExecutor() as pool:
        sent = pool.submit(world.world.gateway.ask, "POST", path, body, {"content-type": "application/json"})
        arrived.wait_sync()
        world.letta.delete(f"/v1/agents/{agent.id}/messages/{told.id}", cast_to=object)
        gate.open()
        stream = sent.result().body
    assert b'"error_type":"conflict"' in stream
    assert FORGOTTEN_LOSS.encode() in stream


@pytest.mark.parametrize(("heartbeat", "stop"), [(False, "end_turn"), (True, "tool_rule")])
def test_a_turn_that_ends_with_what_it_said_has_ended_by_itself(
    world: LettaWorld, heartbeat: bool, stop: str
) -> None:
    """0.16.8 answers a plain message to a memgpt_v2_agent, whose send_message has the rule exit_loop, with `end_turn`;
    with `tool_rule` only where the model asked to go on. The run says the same."""
    agent = world.agent(agent_type="memgpt_v2_agent")
    told = Call("send_message", {"message": "Hello.", "request_heartbeat": heartbeat})
    world.upstream.queue(call_tools(told))
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    assert reply.stop_reason.stop_reason == stop
    assert world.letta.runs.list(agent_id=agent.id).items[0].stop_reason == stop


def test_a_text_that_a_call_spoke_can_be_changed(world: LettaWorld) -> None:
    """Also of a reply that nothing was run for; a call itself stays as it was made."""
    agent = world.agent(agent_type="memgpt_v2_agent")
    told = Call("send_message", {"message": "Hello."})
    world.upstream.queue(call_tools(told), call_tools(told, insert("a")))
    for text in ("Hi", "Hi again"):
        world.letta.agents.messages.create(agent.id, input=text)
    listed = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    replies = [each for each in listed if each.message_type == "assistant_message"]
    assert len(replies) == 2
    for reply in replies:
        path = f"/v1/agents/{agent.id}/messages/{reply.id}"
        status, changed = world.ask("PATCH", path, {"content": "Bye."})
        assert (status, changed["message_type"], changed["content"]) == (200, "assistant_message", "Bye.")
        wrong = {"content": "Bye.", "message_type": "tool_call_message"}
        assert world.ask("PATCH", path, wrong)[0] == 400
    world.letta.agents.messages.create(agent.id, input="Go on.")
    calls = [call["function"] for m in world.upstream.last.messages for call in m.get("tool_calls", ())]
    said = [orjson.loads(call["arguments"]) for call in calls if call["name"] == "send_message"]
    assert said == [{"message": "Bye."}] * 2


def test_the_result_of_a_call_that_said_something_gets_another_text(world: LettaWorld) -> None:
    agent = world.agent(tools=["send_message"])
    world.upstream.queue(call_tools(Call("send_message", {"message": "Hello."})), say("Done."))
    world.letta.agents.messages.create(agent.id, input="Hi")
    listed = world.letta.agents.messages.list(agent.id, order="asc", use_assistant_message=False)
    (result,) = [each for each in listed if each.message_type == "tool_return_message"]
    path = f"/v1/agents/{agent.id}/messages/{result.id}"
    status, changed = world.ask("PATCH", path, {"content": "It is said."})
    assert (status, changed["tool_return"]) == (200, "It is said.")


def test_messages_can_be_reset(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(call_tools(insert("Cat: Miso")), say("Noted."))
    world.letta.agents.messages.create(agent.id, input="My cat is Miso.")
    kept = world.letta.agents.messages.reset(agent.id)
    assert "Cat: Miso" in kept.blocks[0].value
    assert spoken(world.letta.agents.messages.list(agent.id)) == []
    world.letta.agents.messages.create(agent.id, input="Hi")
    assert [m["content"] for m in world.upstream.last.messages[1:]] == ["Hi"]


def test_runs_and_steps_show_what_was_done(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(call_tools(insert("a")), say("Done."))
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    (run,) = world.letta.runs.list(agent_id=agent.id)
    assert world.letta.runs.retrieve(run.id) == run
    assert (run.status, run.stop_reason, run.agent_id) == ("completed", "end_turn", agent.id)
    assert run.conversation_id == "default"
    usage = world.letta.runs.usage.retrieve(run.id)
    assert usage.total_tokens == reply.usage.total_tokens
    assert kinds(world.letta.runs.messages.list(run.id, order="asc")) == [
        "user_message", "tool_call_message", "tool_return_message", "assistant_message",
    ]  # fmt: skip
    first, second = world.letta.runs.steps.list(run.id, order="asc")
    assert list(world.letta.steps.list(order="asc")) == [first, second]
    assert [each.id for each in world.letta.steps.list(agent_id=agent.id, limit=1)] == [second.id, first.id]
    assert (first.status, first.model, first.run_id) == ("success", "m", run.id)
    assert {each.step_id for each in reply.messages} == {first.id, second.id}
    assert world.letta.steps.feedback.create(second.id, feedback="positive").feedback == "positive"
    assert [each.id for each in world.letta.steps.list(feedback="positive")] == [second.id]
    assert [each.id for each in world.letta.steps.list(has_feedback=True)] == [second.id]
    assert [each.id for each in world.letta.steps.list(has_feedback=False)] == [first.id]
    assert world.letta.steps.metrics.retrieve(first.id).id == first.id
    assert kinds(world.letta.steps.messages.list(first.id, order="asc")) == [
        "user_message",
        "tool_call_message",
        "tool_return_message",
    ]
    status, metrics = world.ask("GET", f"/v1/runs/{run.id}/metrics")
    assert (status, metrics["id"], metrics["agent_id"], metrics["num_steps"]) == (200, run.id, agent.id, 2)
    assert (metrics["run_start_ns"] > 0, metrics["run_ns"]) == (True, run.total_duration_ns)
    used = next(iter(world.letta.tools.list(name="memory_insert")))
    assert metrics["tools_used"] == [used.id]
    status, told = world.ask("DELETE", f"/v1/runs/{run.id}")
    assert (status, told["detail"]) == (
        400, "A run is the record of a send, and goes with its agent. Its messages can be forgotten.",
    )  # fmt: skip
    assert world.letta.agents.retrieve(agent.id).last_stop_reason == "end_turn"
    assert list(world.letta.runs.list(statuses=["failed"])) == []
    assert list(world.letta.runs.list(active=True)) == []


@pytest.mark.parametrize("counts", [False, True])
def test_tokens_are_those_that_the_upstream_counts(
    upstream: StrictUpstream, tmp_path: Path, counts: bool
) -> None:
    server = UpstreamSettings("up", base_url=upstream.base_url, takes={"stream_usage": counts})
    with letta(upstream, tmp_path, upstreams=(server,)) as world:
        usage = world.letta.agents.messages.create(world.agent().id, input="Hi").usage
        assert ((usage.prompt_tokens or 0) > 0, (usage.completion_tokens or 0) > 0) == (counts, counts)
        assert usage.step_count == 1


@pytest.mark.parametrize("count", [-5, 2**63, 2**64 - 1, "x", [1]])
def test_a_count_of_tokens_that_is_none_loses_no_step(
    upstream: StrictUpstream, tmp_path: Path, count: Any
) -> None:
    odd = {
        "prompt_tokens": count,
        "completion_tokens": count,
        "completion_tokens_details": {"reasoning_tokens": count},
    }
    choice = {"index": 0, "delta": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}
    chunk = orjson.dumps({"id": "c", "choices": [choice], "usage": odd})
    upstream.queue(raw(b"data: %b\n\ndata: [DONE]\n\n" % chunk))
    with letta(upstream, tmp_path) as world:
        agent = world.agent().id
        usage = world.letta.agents.messages.create(agent, input="Hi").usage
        assert (usage.prompt_tokens, usage.completion_tokens, usage.step_count) == (0, 0, 1)
        kept = spoken(world.letta.agents.messages.list(agent).items)
        assert "Hello." in [getattr(each, "content", None) for each in kept]


_READ_BACK = ["again", "again by step", "whole in the background", "replayed", "usage"]


@pytest.mark.parametrize("way", ["whole", "by step", "by token", "background", *_READ_BACK])
def test_the_context_is_what_the_last_step_took(world: LettaWorld, way: str) -> None:
    agent, messages = world.agent(), world.letta.agents.messages
    world.upstream.queue(
        call_tools(Call("memory_insert", {"label": "human", "new_string": "Cat"})), say("Done.")
    )
    if way == "whole":
        usage: Any = messages.create(agent.id, input="Hi").usage
    elif way in _READ_BACK:
        usage = _usage_read_back(world, agent.id, way)
    else:
        streaming: Any = {"stream_tokens": way == "by token", "background": way == "background"}
        usage = [*messages.stream(agent.id, messages=[{"role": "user", "content": "Hi"}], **streaming)][-1]
    last, first = world.letta.steps.list(agent_id=agent.id).items
    assert usage.context_tokens == last.total_tokens
    assert usage.total_tokens == (last.total_tokens or 0) + (first.total_tokens or 0)


def _usage_read_back(world: LettaWorld, agent_id: str, way: str) -> Any:
    """Returns what a send has used, where that is read from what is stored."""
    client = world.letta
    messages: Any = [{"role": "user", "content": "Hi", "otid": "one"}]
    if way == "whole in the background":
        return client.agents.messages.create(agent_id, messages=messages, background=True).usage
    if way == "replayed":
        # Nobody was to read its events, so there are none.
        run = client.agents.messages.create_async(agent_id, messages=messages)
        return [*client.runs.messages.stream(run.id)][-1]
    run_id = client.agents.messages.create(agent_id, messages=messages).messages[0].run_id
    if way == "usage":
        return client.runs.usage.retrieve(str(run_id))
    if way == "again":
        return client.agents.messages.create(agent_id, messages=messages).usage
    return [*client.agents.messages.stream(agent_id, messages=messages)][-1]


def test_an_error_before_the_first_step_is_a_status(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(fail(500, "Broken."), fail(500, "Broken."))
    with pytest.raises(InternalServerError, match="Broken"):
        world.letta.agents.messages.create(agent.id, input="Hi")
    with pytest.raises(InternalServerError, match="Broken"):
        list(world.letta.agents.messages.stream(agent.id, input="Hi"))
    assert kinds(spoken(world.letta.agents.messages.list(agent.id))) == ["user_message", "user_message"]


@pytest.mark.parametrize("way", ["messages", "messages/stream"])
def test_an_error_has_the_upstreams_headers_and_the_apis_form(world: LettaWorld, way: str) -> None:
    agent = world.agent()
    limit = fail(429, "Slow down.", retry_after="20")
    page = raw(b"<html>Bad gateway</html>", status=502, content_type="text/html")
    world.upstream.queue(limit, page)
    for status, words, retry_after in (
        (429, "Slow down.", "20"),
        (502, "The upstream answered 502.", None),
    ):
        path, sent = f"/v1/agents/{agent.id}/{way}", {"content-type": "application/json"}
        reply = world.world.gateway.ask("POST", path, b'{"input": "Hi"}', sent)
        assert (reply.status, reply.json) == (status, {"detail": words})
        assert reply.headers.get("retry-after") == retry_after
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-mnemogate-upstream"] == "up"


def test_an_error_after_a_step_is_its_stop_reason(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(
        call_tools(insert("a")), fail(500, "Broken."), call_tools(insert("b")), fail(500, "Broken.")
    )
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    assert reply.stop_reason.stop_reason == "llm_api_error"
    assert kinds(reply.messages) == ["tool_call_message", "tool_return_message"]
    seen = []
    with pytest.raises(APIStatusError, match="Broken"):
        seen += list(world.letta.agents.messages.stream(agent.id, input="Hi"))
    world.world.settle()
    assert [each.status for each in world.letta.runs.list()] == ["failed", "failed"]


def test_a_list_that_a_small_model_writes_as_a_text_is_one(world: LettaWorld) -> None:
    agent = world.agent(tools=["archival_memory_insert"])
    kept = {"content": "The rose is red.", "tags": '["garden"]'}
    world.upstream.queue(call_tools(Call("archival_memory_insert", kept)), say("Kept."))
    world.letta.agents.messages.create(agent.id, input="Keep it.")
    assert [each.tags for each in world.letta.agents.passages.list(agent.id)] == [["garden"]]


def test_a_run_is_cancelled(world: LettaWorld) -> None:
    agent = world.agent()
    gate = Gate()
    world.upstream.queue(say("Never said.", tokens=["Never", " said."], hold_after={2: gate}))
    stream = world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=True)
    events = iter(stream)
    assert next(events).content == "Never"
    (run,) = world.letta.runs.list(active=True)
    assert world.letta.agents.messages.cancel(agent.id) == {run.id: "cancelled"}
    assert next(events).stop_reason == "cancelled"
    stream.close()
    gate.open()
    assert world.letta.runs.retrieve(run.id).status == "cancelled"
    assert world.letta.agents.messages.cancel(agent.id, run_ids=[run.id]) == {run.id: "cancelled"}


def test_a_stream_says_that_it_is_there(upstream: StrictUpstream, tmp_path: Path) -> None:
    with letta(upstream, tmp_path, limits=replace(QUIET, ping_s=0.05)) as world:
        agent = world.agent()
        gate = Gate()
        world.upstream.queue(say("One two.", tokens=["One", " two."], hold_after={2: gate}))
        seen = []
        for each in world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=True):
            seen.append(each)
            if each.message_type == "ping":
                gate.open()
        (run,) = world.letta.runs.list()
        assert {each.run_id for each in seen if each.message_type == "ping"} == {run.id}
        gate = Gate()
        world.upstream.queue(say("One two."))
        plain = world.letta.agents.messages.stream(agent.id, input="Hi", include_pings=False)
        assert "ping" not in kinds(plain)


def test_a_stream_says_that_it_is_there_before_its_model_says_anything(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """A model on one's own machine may read a long prompt for longer than clients wait for a first byte."""
    gates = [Gate(), Gate()]
    up = UpstreamSettings("up", base_url=upstream.base_url, retries=1)
    with letta(upstream, tmp_path, limits=replace(QUIET, ping_s=0.05), upstreams=(up,)) as world:
        agent = world.agent()
        # Which commits to nothing: the upstream's 503 is still tried again.
        world.upstream.queue(fail(503, hold_before_headers=gates[0]), say("Hello."))
        first, *rest = pinged(world, agent.id, gates[0])
        assert first.run_id == world.letta.runs.list().items[0].id
        assert kinds(each for each in rest if each.message_type != "ping") == [
            "assistant_message", "stop_reason", "usage_statistics"
        ]  # fmt: skip
        # The status has left, so what would have been one is an event.
        world.upstream.queue(fail(400, "The prompt is odd.", hold_before_headers=gates[1]))
        with pytest.raises(APIStatusError, match="The prompt is odd"):
            pinged(world, agent.id, gates[1])


def pinged(world: LettaWorld, agent: str, gate: Gate) -> list[Any]:
    """Returns the events of a stream whose upstream waits until there was a ping."""
    seen = []
    for each in world.letta.agents.messages.stream(agent, input="Hi"):
        seen.append(each)
        gate.open()
    return seen


@pytest.mark.parametrize("is_client", [True, False])
def test_a_request_names_the_calls_that_can_be_answered_and_comes_last(
    world: LettaWorld, is_client: bool
) -> None:
    rules = [{"type": "requires_approval", "tool_name": "memory_replace"}]
    options: dict[str, Any] = {"client_tools": [WEATHER]} if is_client else {}
    asks = (
        Call("get_weather", {"city": "Bern"}, "c1")
        if is_client
        else Call("memory_replace", {"label": "human", "old_string": "Ann", "new_string": "Eve"}, "c1")
    )
    ours = Call("memory_insert", {"label": "human", "new_string": "Tea."}, "c2")
    for streams in (False, True):
        agent = world.agent(tool_rules=[] if is_client else rules)
        world.upstream.queue(call_tools(asks, ours))
        if streams:
            stream = world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=True, **options)
            sent = [each for each in stream if each.message_type.endswith("_message")]
        else:
            sent = world.letta.agents.messages.create(agent.id, input="Hi", **options).messages
        listed = spoken(world.letta.agents.messages.list(agent.id, order="asc").items)
        for found in (sent, listed):
            (asked,) = [each for each in found if each.message_type == "approval_request_message"]
            assert [call.tool_call_id for call in asked.tool_calls] == ["c1"]
            (beside,) = [each for each in found if each.message_type == "tool_call_message"]
            assert [call.tool_call_id for call in beside.tool_calls] == ["c2"]
        assert {each.otid for each in sent} == {each.otid for each in listed} - {listed[0].otid}
        pending = world.letta.agents.retrieve(agent.id).pending_approval
        assert pending is not None
        assert [call.tool_call_id for call in pending.tool_calls] == ["c1"]
        another: Any = {"type": "approval", "approve": True, "approval_request_id": listed[0].id}
        with pytest.raises(BadRequestError, match="does not wait"):
            world.letta.agents.messages.create(agent.id, messages=[another])
        given: Any = {"type": "approval", "approve": True, "approval_request_id": pending.id}
        if not is_client:
            done = world.letta.agents.messages.create(agent.id, messages=[given])
            results = [each for each in done.messages if each.message_type == "tool_return_message"]
            assert {each.tool_call_id for each in results} == {"c1", "c2"}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("answer", ["approved", "denied", "result"])
def test_a_message_may_come_with_the_answers(world: LettaWorld, answer: str, background: bool) -> None:
    """A result may be given to what a person must allow, too: the client has run it itself."""
    rules: Any = [{"type": "requires_approval", "tool_name": "memory_insert"}]
    agent, messages = world.agent(tool_rules=rules), world.letta.agents.messages
    note = Call("memory_insert", {"label": "human", "new_string": "Likes roses."}, "c1")
    world.upstream.queue(call_tools(note), say("Well."))
    messages.create(agent.id, input="I like roses.")
    given: Any = {"type": "approval", "approve": answer == "approved", "tool_call_id": "c1"}
    if answer == "result":
        given = {"type": "tool", "tool_return": "Noted it.", "status": "success", "tool_call_id": "c1"}
    more: Any = {"role": "user", "content": "And tulips.", "otid": "o1"}
    both: Any = [{"type": "approval", "approvals": [given]}, more]
    reply = messages.create(agent.id, messages=both, background=background)
    assert kinds(reply.messages)[-2:] == ["tool_return_message", "assistant_message"]
    *_, result, said = world.upstream.last.messages
    assert (result["role"], result["tool_call_id"], said["role"]) == ("tool", "c1", "user")
    assert said["content"].endswith("And tulips.")
    assert ("Noted it." in result["content"]) == (answer == "result")
    value = world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
    assert ("Likes roses." in value) == (answer == "approved")
    again = messages.create(agent.id, messages=both, background=background)
    assert again.messages[-1].content == "Well."  # type: ignore[union-attr]
    assert len(world.upstream.chats) == 2
    shown = kinds(spoken(messages.list(agent.id, order="asc")))
    assert shown.count("user_message") == 2
    assert shown[-3:] == ["tool_return_message", "user_message", "assistant_message"]
    messages.create(agent.id, input="Go on.")
    assert [m["role"] for m in world.upstream.last.messages] == [
        "system", "user", "assistant", "tool", "user", "assistant", "user"
    ]  # fmt: skip


def test_results_stay_listed_where_a_message_after_them_is_refused(world: LettaWorld) -> None:
    agent, messages = world.agent(), world.letta.agents.messages
    world.upstream.queue(call_tools(Call("get_weather", {"city": "Bern"}, "c1")), fail(400), say("Well."))
    messages.create(agent.id, input="Weather?", client_tools=[WEATHER])
    sun: Any = {"type": "tool", "tool_call_id": "c1", "status": "success", "tool_return": "Sun"}
    more: Any = {"role": "user", "content": "Refused words."}
    messages.create(agent.id, messages=[{"type": "approval", "approvals": [sun]}, more])
    messages.create(agent.id, input="And now?")
    assert "Refused words." not in str(world.upstream.last.messages)
    shown = kinds(spoken(messages.list(agent.id, order="asc")))
    assert shown[1:4] == ["tool_call_message", "tool_return_message", "user_message"]


def test_an_edit_next_to_a_client_call_has_a_result_of_its_own(world: LettaWorld) -> None:
    agent, messages = world.agent(tools=["memory_insert"]), world.letta.agents.messages
    note = Call("memory_insert", {"label": "human", "new_string": "Asks for the weather."}, "m1")
    world.upstream.queue(call_tools(Call("get_weather", {"city": "Bern"}, "c1"), note))
    messages.create(agent.id, input="Weather?", client_tools=[WEATHER])
    sun: Any = {"type": "tool", "tool_call_id": "c1", "status": "success", "tool_return": "Sun"}
    messages.create(agent.id, messages=[{"type": "approval", "approvals": [sun]}], client_tools=[WEATHER])
    assert [m["role"] for m in world.upstream.last.messages][2:] == ["assistant", "tool", "tool"]


@pytest.mark.parametrize(
    "rule", [{"type": "exit_loop"}, {"type": "max_count_per_step", "max_count_limit": 1}]
)
def test_the_rules_start_over_with_a_message_that_comes_with_the_answers(
    world: LettaWorld, rule: dict[str, Any]
) -> None:
    rules: Any = [
        {"type": "requires_approval", "tool_name": "memory_insert"},
        {"tool_name": "memory_insert", **rule},
    ]
    agent, messages = world.agent(tool_rules=rules), world.letta.agents.messages

    def note(n: int) -> Call:
        return Call("memory_insert", {"label": "human", "new_string": f"Likes {n}."}, f"c{n}")

    world.upstream.queue(call_tools(note(1)), call_tools(note(2)))
    messages.create(agent.id, input="One.")
    given: Any = {"type": "approval", "approve": True, "tool_call_id": "c1"}
    both: Any = [{"type": "approval", "approvals": [given]}, {"role": "user", "content": "Two."}]
    reply = messages.create(agent.id, messages=both)
    assert reply.stop_reason.stop_reason == "requires_approval"
    assert reply.messages[-1].tool_call.tool_call_id == "c2"  # type: ignore[union-attr]


def test_a_message_does_not_come_with_some_of_the_answers(world: LettaWorld) -> None:
    agent, messages = world.agent(), world.letta.agents.messages
    world.upstream.queue(call_tools(*(Call("get_weather", {"city": c}, c) for c in ("Bern", "Rome"))))
    messages.create(agent.id, input="Weather?", client_tools=[WEATHER])
    sun: Any = {"type": "tool", "tool_call_id": "Bern", "status": "success", "tool_return": "Sun"}
    more: Any = {"role": "user", "content": "Well?"}
    with pytest.raises(BadRequestError, match="answers to all calls that wait, or alone"):
        messages.create(agent.id, messages=[{"type": "approval", "approvals": [sun]}, more])
    pending = world.letta.agents.retrieve(agent.id).pending_approval
    assert [call.tool_call_id for call in pending.tool_calls] == ["Bern", "Rome"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "images", "read"),
    [("Red.", 1, "Red. [Image omitted]"), ("", 1, "[Image omitted]"), ("Two.", 2, "Two. [2 images omitted]")],
)
def test_a_result_of_the_clients_may_have_images(
    world: LettaWorld, text: str, images: int, read: str
) -> None:
    agent, messages = world.agent(), world.letta.agents.messages
    world.upstream.queue(call_tools(Call("get_weather", {"city": "Bern"}, "c1")))
    messages.create(agent.id, input="Weather?", client_tools=[WEATHER])
    source = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    parts = [
        *([{"type": "text", "text": text}] if text else []),
        *[{"type": "image", "source": source}] * images,
    ]
    given: Any = {"type": "tool", "tool_call_id": "c1", "status": "success", "tool_return": parts}
    messages.create(agent.id, messages=[{"type": "approval", "approvals": [given]}], client_tools=[WEATHER])
    assert world.upstream.last.messages[-1]["content"] == read


@pytest.mark.parametrize("background", [False, True])
def test_skills_of_the_clients_are_named_in_the_prompt_of_their_send(
    world: LettaWorld, background: bool
) -> None:
    agent, messages = world.agent(system="You help."), world.letta.agents.messages
    skill: Any = {"name": "greet", "description": "How to\ngreet.", "location": "my\nskills/greet.md"}
    messages.create(agent.id, input="Hi", background=background, client_skills=[skill])
    prompt = world.upstream.last.messages[0]["content"]
    named = "<available_skills>\n- greet (my skills/greet.md): How to greet.\n</available_skills>"
    assert prompt.startswith(f"You help.\n\n{named}\n")
    messages.create(
        agent.id, input="Hi", background=background, client_skills=[skill], override_system="You sing."
    )
    assert world.upstream.last.messages[0]["content"].startswith(f"You sing.\n\n{named}\n")
    messages.create(agent.id, input="Hi", background=background, client_skills=[])
    assert world.upstream.last.messages[0]["content"] == prompt.replace(f"\n\n{named}", "")


@pytest.mark.parametrize("is_old", [False, True], ids=["by call", "all at once"])
def test_a_person_denies_a_call_of_the_clients(world: LettaWorld, is_old: bool) -> None:
    """As Letta Code sends that its user said no."""
    agent, messages = world.agent(), world.letta.agents.messages
    calls = [Call("get_weather", {"city": "Bern"}, "c1"), Call("get_weather", {"city": "Rome"}, "c2")]
    world.upstream.queue(call_tools(*calls[: 1 if is_old else 2]), say("Then not."))
    messages.create(agent.id, input="Weather?", client_tools=[WEATHER])
    no: Any = {"type": "approval", "approve": False, "reason": "It costs."}
    made = {"type": "tool", "tool_call_id": "c2", "status": "success", "tool_return": "Sun"}
    given: Any = no if is_old else {"type": "approval", "approvals": [{**no, "tool_call_id": "c1"}, made]}
    reply = messages.create(agent.id, messages=[given], client_tools=[WEATHER])
    assert reply.messages[-1].content == "Then not."
    assert reply.messages[0].message_type == "approval_response_message"
    results = [m["content"] for m in world.upstream.last.messages if m["role"] == "tool"]
    assert results == ["Error: request to call tool denied. Reason: It costs.", "Sun"][: len(results)]
    assert len(results) == (1 if is_old else 2)
    assert world.letta.agents.retrieve(agent.id).pending_approval is None


def test_a_tool_of_the_clients_waits_for_its_result(world: LettaWorld) -> None:
    agent = world.agent()
    messages = world.letta.agents.messages
    world.upstream.queue(call_tools(Call("get_weather", {"city": "Bern"}, "c1")), say("Sunny."))
    reply = messages.create(agent.id, input="Weather?", client_tools=[WEATHER])
    assert (reply.stop_reason.stop_reason, kinds(reply.messages)) == (
        "requires_approval",
        ["approval_request_message"],
    )
    assert reply.messages[0].tool_call.name == "get_weather"
    pending = world.letta.agents.retrieve(agent.id).pending_approval
    assert pending is not None
    assert pending.tool_call.tool_call_id == "c1"
    answer = {"type": "tool", "tool_call_id": "c1", "status": "success", "tool_return": "Sun"}
    given: Any = [{"type": "approval", "approvals": [answer]}]
    reply = messages.create(agent.id, messages=given, client_tools=[WEATHER])
    assert kinds(reply.messages) == ["tool_return_message", "assistant_message"]
    assert world.letta.agents.retrieve(agent.id).pending_approval is None
    with pytest.raises(BadRequestError, match="No tool call is currently awaiting approval"):
        messages.create(agent.id, messages=given, client_tools=[WEATHER])
    with pytest.raises(UnprocessableEntityError) as caught:
        messages.create(agent.id, input="Weather?", client_tools=[{"name": "get weather"}])
    assert caught.value.body["detail"][0]["loc"] == ["body", "client_tools", 0, "name"]  # type: ignore[index]


def test_a_message_that_no_provider_accepts_does_not_stay_in_a_conversation(world: LettaWorld) -> None:
    """What is on disk is sent again with every message that follows."""
    agent, messages = world.agent(), world.letta.agents.messages
    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    for role, content in (("user", []), ("assistant", [image]), ("system", [image])):
        with pytest.raises((BadRequestError, UnprocessableEntityError), match=r"content|text"):
            messages.create(agent.id, messages=[{"role": role, "content": content}])  # type: ignore[typeddict-item,list-item]
    messages.create(agent.id, messages=[{"role": "user", "content": "Hi", "name": "Ann <Smith>"}])
    assert world.upstream.last.messages[-1]["name"] == "Ann__Smith_"
    messages.create(agent.id, input="Again.")
    shown, *_ = spoken(messages.list(agent.id, order="asc"))
    assert (shown.content, shown.name) == ("Hi", "Ann <Smith>")


def test_a_picture_that_is_gone_stays_out_of_all_steps_of_a_run(world: LettaWorld) -> None:
    def script(request: UpstreamRequest) -> Reply:
        if b"pictures.example" in request.body:
            return fail(400, "Error while downloading the picture.", code="invalid_image_url")
        return say("Done.") if request.messages[-1]["role"] == "tool" else call_tools(insert("Likes tea."))

    agent, messages = world.agent(), world.letta.agents.messages
    image: Any = {"type": "image", "source": {"type": "url", "url": "https://pictures.example/1.png"}}
    messages.create(agent.id, messages=[{"role": "user", "content": [image]}])
    world.upstream.script = script
    before = len(world.upstream.requests)
    assert messages.create(agent.id, input="Hi").stop_reason.stop_reason == "end_turn"
    assert len(world.upstream.requests) == before + 3


def test_a_reply_that_is_no_completion_is_an_error_of_the_stream(world: LettaWorld) -> None:
    """Its status is that of a success, so nothing else shows it to the reader."""
    agent, page = world.agent(), raw(b"<html>Login</html>", content_type="text/html")
    world.upstream.queue(page, page)
    events = world.letta.agents.messages.stream(agent.id, input="Hi")
    assert next(events).stop_reason == "invalid_llm_response"
    with pytest.raises(APIStatusError, match="neither a chat completion"):
        next(events)
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    assert (reply.messages, reply.stop_reason.stop_reason) == ([], "invalid_llm_response")


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[]}',
        b'{"choices":[null]}',
        b'{"choices":[{"index":0,"message":null,"finish_reason":"stop"}]}',
        b'data: {"choices":[]}\n\ndata: [DONE]\n\n',
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
    ],
)
def test_a_reply_without_a_message_fails_its_run(world: LettaWorld, body: bytes) -> None:
    agent, client = world.agent(), world.letta.agents.messages
    reply = raw(body, content_type="text/event-stream" if body.startswith(b"data") else "application/json")
    world.upstream.queue(reply, reply)
    answer = client.create(agent.id, input="Hi")
    assert (answer.messages, answer.stop_reason.stop_reason) == ([], "invalid_llm_response")
    events = client.stream(agent.id, input="Hi")
    assert next(events).stop_reason == "invalid_llm_response"
    with pytest.raises(APIStatusError, match="neither a chat completion"):
        next(events)
    world.world.settle()  # the run is written after its stream has ended
    assert {run.stop_reason for run in world.letta.runs.list(agent_id=agent.id)} == {"invalid_llm_response"}
    # A chat completion passes as it came.
    world.upstream.queue(reply)
    chat = {"model": f"agent/{agent.name}", "messages": [{"role": "user", "content": "Hi"}]}
    seen = world.world.gateway.ask(
        "POST",
        "/v1/chat/completions",
        orjson.dumps({**chat, "stream": body.startswith(b"data")}),
        {"authorization": "Bearer sk-app", "content-type": "application/json"},
    )
    assert (seen.status, seen.body.startswith(body.removesuffix(b"data: [DONE]\n\n"))) == (200, True)
    # A text that is empty is a reply: some models have nothing to add to what a tool did.
    world.upstream.queue(say(""))
    assert client.create(agent.id, input="Hi").stop_reason.stop_reason == "end_turn"


def test_an_upstream_that_does_not_stream_is_shown_as_well(world: LettaWorld) -> None:
    agent = world.agent()
    whole = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Whole."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }  # fmt: skip
    world.upstream.queue(
        *[raw(orjson.dumps(whole), content_type="application/json") for _ in range(2)],
    )
    events = list(world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=True))
    assert [said for _, _, said in joined(events)] == ["Whole."]
    assert events[-1].total_tokens == 7
    assert world.letta.agents.messages.create(agent.id, input="Hi").messages[0].content == "Whole."


def test_a_result_belongs_to_the_step_that_made_the_call(world: LettaWorld) -> None:
    rules: Any = [
        {"type": "exit_loop", "tool_name": "memory_insert"},
        {"type": "requires_approval", "tool_name": "memory_replace"},
    ]
    agent = world.agent(tools=["memory_insert", "memory_replace"], tool_rules=rules)
    id, messages = agent.id, world.letta.agents.messages
    asks = call_tools(Call("memory_replace", {"label": "human", "old_string": "zzz", "new_string": "x"}))
    ends = call_tools(Call("memory_insert", {"label": "human", "new_string": "x"}))
    for by_stream in (False, True):

        def send(by_stream: bool = by_stream, **options: Any) -> list[Any]:
            said = messages.stream(id, **options) if by_stream else messages.create(id, **options).messages
            return [(each.message_type, each.step_id) for each in said if getattr(each, "step_id", None)]

        world.upstream.queue(asks, ends)
        ((_, first),) = send(input="Hi")
        told = send(messages=[{"type": "approval", "approve": True}])
        kinds = ["approval_response_message", *2 * ["tool_return_message"]]
        kinds.insert(2, "tool_call_message")
        # What a person allowed is run by the run that goes on.
        assert ([kind for kind, _ in told], len({step for _, step in told})) == (kinds, 1)
        second = told[0][1]
        assert first != second
        whole = list(messages.list(id, order="asc"))[-6:]
        assert [each.step_id for each in whole] == [first, first, second, second, second, second]
        assert len({each.run_id for each in whole[2:]}) == 1
        for step, count in ((first, 2), (second, 4)):
            of = world.letta.steps.messages.list(step, order="asc").items
            assert [(each.message_type, each.step_id) for each in of] == [
                (each.message_type, each.step_id) for each in whole if each.step_id == step
            ]
            assert len(of) == count
        # A page that begins with a result knows the step all the same.
        (result,) = messages.list(id, order="desc", limit=1).items
        assert (result.message_type, result.step_id) == ("tool_return_message", second)


def test_the_same_send_again_is_answered_once(world: LettaWorld) -> None:
    agent = world.agent()
    world.upstream.queue(say("Once."))
    messages: Any = [{"role": "user", "content": "Hi", "otid": "o1"}]
    first = world.letta.agents.messages.create(agent.id, messages=messages)
    again = world.letta.agents.messages.create(agent.id, messages=messages)
    assert again.messages == first.messages
    assert joined(list(world.letta.agents.messages.stream(agent.id, messages=messages))) == joined(
        first.messages
    )
    assert len(world.upstream.chats) == 1
    assert next(iter(spoken(world.letta.agents.messages.list(agent.id, order="asc")))).otid == "o1"


def test_a_block_that_is_shared_reaches_both_agents_next_calls(world: LettaWorld) -> None:
    one = world.agent(name="one")
    block = one.blocks[0].id
    assert block is not None
    two = world.agent(name="two", memory_blocks=[], block_ids=[block])
    for agent in (one, two):
        world.letta.agents.messages.create(agent.id, input="Hi")
    world.letta.agents.blocks.update("human", agent_id=one.id, value="Name: Zoe")
    for agent in (one, two):
        world.letta.agents.messages.create(agent.id, input="Who am I?")
        assert "Zoe" in str(world.upstream.last.messages)


def test_an_agent_that_speaks_by_a_tool_is_read_as_text(world: LettaWorld) -> None:
    agent = world.agent(agent_type="memgpt_v2_agent")
    world.upstream.queue(
        call_tools(Call("send_message", {"thinking": "Greet.", "message": "Hello."})),
        call_tools(Call("send_message", {"message": "Hello again."})),
    )
    reply = world.letta.agents.messages.create(agent.id, input="Hi")
    assert [each.content for each in reply.messages if each.message_type == "assistant_message"] == ["Hello."]
    assert "tool_call_message" not in kinds(reply.messages)
    plain = world.letta.agents.messages.create(agent.id, input="Hi", use_assistant_message=False)
    assert "tool_call_message" in kinds(plain.messages)
    assert "assistant_message" not in kinds(plain.messages)


@pytest.mark.parametrize("by_token", [False, True])
def test_the_text_of_a_tool_shown_as_a_message_is_not_shown_twice(world: LettaWorld, by_token: bool) -> None:
    agent = world.agent(agent_type="memgpt_v2_agent")
    world.upstream.queue(call_tools(Call("send_message", {"message": "Hello."})))
    messages, wanted = world.letta.agents.messages, {"use_assistant_message": False}
    events = list(messages.stream(agent.id, input="Hi", stream_tokens=by_token, **wanted))  # type: ignore[call-overload]
    assert kinds(events)[:-2] == ["tool_call_message", "tool_return_message"]
    _, *listed = spoken(messages.list(agent.id, order="asc", **wanted))  # type: ignore[arg-type]
    assert joined(events) == joined(listed)


@pytest.mark.parametrize("by_token", [False, True])
def test_each_speaking_call_becomes_a_message(world: LettaWorld, by_token: bool) -> None:
    """In streams as in lists, and apart from the text of the reply."""
    agent = world.agent(agent_type="memgpt_v2_agent")
    said = [Call("send_message", {"message": each}) for each in ("Hello.", "", "And bye.")]
    world.upstream.queue(call_tools(*said, insert("a"), text="Well."), say("Ok."))
    events = list(world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=by_token))
    _, *listed = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    assert joined(events) == joined(listed)
    texts = [each.content for each in listed if each.message_type == "assistant_message"]
    assert texts[:3] == ["Well.", "Hello.", "And bye."]


@pytest.mark.parametrize("by_token", [False, True])
def test_our_arguments_are_shown_as_what_they_are(world: LettaWorld, by_token: bool) -> None:
    """A thought is a thought, in streams and lists; a call is shown as its tool gets it."""
    agent = world.agent(agent_type="memgpt_v2_agent")
    note = {"thinking": "Keep it.", "request_heartbeat": True, "label": "human", "new_string": "Cat: Miso"}
    world.upstream.queue(
        call_tools(Call("memory_insert", note)),
        call_tools(Call("send_message", {"thinking": "Greet.", "message": "Hello."})),
    )
    events = list(world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=by_token))
    _, *listed = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    assert joined(events) == joined(listed)
    assert kinds(listed) == [
        "reasoning_message",
        "tool_call_message",
        "tool_return_message",
        "reasoning_message",
        "assistant_message",
    ]
    assert [each.reasoning for each in listed if each.message_type == "reasoning_message"] == [
        "Keep it.",
        "Greet.",
    ]
    (call,) = [each.tool_call for each in listed if each.message_type == "tool_call_message"]
    assert orjson.loads(call.arguments) == {"label": "human", "new_string": "Cat: Miso"}


@each_row(
    ("body", "loc"),
    [
        ({}, ["body", "messages"]),
        ({"messages": [{"role": "nobody", "content": "x"}]}, ["body", "messages", 0, "role"]),
        ({"messages": [{"role": "user"}]}, ["body", "messages", 0, "content"]),
        (
            {"messages": [{"type": "approval", "approvals": [{"type": "tool"}]}]},
            ["body", "messages", 0, "approvals", 0],
        ),
        ({"input": "x", "max_steps": 0}, ["body", "max_steps"]),
        ({"input": "x", "messages": [{"role": "user", "content": "x"}]}, ["body", "input"]),
        ({"input": 7}, ["body", "input"]),
        (
            {"input": "x", "client_tools": [{"name": "get_weather"}, {"name": "get_weather"}]},
            ["body", "client_tools", 1, "name"],
        ),
    ],
)
def test_a_wrong_send_is_named(world: LettaWorld, body: dict[str, Any], loc: list[Any]) -> None:
    agent = world.agent()
    with pytest.raises(UnprocessableEntityError) as refused:
        world.letta.post(f"/v1/agents/{agent.id}/messages", cast_to=object, body=body)
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["detail"][0]["loc"][: len(loc)] == loc
    assert world.upstream.chats == []


def test_options_that_are_not_served_are_refused(world: LettaWorld) -> None:
    agent = world.agent()
    for options in ({"callback_url": "https://example.org"}, {"return_logprobs": True}):
        with pytest.raises(BadRequestError):
            world.letta.agents.messages.create(agent.id, input="Hi", extra_body=options)
    with pytest.raises(NotFoundError):
        world.letta.agents.messages.create("agent-" + "0" * 32, input="Hi")


def test_the_async_client_does_the_same(world: LettaWorld) -> None:
    world.upstream.queue(say("Hello."), say("Streamed."))

    async def talk() -> None:
        async with world.async_client() as client:
            agent = await client.agents.create(
                model="openai/m", memory_blocks=[{"label": "human", "value": ""}]
            )
            reply = await client.agents.messages.create(agent.id, input="Hi")
            assert reply.messages[0].content == "Hello."
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stream = await client.agents.messages.stream(agent.id, input="Hi")
            events = [each async for each in stream]
            assert [said for _, _, said in joined(events)] == ["Streamed."]
            assert (
                len([each async for each in client.agents.messages.list(agent.id, limit=1, order="asc")]) == 5
            )
            assert [each.id async for each in client.agents.list()] == [agent.id]
            assert [each.label async for each in client.agents.blocks.list(agent.id)] == ["human"]
            assert len([each async for each in client.runs.list(limit=1)]) == 2
            assert len([each async for each in client.steps.list(limit=1)]) == 2
            assert len([each async for each in client.tools.list(limit=2)]) > 5
            await client.agents.delete(agent.id)

    asyncio.run(talk())


def test_the_context_is_what_goes_to_the_model(world: LettaWorld) -> None:
    agent = world.agent(system="You help.")
    world.letta.agents.messages.create(agent.id, input="Hi")
    status, context = world.ask("GET", f"/v1/agents/{agent.id}/context")
    assert (status, context["system_prompt"], context["num_messages"]) == (200, "You help.", 2)
    assert "Name: Ann" in context["core_memory"]
    assert [m["content"] for m in context["messages"]] == ["Hi", "Ok."]
    assert len(context["functions_definitions"]) == 3
    world.letta.agents.blocks.update("human", agent_id=agent.id, value="Name: Zoe")
    assert "Name: Ann" in world.letta.agents.recompile(agent.id, dry_run=True)
    assert "Name: Zoe" in world.letta.agents.recompile(agent.id)
    world.letta.agents.messages.create(agent.id, input="Who am I?")
    assert "Name: Zoe" in world.upstream.last.messages[0]["content"]


def test_the_context_counts_what_is_left(world: LettaWorld) -> None:
    """Not what was forgotten: a passage, or the messages before a new beginning."""
    agent = world.agent()

    def counts() -> tuple[int, int]:
        context = world.ask("GET", f"/v1/agents/{agent.id}/context")[1]
        return context["num_recall_memory"], context["num_archival_memory"]

    world.letta.agents.messages.create(agent.id, input="Hi")
    (passage,) = world.letta.agents.passages.create(agent.id, text="The roses are red.")
    assert counts() == (2, 1)
    world.letta.agents.passages.delete(passage.id, agent_id=agent.id)
    assert counts() == (2, 0)
    world.letta.agents.messages.reset(agent.id)
    assert counts() == (0, 0)
    world.letta.agents.messages.create(agent.id, input="Hi again")
    assert counts() == (2, 0)


def test_a_person_allows_and_denies(world: LettaWorld) -> None:
    agent = world.agent(tool_rules=[{"type": "requires_approval", "tool_name": "memory_insert"}])
    messages = world.letta.agents.messages
    world.upstream.queue(
        call_tools(insert("Cat", "c1")), say("Done."), call_tools(insert("Dog", "c2")), say("Pity.")
    )
    asked = messages.create(agent.id, input="Hi").messages[0]
    assert asked.message_type == "approval_request_message"
    allowed: Any = [{"type": "approval", "approve": True, "approval_request_id": asked.id}]
    reply = messages.create(agent.id, messages=allowed)
    assert kinds(reply.messages) == ["approval_response_message", "tool_return_message", "assistant_message"]
    assert reply.usage.step_count == 1
    messages.create(agent.id, input="Once more")
    decision = {"type": "approval", "tool_call_id": "c2", "approve": False, "reason": "Not that."}
    denied: Any = [{"type": "approval", "approvals": [decision]}]
    events = list(messages.stream(agent.id, messages=denied))
    assert kinds(events)[:3] == ["approval_response_message", "tool_return_message", "assistant_message"]
    assert (events[0].approve, events[0].reason, events[1].name) == (False, "Not that.", "memory_insert")
    assert events[-1].step_count == 1
    listed = spoken(messages.list(agent.id, order="asc"))
    assert [each.approve for each in listed if each.message_type == "approval_response_message"] == [
        True,
        False,
    ]
    assert joined(events[:-2]) == joined(listed[-3:])
    assert "Dog" not in world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value


@pytest.mark.parametrize("by", ["a person", "the client"])
def test_a_run_that_waits_is_cancelled(world: LettaWorld, by: str) -> None:
    """Its calls are denied, and wait for nobody any more; they are not made later either."""
    agent = world.agent()
    messages, options = world.letta.agents.messages, dict[str, Any]()
    if by == "a person":
        world.letta.agents.tools.update_approval(
            "memory_insert", agent_id=agent.id, body_requires_approval=True
        )
        calls = [insert("Cat", "c1"), Call("conversation_search", {"query": "cats"}, "c2")]
    else:
        options, calls = {"client_tools": [WEATHER]}, [Call("get_weather", {}, "c1"), insert("Cat", "c2")]
    world.upstream.queue(call_tools(*calls))
    messages.create(agent.id, input="Hi", **options)
    run = world.letta.runs.list(agent_id=agent.id).items[0]
    assert (run.status, run.stop_reason) == ("completed", "requires_approval")
    assert messages.cancel(agent.id, run_ids=[run.id]) == {run.id: "cancelled"}
    now = world.letta.runs.retrieve(run.id)
    assert (now.status, now.stop_reason) == ("cancelled", "cancelled")
    assert world.letta.agents.retrieve(agent.id, include=["agent.pending_approval"]).pending_approval is None
    decision: Any = {"type": "approval", "tool_call_id": "c1", "approve": True}
    with pytest.raises(BadRequestError, match="awaiting approval"):
        messages.create(agent.id, messages=[{"type": "approval", "approvals": [decision]}], **options)
    assert messages.cancel(agent.id, run_ids=[run.id]) == {run.id: "cancelled"}
    assert messages.create(agent.id, input="Go on.", **options).messages[-1].content == "Ok."
    sent = world.upstream.last.messages
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert "cancelled" in sent[3]["content"]
    value = world.letta.agents.blocks.retrieve("human", agent_id=agent.id).value
    # What was done along with a call of the client's is done.
    assert ("Cat" in value, "was not made" in sent[4]["content"]) == (by != "a person", by == "a person")
    shown = [
        each
        for each in messages.list(agent.id, order="asc")
        if each.message_type == "approval_response_message"
    ]
    assert [each.approve for each in shown] == [False]


def test_an_empty_model_of_a_send_leaves_the_agents_own_model(world: LettaWorld) -> None:
    agent = world.agent(model="openai/m")
    for empty in ("", None):
        world.letta.agents.messages.create(agent.id, input="Hi", override_model=empty)
        assert world.upstream.last.json["model"] == "m"
    conversation = world.letta.conversations.create(agent_id=agent.id, model="")
    list(world.letta.conversations.messages.create(conversation.id, input="Hi"))
    assert world.upstream.last.json["model"] == "m"


def test_a_run_whose_calls_were_answered_is_not_cancelled(world: LettaWorld) -> None:
    agent = world.agent(tool_rules=[{"type": "requires_approval", "tool_name": "memory_insert"}])
    messages = world.letta.agents.messages
    for id in ("c1", "c2"):
        world.upstream.queue(call_tools(insert("Cat", id)))
        messages.create(agent.id, input="Hi")
    newer, older = world.letta.runs.list(agent_id=agent.id).items
    assert messages.cancel(agent.id, run_ids=[older.id]) == {older.id: "completed"}
    assert messages.cancel(agent.id) == {}
    assert world.letta.agents.retrieve(agent.id).pending_approval is not None
    allowed: Any = [{"type": "approval", "approve": True}]
    assert messages.create(agent.id, messages=allowed).messages[-1].content == "Ok."
    assert messages.cancel(agent.id, run_ids=[newer.id]) == {newer.id: "completed"}


def test_an_answered_call_does_not_wait_any_more(world: LettaWorld) -> None:
    agent = world.agent(tool_rules=[{"type": "requires_approval", "tool_name": "memory_insert"}])
    world.upstream.queue(call_tools(insert("a", "c1"), insert("b", "c2")))
    messages = world.letta.agents.messages
    messages.create(agent.id, input="Keep both.")
    run_id = world.letta.runs.list(agent_id=agent.id).items[0].id

    def answer(id: str, **options: Any) -> Any:
        decision: Any = {"type": "approval", "tool_call_id": id, "approve": True}
        return messages.create(agent.id, messages=[{"type": "approval", "approvals": [decision]}], **options)

    reply = answer("c1")
    assert reply.stop_reason.stop_reason == "requires_approval"
    # Programs ask for what the newest request of a reply names.
    told = [[*reply.messages]]
    retried = {"x-stainless-retry-count": "1"}
    told.append([*answer("c1", streaming=True, extra_headers=retried)][:-2])
    told.append([*answer("c1", background=True, extra_headers=retried).messages])
    for each in told:
        assert [(m.message_type, [c.tool_call_id for c in m.tool_calls]) for m in each] == [
            ("approval_request_message", ["c2"])
        ]
    pending: Any = world.letta.agents.retrieve(agent.id).pending_approval
    assert [call.tool_call_id for call in (pending.tool_call, *pending.tool_calls)] == ["c2", "c2"]
    for listed in (spoken(messages.list(agent.id, order="asc")), world.letta.runs.messages.list(run_id)):
        calls = [(each.message_type, [c.tool_call_id for c in each.tool_calls]) for each in list(listed)[1:]]
        assert calls == [("tool_call_message", ["c1"]), ("approval_request_message", ["c2"])]
    assert answer("c2").stop_reason.stop_reason == "end_turn"
    assert world.letta.agents.retrieve(agent.id).pending_approval is None


def test_an_answer_that_leads_to_another_pause_names_the_call_that_waits(world: LettaWorld) -> None:
    rules: list[Any] = [
        *({"type": "requires_approval", "tool_name": tool} for tool in ("memory_insert", "memory_replace")),
        {"type": "parent_last_tool", "tool_name": "memory_insert", "children": ["memory_replace"]},
    ]
    agent, messages = world.agent(tool_rules=rules), world.letta.agents.messages
    replaces = Call("memory_replace", {"label": "human", "old_string": "Ann", "new_string": "Anna"}, "c2")
    world.upstream.queue(call_tools(insert("a", "c1"), replaces))
    messages.create(agent.id, input="Keep it.")
    reply = messages.create(agent.id, messages=[{"type": "approval", "approve": True}])
    assert reply.stop_reason.stop_reason == "requires_approval"
    asked: Any = reply.messages[-1]
    assert (asked.message_type, asked.tool_call.tool_call_id) == ("approval_request_message", "c2")
    newest, _ = world.letta.runs.list(agent_id=agent.id, order="desc")
    assert (newest.status, newest.stop_reason) == ("completed", "requires_approval")


def test_a_result_of_the_clients_leaves_room_in_the_window(world: LettaWorld) -> None:
    """As one of our own tools does; whole, the upstream would refuse the prompt."""
    agent, messages = world.agent(context_window_limit=10_000), world.letta.agents.messages
    world.upstream.queue(call_tools(Call("get_weather", {}, "w1")), say("Long."))
    tools: Any = [WEATHER]
    messages.create(agent.id, input="Weather?", client_tools=tools)
    result: Any = {"type": "tool", "tool_call_id": "w1", "tool_return": "x" * 9000, "status": "success"}
    answer: Any = [{"type": "approval", "approvals": [result]}]
    messages.create(agent.id, messages=answer, client_tools=tools)
    said = world.upstream.last.messages[-1]["content"]
    assert said == "x" * 8000 + "\n[1000 more characters were cut off.]"


def test_the_result_of_a_search_is_forgotten_with_the_message_that_it_quotes(world: LettaWorld) -> None:
    """The result stays, since no provider takes a call without one."""
    agent, messages = world.agent(), world.letta.agents.messages
    messages.create(agent.id, input="My cat is called Miso.")
    messages.reset(agent.id)
    beside = world.letta.conversations.create(agent_id=agent.id)
    list(world.letta.conversations.messages.create(beside.id, input="My dog is called Rex."))
    world.upstream.queue(
        call_tools(Call("conversation_search", {"query": "dog called"}, "s1")), say("Found.")
    )
    messages.create(agent.id, input="What is it called?")
    result = world.upstream.last.messages[-1]["content"]
    assert "Rex" in result
    said = next(each for each in spoken(world.letta.conversations.messages.list(beside.id, order="asc")))
    assert world.ask("DELETE", f"/v1/agents/{agent.id}/messages/{said.id}")[0] == 200
    world.world.settle()
    returned = [each for each in messages.list(agent.id) if each.message_type == "tool_return_message"]
    assert [each.tool_return for each in returned] == ["(forgotten)"]
    messages.create(agent.id, input="Go on.")
    assert "Rex" not in str(world.upstream.last.messages)


@pytest.mark.parametrize(
    "call",
    [
        Call("conversation_search", {"query": "dog called"}),
        Call("memory_insert", {"label": "human", "new_string": "Her dog is called Rex."}),
    ],
)
def test_the_result_of_a_forgotten_call_goes_with_it(world: LettaWorld, call: Call) -> None:
    """As with `memory forget --agent … --exchange 1`: the answer is in the step after it."""
    agent, messages = world.agent(tools=[call.name]), world.letta.agents.messages
    world.upstream.queue(call_tools(call), say("Noted."))
    messages.create(agent.id, input="My dog is called Rex.")
    assert "Rex" in world.upstream.last.messages[-1]["content"]
    operations = make_operations(world.world.gateway.app.services.settings, world.world.store)
    wanted = {"project": "default", "agent": agent.id, "exchange": 1}
    assert world.world.gateway.call(operations.perform("memory-forget", wanted))["messages"] == 2
    assert b"Rex" not in world.world.data()
    messages.create(agent.id, input="Go on.")
    assert "Rex" not in str(world.upstream.last.messages)


def test_a_waiting_call_is_shown_after_messages_in_other_conversations(world: LettaWorld) -> None:
    agent = world.agent(tool_rules=[{"type": "requires_approval", "tool_name": "memory_insert"}])
    messages, conversations = world.letta.agents.messages, world.letta.conversations
    world.upstream.queue(call_tools(insert("a", "c1")), say("Hi."), say("No."), call_tools(insert("b", "c2")))
    messages.create(agent.id, input="Keep a.")
    beside = conversations.create(agent_id=agent.id)

    def waits_after(text: str) -> str:
        list(conversations.messages.create(beside.id, input=text))
        pending = world.letta.agents.retrieve(agent.id).pending_approval
        assert pending is not None
        return str(pending.tool_call.tool_call_id)

    assert waits_after("Hi") == "c1"
    messages.create(agent.id, messages=[{"type": "approval", "approve": False}])
    assert world.letta.agents.retrieve(agent.id).pending_approval is None
    assert waits_after("Keep b.") == "c2"


def test_a_conversation_begins_with_its_initial_messages(world: LettaWorld) -> None:
    initial: Any = [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A gardener."},
    ]
    agent = world.agent(initial_message_sequence=initial)
    for text in ("Hi", "Bye"):
        world.letta.agents.messages.create(agent.id, input=text)
    said = ["Who are you?", "A gardener.", "Hi", "Ok.", "Bye"]
    assert [m["content"] for m in world.upstream.last.messages[1:]] == said
    listed: Any = spoken(world.letta.agents.messages.list(agent.id, order="asc"))
    assert [each.content for each in listed] == [*said, "Ok."]
    with pytest.raises(UnprocessableEntityError, match="role"):
        world.agent(initial_message_sequence=[{"role": "nobody", "content": "x"}])


def test_a_users_memory_can_be_sent_to(upstream: StrictUpstream, tmp_path: Path) -> None:
    with letta(upstream, tmp_path, profile()) as world:
        world.world.chat(model="agent/helper", user="ann").say("My cat is called Miso.")
        world.world.settle()
        (agent,) = world.letta.agents.list(tags=["user:ann"])
        world.upstream.queue(say("Miso."))
        reply = world.letta.agents.messages.create(agent.id, input="What is my cat called?")
        assert reply.messages[0].content == "Miso."
        assert world.upstream.last.messages[0]["content"].startswith("You help.")


def test_a_wrong_key_is_reported_in_the_same_form(upstream: StrictUpstream, tmp_path: Path) -> None:
    with letta(upstream, tmp_path, server={"key": "mg-" + "a" * 32}) as world:
        for ask in (world.letta.agents.list, lambda: world.letta.conversations.retrieve("conv-1")):
            with pytest.raises(AuthenticationError) as refused:
                ask()
            assert isinstance(refused.value.body, dict)
            assert refused.value.body["detail"]
        assert world.letta.health().status == "ok"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.sqlite
def test_a_plain_message_takes_six_statements(world: LettaWorld, streaming: bool) -> None:
    agent = world.agent()
    world.letta.agents.messages.create(agent.id, input="Hi")

    def send() -> None:
        reply = world.letta.agents.messages.create(agent.id, input="Hi", streaming=streaming)
        list(reply if streaming else reply.messages)

    assert world.world.statements_of(send) == [
        "read", "read", "insert exchanges", "insert runs", "update exchanges", "insert run_steps",
    ]  # fmt: skip
    # Why it recalled what it did is noted by the last of them.
    assert world.world.query("SELECT count(*) FROM recalls") == [2]


@pytest.mark.parametrize("by_token", [True, False])
def test_a_call_without_an_id_gets_one_by_which_it_is_answered(world: LettaWorld, by_token: bool) -> None:
    agent = world.agent(tool_rules=[{"type": "requires_approval", "tool_name": "memory_insert"}])
    call = {"label": "human", "new_string": "Likes tea."}
    function = {"name": "memory_insert", "arguments": orjson.dumps(call).decode()}
    deltas: list[Any] = [
        {
            "delta": {
                "role": "assistant",
                "tool_calls": [{"index": 0, "type": "function", "function": function}],
            }
        },
        {"delta": {}, "finish_reason": "tool_calls"},
    ]
    chunks = [
        {"id": "c", "object": "chat.completion.chunk", "choices": [{"index": 0, **each}]} for each in deltas
    ]
    world.upstream.queue(
        raw(*(b"data: " + orjson.dumps(each) + b"\n\n" for each in chunks), b"data: [DONE]\n\n"),
        say("Noted."),
    )
    events: Any = list(
        world.letta.agents.messages.create(agent.id, input="Tea.", streaming=True, stream_tokens=by_token)
    )
    asked = next(each for each in events if each.message_type == "approval_request_message")
    decision = {"type": "approval", "tool_call_id": asked.tool_call.tool_call_id, "approve": True}
    allowed: Any = [{"type": "approval", "approvals": [decision]}]
    reply = world.letta.agents.messages.create(agent.id, messages=allowed)
    assert reply.messages[-1].content == "Noted."
