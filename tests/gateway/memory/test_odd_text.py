"""U+0000 and halves of surrogate pairs are in no text of PostgreSQL's; whoever says them is remembered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.core.memory.transcript import on_one_line
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from gateway.settings import BlockSettings
from storage.records import Scope
from tests.doubles.upstream import Call, Reply, StrictUpstream, call_tools, raw, say
from tests.gateway.background.learner import fact, note, serve_learner
from tests.gateway.sdk import CHAT, World, agent, remember
from tests.server import chat_upstreams

pytestmark = pytest.mark.both

NUL = "\0"
HALF = "\ud83d"


def kept(world: World, user: str = "alice") -> str:
    """Everything that is written down of somebody, as an export has it."""

    async def lines() -> list[str]:
        operation, place, found = TransferOperations(world.store).export, None, list[str]()
        while True:
            page = await operation({"user": user, "project": "default", "profile": "helper", "from": place})
            found += page["lines"]
            place = page["next"]
            if place is None:
                return found

    world.settle()
    return "\n".join(world.gateway.call(lines()))


@pytest.mark.parametrize("is_streamed", [False, True])
def test_chat_with_a_nul_is_remembered_as_it_was_said(
    upstream: StrictUpstream, tmp_path: Path, is_streamed: bool
) -> None:
    with remember(upstream, tmp_path) as world:
        chat = world.chat(user="alice", system=f"Be{NUL} kind.", stream=is_streamed)
        replies = []
        for n in range(3):
            upstream.queue(say(f"Noted {n}{NUL}.", tokens=[f"Noted {n}", NUL, "."]))
            replies.append(chat.say(f"My cat{n} is called Mi{NUL}so{n}."))
        assert replies == [f"Noted {n}{NUL}." for n in range(3)]
        # One conversation, whose turns were recognised by what the client sent again.
        assert world.query("SELECT count(*) FROM conversations") == [1]
        assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [3]
        said = [json.loads(row) for row in world.query("SELECT shown_reply FROM exchanges ORDER BY seq")]
        assert [each["content"] for each in said] == replies
        world.chat(user="alice").say("What is my cat1 called?")
        assert f"My cat1 is called Mi{NUL}so1." in upstream.last.messages[-1]["content"]
        reply = world.post([{"role": "user", "content": f"And{NUL} now?"}], user="alice")
        assert reply.headers["x-mnemogate-memory"] == "on"
        assert "x-mnemogate-durable" not in reply.headers


def test_a_models_calls_with_a_nul_are_performed_and_shown(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        chat = world.chat(user="alice")
        calls = (
            Call("memory_insert", {"label": "human", "new_string": f"Likes{NUL} tea."}, f"c1{NUL}"),
            Call("archival_memory_insert", {"content": f"A dog{NUL} called Rex."}, f"c2{NUL}"),
            Call("archival_memory_search", {"query": f"dog{NUL}"}, "c3"),
        )
        upstream.queue(call_tools(*calls), say("Done."))
        assert chat.say("I like tea.", model="agent/helper") == "Done."
        chat.say("And rain.", model="agent/helper")
        assert world.block("alice").value == "Likes tea."
        world.chat(user="alice").say("Hello", model="agent/helper")
        assert "Likes tea." in str(upstream.last.messages[0])
        text = kept(world)
        assert "A dog called Rex." in text
        assert "Likes\\u0000" not in "".join(x for x in text.splitlines() if not x.startswith('{"exchange"'))


def test_halves_of_pairs_are_refused_of_a_client_and_do_no_harm_of_a_model(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        body = b'{"model":"m","user":"alice","messages":[{"role":"user","content":"Hi \\ud83d"}]}'
        assert world.gateway.ask("POST", CHAT, body, {"content-type": "application/json"}).status == 400
        chat = world.chat(user="alice")
        call = Call("memory_insert", '{"label": "human", "new_string": "Likes \\ud83d tea."}', "c1")
        upstream.queue(call_tools(call), say("Well."), say("Good."))
        assert chat.say("I like tea.", model="agent/helper") == "Well."
        assert chat.say("I like rain.", model="agent/helper") == "Good."
        world.settle()
        assert world.query("SELECT count(*) FROM exchanges WHERE active <> 0") == [2]
        assert world.block("alice").value in ("", "Likes \ufffd tea.")


def half_of_a_reply() -> Reply:
    answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"Hm {HALF}."}}
    body = json.dumps({**answer, "choices": [choice]}).encode()
    return raw(body, content_type="application/json")


def test_half_of_a_pair_in_a_reply_is_handed_on_and_the_next_turn_is_stored(
    upstream: StrictUpstream, tmp_path: Path
) -> None:
    with remember(upstream, tmp_path) as world:
        upstream.queue(half_of_a_reply())
        reply = world.post([{"role": "user", "content": "My cat is called Miso."}], user="alice")
        assert reply.json["choices"][0]["message"]["content"] == "Hm \ufffd."
        world.chat(user="alice").say("My dog is called Rex.")
        world.chat(user="alice").say("What is my dog called?")
        assert "Rex" in upstream.last.messages[-1]["content"]


@pytest.mark.parametrize(
    ("pieces", "finish", "text"),
    [
        ([f"Hm {HALF}", "\ude00."], "stop", "Hm 😀."),
        ([f"Hm {HALF}"], None, "Hm \ufffd"),  # its end is no end of a text either
    ],
)
def test_a_character_that_a_stream_cuts_between_its_halves_is_shown_and_remembered(
    upstream: StrictUpstream, tmp_path: Path, pieces: list[str], finish: str | None, text: str
) -> None:
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [{"index": 0, "delta": {"content": piece}, "finish_reason": None} for piece in pieces]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    events = [b"data: %b\n\n" % json.dumps({**chunk, "choices": [each]}).encode() for each in choices]
    with remember(upstream, tmp_path, upstreams=chat_upstreams(upstream)) as world:
        upstream.queue(raw(*events, b"data: [DONE]\n\n"))
        *_, last = world.sdk.responses.create(model="m", input="Hello", user="alice", stream=True)
        assert last.response.output_text == text  # type: ignore[union-attr]
        (reply,) = world.query("SELECT shown_reply FROM exchanges")
        assert json.loads(reply)["content"] == text


def test_settings_with_a_nul_make_blocks(upstream: StrictUpstream, tmp_path: Path) -> None:
    blocks = (BlockSettings("human", f"What{NUL} is known.", f"Name:{NUL} Ann"),)
    with remember(upstream, tmp_path, agent(blocks=blocks)) as world:
        chat = world.chat(user="alice")
        for text in ("One", "Two"):
            chat.say(text, model="agent/helper")
        first, second = (str(request.messages[0]["content"]) for request in upstream.requests)
        assert first == second
        assert "Name: Ann" in first
        assert world.block("alice").value.replace(NUL, "") == "Name: Ann"


def test_learned_facts_have_no_odd_characters(upstream: StrictUpstream, tmp_path: Path) -> None:
    with serve_learner(upstream, tmp_path) as learner:
        learner.queue_calls(
            fact(f"The cat{NUL} is Miso.", about=f"ca{NUL}t", messages=[1]), note(f"Has a{NUL} cat.")
        )
        learner.world.chat(user="alice").say(f"My cat{NUL} is Miso.")
        learner.pass_idle_time()
        assert [(each.text, each.about) for each in learner.list_facts()] == [("The cat is Miso.", "cat")]
        assert on_one_line("The cat is Miso.") in learner.ask_in_new_chat("What is my cat called?")


def test_an_export_with_one_anywhere_is_imported(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, agent()) as world:
        insert = Call("memory_insert", {"label": "human", "new_string": "Likes tea."}, "c1")
        keep = Call("archival_memory_insert", {"content": "A dog called Rex."}, "c2")
        upstream.queue(call_tools(insert, keep), say("Done."))
        chat = world.chat(user="alice")
        chat.say(f"I like{NUL} tea.", model="agent/helper")
        chat.say("And rain.", model="agent/helper")
        given = kept(world).replace("tea.", "te\\u0000a.").replace("A dog", "A d\\u0000og").splitlines()

        async def fill() -> None:
            restore = TransferOperations(world.store).restore
            whose = {"user": "bob", "project": "default", "profile": "helper"}
            at = (await restore({**whose, "lines": given, "at": None}))["at"]
            await restore({**whose, "lines": [], "at": at, "end": True})

        world.gateway.call(fill())
        assert world.block("bob").value == "Likes tea."
        upstream.queue(
            call_tools(Call("archival_memory_search", {"query": "dog"}, "c3")), say("It is called Rex.")
        )
        world.chat(user="bob").say("What is my dog called?", model="agent/helper")
        (told,) = [m for m in upstream.last.messages if m["role"] == "tool"]
        assert "A dog called Rex." in told["content"]
        assert world.gateway.call(world.store.agents.find(Scope("default", "helper", "user:bob"))) is not None
