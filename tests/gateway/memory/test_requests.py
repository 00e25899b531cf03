"""Why a reply recalled what it did: noted with its turn, shown to applications and operators, gone when forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.operations import make_request_operations
from storage.commands import LearnedFact
from storage.forget_commands import ForgetTarget
from storage.reader_commands import LearnedChanges
from storage.records import Scope
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import World, agent, remember
from tests.server import RawReply
from tests.stored import write_learned

FACT = "My cat is called Zqmisox and she hates thunderstorms."
QUESTION = "What is the name of my cat?"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    with remember(upstream, tmp_path, agent()) as made:
        yield made


def asked(world: World, text: str, **headers: str) -> str:
    """Asks in a conversation of its own. Returns the id of the request."""
    named = {"x-mnemogate-user": "alice", **headers}
    reply = world.post([{"role": "user", "content": text}], named)
    assert reply.status == 200
    world.settle()
    return dict(reply.headers)["x-mnemogate-request-id"]


def ask_why(world: World, id: str, **headers: str) -> RawReply:
    """Asks why a reply recalled what it did. id: the id of the request."""
    return world.gateway.ask("GET", f"/v1/memory/requests/{id}", headers=headers)


def why(world: World, id: str) -> Any:
    reply = ask_why(world, id)
    assert reply.status == 200, reply.body
    return reply.json


def test_a_reply_shows_what_it_recalled_and_what_stayed_out(world: World) -> None:
    asked(world, FACT)
    asked(world, "My car is blue and needs new tyres.")
    id = asked(world, QUESTION)
    found = why(world, id)
    assert (found["id"], found["why"], found["name"], found["mode"]) == (id, "recalled", "alice", "on")
    assert (found["status"], found["streamed"], found["upstream"]) == (200, False, "up")
    (hit,) = [hit for hit in found["chosen"] if hit["text"] == FACT]
    assert (hit["kind"], hit["rank"], hit["forgotten"]) == ("message", 1, False)
    assert hit["score"] == hit["words"] == 1.0
    assert hit["meaning"] is None
    assert hit["tokens"] > 5
    assert all(left["reason"] and left["rank"] > 1 for left in found["left_out"])
    assert found["found"] >= len(found["chosen"]) + len(found["left_out"])
    assert FACT in found["note"]
    assert found["note"] in json.dumps(world.upstream.last.messages, ensure_ascii=False).replace("\\n", "\n")
    parts = {each["part"]: each["tokens"] for each in found["window"]["parts"]}
    assert list(parts) == ["system", "tools", "section", "summary", "history", "note", "message"]
    assert parts["note"] == found["recalled_tokens"] > 0
    assert parts["message"] > 0
    assert found["sentence"].startswith(f"{len(found['chosen'])} of {found['found']} memor")
    assert found["kept_until"] == pytest.approx(found["at"] + 7 * 86_400)
    assert found["ms"] >= found["added_ms"] > 0
    assert found["usage"]["output"] > 0


def parts_of(world: World, messages: list[dict[str, Any]], headers: dict[str, str], **fields: Any) -> Any:
    """Sends a request of alice. Returns the estimated tokens of its prompt by their parts."""
    reply = world.post(messages, {"x-mnemogate-user": "alice", **headers}, **fields)
    assert reply.status == 200, reply.body
    world.settle()
    found = why(world, dict(reply.headers)["x-mnemogate-request-id"])
    return {each["part"]: each["tokens"] for each in found["window"]["parts"]}


def test_tools_are_estimated_without_the_messages_around_them(world: World) -> None:
    """Pictures, calls and the further bytes of Thai letters counted as tools."""
    tool = {"type": "function", "function": {"name": "look", "description": "Looks. " * 40, "parameters": {}}}
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 40_000}"}}
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": "look", "arguments": json.dumps({"at": "x" * 4_000})},
    }
    plain = [{"role": "user", "content": "Look."}]
    long = [
        {"role": "user", "content": [{"type": "text", "text": "แมว" * 400}, picture]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "Nothing."},
        {"role": "user", "content": "And?"},
    ]
    alone, with_long = (parts_of(world, messages, {}, tools=[tool]) for messages in (plain, long))
    assert with_long["tools"] == alone["tools"] == pytest.approx(len(json.dumps([tool])) / 4, rel=0.05)
    # The text, the picture as about 1,000 tokens, and the call.
    assert with_long["history"] == pytest.approx(300 + 1_000 + 1_000, rel=0.05)


@pytest.mark.both
def test_a_request_that_names_a_user_is_shown_that_users_requests_alone(world: World) -> None:
    """A client that sends its user with each request was shown another user's words."""
    asked(world, FACT)
    id = asked(world, QUESTION)
    assert ask_why(world, id, **{"x-mnemogate-user": "bob"}).status == 404
    assert ask_why(world, id, **{"x-mnemogate-user": "alice"}).status == ask_why(world, id).status == 200
    assert ask_why(world, id, **{"x-mnemogate-usr": "bob"}).status == 400, "else it would name nobody"
    # A client chooses its ids, so requests of two users may have the same.
    for user in ("alice", "bob"):
        asked(world, QUESTION, **{"x-mnemogate-user": user, "x-request-id": "of-two"})
    assert ask_why(world, "of-two", **{"x-mnemogate-user": "alice"}).json["name"] == "alice"


def test_what_a_template_finds_and_the_question_again_is_shown_once(world: World) -> None:
    """The second search, without the template's lines, found it again: it was shown as recalled and as too weak."""
    template = "Answer the question of this customer as politely and as shortly as you can, please:"
    asked(world, f"{template}\n{FACT}")
    found = why(world, asked(world, f"{template}\n{QUESTION}"))
    chosen = {hit["seq"] for hit in found["chosen"]}
    assert chosen
    assert not chosen & {hit["seq"] for hit in found["left_out"]}
    assert found["found"] == len(found["chosen"]) + len(found["left_out"])


def test_a_turn_without_hits_and_one_without_a_user_say_so(world: World) -> None:
    first = why(world, asked(world, "Hello there."))
    assert (first["why"], first["chosen"], first["left_out"], first["found"]) == ("nothing_found", [], [], 0)
    assert first["sentence"].startswith("Nothing was recalled")
    reply = world.post([{"role": "user", "content": "Hello."}])
    nobody = why(world, dict(reply.headers)["x-mnemogate-request-id"])
    assert (nobody["why"], nobody["memory"]) == ("nobody", None)
    assert nobody["sentence"] == "Nothing was recalled: nobody was named."
    off = why(world, asked(world, FACT, **{"x-mnemogate-memory": "off"}))
    assert (off["why"], off["mode"]) == ("off", "off")
    assert world.query("SELECT count(*) FROM recalls") == [1]


def test_a_hit_that_is_shown_already_is_left_out_with_this_reason(world: World) -> None:
    asked(world, FACT)
    chat = world.chat(user="alice")
    chat.say(QUESTION)
    chat.say("And what is my cat afraid of, what does she hate?")
    id = world.query("SELECT exchange FROM recalls ORDER BY exchange DESC LIMIT 1")
    assert id
    last = world.gateway.app.services.requests.list_ended()[0]
    found = why(world, last.id)
    reasons = {hit["reason"] for hit in found["left_out"] if hit["text"] == FACT}
    assert reasons <= {"shown"}
    assert not [hit for hit in found["chosen"] if hit["text"] == FACT]


def test_a_muted_fact_is_left_out_for_that(world: World) -> None:
    asked(world, "Hello.")

    async def learn() -> int:
        store = world.store
        agent = await store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        fact = LearnedFact("Alice's cat is called Ponyo.", "", "ponyo", 1.0, None, ())
        await write_learned(store, agent, LearnedChanges(facts=[fact]), at=world.clock())
        (known,) = await store.facts.list_page(agent.id)
        await store.facts.mute(agent.id, known.seq, world.clock(), is_muted=True)
        return known.seq

    seq = world.gateway.call(learn())
    found = why(world, asked(world, "What is the name of my cat, Ponyo?"))
    assert [(hit["kind"], hit["seq"], hit["reason"]) for hit in found["left_out"]] == [("fact", seq, "muted")]
    assert b"Ponyo." not in world.upstream.last.body


@pytest.mark.both
def test_a_source_that_is_forgotten_has_no_text_and_a_forgotten_reply_no_page(world: World) -> None:
    source = why(world, asked(world, FACT))
    id = asked(world, QUESTION)

    async def forget(target: ForgetTarget) -> None:
        agent = await world.store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        await world.store.forgetting.forget(agent.id, target)

    seq = source["exchange"]
    world.gateway.call(forget(ForgetTarget(message_seqs=[seq])))
    hits = [hit for hit in why(world, id)["chosen"] if hit["rank"] == 1]
    assert [(hit["forgotten"], hit["text"], hit["seq"]) for hit in hits] == [(True, None, 0)]
    assert b"Zqmisox" not in world.data()
    (turn,) = world.query("SELECT max(exchange) FROM recalls")
    world.gateway.call(forget(ForgetTarget(exchange_rows=[turn])))
    assert ask_why(world, id).status == 404


@pytest.mark.both
def test_another_project_sees_nothing_and_an_unknown_id_is_a_404(world: World) -> None:
    id = asked(world, FACT)
    other_key = world.gateway.call(_key(world, "other"))
    own_key = world.gateway.call(_key(world, "default"))
    assert ask_why(world, id, authorization=f"Bearer {own_key}").status == 200
    assert ask_why(world, id, authorization=f"Bearer {other_key}").status == 404
    unknown = ask_why(world, "nothing", authorization=f"Bearer {own_key}")
    assert unknown.status == 404
    assert unknown.error["message"].startswith("There is no such request.")


async def _key(world: World, project: str) -> str:
    return (await world.store.keys.create(project, f"key of {project}"))[1]


@pytest.mark.both
def test_requests_that_are_too_old_are_hidden_at_once(world: World) -> None:
    id = asked(world, FACT)
    assert why(world, id)["id"] == id
    world.clock.sleep(7 * 86_400 + 1)
    assert ask_why(world, id).status == 404
    assert world.query("SELECT count(*) FROM recalls") == [1]
    world.gateway.call(world.gateway.app.services.background.retention.forget_old())
    assert world.query("SELECT count(*) FROM recalls") == [0]


@pytest.mark.parametrize("mode", ["off", "read"])
def test_a_turn_that_is_not_stored_has_no_row(world: World, mode: str) -> None:
    asked(world, FACT)
    before = world.query("SELECT count(*) FROM recalls")
    id = asked(world, QUESTION, **{"x-mnemogate-memory": mode})
    world.settle()
    assert world.query("SELECT count(*) FROM recalls") == before
    assert (why(world, id)["mode"], why(world, id)["left_out"]) == (mode, [])


def test_a_row_has_numbers_and_no_words(world: World) -> None:
    asked(world, FACT)
    asked(world, QUESTION)
    rows = world.query("SELECT data FROM recalls")
    assert len(rows) == 2
    words = {word.strip(".,?").casefold() for word in f"{FACT} {QUESTION} alice default user".split()}
    for data in rows:
        assert not [word for word in words if len(word) > 3 and word.encode() in bytes(data).lower()]
        assert len(data) < 150


def test_nothing_is_noted_where_the_settings_say_so(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, memory={"keep_why_days": 0}) as world:
        asked(world, FACT)
        asked(world, QUESTION)
        assert world.query("SELECT count(*) FROM recalls") == [0]


@pytest.mark.both
def test_a_turn_with_a_long_id_is_found_by_it(world: World) -> None:
    for id in ("customer/7 ü"[:10], "x" * 100):
        assert asked(world, FACT, **{"x-request-id": id.strip()}) == id.strip()
        assert why(world, id.strip())["id"] == id.strip()


@pytest.mark.both
def test_a_plain_turn_costs_no_more_statements_than_before(world: World) -> None:
    chat = world.chat(user="alice")
    chat.say(FACT)
    chat.say("And a dog.")
    before = world.query("SELECT count(*) FROM recalls")
    assert world.all_statements_of(lambda: chat.say("And a bird.")) == ["insert exchanges"] or (
        world.store.database.is_shared
    )
    assert world.query("SELECT count(*) FROM recalls") == [before[0] + 1]


@pytest.mark.both
def test_requests_are_listed_the_newest_first(world: World) -> None:
    first = asked(world, FACT)
    second = asked(world, QUESTION)
    asked(world, "Hi.", **{"x-mnemogate-user": "bob"})
    operations = make_request_operations(
        world.gateway.app.services.settings, world.store, world.gateway.app.services.requests
    )
    page = world.gateway.call(operations.lists.read_page(limit=2))
    assert [(each.name, each.status) for each in page.items] == [("bob", 200), ("alice", 200)]
    assert page.items[1].id == second
    assert page.items[1].recalled == 1
    rest = world.gateway.call(operations.lists.read_page(after=page.next))
    assert [each.id for each in rest.items] == [first]
    assert rest.next is None
    uid = page.items[1].memory
    noted = world.gateway.call(operations.lists.read_page(memory=uid, limit=1))
    assert [each.id for each in noted.items] == [second]
    older = world.gateway.call(operations.lists.read_page(memory=uid, after=noted.next))
    assert [each.id for each in older.items] == [first]

    async def wipe() -> None:
        found = await world.store.agents.find_by_uid(uid)
        await world.store.forgetting.forget(found.id, ForgetTarget(is_all=True))

    world.gateway.call(wipe())
    page = world.gateway.call(operations.lists.read_page())
    assert [each.name for each in page.items] == ["bob"]
