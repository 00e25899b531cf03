"""What a person brings along from another application is remembered, goes on live, and is taken away as a whole."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.cli import main
from gateway.core.dates import render_iso
from gateway.core.imports import exchanges
from gateway.errors import BadRequest, UnknownId
from gateway.operations import make_import_operations
from gateway.run.admin.imports import import_operations, import_performer, import_throttle
from gateway.run.admin.operation_arguments import RawArguments
from gateway.run.admin.transfer.transfer_operations import TransferOperations
from gateway.run.background.learner import LEARN_JOB
from gateway.settings import ProjectSettings, Settings
from storage.database import Connection, Statement
from storage.errors import StoreFailed
from storage.forget_commands import ForgetTarget
from storage.import_commands import ImportWriting
from storage.records import LEARNER, RULE, Scope
from storage.sql import erase, erase_exchanges, forget, imports
from storage.sql.imports import Imports
from storage.sql.statements import make_statement
from tests.doubles.upstream import StrictUpstream, say
from tests.exports import START, chatgpt_conversation, chatgpt_node, export, zipped
from tests.gateway.page.memories import memory_of
from tests.gateway.process import serving
from tests.gateway.sdk import World, remember
from tests.patience import PATIENCE_S, becomes
from tests.server import RawReply

OWNER = {"x-mnemogate-admin": "the-owner"}
# Words that nothing else has, so that the file can be searched for them.
TALKS = {
    "c-1": (
        "My heron is called Zebulon.",
        "Zebulon is a fine name.",
        "He eats anchovies.",
        "Noted: anchovies.",
    ),
    "c-2": ("I live in Quxhaven.", "Quxhaven is by the sea."),
}
WORDS = ("Zebulon", "anchovies", "Quxhaven")
DAY_S = 86_400.0


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[World]:
    upstream.script = lambda request: say("Hello.")
    projects = {"brief": ProjectSettings(retention_days=30)}
    with remember(upstream, tmp_path, admin_token="the-owner", projects=projects) as made:
        yield made


def send(world: World, data: bytes, query: str = "", user: str = "alice") -> RawReply:
    return world.gateway.ask("POST", f"/v1/manage/imports?user={user}&{query}", data, OWNER)


def follow(world: World, begun: RawReply) -> dict[str, Any]:
    """Waits until an import has ended, and returns its state."""
    assert begun.status == 202, begun.body

    def read_end() -> dict[str, Any] | None:
        state = world.gateway.ask("GET", f"/v1/manage/imports/{begun.json['id']}", None, OWNER).json
        return None if state["status"] == "running" else state

    return becomes(read_end)


def counts(found: dict[str, Any], name: str) -> tuple[int, ...]:
    return tuple(found[name][each] for each in ("found", "new", "known", "skipped"))


def undo(world: World, id: str) -> dict[str, Any]:
    return dict(world.gateway.ask("DELETE", f"/v1/manage/imports/{id}", None, OWNER).json)


def shown(world: World) -> str:
    """What `memory show` says."""
    reply = world.gateway.ask(
        "POST", "/admin/memory-show",
        b'{"project": "default", "user": "alice", "query": "heron Zebulon anchovies", "why": true}', OWNER,
    )  # fmt: skip
    assert reply.status == 200, reply.body
    return str(reply.json["text"])


def wire(talk: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(talk)]


def test_nothing_is_imported_into_a_paused_memory(world: World) -> None:
    world.chat(user="alice").say("Hello.")
    alice = memory_of(world)
    world.gateway.call(world.store.forgetting.pause(alice.id, world.clock()))
    data = export("chatgpt", TALKS)
    assert send(world, data).status == 403
    assert send(world, data, "preview=true").status == 200
    assert b"Zebulon" not in world.data()
    world.gateway.call(world.store.forgetting.pause(alice.id, None))
    assert follow(world, send(world, data))["status"] == "done"


@pytest.mark.both
def test_an_import_ends_when_its_memory_is_paused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.chat(user="alice").say("Hello.")
    alice = memory_of(world)
    plan = Imports.plan

    async def plan_and_pause(self: Imports, *args: Any) -> ImportWriting:
        planned = await plan(self, *args)
        await world.store.forgetting.pause(alice.id, world.clock())
        return planned

    data = export("chatgpt", TALKS)
    with monkeypatch.context() as patch:
        patch.setattr(Imports, "plan", plan_and_pause)
        found = follow(world, send(world, data))
    assert (found["status"], counts(found, "messages")[1]) == ("failed", 0)
    assert found["error"]["message"] == "This memory was paused while it was imported into."
    assert b"Zebulon" not in world.data()
    world.gateway.call(world.store.forgetting.pause(alice.id, None))
    assert follow(world, send(world, data))["status"] == "done"
    assert b"Zebulon" in world.data()


@pytest.mark.both(format=["chatgpt"])
@pytest.mark.parametrize("format", ["chatgpt", "claude", "jsonl", "mastra"])
def test_conversations_are_previewed_imported_continued_and_undone(world: World, format: str) -> None:
    data = export(format, TALKS)
    preview = send(world, data, "preview=true")
    assert (preview.status, preview.json["status"], preview.json["format"]) == (200, "preview", format)
    assert counts(preview.json, "conversations") == (2, 2, 0, 0)
    assert world.query("SELECT (SELECT count(*) FROM imports) + (SELECT count(*) FROM agents)") == [0]

    found = follow(world, send(world, data))
    assert found["status"] == "done", found
    assert counts(found, "conversations") == (2, 2, 0, 0)
    assert counts(found, "messages") == (6, 6, 0, 0)
    assert (found["first_at"], found["last_at"]) == ("2024-03-01T10:00:00Z", "2024-03-01T10:03:00Z")
    assert (found["user"], found["object"], found["error"], found["warnings"]) == (
        "alice",
        "import",
        None,
        [],
    )
    text = shown(world)
    assert "[2024-03-01 10:00] user: My heron is called Zebulon." in text
    assert f"import ({format}, 2025-10-09)" in text

    # A live chat that has the conversation goes on in it.
    asked = [*wire(TALKS["c-1"]), {"role": "user", "content": "What does my bird eat?"}]
    assert world.post(asked, user="alice").status == 200
    world.settle()
    assert world.query("SELECT count(*) FROM conversations") == [2]
    assert world.query("SELECT depth FROM exchanges ORDER BY id DESC LIMIT 1") == [2]

    again = follow(world, send(world, data))
    assert again["id"] == found["id"]
    assert counts(again, "messages") == (6, 0, 6, 0)
    assert world.query("SELECT count(*) FROM exchanges") == [4]

    assert undo(world, found["id"])["status"] == "undone"
    assert all(word.encode() not in world.data() for word in WORDS)
    text = shown(world)
    assert "What does my bird eat?" in text
    assert "anchovies" not in text.partition("Would be recalled")[0]
    assert world.query("SELECT count(*) FROM marks WHERE kind = 'tomb'") == [0]

    # It can be imported again, before the live turn, too.
    third = follow(world, send(world, data))
    assert counts(third, "messages") == (6, 6, 0, 0), third
    assert "My heron is called Zebulon." in shown(world)
    assert undo(world, found["id"])["status"] == "undone"
    assert all(word.encode() not in world.data() for word in WORDS)


@pytest.mark.parametrize("format", ["list", "mem0"])
def test_facts_are_previewed_imported_and_undone(world: World, format: str) -> None:
    data = export(format, TALKS)
    assert counts(send(world, data, "preview=true").json, "facts") == (3, 3, 0, 0)
    found = follow(world, send(world, data))
    assert (found["status"], found["format"], counts(found, "facts")) == ("done", format, (3, 3, 0, 0))
    text = shown(world)
    assert "[2024-03-01 00:00]  He eats anchovies." in text or format == "mem0"
    assert f"import ({format}, 2025-10-09)" in text
    assert counts(follow(world, send(world, data)), "facts") == (3, 0, 3, 0)
    assert counts(send(world, data, "preview=true").json, "facts") == (3, 0, 3, 0)
    assert undo(world, found["id"])["status"] == "undone"
    assert all(word.encode() not in world.data() for word in WORDS)
    assert counts(follow(world, send(world, data)), "facts") == (3, 3, 0, 0)


def test_a_time_to_come_is_shown_as_it_is_imported(world: World) -> None:
    found = follow(world, send(world, b"[2025-10-01] - She sails.\n[2999-01-01] - She skis.\n"))
    assert found["first_at"] == "2025-10-01T00:00:00Z"
    assert found["last_at"].startswith("2025-10-09T")


def admin(world: World, operation: str, **arguments: Any) -> Any:
    """Performs an operation as the command line does."""
    body = json.dumps({"project": "default", "user": "alice", **arguments}).encode()
    reply = world.gateway.ask("POST", f"/admin/{operation}", body, OWNER)
    assert reply.status == 200, reply.body
    return reply.json


def test_a_forgotten_message_stays_so_beside_another_of_its_turn(world: World) -> None:
    def make_line(id: str, *texts: str) -> bytes:
        messages = [{"role": "user", "content": text, "at": START} for text in texts]
        reply = {"role": "assistant", "content": "Noted.", "at": START}
        return orjson.dumps({"id": id, "messages": [*messages, reply]})

    follow(world, send(world, make_line("c-1", "My heron is called Zebulon.", "He eats anchovies.")))
    forget = world.store.forgetting.forget
    world.gateway.call(forget(memory_of(world).id, ForgetTarget(message_seqs=[1])))
    again = make_line("c-2", "My heron is called Zebulon.", "I live in Quxhaven.")
    assert counts(follow(world, send(world, again)), "messages") == (3, 2, 0, 1)
    assert b"Zebulon" not in world.data()
    assert "I live in Quxhaven." in shown(world)


@pytest.mark.both
def test_nothing_comes_twice_and_what_was_forgotten_stays_so(world: World) -> None:
    # A live chat has the first talk word for word, white space aside, and another begins like the second.
    chat = wire(TALKS["c-1"])
    world.upstream.script = lambda request: say(
        TALKS["c-1"][1] if len(request.messages) < 3 else f" {TALKS['c-1'][3]}"
    )
    world.post(chat[:1], user="alice")
    world.post(chat[:3], user="alice")
    found = follow(world, send(world, export("chatgpt", TALKS)))
    assert counts(found, "conversations") == (2, 1, 1, 0)
    assert counts(found, "messages") == (6, 2, 4, 0)
    assert world.query("SELECT count(*) FROM conversations") == [2]

    # A newer export adds what is new: to the live chat, and to the one that was imported.
    talks = {
        "c-1": (*TALKS["c-1"], "And he flies to Wexmoor.", "Far."),
        "c-2": (*TALKS["c-2"], "It rains there.", "Take care."),
        "c-3": ("Only a question",),
    }
    newer = follow(world, send(world, export("chatgpt", talks)))
    assert counts(newer, "conversations") == (3, 3, 0, 0)
    assert counts(newer, "messages") == (11, 5, 6, 0)
    assert world.query("SELECT count(*) FROM conversations") == [3]
    # An answer that comes later takes the place of the question that had none.
    talks["c-3"] = ("Only a question", "An answer")
    assert counts(follow(world, send(world, export("chatgpt", talks))), "messages") == (12, 2, 10, 0)
    assert world.query("SELECT count(*) FROM exchanges WHERE active = 1") == [6]
    # Another format of the same is known by its messages.
    assert counts(follow(world, send(world, export("claude", talks))), "messages") == (12, 0, 12, 0)

    # What this import added goes, what was known before stays.
    assert undo(world, newer["id"])["status"] == "undone"
    assert b"Wexmoor" not in world.data()
    assert "He eats anchovies." in shown(world)
    assert "I live in Quxhaven." in shown(world)

    # Forgotten by hand: a conversation, and a message that is in another one, too.
    ((uid,),) = [(u,) for u in world.query("SELECT uid FROM conversations WHERE key = 'import:chatgpt:c-2'")]
    admin(world, "memory-forget", **{"in": uid})
    assert b"Quxhaven" not in world.data()
    assert counts(follow(world, send(world, export("chatgpt", TALKS))), "messages") == (6, 0, 6, 0)
    other = {"c-9": (TALKS["c-2"][0], "I see.", "My boat is the Ortelia.", "Nice.")}
    found = follow(world, send(world, export("chatgpt", other)))
    assert counts(found, "messages") == (4, 2, 0, 2)
    assert b"Quxhaven" not in world.data()
    assert "My boat is the Ortelia." in shown(world)


def test_the_same_file_again_is_known_and_its_undo_takes_all_away(world: World) -> None:
    data = export("chatgpt", TALKS)
    first = follow(world, send(world, data))
    assert counts(first, "messages") == (6, 6, 0, 0)
    assert counts(send(world, data, "preview=true").json, "messages") == (6, 0, 6, 0)
    again = follow(world, send(world, data))
    assert (again["id"], counts(again, "messages")) == (first["id"], (6, 0, 6, 0))
    assert undo(world, again["id"])["status"] == "undone"
    assert b"anchovies" not in world.data()
    assert counts(send(world, data, "preview=true").json, "messages") == (6, 6, 0, 0)
    assert counts(follow(world, send(world, data)), "messages") == (6, 6, 0, 0)


@pytest.mark.both
def test_a_long_conversation_is_undone_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one transaction turns wait for all of its rows."""
    talk = tuple(f"Word{i}x" for i in range(40))
    found = follow(world, send(world, json.dumps({"id": "c-1", "messages": wire(talk)}).encode()))
    left = [20]
    run_step = forget._run_step
    count = make_statement("left", "SELECT count(*) FROM exchanges WHERE agent <> 0")

    async def run_and_count(connection: Connection, **given: Any) -> Any:
        done = await run_step(connection, **given)
        left.append(await connection.fetch_value(count))
        return done

    unindexed: list[int] = []
    forget_indexed = erase_exchanges.forget_indexed

    async def forget_and_note(connection: Connection, agent_row: int, seqs: list[int]) -> None:
        unindexed.append(len(seqs))
        await forget_indexed(connection, agent_row, seqs)

    monkeypatch.setattr(forget, "_run_step", run_and_count)
    monkeypatch.setattr(erase_exchanges, "forget_indexed", forget_and_note)
    for phases in (erase, erase_exchanges):
        monkeypatch.setattr(phases, "PAGE_ROWS", 4)
    undo(world, found["id"])
    assert left[-1] == 0
    # The index is written once for all messages of a part.
    assert [count for count in unindexed if count] == [8] * 5
    assert max(before - after for before, after in pairwise(left)) == 4


def test_an_import_pauses_while_a_request_is_answered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("_SURVEY_PAUSE_FACTOR", "_BUSY_PAUSE_FACTOR", "_INDEX_PAUSE_S"):
        monkeypatch.setattr(import_throttle, pause, 1e9)
    monkeypatch.setattr(import_performer, "_UNINDEXED_ITEMS", 4)

    async def perform() -> None:
        idle = asyncio.Event()
        operations = make_import_operations(Settings(), world.store, idle=idle)

        async def see_pauses(task: asyncio.Task[Any], count: int) -> None:
            for _ in range(count):
                # It has done a step, and waits.
                async with asyncio.timeout(PATIENCE_S):
                    while not idle._waiters:  # type: ignore[attr-defined]  # noqa: ASYNC110
                        await asyncio.sleep(0)
                assert not task.done()
                idle.set()
                await asyncio.sleep(0)
                idle.clear()

        talk = wire(tuple(f"Word{i}x" for i in range(130)))
        talks = [orjson.dumps({"id": id, "messages": talk}) for id in ("c-3", "c-4")]
        file = io.BytesIO(b"\n".join([export("jsonl", TALKS), *talks]))
        beginning = asyncio.create_task(operations.begin(file, operations.read_request({"user": "alice"})))
        await see_pauses(beginning, 2)
        running = await beginning
        assert running.task is not None
        await see_pauses(running.task, 4)
        idle.set()
        await running.task
        assert running.status == "done"

    world.gateway.call(perform())


@pytest.mark.both
def test_dates_branches_and_what_is_left_out(world: World) -> None:
    odd = chatgpt_conversation("c-1", ("Hello?", "Hi."), begun=2e9)  # in the future
    odd["mapping"]["b"] = chatgpt_node("b", "n0", "assistant", "Never shown Yxx", START)
    undated = chatgpt_conversation("c-2", ("One", "Two"), create_time=None)
    for node in undated["mapping"].values():
        if node["message"]:
            node["message"]["create_time"] = None
    broken = chatgpt_conversation("c-3", ("Secret Zqq",))
    broken["mapping"]["root"]["parent"] = "n0"
    listed = [
        odd,
        undated,
        broken,
        {"mapping": {}},
        chatgpt_conversation("c-4", ("x",), is_do_not_remember=True),
    ]
    found = follow(world, send(world, zipped(listed)))
    assert counts(found, "conversations") == (5, 2, 0, 3)
    assert counts(found, "messages") == (6, 4, 0, 2)
    assert found["warnings"] == [
        "Conversation 3 was skipped: its messages follow each other in a circle.",
        "Conversation 4 was skipped: it has no message of the user.",
        "Conversation 5 was skipped: it is marked as not to be remembered.",
    ]
    assert world.query("SELECT count(*) FROM exchanges WHERE begun > 1760001000 OR ended > 1760001000") == [0]
    ((begun, ended),) = world.query("SELECT begun, ended FROM exchanges ORDER BY id DESC LIMIT 1")
    assert 1_760_000_000 - 10 < begun < ended <= 1_760_001_000
    assert all(word not in world.data() for word in (b"Zqq", b"Yxx"))
    # Of a project that retains a month, what is older does not come: hashes are left of what a longer talk begins with.
    day = 86_400.0
    talks = [
        chatgpt_conversation("old", ("Elder Vuu", "Yes.")),
        chatgpt_conversation(
            "both", ("Elder Vuu?", "Yes.", "Recent Roo", "Ok."), begun=1_760_000_000 - 31 * day
        ),
    ]
    for i, node in enumerate(list(talks[1]["mapping"].values())[3:]):
        node["message"]["create_time"] = 1_760_000_000 - day + i
    found = follow(world, send(world, zipped(talks), "project=brief"))
    assert counts(found, "messages") == (6, 2, 0, 4)
    assert b"Vuu" not in world.data()
    assert b"Roo" in world.data()


@pytest.mark.both
def test_dates_before_1970_are_stored(world: World) -> None:
    talk = {
        "id": "c-1",
        "at": "1969-07-20T20:17:40Z",
        "messages": wire(("Zebulon has landed.", "Well done.")),
    }
    later = {"id": "c-2", "at": 1, "messages": wire(("Hello.", "Hello."))}
    found = follow(world, send(world, b"".join(json.dumps(each).encode() + b"\n" for each in (later, talk))))
    assert (found["first_at"], found["last_at"]) == ("1969-07-20T20:17:40Z", "1970-01-01T00:00:01Z")
    listed = follow(world, send(world, b"- [1912-04-15] - Zebulon ate anchovies on a ship.\n"))
    assert (listed["first_at"], listed["last_at"]) == ("1912-04-15T00:00:00Z", "1912-04-15T00:00:00Z")
    text = shown(world)
    assert "[1969-07-20 20:17] user: Zebulon has landed." in text
    assert "[1912-04-15 00:00] Zebulon ate anchovies on a ship." in text
    asked = {"role": "user", "content": "Did Zebulon eat anchovies?"}
    assert world.post([asked], user="alice").status == 200
    recalled = world.upstream.last.body.decode()
    assert "1969-07-20" in recalled
    assert "1912-04-15" in recalled
    for each in (found, listed):
        assert undo(world, each["id"])["status"] == "undone"
    world.settle()
    assert b"anchovies on a ship" not in world.data()


def test_a_conversation_that_turns_would_wait_for_is_left_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchanges, "MAX_MESSAGES", 3)
    found = follow(world, send(world, export("jsonl", TALKS)))
    assert counts(found, "conversations") == (2, 1, 0, 1)
    assert counts(found, "messages") == (6, 2, 0, 4)
    assert found["warnings"] == ["Conversation 1 was skipped: it has more than 3 messages."]


def test_half_a_character_is_named_in_a_warning(world: World) -> None:
    talks = [
        chatgpt_conversation("c-1", ("Hi", "Hello.")),
        chatgpt_conversation("c-2", ("\ude00", "a \ud83d b")),
    ]
    facts = b'[{"memory": "Tea"}, {"memory": "a \\udc00"}]'
    for data, kind, warning in (
        (zipped(talks), "messages", "Conversation 2 has 2 unreadable characters, shown as U+FFFD."),
        (facts, "facts", "Fact 2 has 1 unreadable character, shown as U+FFFD."),
    ):
        previewed = json.loads(send(world, data, "preview=true").body)
        imported = follow(world, send(world, data))
        for found in (previewed, imported):
            assert found[kind]["new"] == found[kind]["found"] > 0
            assert found["warnings"] == [warning]


def test_a_skipped_line_is_named_by_its_own_place(world: World) -> None:
    data = b"Likes tea.\nLikes jazz.\n\xff\n" + b"Likes rain.\n" * 20 + b"\xff\n"
    previewed = send(world, data, "format=list&preview=true").json
    imported = follow(world, send(world, data, "format=list"))
    for found in (previewed, imported):
        assert found["warnings"] == [
            f"Line or fact {number} was skipped: a line is no UTF-8." for number in (3, 24)
        ]


@pytest.mark.parametrize(("skipped", "last"), [(101, "1 more warning."), (102, "2 more warnings.")])
def test_warnings_beyond_the_listed_ones_are_counted(world: World, skipped: int, last: str) -> None:
    previewed = send(world, b"Likes tea.\n" + b"\xff\n" * skipped, "format=list&preview=true").json
    assert previewed["warnings"][99:] == ["Line or fact 101 was skipped: a line is no UTF-8.", last]


def test_half_a_character_is_named_by_its_own_place_after_what_was_skipped(world: World) -> None:
    facts = b'[{"memory": "Tea"}, {}, {"memory": "a \\udc00"}]'
    assert follow(world, send(world, facts, "format=mem0"))["warnings"] == [
        "Line or fact 2 was skipped: it has no memory.",
        "Fact 3 has 1 unreadable character, shown as U+FFFD.",
    ]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (ValueError("no"), "The gateway failed; its log says more."),
        (BadRequest("It ends too early.", param="file"), "It ends too early."),
    ],
    ids=["in the gateway", "in the file"],
)
def test_an_import_that_fails_stays_failed_and_says_why(
    world: World, fault: Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(Imports, "write_part", fail)
    found = follow(world, send(world, export("jsonl", TALKS)))
    assert (found["status"], found["error"]) == ("failed", {"message": why, "param": "file"})


@pytest.mark.both
def test_two_that_preview_one_file_both_see_its_end(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "facts.md").write_bytes(export("list", TALKS))
    path = str(tmp_path / "facts.md")
    operations = make_import_operations(Settings(), world.store)

    def begin() -> RawArguments:
        given = {"path": path, "user": "alice", "preview": True}
        return {"import": world.gateway.call(operations.begin_file(given))["id"], "preview": True}

    def look(preview: RawArguments) -> dict[str, Any]:
        return world.gateway.call(operations.show_named(preview))

    for preview in (begin(), begin()):
        becomes(lambda preview=preview: look(preview)["status"] != "running")
        end = look(preview)
        assert (end["status"], counts(end, "facts")) == ("preview", (3, 3, 0, 0))
    monkeypatch.setattr(import_operations, "_PREVIEW_RETENTION_S", 0.0)
    dropped = begin()

    def is_unknown() -> bool:
        try:
            look(dropped)
        except UnknownId:
            return True
        return False

    becomes(is_unknown)


def test_a_file_for_which_there_is_no_room_is_refused_with_the_reason(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr("tempfile.TemporaryFile", partial(open, "/dev/full", "wb"))
        refused = send(world, export("jsonl", TALKS))
    assert refused.status == 500
    assert refused.error["message"] == (
        "The file cannot be stored on this machine while it is imported: No space left on device. TMPDIR names the "
        "folder in which it is stored."
    )


def test_only_what_is_asked_for_is_learned_from(world: World) -> None:
    async def unread(reader: int) -> list[str]:
        agent = await world.store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        found = await world.store.readers.find_unread(
            agent.id, reader, now=world.clock(), idle_s=60, limit_chars=10_000, message_chars=1_000
        )
        return [] if found is None else [m.text for m in found.messages]

    def unlearned() -> list[int]:
        return world.gateway.call(world.store.readers.load_unlearned(10))

    world.post([{"role": "user", "content": "Before"}], user="alice")
    world.settle()
    world.clock.sleep(600)
    follow(world, send(world, export("chatgpt", TALKS)))
    assert world.gateway.call(unread(LEARNER)) == ["Before", "Hello."]
    assert world.gateway.call(unread(RULE)) == ["Before", "Hello."]
    found = follow(world, send(world, export("claude", {"c-7": ("Learn this", "Yes.")}), "learn=true"))
    assert found["learn_tokens"] == len("Learn thisYes.") // 4
    assert world.gateway.call(unread(LEARNER)) == ["Before", "Hello.", "Learn this", "Yes."]
    assert len(unlearned()) == 1
    # A memory of nothing else has nothing to be read.
    assert follow(world, send(world, export("chatgpt", TALKS), user="%20bob"))["user"] == "bob"
    assert len(unlearned()) == 1
    assert not world.upstream.requests[1:]


@pytest.mark.both
def test_a_turn_that_comes_while_readers_pass_over_an_import_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What readers pass over is looked for before the transaction, since turns would wait for all of it."""
    find, found = Imports._load_finished_readers, []

    async def find_and_take_turn(self: Imports, agent_row: int) -> Any:
        passing = await find(self, agent_row)
        found.append([*passing.cursors])
        if len(found) == 1:
            asked = [{"role": "user", "content": "Meanwhile"}]
            await asyncio.to_thread(world.post, asked, user="alice")
        return passing

    monkeypatch.setattr(Imports, "_load_finished_readers", find_and_take_turn)
    follow(world, send(world, export("chatgpt", TALKS)))
    assert found == [[LEARNER, RULE]]
    world.clock.sleep(600)
    assert len(world.gateway.call(world.store.readers.load_unlearned(10))) == 1


@pytest.mark.both
def test_an_import_ends_while_another_writes_into_its_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a memory was looked through again, for as long as another import wrote."""
    find, looks = Imports._load_finished_readers, 0
    other = {"c-9": ("My boat is called Vril.", "A fine boat.")}

    async def find_while_another_writes(self: Imports, agent_row: int) -> Any:
        nonlocal looks
        looks += 1
        passing = await find(self, agent_row)
        if looks == 1:
            await asyncio.to_thread(lambda: follow(world, send(world, export("claude", other))))
        return passing

    monkeypatch.setattr(Imports, "_load_finished_readers", find_while_another_writes)
    follow(world, send(world, export("chatgpt", TALKS)))
    assert looks == 2  # each once
    world.clock.sleep(600)
    assert not world.gateway.call(world.store.readers.load_unlearned(10))


def test_what_is_refused_and_who_may(world: World) -> None:
    file = export("chatgpt", TALKS)
    for data, query, param in (
        (b"\x00\x01", "", "file"),
        (b'[{"mapping": {}}, {"map', "", "file"),
        (file, "format=word", "format"),
        (file, "profile=none", "profile"),
        (file, "learn=maybe", "learn"),
        (file, "size=1", "size"),
        (file, "user=", None),
        (lines_of_two_users(), "", "source_user"),
        (lines_of_two_users(), "source_user=nobody", "source_user"),
    ):
        reply = send(world, data, query)
        assert reply.status == 400, (query, reply.body)
        assert param is None or reply.error["param"] == param, reply.body
        if param != "file":
            continue
        assert send(world, data, "preview=true").error["param"] == "file"
    reply = send(world, file, user="a%0Ab")
    assert (reply.status, reply.error["param"]) == (400, "user")
    assert world.query("SELECT (SELECT count(*) FROM imports) + (SELECT count(*) FROM agents)") == [0]
    only = follow(world, send(world, lines_of_two_users(), "source_user=ann"))
    assert counts(only, "facts") == (1, 1, 0, 0)
    listed = world.gateway.ask("GET", "/v1/manage/imports", None, OWNER).json
    assert (listed["object"], listed["has_more"], listed["data"]) == ("list", False, [only])

    made = world.gateway.ask("POST", "/v1/manage/keys", b'{"opens": "operator-read"}', OWNER).json
    reader = {"authorization": f"Bearer {made['secret']}"}
    made = world.gateway.ask(
        "POST", "/v1/manage/keys", b'{"opens": "operator", "project": "other"}', OWNER
    ).json
    other = {"authorization": f"Bearer {made['secret']}"}
    one = f"/v1/manage/imports/{only['id']}"
    ask = world.gateway.ask
    assert ask("POST", "/v1/manage/imports?user=a", file).status == 401
    assert ask("POST", "/v1/manage/imports?user=a", file, reader).status == 403
    assert ask("DELETE", one, None, reader).status == 403
    assert ask("GET", one, None, reader).json == only
    assert ask("GET", one, None, other).status == 404
    assert ask("DELETE", one, None, other).status == 404
    assert ask("GET", "/v1/manage/imports", None, other).json["data"] == []
    assert ask("POST", "/v1/manage/imports?user=a&project=default", file, other).status == 404
    # Forgetting the user takes what is noted of the import along.
    admin(world, "memory-forget")
    assert world.query("SELECT (SELECT count(*) FROM imports) + (SELECT count(*) FROM imported)") == [0]


def test_facts_without_a_user_are_imported_beside_those_of_one_user(world: World) -> None:
    file = json.dumps(
        [{"memory": "Ann sings.", "user_id": "ann"}, {"memory": "The choir has a boat."}]
    ).encode()
    assert counts(follow(world, send(world, file)), "facts") == (2, 2, 0, 0)


def lines_of_two_users() -> bytes:
    return json.dumps([{"memory": f"{name} sings.", "user_id": name} for name in ("ann", "bea")]).encode()


@pytest.mark.both
def test_an_import_that_was_stopped_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write_part, written = Imports.write_part, list[int]()

    async def write_ten(self: Imports, *given: Any) -> ImportWriting:
        if len(written) == 10:
            await asyncio.Event().wait()  # until it is stopped
        done = await write_part(self, *given)
        written.append(1)
        return done

    imports = world.gateway.app.services.imports
    data = export("jsonl", {f"c-{i}": (f"Question {i}", f"Answer {i}") for i in range(30)})
    with monkeypatch.context() as held:
        held.setattr(Imports, "write_part", write_ten)
        begun = send(world, data).json
        becomes(lambda: len(written) == 10)
        world.gateway.call(imports.aclose())
    assert world.query("SELECT count(*) FROM exchanges") == [10]
    world.clock.sleep(3_600)  # nobody has written to it for long, where processes share it
    stopped = world.gateway.ask("GET", f"/v1/manage/imports/{begun['id']}", None, OWNER).json
    assert (stopped["status"], stopped["conversations"]["new"]) == ("stopped", 10)
    # Sent twice at once it is one import.
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: send(world, data), range(2)))
    assert {each.json["id"] for each in both} == {begun["id"]}
    found = follow(world, both[0])
    assert (found["status"], counts(found, "messages")) == ("done", (60, 60, 0, 0))
    assert world.query("SELECT count(*), count(DISTINCT conversation) FROM exchanges") == [(30, 30)]
    # One that is under way is stopped, and undone.
    written.clear()
    with monkeypatch.context() as held:
        held.setattr(Imports, "write_part", write_ten)
        later = send(world, export("jsonl", {f"d-{i}": (f"Later {i}", "Yes.") for i in range(30)})).json
        becomes(lambda: len(written) == 10)
        assert undo(world, later["id"])["status"] == "undone"
    assert b"Later" not in world.data()
    assert world.query("SELECT count(*) FROM conversations") == [30]


@pytest.mark.both(between=["a forgetting", "a turn in it and a stop"])
@pytest.mark.parametrize(
    ("between", "id"),
    [
        ("a turn", "c-1"),
        ("a turn", None),
        ("a forgetting", "c-1"),
        ("a stop", "c-1"),
        ("a stop", None),
        ("a turn in it and a stop", None),
    ],
)
def test_a_long_conversation_is_written_in_parts(
    world: World, monkeypatch: pytest.MonkeyPatch, between: str, id: str | None
) -> None:
    """In one transaction it takes longer than PostgreSQL is waited for, and turns wait for all of it."""
    talk = tuple(f"Word{i}x" for i in range(40))
    data = json.dumps({"id": id, "messages": wire(talk)}).encode()
    imported = (
        "SELECT count(*), max(e.depth) + 1, count(DISTINCT e.conversation) FROM exchanges e"
        " JOIN imported i ON i.id = e.id AND i.what = 'exchange'"
    )
    came: list[object] = []

    def come_between() -> None:
        came.extend(world.query(imported))
        another = {"role": "user", "content": "Another"}
        if between == "a turn":
            assert world.post([another], user="alice").status == 200
        elif between == "a turn in it and a stop":
            assert world.post([*wire(talk[:16]), another], user="alice").status == 200
            world.settle()
            assert world.query("SELECT count(*), count(DISTINCT conversation) FROM exchanges") == [(9, 1)]
        elif between == "a forgetting":
            admin(world, "memory-forget", message=3)

    write_part = Imports.write_part

    async def write_and_come_between(self: Imports, *given: Any) -> ImportWriting:
        written = await write_part(self, *given)
        if written.written_count == 8 and not came:
            await asyncio.to_thread(come_between)
            if between.endswith("a stop"):
                raise asyncio.CancelledError
        return written

    monkeypatch.setattr("storage.sql.imports.EXCHANGES_AT_ONCE", 4)
    monkeypatch.setattr(Imports, "write_part", write_and_come_between)
    begun = send(world, data)
    if between.endswith("a stop"):
        becomes(lambda: not world.gateway.app.services.imports._running)
        world.clock.sleep(3_600)  # nobody has written to it for long, where processes share it
        begun = send(world, data)
    found = follow(world, begun)
    assert (found["status"], counts(found, "messages")) == ("done", (40, 40, 0, 0))
    assert came == [(8, 8, 1)]
    assert world.query(imported) == [(20, 20, 1)]
    assert (b"Word2x" in world.data()) == (between != "a forgetting")
    assert counts(send(world, data, "preview=true").json, "messages") == (40, 0, 40, 0)
    undo(world, found["id"])
    assert b"Word" not in world.data()


@pytest.mark.parametrize("comes", ["another conversation", "the next turn of this one"])
def test_turns_between_the_parts_of_a_conversation_have_little_of_it_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    """All of it, after each of the turns, is quadratic, and is read while turns wait for the writer."""
    talk = tuple(f"Word{i}x" for i in range(80))
    read: list[int] = []
    read_rows, write_part = imports.load_rows, Imports.write_part

    async def count_paths(connection: Connection, statement: Statement, values: Any, *first: Any) -> Any:
        if statement is imports.SQL["matched"]:
            read.append(len(values))
        return await read_rows(connection, statement, values, *first)

    def take_turn(done: int) -> None:
        world.upstream.script = lambda request: say(talk[2 * done + 1])
        asked = {"role": "user", "content": talk[2 * done]}
        before = wire(talk[: 2 * done]) if comes == "the next turn of this one" else []
        assert world.post([*before, asked], user="alice").status == 200
        world.settle()

    async def write_and_take_turn(self: Imports, *given: Any) -> ImportWriting:
        written = await write_part(self, *given)
        if not written.is_written and (comes == "another conversation" or written.written_count == 8):
            await asyncio.to_thread(take_turn, written.written_count)
        return written

    monkeypatch.setattr(imports, "EXCHANGES_AT_ONCE", 4)
    monkeypatch.setattr(imports, "load_rows", count_paths)
    monkeypatch.setattr(Imports, "write_part", write_and_take_turn)
    found = follow(world, send(world, json.dumps({"messages": wire(talk)}).encode()))
    if comes == "another conversation":
        assert counts(found, "messages") == (80, 80, 0, 0)
        # Once to decide what is new, and of each part what it writes.
        assert sum(read) <= 2 * 40, read
    else:
        assert counts(found, "messages") == (80, 78, 2, 0)
        assert world.query("SELECT count(*), count(DISTINCT conversation) FROM exchanges") == [(40, 1)]


@pytest.mark.both
def test_a_conversation_that_retention_reaches_while_its_import_is_stopped(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of it is counted once, and the next conversation is counted as well."""
    talk = tuple(f"Word{i}x" for i in range(40))
    old, recent = world.clock() - 29 * DAY_S, world.clock() - DAY_S
    lines = [
        {"id": "c-1", "at": render_iso(old), "messages": wire(talk)},
        {"id": "c-2", "at": render_iso(recent), "messages": wire(TALKS["c-1"])},
    ]
    data = b"".join(orjson.dumps(line) + b"\n" for line in lines)
    write_part = Imports.write_part

    async def write_and_stop(self: Imports, *given: Any) -> ImportWriting:
        written = await write_part(self, *given)
        if written.written_count == 4:
            raise asyncio.CancelledError
        return written

    monkeypatch.setattr(imports, "EXCHANGES_AT_ONCE", 4)
    with monkeypatch.context() as stopping:
        stopping.setattr(Imports, "write_part", write_and_stop)
        send(world, data, "project=brief")
        becomes(lambda: not world.gateway.app.services.imports._running)
    world.clock.sleep(2 * DAY_S)
    found = follow(world, send(world, data, "project=brief"))
    assert counts(found, "messages") == (44, 12, 0, 32)
    assert counts(found, "conversations") == (2, 2, 0, 0)
    assert found["warnings"] == ["Conversation 1 was skipped: it is older than what is retained."]


def test_an_import_that_is_stopped_before_it_has_read_a_byte_goes_on(world: World) -> None:
    data = export("jsonl", TALKS)
    operations = world.gateway.app.services.imports

    async def begin_and_stop() -> None:
        running = await operations.begin(io.BytesIO(data), operations.read_request({"user": "alice"}))
        assert running.task is not None
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)

    world.gateway.call(begin_and_stop())
    world.clock.sleep(3_600)  # nobody has written to it for long, where processes share it
    assert counts(follow(world, send(world, data)), "conversations") == (2, 2, 0, 0)


def test_an_import_is_done_when_its_jobs_are_enqueued(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    data = export("jsonl", TALKS)

    async def fail(kind: str, agent_row: int, key: str) -> None:
        assert kind == LEARN_JOB
        raise StoreFailed("broken")

    async def touch_late(row: int, at: float) -> None:
        await asyncio.sleep(0.2)  # the file is sent again before it is stored that the import has ended
        await touch(row, at)

    touch = world.store.imports.touch
    monkeypatch.setattr(world.store.imports, "touch", touch_late)
    with monkeypatch.context() as down:
        down.setattr(world.store.jobs, "enqueue", fail)
        one = f"/v1/manage/imports/{send(world, data, 'learn=true').json['id']}"

        def ended() -> str:
            world.clock.sleep(3_600)  # where processes share it, it is known as stopped after a time
            status = world.gateway.ask("GET", one, None, OWNER).json["status"]
            return "" if status == "running" else str(status)

        assert becomes(ended) == "stopped"
    assert follow(world, send(world, data, "learn=true"))["status"] == "done"


@pytest.mark.both
def test_an_import_that_is_being_undone_is_not_begun_again(world: World) -> None:
    """Also where the process that has begun to undo it is gone, or is another one."""
    data = export("jsonl", TALKS)
    done = follow(world, send(world, data))

    async def begin_to_undo() -> int:
        stored = await world.store.imports.find(done["id"])
        assert stored is not None
        return await world.store.forgetting.begin(stored.agent_row, ForgetTarget(import_row=stored.id))

    undoing = world.gateway.call(begin_to_undo())
    refused = send(world, data)
    assert (refused.status, "being undone" in refused.error["message"]) == (409, True)
    world.gateway.call(world.store.forgetting.finish(undoing))
    assert b"Zebulon" not in world.data()
    assert counts(follow(world, send(world, data)), "conversations") == (2, 2, 0, 0)


@pytest.mark.both
def test_a_file_may_be_imported_again_while_the_memory_that_had_it_is_erased(world: World) -> None:
    data = export("jsonl", TALKS)
    done = follow(world, send(world, data))

    async def begin_to_forget() -> int:
        stored = await world.store.imports.find(done["id"])
        assert stored is not None
        return await world.store.forgetting.begin(stored.agent_row, ForgetTarget(is_all=True))

    forgetting = world.gateway.call(begin_to_forget())
    again = follow(world, send(world, data))
    assert (again["id"], counts(again, "conversations")) == (done["id"], (2, 2, 0, 0))
    world.gateway.call(world.store.forgetting.finish(forgetting))
    assert undo(world, done["id"])["status"] == "undone"
    assert all(word.encode() not in world.data() for word in WORDS)


@pytest.mark.both
@pytest.mark.sqlite
def test_the_command_goes_on_after_a_kill_through_a_gateway_and_without_one(
    upstream: StrictUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_bytes(export("jsonl", {f"c-{i}": (f"Question {i}", f"Answer {i}") for i in range(400)}))
    facts = tmp_path / "facts.md"
    facts.write_bytes(export("list", TALKS))
    settings = ("--config", str(tmp_path / "mnemogate.toml"), "--db", str(tmp_path / "mnemogate.db"))

    def run(*arguments: str) -> str:
        assert main([*arguments, *settings]) == 0, capsys.readouterr()
        return capsys.readouterr().out

    with serving(tmp_path, "--upstream", upstream.base_url) as process:
        shown = json.loads(run("import", str(facts), "--user", "alice", "--preview", "--json"))
        assert (shown["status"], counts(shown, "facts")) == ("preview", (3, 3, 0, 0))
        assert "Nothing was written" in run("import", str(facts), "--user", "alice", "--preview")
        imported = run("import", str(facts), "--user", "alice")
        assert "3 new" in imported
        assert f"mnemogate imports undo {shown['id']}" in imported
        token = json.loads((tmp_path / "mnemogate.db.admin").read_text())["token"]
        headers = {"x-mnemogate-admin": token}
        begun = process.ask("POST", "/v1/manage/imports?user=alice", file.read_bytes(), headers).json
        one = f"/v1/manage/imports/{begun['id']}"
        becomes(lambda: process.ask("GET", one, headers=headers).json["messages"]["new"])
        process.kill()
    listed = [json.loads(line) for line in run("imports", "list", "--json").splitlines()]
    assert [each["status"] for each in listed] == ["stopped", "done"]
    assert 0 < listed[0]["messages"]["new"] < 800
    done = json.loads(run("import", str(file), "--user", "alice", "--json"))
    assert (done["id"], done["status"], counts(done, "messages")) == (
        begun["id"],
        "done",
        (800, 800, 0, 0),
    )
    run("imports", "undo", begun["id"], "--yes")
    assert all(b"Question" not in each.read_bytes() for each in tmp_path.glob("mnemogate.db*"))
    assert "heron" in run("memory", "show", "--user", "alice")


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_a_command_whose_import_did_not_end_fails(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the gateway that performs it is killed."""
    counted = {"found": 3, "new": 1, "known": 0, "skipped": 0}
    kinds = dict.fromkeys(("conversations", "messages", "facts"), counted)
    about = {"id": "import-1", "format": "jsonl", "user": "alice", "project": "default", "profile": "default"}
    shown = {**about, **kinds, "status": status, "first_at": None, "warnings": [], "error": None}
    monkeypatch.setattr("gateway.cli_commands.Commands._import", lambda *_: shown)
    assert main(["import", str(tmp_path / "file"), "--user", "alice"]) == 1
    assert ("import the same file again" in capsys.readouterr().err) == (status == "stopped")


@pytest.mark.both
def test_an_import_travels_with_an_export(world: World) -> None:
    """What was brought along is undone where its memory has gone, and its file adds nothing there."""
    found = follow(world, send(world, export("chatgpt", TALKS)))
    facts = follow(world, send(world, export("list", TALKS)))
    store = world.store

    async def copy() -> None:
        operations = TransferOperations(store)
        agent = await store.agents.find(Scope("default", "default", "user:alice"))
        assert agent is not None
        to, at, written = Scope("two", "default", "user:bob"), None, None
        while True:
            lines, at = await operations.read_page(agent, at)
            written = await operations.write_page(to, written, [*map(orjson.dumps, lines)], is_end=at is None)
            if at is None:
                return

    world.gateway.call(copy())
    listed = world.gateway.ask("GET", "/v1/manage/imports", None, OWNER).json["data"]
    copies = [each for each in listed if each["user"] == "bob"]
    assert [(each["project"], each["format"], each["status"]) for each in copies] == [
        ("two", "list", "done"),
        ("two", "chatgpt", "done"),
    ]
    for mine, before in zip(copies, (facts, found), strict=True):
        assert mine["id"] != before["id"]
        assert mine | dict.fromkeys(("id", "user", "project")) == before | dict.fromkeys(
            ("id", "user", "project")
        )
    assert undo(world, copies[0]["id"])["status"] == "undone"
    assert undo(world, copies[1]["id"])["status"] == "undone"
    own = "SELECT count(*) FROM {} x JOIN agents a ON a.id = x.agent WHERE a.subject = 'user:{}'"
    assert world.query(own.format("facts", "bob")) == [0]
    assert world.query(own.format("facts", "alice")) == [3]
    assert world.query(own.format("exchanges", "alice")) == [3]
    assert "import (chatgpt, 2025-10-09)" in shown(world)
