"""What Codex sends by itself, as seen with 0.169.0: nothing of it is a turn or a user's words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.doubles.side_requests import CODEX_SUMMARY
from tests.doubles.upstream import Call, StrictUpstream, call_tools
from tests.gateway.sdk import World, remember
from tests.server import chat_upstreams

Json = dict[str, Any]
ENVIRONMENT = "<environment_context>\n  <cwd>/home/ann</cwd>\n</environment_context>"
SHELL = (
    "<user_shell_command>\n<command>\necho swordfish\n</command>\n<result>\nExit code: 0\nOutput:\n"
    "swordfish\n</result>\n</user_shell_command>"
)
NOTIFICATION = (
    '<subagent_notification>\n{"agent_path":"7","status":{"completed":"swordfish"}}\n</subagent_notification>'
)
SUMMARY = (
    "Another language model started to solve this problem and produced a summary of its thinking process. You also "
    "have access to the state of the tools that were used by that language model. Use this to build on the work that "
    "has already been done and avoid duplicating work. Here is the summary produced by the other language model, use "
    "the information in this summary to assist with your own analysis:\nThe user has a cat Miso, and a swordfish."
)
TASK = "Find every file below src that names the swordfish, and list it."
SPAWN = {"type": "function", "name": "spawn_agent", "parameters": {"type": "object"}, "strict": False}
NAMESPACE = {"type": "namespace", "name": "multi_agent_v1", "description": "Agents.", "tools": [SPAWN]}
TITLE = "Generate a concise, single-line task title.\n\nUser prompt:\nMy cat is called Miso."


@pytest.fixture(params=["native", "by chat"])
def world(request: pytest.FixtureRequest, upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    there = {} if request.param == "native" else {"upstreams": chat_upstreams(upstream)}
    path = "/v1/responses" if request.param == "native" else "/v1/chat/completions"
    with remember(upstream, tmp_path, **there) as made:
        yield made
        assert made.upstream.last.path == path


def ask(
    world: World,
    texts: Sequence[str | Json],
    source: str = "user",
    *,
    tools: Sequence[Json] = (),
    **metadata: str,
) -> str:
    """Sends a request as `create` does. Returns what the upstream gets."""
    create(world, texts, source, tools=tools, **metadata)
    return world.upstream.last.body.decode()


def create(
    world: World,
    texts: Sequence[str | Json],
    source: str = "user",
    *,
    tools: Sequence[Json] = (),
    **metadata: str,
) -> Any:
    """Sends user's messages, and other items, as Codex does, in a thread from that source. Returns the response."""
    turn = {"request_kind": "turn", "thread_source": source}
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": t}]}
        if isinstance(t, str)
        else t
        for t in texts
    ]
    response = world.sdk.responses.create(
        model="m",
        tools=tools,  # type: ignore[arg-type]
        input=items,  # type: ignore[arg-type]
        store=False,
        extra_headers={"x-mnemogate-user": "ann"},
        extra_body={"client_metadata": {"x-codex-turn-metadata": json.dumps(turn), **metadata}},
    )
    world.settle()
    return response


@pytest.mark.parametrize(
    ("source", "metadata"),
    [
        ("subagent", {"x-openai-subagent": "collab_spawn"}),
        ("user", {"x-openai-subagent": "review"}),
        ("thread_title", {}),
        ("memory_consolidation", {}),
    ],
)
def test_a_request_of_its_own_leaves_nothing(world: World, source: str, metadata: Json) -> None:
    ask(world, [ENVIRONMENT, "My cat is called Miso."])
    world.pass_time(1000)
    sent = ask(world, [ENVIRONMENT, "Find the cat Miso, and the swordfish."], source, **metadata)
    assert "<memory" not in sent
    assert world.query("SELECT count(*) FROM exchanges") == [1]
    assert "Miso" in ask(world, [ENVIRONMENT, "What is my cat called? And which fish?"])
    assert "swordfish" not in world.upstream.last.body.decode()


def test_a_task_of_a_call_by_its_flattened_name_is_not_the_users_words(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    """The child names no source here: its first message, and that it is not offered the call, tell."""
    with remember(upstream, tmp_path, upstreams=chat_upstreams(upstream)) as world:
        upstream.queue(call_tools(Call("multi_agent_v1__spawn_agent", {"message": TASK})))
        (call,) = create(world, [ENVIRONMENT, "Where is the swordfish named?"], tools=[NAMESPACE]).output
        assert (call.namespace, call.name) == ("multi_agent_v1", "spawn_agent")
        ask(world, [ENVIRONMENT, TASK])
        assert world.query("SELECT count(*) FROM exchanges") == [1]
        ask(world, [ENVIRONMENT, TASK], tools=[NAMESPACE])  # the user repeats what the call has said
        assert world.query("SELECT count(*) FROM exchanges") == [2]


@pytest.mark.parametrize("written", [SHELL, NOTIFICATION], ids=["command", "notification"])
def test_text_of_codex_in_the_users_role_is_not_remembered_as_the_users(world: World, written: str) -> None:
    ask(world, [ENVIRONMENT, "My cat is called Miso.", written, "The fur of my cat is red."])
    world.pass_time(1000)
    sent = ask(world, [ENVIRONMENT, "Which fur has my cat, and which command or agent was completed?"])
    assert "The fur of my cat is red." in sent
    assert "swordfish" not in sent


@pytest.mark.parametrize("metadata", [{"x-codex-turn-metadata": "{"}, {"x-codex-turn-metadata": "[]"}])
def test_metadata_that_is_none_of_codexs_is_passed_over(world: World, metadata: Json) -> None:
    ask(world, ["My cat is called Miso."], **metadata)
    assert world.query("SELECT count(*) FROM exchanges") == [1]


def test_a_compaction_has_the_notes_of_its_thread(world: World) -> None:
    """And leaves nothing. Codex sends it without tools."""
    ask(world, [ENVIRONMENT, "My cat is called Miso."])
    world.pass_time(1000)
    texts: list[str | Json] = [ENVIRONMENT, "What is my cat called?"]
    tools = [{"type": "function", "name": "shell", "parameters": {"type": "object"}, "strict": False}]
    before = orjson.loads(ask(world, texts, tools=tools))
    assert "Miso" in str(before)
    sent = orjson.loads(ask(world, [*texts, replied(), CODEX_SUMMARY]))
    listed = "input" if "input" in sent else "messages"
    assert sent[listed][: len(before[listed])] == before[listed]
    content = sent[listed][-1]["content"]
    assert (content if isinstance(content, str) else content[0]["text"]) == CODEX_SUMMARY
    assert world.query("SELECT count(*) FROM exchanges") == [2]


def replied(text: str = "Ok.") -> Json:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def test_messages_that_a_compacted_list_repeats_are_recalled_once(world: World) -> None:
    """After `/compact` Codex sends the user's messages, its summary in the user's role, and no reply."""
    first, second = "My cat is called Miso.", "The fur of Miso is red."
    ask(world, [ENVIRONMENT, first])
    ask(world, [ENVIRONMENT, first, replied(), second])
    talk: list[str | Json] = [ENVIRONMENT, first, second, SUMMARY, "Miso is nine years old."]
    ask(world, talk)
    ask(world, [*talk, replied(), "Miso eats fish."])
    ask(world, [*talk, replied(), "Miso eats fish.", replied(), "Thanks."])
    world.pass_time(1000)
    sent = ask(
        world, [ENVIRONMENT, "How old is my cat Miso, of which fur, and what does Miso eat, called so?"]
    )
    note = sent.partition("<memory ")[2].rpartition("</memory")[0]
    assert [note.count(text) for text in (first, second, "nine years", "eats fish")] == [1, 1, 1, 1]
    assert "swordfish" not in note
