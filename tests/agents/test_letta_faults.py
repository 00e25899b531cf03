"""The faults of behaviour that Letta's server 0.16 has, and where each is held: here, or in the test that is named.

Each of these would fail there: users saw them, or they were measured. `FAULTS` names the tests of each, by file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from letta_client import APIStatusError

from tests.agents.letta import LettaWorld, letta, spoken
from tests.doubles.upstream import Call, Gate, Reply, StrictUpstream, UpstreamRequest, call_tools, fail, say

_TESTS: Final = Path(__file__).parents[1]
_RULES, _RUNS, _MEMORY = (
    "agents/core/test_tool_rules.py",
    "agents/test_runs.py",
    "agents/test_memory.py",
)
_KILLS, _ROWS = "agents/test_kills.py", "agents/test_kill_rows.py"
_MESSAGES, _CHAT = "agents/test_client_messages.py", "agents/test_chat.py"
_SLEEP, _BLOCKS = "agents/test_sleeptime.py", "agents/test_client_blocks.py"
_HERE: Final = "agents/test_letta_faults.py"

# (what Letta's server does; the tests that hold the opposite)
FAULTS: Final = (
    # What survives an error.
    (
        "an upstream's 500 loses the user's message",
        (f"{_RUNS}::test_an_error_before_the_first_reply_is_a_status_and_the_words_stay",),
    ),
    (
        "a prompt that stays too long loses the message, takes seven calls, and shrinks the conversation for good",
        (f"{_HERE}::test_a_prompt_that_stays_too_long_costs_three_calls_and_loses_nothing",),
    ),
    (
        "a cancelled stream loses the message and what was shown",
        (f"{_HERE}::test_the_text_that_was_shown_before_a_cancel_stays",),
    ),
    (
        "a crash between a tool and its step loses the turn, and its side effects stay unknown",
        (
            f"{_KILLS}::test_a_run_continues_from_the_point_of_the_kill",
            f"{_ROWS}::test_a_run_in_the_background_is_performed_once",
            f"{_ROWS}::test_a_resent_live_send_is_performed_once",
            f"{_ROWS}::test_a_message_after_a_killed_live_run_follows_the_known_results",
            f"{_ROWS}::test_a_call_is_not_made_twice",
        ),
    ),
    (
        "of four sends at once one survives",
        (
            f"{_RUNS}::test_four_sends_at_once_are_four_turns_in_order",
            f"{_HERE}::test_four_sends_at_once_are_four_turns",
        ),
    ),
    # The solver of tool rules.
    (
        "where rules leave no tool, all of them are offered",
        (f"{_RULES}::test_nothing_may_be_called_where_the_intersection_is_empty",),
    ),
    (
        "each call is counted twice: a limit of three allows two",
        (
            f"{_RULES}::test_a_count_of_three_allows_three",
            f"{_HERE}::test_a_limit_of_three_allows_three",
        ),
    ),
    # The database.
    (
        "75 statements for a plain message, 128 for one with a memory call",
        (
            f"{_MESSAGES}::test_a_plain_message_takes_six_statements",
            f"{_MEMORY}::test_a_step_with_an_edit_costs",
        ),
    ),
    # What the prompt says.
    (
        "a block that was taken off stays in the prompt",
        (f"{_HERE}::test_a_block_that_was_taken_off_leaves_the_prompt",),
    ),
    (
        "within a turn the model never sees its own edit",
        (f"{_MEMORY}::test_the_section_stays_and_the_result_shows_the_edit",),
    ),
    (
        "the counts in the prompt are stale",
        (f"{_HERE}::test_the_prompt_has_no_counts_clock_or_ids",),
    ),
    (
        "a shared block that is changed by one agent's path stays old for the others",
        (
            f"{_MESSAGES}::test_a_block_that_is_shared_reaches_both_agents_next_calls",
            f"{_BLOCKS}::test_a_shared_block_that_changes_while_its_edit_waits_is_reported",
            f"{_BLOCKS}::test_a_block_that_changes_while_a_client_tool_runs_is_reported",
        ),
    ),
    (
        "a changed system prompt is not what the model gets",
        (f"{_CHAT}::test_an_agents_definition_takes_effect_with_the_next_request",),
    ),
    # Compaction.
    (
        "a reply waits for the summariser",
        (
            f"{_HERE}::test_no_reply_waits_for_a_summary",
            "gateway/background/test_compact.py::test_a_slow_model_is_not_waited_for",
        ),
    ),
    # All or nothing.
    (
        "a turn is kept as a whole or not at all, while its tools have done their work",
        (
            f"{_RUNS}::test_each_step_is_stored_before_the_next",
            f"{_RUNS}::test_an_error_after_a_finished_step_ends_the_run_and_the_step_stays",
            f"{_RUNS}::test_a_cancelled_run_keeps_what_its_tools_did",
        ),
    ),
    (
        "sends to one agent overwrite each other's list of messages",
        (
            f"{_HERE}::test_four_sends_at_once_are_four_turns",
            "agents/test_client_conversations.py::test_sends_to_two_conversations_run_side_by_side",
        ),
    ),
    # Smaller ones of the same kinds.
    (
        "memory_rethink of a label that is not there fails by accident",
        (f"{_HERE}::test_a_rethink_of_what_is_not_there_says_so",),
    ),
    (
        "a block's history and undo cannot be reached",
        (f"{_BLOCKS}::test_a_value_is_brought_back",),
    ),
    (
        "a block's limit is not enforced",
        (
            f"{_BLOCKS}::test_a_limit_holds_on_every_way_in",
            "core/memory/test_builtin.py::test_the_limit_and_read_only_hold_for_every_way_in",
        ),
    ),
    (
        "a conditional rule raises where nothing was called yet",
        (f"{_HERE}::test_a_condition_without_a_call_before_it_asks_for_nothing",),
    ),
    # Lists and definitions, measured on 0.16.8.
    (
        "a client that walks through a conversation's messages is given them again and again",
        ("agents/test_client_conversations.py::test_a_conversation_is_read_back_from_its_newest_message",),
    ),
    (
        "a tool that is made under the name of a built-in one takes its place, and breaks it for every agent",
        ("agents/test_client_tools.py::test_a_tool_that_cannot_be_is_refused",),
    ),
    # Sleeptime.
    (
        "a sleeptime run that fails or crashes loses what it was to read",
        (
            f"{_SLEEP}::test_a_failing_model_leaves_the_cursor_and_the_run_continues",
            f"{_SLEEP}::test_the_eighth_failure_ends_a_run_and_the_next_run_reads_its_turns",
            "agents/test_sleep_killed.py::test_killed_while_the_model_thinks",
        ),
    ),
    (
        "its counter of turns is read and written back, so that turns are lost",
        (
            f"{_SLEEP}::test_a_sleeptime_agent_reads_after_each_five_turns_and_the_reply_names_its_run",
            f"{_SLEEP}::test_turns_that_come_while_it_reads_are_read_by_the_next_run",
        ),
    ),
    # What is stored.
    (
        "each step stores its whole request, so that a conversation takes the square of its length",
        (f"{_HERE}::test_a_conversation_takes_up_what_was_said_and_no_more",),
    ),
    # Chat completions.
    (
        "chat completions to an agent drop tools, system, history, sampling, usage and errors",
        (
            f"{_HERE}::test_every_field_of_a_chat_completion_is_honoured",
            f"{_HERE}::test_an_error_in_the_middle_of_a_stream_is_an_error",
            f"{_CHAT}::test_the_clients_own_tool_pauses_and_its_result_goes_on",
            f"{_CHAT}::test_an_agents_sampling_goes_with_each_request_unless_it_says_so_itself",
            f"{_CHAT}::test_the_reply_says_how_much_of_a_list_is_new",
        ),
    ),
    # Who asks.
    (
        "anybody can be any user by the header user_id",
        (
            f"{_HERE}::test_the_header_user_id_selects_nothing",
            "agents/test_client_agents.py::test_the_project_of_another_key_is_not_found",
            f"{_MESSAGES}::test_a_wrong_key_is_reported_in_the_same_form",
        ),
    ),
)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0])
def test_a_fault_has_its_tests(fault: tuple[str, tuple[str, ...]]) -> None:
    for name in fault[1]:
        file, _, test = name.partition("::")
        tree = ast.parse((_TESTS / file).read_text("utf-8"))
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}, name


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def said(world: LettaWorld, agent: str) -> list[str]:
    page = spoken(world.letta.agents.messages.list(agent, order="asc"))
    return [f"{m.message_type.split('_')[0]}: {getattr(m, 'content', '')}" for m in page]


# -- what survives an error


def test_a_prompt_that_stays_too_long_costs_three_calls_and_loses_nothing(world: LettaWorld) -> None:
    agent = world.agent()
    send = world.letta.agents.messages.create
    for n in range(8):
        send(agent.id, input=f"Message {n} " + "word " * 300)
    before = said(world, agent.id)
    words = (
        "This model's maximum context length is 2000 tokens. However, your messages resulted in 4000 tokens."
    )
    too_long = fail(400, words, code="context_length_exceeded")
    world.upstream.queue(*[too_long] * 8)
    calls = len(world.upstream.chats)
    with pytest.raises(APIStatusError) as refused:
        send(agent.id, input="One more.")
    assert refused.value.status_code == 400
    # Cut to what the error says, and once more in case that our count is short; no summary is asked for.
    assert len(world.upstream.chats) - calls <= 3
    assert said(world, agent.id) == [*before, "user: One more."]
    # The next one fits, since the length is known now, and goes on from what was said.
    world.upstream.forget_replies()
    send(agent.id, input="And now?")
    assert len(world.upstream.chats) - calls <= 4
    assert "One more." in str([m["content"] for m in world.upstream.last.messages][-2:])


def test_the_text_that_was_shown_before_a_cancel_stays(world: LettaWorld) -> None:
    agent, gate = world.agent(), Gate()
    world.upstream.queue(say("Never said.", tokens=["Never", " said."], hold_after={2: gate}))
    stream = world.letta.agents.messages.stream(agent.id, input="Hi", stream_tokens=True)
    assert next(iter(stream)).content == "Never"
    world.letta.agents.messages.cancel(agent.id)
    stream.close()
    gate.open()
    world.world.settle()  # it is written after the answer to the cancel
    assert said(world, agent.id) == ["user: Hi", "assistant: Never"]
    world.letta.agents.messages.create(agent.id, input="Go on.")
    texts = [m["content"] for m in world.upstream.last.messages[1:]]
    assert texts == ["Hi", "Never", "Go on."]


def test_four_sends_at_once_are_four_turns(world: LettaWorld) -> None:
    agent = world.agent()
    texts = [f"Send {n}." for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda text: world.make_client().agents.messages.create(agent.id, input=text), texts)
        assert [reply.stop_reason.stop_reason for reply in found] == ["end_turn"] * 4
    world.letta.agents.messages.create(agent.id, input="And now?")
    contents = [m["content"] for m in world.upstream.last.messages if m["role"] == "user"]
    assert sorted(contents) == sorted([*texts, "And now?"])
    roles = [m["role"] for m in world.upstream.last.messages[1:]]
    assert roles == [*["user", "assistant"] * 4, "user"]


# -- rules


def test_a_limit_of_three_allows_three(world: LettaWorld) -> None:
    rules: Any = [{"type": "max_count_per_step", "tool_name": "conversation_search", "max_count_limit": 3}]
    agent = world.agent(tool_rules=rules)
    world.upstream.queue(
        *[call_tools(Call("conversation_search", {"query": "x"}, f"c{n}")) for n in range(4)], say("Done.")
    )
    reply = world.letta.agents.messages.create(agent.id, input="Search.")
    ends = [m.status for m in reply.messages if m.message_type == "tool_return_message"]
    assert ends == ["success"] * 3 + ["error"]


def test_a_condition_without_a_call_before_it_asks_for_nothing(world: LettaWorld) -> None:
    rule = {
        "type": "conditional",
        "tool_name": "conversation_search",
        "child_output_mapping": {"x": "memory_insert"},
        "default_child": "memory_insert",
        "require_output_mapping": True,
    }
    agent = world.agent(tool_rules=[rule])
    assert world.letta.agents.messages.create(agent.id, input="Hi").messages[-1].content == "Ok."  # type: ignore[union-attr]
    assert "tool_choice" not in world.upstream.last.json


# -- what the prompt says


def test_a_block_that_was_taken_off_leaves_the_prompt(world: LettaWorld) -> None:
    agent = world.agent(
        memory_blocks=[{"label": "human", "value": "Ann"}, {"label": "plan", "value": "Tulips"}]
    )
    send = world.letta.agents.messages.create
    send(agent.id, input="Hi")
    assert "Tulips" in world.upstream.last.messages[0]["content"]
    plan = world.letta.agents.blocks.retrieve("plan", agent_id=agent.id)
    world.letta.agents.blocks.detach(str(plan.id), agent_id=agent.id)
    # The model is notified at once; the text itself goes when the section is rendered again.
    send(agent.id, input="And now?")
    assert "plan" in world.upstream.last.messages[-1]["content"]
    world.letta.agents.recompile(agent.id)
    send(agent.id, input="And then?")
    assert "Tulips" not in world.upstream.last.messages[0]["content"]
    assert "<plan>" not in world.upstream.last.messages[0]["content"]


def test_the_prompt_has_no_counts_clock_or_ids(world: LettaWorld) -> None:
    """What would be stale is not there, and so nothing of it breaks the provider's cache."""
    agent = world.agent(system="You help.")
    for n in range(13):
        world.letta.agents.messages.create(agent.id, input=f"Message {n}.")
    heads = {request.messages[0]["content"] for request in world.upstream.chats}
    assert len(heads) == 1
    (head,) = heads
    assert agent.id not in head
    assert not [
        word for word in ("previous messages", "last recompiled", "conversation id") if word in head.lower()
    ]


# -- summaries


def test_no_reply_waits_for_a_summary(upstream: StrictUpstream, tmp_path: Path) -> None:
    gate, asked = Gate(), []

    def answer(request: UpstreamRequest) -> Reply:
        if "<conversation>" not in str(request.messages[-1]["content"]):
            return say("Ok.")
        asked.append(request)
        return say("Notes.", hold_before_headers=gate)

    upstream.script = answer
    with letta(upstream, tmp_path, memory={"learn_every": 0, "recall_tokens": 0}) as world:
        agent = world.agent(
            context_window_limit=1200, max_tokens=100, compaction_settings={"model": "openai/clerk"}
        )
        for n in range(40):
            reply = world.letta.agents.messages.create(agent.id, input=f"{n}: " + "A tale of the sea. " * 8)
            assert reply.stop_reason.stop_reason == "end_turn"
        assert asked
        gate.open()


# -- tools of memory


def test_a_rethink_of_what_is_not_there_says_so(world: LettaWorld) -> None:
    agent = world.agent(tools=["memory_rethink"])
    call = Call("memory_rethink", {"label": "plans", "new_memory": "Tulips"}, "c1")
    world.upstream.queue(call_tools(call), say("A pity."))
    reply = world.letta.agents.messages.create(agent.id, input="Plan.")
    (result,) = [m for m in reply.messages if m.message_type == "tool_return_message"]
    assert result.status == "error"
    assert "plans" in result.tool_return
    assert [b.label for b in world.letta.agents.blocks.list(agent.id)] == ["human"]


# -- what is stored


@pytest.mark.sqlite
def test_a_conversation_takes_up_what_was_said_and_no_more(world: LettaWorld) -> None:
    agent, word = world.agent(), "zqfirst"
    world.letta.agents.messages.create(agent.id, input=word)

    def times() -> int:
        tables = world.world.query("SELECT name FROM sqlite_master WHERE type = 'table'")
        found = 0
        for table in tables:
            rows = world.world.query(f'SELECT * FROM "{table}"')
            found += sum(word in repr(row) for row in rows)
        return found

    before = times()
    for n in range(12):
        world.letta.agents.messages.create(agent.id, input=f"Message {n}.")
    assert word in str(world.upstream.last.messages)
    assert times() <= max(before, 3)


# -- chat completions


def test_every_field_of_a_chat_completion_is_honoured(world: LettaWorld) -> None:
    agent = world.agent(name="ann")
    sdk = openai.OpenAI(base_url=f"{world.world.gateway.url}/v1", api_key="sk-app", max_retries=0)
    weather: Any = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
    messages: Any = [
        {"role": "system", "content": "Answer in verse."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A gardener."},
        {"role": "user", "content": "And now?"},
    ]
    world.upstream.queue(say("In verse."), call_tools(Call("weather", {}, "w1")))
    fields: Any = {"temperature": 0.3, "top_p": 0.5, "stop": ["END"], "max_tokens": 77, "seed": 7}
    whole = sdk.chat.completions.create(model="agent/ann", messages=messages, **fields)
    request = world.upstream.last
    assert {name: request.json.get(name) for name in fields} == fields
    texts = [m["content"] for m in request.messages]
    assert "Answer in verse." in texts[0]
    assert texts[1:] == ["Who are you?", "A gardener.", "And now?"]
    assert (whole.choices[0].message.content, whole.model) == ("In verse.", request.json["model"])
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0
    stream = sdk.chat.completions.create(
        model="agent/ann",
        messages=messages,
        tools=[weather],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "weather" in world.upstream.last.tool_names
    calls = [c for chunk in chunks if chunk.choices for c in chunk.choices[0].delta.tool_calls or ()]
    assert calls[0].function is not None
    assert calls[0].function.name == "weather"
    assert chunks[-1].usage is not None
    assert agent.id in [each.id for each in world.letta.agents.list()]


def test_an_error_in_the_middle_of_a_stream_is_an_error(world: LettaWorld) -> None:
    world.agent(name="ann")
    sdk = openai.OpenAI(base_url=f"{world.world.gateway.url}/v1", api_key="sk-app", max_retries=0)
    hi: Any = [{"role": "user", "content": "Hi"}]
    world.upstream.queue(say("One two.", tokens=["One", " two."], cut_after=2))
    with pytest.raises((openai.APIError, openai.APIConnectionError)):
        list(sdk.chat.completions.create(model="agent/ann", messages=hi, stream=True))
    world.upstream.queue(fail(429, "Slow down."))
    with pytest.raises(openai.RateLimitError):
        list(sdk.chat.completions.create(model="agent/ann", messages=hi, stream=True))


# -- who asks


def test_the_header_user_id_selects_nothing(world: LettaWorld) -> None:
    agent = world.agent()
    somebody = world.make_client(default_headers={"user_id": "user-00000000-0000-4000-8000-000000000000"})
    assert [each.id for each in somebody.agents.list()] == [agent.id]
