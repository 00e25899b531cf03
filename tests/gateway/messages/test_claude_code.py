"""What Claude Code asks for itself, and says in a person's place, as its versions 2.1.197 and 2.1.330 send it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.run.tools.memory import READ_ONLY_ERROR
from gateway.settings import UpstreamSettings
from tests.doubles.anthropic_upstream import StrictAnthropic, think
from tests.doubles.side_requests import CLAUDE_CODE_SUMMARY
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.gateway.messages.sdk import Talk, text_of
from tests.gateway.sdk import World, agent, remember

Json = dict[str, Any]
MODEL = "claude-opus-5-5"
MARK = {"type": "ephemeral"}
REMINDER = {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>\n"}
ENVIRONMENT = {"role": "system", "content": "Available agent types for the Agent tool: none."}
COMPACT = {"type": "text", "text": CLAUDE_CODE_SUMMARY}
CONTINUED = (
    "This session is being continued from a previous conversation that ran out of context. The summary below covers "
    "the earlier portion of the conversation.\n\nSummary: the secret word is swordfish."
)
TITLES: list[Any] = [
    "You are naming a coding session based on the user's first message.",
    [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197.77f; cc_entrypoint=cli;"},
        {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude."},
        {
            "type": "text",
            "text": "Generate a concise, sentence-case title (3-7 words) that captures the main topic or goal of this "
            "coding session.",
        },
    ],
]


@pytest.fixture(params=["native", "translated"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Claude Code before Claude, and before another model."""
    if request.param == "native":
        with StrictAnthropic() as claude:
            there = (UpstreamSettings("up", "anthropic", claude.base_url),)
            with remember(claude, tmp_path, agent(model=MODEL), upstreams=there) as made:
                yield made
        return
    with StrictUpstream() as other, remember(other, tmp_path, agent(model=MODEL)) as made:
        yield made


class Session(Talk):
    """A session: its first message begins with a reminder, and a system message stands after it."""

    def start(self, words: str, session: str = "s1", model: str = MODEL) -> str:
        names = {"device_id": "d1", "account_uuid": "", "session_id": session}
        self.user, self.model, self.stream = orjson.dumps(names).decode(), model, True
        self.options = {
            "system": [
                {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.197.{session};"},
                {"type": "text", "text": "You are an interactive agent.", "cache_control": MARK},
            ],
        }
        self.messages = [
            {"role": "user", "content": [REMINDER, {"type": "text", "text": words}]},
            ENVIRONMENT,
        ]
        return self.go_on()


def note_of(world: World) -> str:
    """Returns the note in the newest request."""
    return world.upstream.last.body.decode().partition("<memory ")[2].rpartition("</memory")[0]


def test_a_session_is_remembered_in_the_next(world: World) -> None:
    Session(world).start("My cat is called Miso.")
    world.pass_time(1000)
    Session(world).start("What is my cat called?", "s2")
    note = note_of(world)
    assert "Miso" in note
    assert "Monday" not in note
    assert "agent types" not in note


@pytest.mark.parametrize("system", TITLES, ids=["2.1.330", "2.1.197"])
def test_a_title_leaves_nothing_and_the_session_goes_on(world: World, system: Any) -> None:
    title = Session(world)
    title.user = orjson.dumps({"device_id": "d1", "account_uuid": "", "session_id": "s1"}).decode()
    title.model = MODEL
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "schema": schema}}
    title.say("<session>\nMy cat is called Miso.\n</session>", system=system, output_config=form, tools=[])
    assert b"<memory" not in world.upstream.last.body
    assert world.query("SELECT count(*) FROM exchanges") == [0]
    talk = Session(world)
    talk.start("My cat is called Miso.")
    talk.say("She is red.")
    assert world.query("SELECT count(*) FROM exchanges") == [2]
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_a_compaction_leaves_nothing_and_the_session_goes_on_after_it(world: World) -> None:
    if isinstance(world.upstream, StrictAnthropic):
        world.upstream.queue(think("Hm.", text="A cat."))
    talk = Session(world)
    talk.start("My cat is called Miso.")
    talk.messages.append({"role": "user", "content": [{"type": "text", "text": "Go on.\n"}, COMPACT]})
    talk.complete()
    assert world.query("SELECT count(*) FROM exchanges") == [1]
    command = [
        {"type": "text", "text": "<local-command-caveat>Caveat: not yours.</local-command-caveat>"},
        {"type": "text", "text": "<command-name>/compact</command-name>"},
        {"type": "text", "text": "<local-command-stdout>Compacted</local-command-stdout>"},
        {"type": "text", "text": "The fur of Miso is red."},
    ]
    talk.messages = [{"role": "user", "content": [REMINDER, {"type": "text", "text": CONTINUED}]}]
    talk.messages += [
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": command},
    ]
    talk.go_on()
    assert world.query("SELECT count(*) FROM conversations") == [1]
    world.pass_time(1000)
    Session(world).start("What is the secret word? Which colour has the fur of Miso?", "s2")
    note = note_of(world)
    assert "The fur of Miso is red." in note
    assert "swordfish" not in note
    assert "Caveat" not in note


def test_a_compaction_has_the_notes_that_its_session_has(world: World) -> None:
    """Without them its prompt is read from no cache, and thoughts stand after something else than they did."""
    Session(world).start("My cat is called Miso.", "s1")
    world.pass_time(1000)
    if isinstance(world.upstream, StrictAnthropic):
        world.upstream.queue(think("Hm.", text="Miso."))
    talk = Session(world)
    talk.start("What is my cat called?", "s2")
    note = note_of(world)
    talk.messages.append({"role": "user", "content": [COMPACT]})
    talk.complete()
    assert "Miso" in note
    assert note_of(world) == note
    assert [request.refusal for request in world.upstream.requests if request.refusal] == []
    assert world.query("SELECT count(*) FROM exchanges") == [2]


def test_a_compaction_begins_as_the_requests_of_its_session(world: World) -> None:
    """Tools of the gateway included, so that the provider reads it from its cache. They change nothing in it."""
    talk = Session(world)
    talk.start("My cat is called Miso.", model="agent/helper")
    before = world.upstream.last.json
    assert [*before["tools"]]
    talk.messages.append({"role": "user", "content": [COMPACT]})
    edit = Call("memory_insert", {"label": "human", "new_string": "Has a cat."})
    world.upstream.queue(call_tools(edit), say("The summary."))
    assert text_of(talk.complete()) == "The summary."
    body = world.upstream.chats[-2].json
    assert [body[key] for key in ("tools", "system") if key in before] == [
        before[key] for key in ("tools", "system") if key in before
    ]
    assert body["messages"][: len(before["messages"])] == before["messages"]
    assert READ_ONLY_ERROR in str(world.upstream.last.json["messages"][-1])
    talk.messages.pop()
    talk.say("Go on.")
    talk.say("Go on again.")
    assert world.block("d1").value == ""
    assert world.query("SELECT count(*) FROM exchanges") == [3]


def test_a_session_goes_on_after_a_compaction_with_a_short_reply(world: World) -> None:
    """Of what was before it the list has a short reply alone, and what the person says stands at once."""
    talk = Session(world)
    talk.start("My cat is called Miso.")
    talk.say("She is old.")
    talk.messages = [
        {"role": "user", "content": CONTINUED},
        {"role": "assistant", "content": [{"type": "text", "text": "Ok."}]},
        {"role": "user", "content": "The fur of Miso is red."},
    ]
    talk.go_on()
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [3]
    world.pass_time(1000)
    Session(world).start("Which colour has the fur of Miso?", "s2")
    assert "The fur of Miso is red." in note_of(world)


def test_a_probe_of_a_model_leaves_nothing(world: World) -> None:
    talk = Session(world)
    talk.start("My cat is called Miso.")
    probe = Session(world, user=talk.user, model=MODEL)
    assert probe.say("Hi", max_tokens=1, system=TITLES[1][:2])
    assert b"<memory" not in world.upstream.last.body
    talk.say("She is red.")
    assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [2]
    assert world.query("SELECT count(*) FROM exchanges") == [2]
    assert world.query("SELECT count(*) FROM conversations") == [1]


def test_the_marks_of_an_interruption_are_nobodys_words(world: World) -> None:
    talk = Session(world)
    talk.start("My cat is called Miso.")
    mark = {"type": "text", "text": "[Request interrupted by user for tool use]"}
    talk.say([mark, {"type": "text", "text": "The fur of Miso is red."}])
    world.pass_time(1000)
    Session(world).start("Which colour has the fur of Miso?", "s2")
    assert "The fur of Miso is red." in note_of(world)
    assert "interrupted" not in note_of(world)


NOTIFICATION = (
    "<system-reminder>\n[SYSTEM NOTIFICATION - NOT USER INPUT]\nTask 7 found swordfish.\n</system-reminder>"
)


@pytest.mark.parametrize(
    "blocks",
    [
        (NOTIFICATION,),
        (
            "<system-reminder>\n<tools-used-before-summary>Bash</tools-used-before-summary>\n</system-reminder>\n",
            NOTIFICATION,
        ),
        (
            "<bash-input>find task</bash-input>\n",
            "<bash-stdout>swordfish</bash-stdout><bash-stderr></bash-stderr>",
        ),
        ("<task-notification>\n<task-id>7</task-id>\nTask 7 found swordfish.\n</task-notification>",),
        ("<ide_opened_file>The user opened swordfish.py.</ide_opened_file>",),
    ],
    ids=["alone", "after a reminder", "a command of the terminal", "a task", "an editor"],
)
@pytest.mark.parametrize("more", ["", "The fur of my cat Miso is red."], ids=["alone", "words follow"])
def test_text_that_claude_code_writes_is_not_remembered_as_the_users(
    world: World, blocks: tuple[str, ...], more: str
) -> None:
    talk = Session(world)
    talk.start("My cat is called Miso.")
    talk.say([{"type": "text", "text": text} for text in (*blocks, more) if text])
    world.pass_time(1000)
    Session(world).start("Which task found what of my cat Miso, of its fur?", "s2")
    note = note_of(world)
    assert "Miso" in note
    assert more in note
    assert "swordfish" not in note
