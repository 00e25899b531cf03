"""`mnemogate from-letta`: agents of a Letta server, with all that they remember, at a gateway that serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.agents.agent_file.import_form import ImportForm
from gateway.agents.agent_file.read import read_file
from gateway.agents.files.agent_import import AgentImport
from gateway.agents.migrate.agents_server import RequestFailed, Server
from gateway.agents.migrate.letta_agent import LettaAgent, make_agent_file
from gateway.agents.registry.registry import Registry
from gateway.cli import main
from gateway.errors import Conflict
from storage.errors import StoreUnavailable
from storage.sql.agents_api.folder_files import Files
from storage.sql.transfer_import import ImportWriter
from tests.agents.letta import LettaWorld, letta, spoken
from tests.agents.plain_mcp import ALLOWED, CONFIG
from tests.doubles.letta_server import COOK, GARDENER, POSTMAN, LettaServer, RawAnswer, letta_server
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


@pytest.fixture
def source() -> Iterator[LettaServer]:
    with letta_server() as made:
        yield made


def move(world: LettaWorld, source: LettaServer, *options: str) -> int:
    to = ["--to", world.world.gateway.url, "--key", "sk-app"]
    return main(["from-letta", source.url, "--token", source.password, *to, *options])


def undashed(id: str) -> str:
    kind, _, uid = id.partition("-")
    return f"{kind}-{uid.replace('-', '')}"


def told(messages: Any) -> list[tuple[str, str]]:
    """What is said in messages, by its kind."""
    return [(m.message_type, getattr(m, "content", None) or getattr(m, "tool_return", "")) for m in messages]


@pytest.mark.both
def test_agents_come_with_all_that_they_remember(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    source.tells[f"/v1/agents/{POSTMAN}/archival-memory"][0]["metadata"] = {"round": 7}
    assert move(world, source) == 0
    out, err = capsys.readouterr()
    assert "3 moved, 0 here before, 0 not moved." in err
    assert "openai-proxy/scripted (3)" in err
    assert (
        f"{GARDENER} 'gardener': 10 messages, 1 further conversation, 2 passages, 2 blocks, 2 folders" in out
    )
    client = world.letta
    # By the ids that programs have stored.
    gardener = client.agents.retrieve(GARDENER)
    assert (gardener.name, gardener.system, sorted(gardener.tags)) == (
        "gardener", "You are a gardener.", ["gardener", "kept"],
    )  # fmt: skip
    assert gardener.created_at is not None
    assert gardener.created_at.isoformat().startswith("2026-11-23T05:20:04")
    # The window that it had there, and no settings that nobody made.
    assert gardener.llm_config.context_window == 30_000
    compaction = gardener.compaction_settings
    assert compaction is not None
    assert (compaction.mode, compaction.model, compaction.prompt) == ("sliding_window", None, None)
    assert client.agents.retrieve(POSTMAN).metadata == {"route": 7}
    # The messages that have left the window as well, in their order, without the summary in the user's name.
    first, *rest = spoken(client.agents.messages.list(GARDENER, order="asc", conversation_id="default"))
    said = told([first, *rest])
    assert first.date.isoformat() == "2026-11-23T05:20:07+00:00"
    asked = [text for kind, text in said if kind == "user_message"]
    assert asked == ["My roses are red.", "Water them at six.", "remember: I like tea", "What do I like?"]
    assert ("tool_return_message", "Name: Ann\nI like tea") in said
    (conversation,) = client.conversations.list(agent_id=GARDENER)
    assert conversation.id == undashed(source.tells[f"/v1/conversations/?agent_id={GARDENER}"][0]["id"])
    assert conversation.summary == "About cats"
    beside = told(spoken(client.conversations.messages.list(conversation.id, order="asc")))
    assert [text for kind, text in beside if kind == "user_message"] == ["My cat is called Miso."]
    (passage,) = client.agents.passages.list(POSTMAN)
    assert (passage.text, passage.tags) == ("Number 12 has a dog.", ["dogs"])
    assert passage.metadata == {"round": 7}
    assert passage.created_at.isoformat().startswith("2026-11-23T05:20:0")
    folders = {folder.name: folder.id for folder in client.agents.folders.list(GARDENER)}
    recorded = {each["name"]: undashed(each["id"]) for each in source.tells["/v1/agents/"][0]["sources"]}
    assert folders == recorded
    (file,) = client.folders.files.list(folders["plans"])
    assert file.file_name == "plans/beds.md"
    assert client.agents.retrieve(GARDENER).enable_sleeptime
    assert len(list(client.agents.list())) == 4, "three that were moved, and a sleeptime agent made anew"


def test_the_text_of_a_pdf_comes_as_a_file(world: LettaWorld, source: LettaServer) -> None:
    for path, files in source.tells.items():
        if path.endswith("/files"):
            for file in files:
                file |= {"original_file_name": "beds.pdf", "file_type": "application/pdf"}
    assert move(world, source, "--agent", GARDENER) == 0
    folders = {folder.name: folder.id for folder in world.letta.agents.folders.list(GARDENER)}
    (file,) = world.letta.folders.files.list(folders["plans"], include_content=True)
    assert (file.file_name, file.file_type) == ("plans/beds.pdf", "application/pdf")
    assert file.content == "# Beds\nRoses by the wall.\n"


def test_calls_of_a_reply_that_had_to_be_allowed_stand_with_its_others(
    world: LettaWorld, source: LettaServer
) -> None:
    """Letta's server keeps them as a message of their own, and the results of all after it."""
    add = {"name": "add", "arguments": "{}", "tool_call_id": "c1"}
    roll = {"name": "roll", "arguments": "{}", "tool_call_id": "c2"}
    returns = [
        {"tool_return": n, "tool_call_id": id, "status": "success"} for n, id in (("4", "c2"), ("9", "c1"))
    ]
    source.tells[f"/v1/agents/{POSTMAN}/messages"] = [
        listed("user_message", content="Roll."),
        listed("assistant_message", "message-2", content="Let me see."),
        listed("tool_call_message", "message-2", tool_calls=[add]),
        listed("approval_request_message", "message-3", tool_calls=[roll]),
        listed("approval_response_message", "message-4", approve=True),
        listed("tool_return_message", "message-5", tool_returns=returns),
        listed("assistant_message", "message-6", content="Four."),
    ]
    assert move(world, source, "--agent", POSTMAN) == 0
    messages = spoken(world.letta.agents.messages.list(POSTMAN, order="asc"))
    (called,) = (each for each in messages if each.message_type == "tool_call_message")
    assert [call.tool_call_id for call in called.tool_calls] == ["c1", "c2"]
    returned = [each.tool_return for each in messages if each.message_type == "tool_return_message"]
    assert returned == ["4", "9"]


def test_system_messages_come_without_the_compiled_prompt(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    source.tells[f"/v1/agents/{POSTMAN}/messages"] = [
        listed("system_message", content="You bring letters.\n\n<memory_blocks>…"),
        listed("system_message", "message-2", content="The user has come in."),
        listed("assistant_message", "message-3", content="Hello."),
        listed("system_message", "message-4", content="The user has left.", otid="o4"),
        listed("assistant_message", "message-5", content="Bye."),
    ]
    assert move(world, source, "--agent", POSTMAN) == 0
    assert "'postman': 4 messages" in capsys.readouterr().out
    messages = spoken(world.letta.agents.messages.list(POSTMAN, order="asc"))
    assert told(messages) == [
        ("system_message", "The user has come in."),
        ("assistant_message", "Hello."),
        ("system_message", "The user has left."),
        ("assistant_message", "Bye."),
    ]
    assert messages[2].otid == "o4"


def test_shared_blocks_are_shared_after_the_move(world: LettaWorld, source: LettaServer) -> None:
    assert move(world, source) == 0
    client = world.letta
    team = client.agents.blocks.retrieve("team", agent_id=GARDENER)
    recorded = {block["label"]: block["id"] for block in source.tells["/v1/agents/"][0]["blocks"]}
    assert team.id == undashed(recorded["team"])
    client.agents.blocks.update("team", agent_id=COOK, value="We have a pond, too.")
    assert client.agents.blocks.retrieve("team", agent_id=GARDENER).value == "We have a pond, too."
    own = client.agents.blocks.retrieve("human", agent_id=COOK)
    assert own.id != client.agents.blocks.retrieve("human", agent_id=GARDENER).id
    (archive,) = (each for each in client.archives.list() if each.name == "almanac")
    assert archive.id == undashed("archive-402d6e55-f4b1-42e6-9065-dd373d65456c")
    assert archive.description == "What both read."
    for agent in (GARDENER, COOK):
        found = client.agents.passages.search(agent, query="the shed").results
        assert [each.content for each in found] == ["The shed is green."]


def test_folders_beyond_those_that_an_agent_can_have_come_unattached_and_are_named(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [{"id": f"source-{n:08}-0000-4000-8000-000000000000", "name": f"f{n}"} for n in range(9)]
    source.tells |= {f"/v1/sources/{each['id']}/files": [] for each in sources}
    for agent in source.tells["/v1/agents/"]:
        agent["sources"] = sources
    assert move(world, source, "--agent", POSTMAN) == 0
    assert "; left out: folders.f7, folders.f8\n" in capsys.readouterr().out
    attached = world.letta.agents.folders
    assert {each.name for each in attached.list(POSTMAN)} == {f"f{n}" for n in range(7)}
    assert len(list(world.letta.folders.list())) == 9
    # The cook has an archive besides its own.
    assert move(world, source, "--agent", COOK) == 0
    assert "; left out: folders.f6, folders.f7, folders.f8\n" in capsys.readouterr().out
    assert len(list(attached.list(COOK))) == 6


def test_identities_come_with_their_ids(world: LettaWorld, source: LettaServer) -> None:
    plan = {"key": "plan", "value": "pro", "type": "string"}
    ann = {
        "id": "identity-166884a5-78bf-4ef4-99b1-ffe76e1f05ee", "identifier_key": "user_1", "name": "Ann",
        "identity_type": "user", "project_id": None, "agent_ids": [], "block_ids": [],
        "organization_id": "org-00000000-0000-4000-8000-000000000000", "properties": [plan],
    }  # fmt: skip
    team = {**ann, "id": "identity-0a721164-439c-4d16-b1a9-353ec7e3c111", "identifier_key": "team"}
    for each in source.tells["/v1/agents/"]:
        if each["id"] in (COOK, GARDENER):
            each["identities"] = [ann, team] if each["id"] == COOK else [ann]
    # One of the key is here already.
    body = {"identifier_key": "team", "name": "Ours", "identity_type": "org"}
    ours = world.ask("POST", "/v1/identities/", body)[1]
    assert move(world, source) == 0
    cook = world.letta.agents.retrieve(COOK)
    assert cook.identity_ids == [undashed(ann["id"]), ours["id"]]
    found = world.ask("GET", "/v1/agents/?identifier_keys=user_1&order=asc")[1]
    assert {each["id"] for each in found} == {undashed(COOK), undashed(GARDENER)}
    shown = world.ask("GET", f"/v1/identities/{ann['id']}")[1]
    assert (shown["name"], shown["identity_type"], shown["properties"]) == ("Ann", "user", [plan])
    assert world.ask("GET", "/v1/identities/count") == (200, 2)


def test_a_moved_conversation_goes_on(
    world: LettaWorld, source: LettaServer, upstream: StrictUpstream
) -> None:
    assert move(world, source, "--agent", GARDENER, "--model", "openai/m") == 0
    upstream.queue(say("Six."))
    reply = world.letta.agents.messages.create(GARDENER, input="When do I water them?")
    assert told(reply.messages) == [("assistant_message", "Six.")]
    body = upstream.chats[0].json  # the sleeptime agent may have asked meanwhile
    assert body["model"] == "m"
    assert "Name: Ann\nI like tea" in body["messages"][0]["content"]
    roles = [(m["role"], m.get("content")) for m in body["messages"][1:]]
    assert roles[0] == ("user", "My roses are red.")
    assert "evicted" not in orjson.dumps(body).decode()


@pytest.mark.both
def test_a_move_that_was_broken_off_goes_on(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    source.broken = {f"/v1/agents/{COOK}/messages"}
    assert move(world, source) == 1
    out, err = capsys.readouterr()
    assert f"{COOK} 'cook': not moved. {source.url} answered /v1/agents/{COOK}/messages with 500" in out
    assert "2 moved, 0 here before, 1 not moved." in err
    # What was changed here meanwhile stays, and whoever comes later shares it.
    world.letta.agents.blocks.update("team", agent_id=GARDENER, value="We sold the garden.")
    source.broken = set()
    assert move(world, source) == 0
    out, err = capsys.readouterr()
    assert f"{GARDENER} 'gardener': is here already" in out
    assert "1 moved, 2 here before, 0 not moved." in err
    assert world.letta.agents.blocks.retrieve("team", agent_id=COOK).value == "We sold the garden."
    assert len(list(world.letta.agents.list())) == 4
    assert len(list(world.letta.archives.list())) == len({a.id for a in world.letta.archives.list()})
    assert len([a for a in world.letta.archives.list() if a.name == "almanac"]) == 1


@pytest.mark.both
def test_an_archive_that_was_half_there_when_the_gateway_died_comes_whole(
    world: LettaWorld, source: LettaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/agents/{COOK}/archival-memory"
    first = source.tells[path][0]
    source.tells[path] = [{**first, "id": f"passage-{n}", "text": f"Frost {n}."} for n in range(300)]
    source.page = 1000

    async def dies(*_: object) -> None:
        raise StoreUnavailable("the gateway was killed")

    async def nothing(*_: object) -> None:
        pass

    with monkeypatch.context() as patch:
        # What a gateway that dies after some passages leaves.
        written = ImportWriter.write
        count = iter(range(2))

        async def write(self: ImportWriter, *what: Any) -> None:
            await (written(self, *what) if next(count, None) is not None else dies())

        patch.setattr(ImportWriter, "write", write)
        patch.setattr(AgentImport, "_roll_back", nothing)
        assert move(world, source, "--agent", COOK) == 1
    assert list(world.letta.archives.list()) == []
    assert move(world, source, "--agent", COOK) == 0
    exported = orjson.loads(world.letta.agents.export_file(COOK))
    (kept,) = next(iter(orjson.loads(exported["metadata"]["mnemogate"])["agents"].values()))["archives"]
    assert len(kept["passages"]) == 300


@pytest.mark.both
def test_a_folder_that_was_half_there_when_the_gateway_died_comes_whole(
    world: LettaWorld, source: LettaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (path for path, said in source.tells.items() if path.endswith("/files") and said)
    (file,) = source.tells[path]
    source.tells[path] = [{**file, "id": f"file-{n}", "content": f"Row {n}.\n" * 300} for n in range(3)]

    async def nothing(*_: object) -> None:
        pass

    with monkeypatch.context() as patch:
        added = Files.add
        count = iter(range(2))

        async def add(self: Files, draft: Any, **options: Any) -> Any:
            if next(count, None) is None:
                raise StoreUnavailable("the gateway was killed")
            return await added(self, draft, **options)

        patch.setattr(Files, "add", add)
        patch.setattr(AgentImport, "_roll_back", nothing)
        assert move(world, source, "--agent", GARDENER) == 1
        assert next(count, None) is None  # two files were there
    assert "plans" not in {folder.name for folder in world.letta.folders.list()}
    assert move(world, source, "--agent", GARDENER) == 0
    folders = {folder.name: folder.id for folder in world.letta.agents.folders.list(GARDENER)}
    files = world.letta.folders.files.list(folders["plans"], include_content=True, order="asc")
    assert [each.content for each in files] == [f"Row {n}.\n" * 300 for n in range(3)]
    more = world.letta.folders.files.upload(folders["plans"], file=("more.md", b"More."))
    assert more.processing_status == "completed"
    found = world.letta._client.get(f"/v1/folders/{folders['plans']}/passages").json()
    assert len({each["id"] for each in found}) == len(found)


def test_an_older_server_has_fewer_lists(world: LettaWorld, source: LettaServer) -> None:
    """0.11.7 has no archives and no conversations, and shows blocks within `memory`."""
    for path in [*source.tells]:
        if "archives" in path or "conversations" in path:
            del source.tells[path]
    for agent in source.tells["/v1/agents/"]:
        agent["memory"] = {"blocks": agent.pop("blocks")}
        agent["tool_exec_environment_variables"] = [{"key": "TOKEN", "value": ""}]
        del agent["secrets"]
    assert move(world, source) == 0
    assert world.letta.agents.blocks.retrieve("human", agent_id=GARDENER).value == "Name: Ann\nI like tea"
    assert [each.text for each in world.letta.agents.passages.list(POSTMAN)] == ["Number 12 has a dog."]


def test_an_address_that_ends_with_v1_is_the_server(world: LettaWorld, source: LettaServer) -> None:
    """As OpenAI's SDKs have it in their base URL."""
    to = ["--to", f"{world.world.gateway.url}/v1/", "--key", "sk-app", "--agent", COOK]
    assert main(["from-letta", f"{source.url}/v1", "--token", source.password, *to]) == 0
    assert world.letta.agents.retrieve(COOK).name == "cook"


def test_a_move_names_what_it_cannot_do(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert move(world, source, "--agent", "agent-gone") == 1
    assert "has no agent agent-gone" in capsys.readouterr().err
    source.password = "another"
    assert main(["from-letta", source.url, "--token", "wrong"]) == 1
    err = capsys.readouterr().err
    assert "/v1/agents/ with 401" in err
    assert "wrong" not in err
    assert main(["from-letta", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1 did not answer" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["from-letta", "letta:8283"])
    assert "expected http://HOST:PORT" in capsys.readouterr().err
    source.tells[f"/v1/agents/{COOK}/messages"] = [{"id": "message-1"}]
    assert move(world, source, "--agent", COOK) == 1
    assert "in another form than Letta 0.16" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer",
    [
        {"agents": []},
        [{"name": "no id"}],
        [{"id": ["agent"]}],
        [{"id": COOK, "memory": "none"}],
        [{"id": COOK, "multi_agent_group": {"manager_type": "sleeptime", "agent_ids": [[]]}}],
        RawAnswer(b"[" * 100_000),
        RawAnswer(b"<html>\x1b]0;owned\x07</html>"),
    ],
)
def test_an_answer_of_another_kind_is_named(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    source.tells["/v1/agents/"] = answer
    assert move(world, source) == 1
    err = capsys.readouterr().err
    assert "has answered in another form" in err or "did not answer /v1/agents/ with JSON" in err


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v1/agents/import", {}),
        ("/v1/agents/import", RawAnswer(b"[]")),
        ("/v1/agents/import", {"agent_ids": [undashed(COOK)], "mnemogate": {"left_out": [[]]}}),
        (f"/v1/agents/{COOK}", {"id": COOK, "managed_group": {"id": "group-1"}}),
        (f"/v1/agents/{COOK}", RawAnswer(b"[]")),
    ],
)
def test_an_answer_of_another_kind_is_the_gateways_and_the_next_agent_is_tried(
    source: LettaServer, capsys: pytest.CaptureFixture[str], path: str, answer: Any
) -> None:
    with letta_server() as target:
        target.tells = {path: answer}
        to = ["--to", target.url, "--key", target.password, "--agent", COOK, "--agent", POSTMAN]
        assert main(["from-letta", source.url, "--token", source.password, *to]) == 1
    out, err = capsys.readouterr()
    assert f"{target.url} has answered in another form than Mnemogate" in out
    assert f"{POSTMAN} 'postman': not moved. {target.url}" in out
    assert "0 moved, 0 here before, 2 not moved." in err


@pytest.mark.parametrize("agent_ids", [(), (COOK, POSTMAN)], ids=["all", "named"])
def test_an_agent_of_unknown_archives_is_reported_and_the_others_come(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str], agent_ids: tuple[str, ...]
) -> None:
    source.broken.add(f"/v1/archives/?agent_id={COOK}")
    assert move(world, source, *(option for id in agent_ids for option in ("--agent", id))) == 1
    out, err = capsys.readouterr()
    assert f"{COOK} 'cook': not moved. {source.url} answered /v1/archives/ with 500" in out
    others = 1 if agent_ids else 2
    assert f"{others} moved, 0 here before, 1 not moved." in err
    source.broken.clear()
    assert move(world, source) == 0
    # The two agents share the archive, though the first came while the second one's archives were not known.
    (archive,) = world.letta.archives.list(agent_id=undashed(COOK))
    assert [each.id for each in world.letta.archives.list(agent_id=undashed(GARDENER))] == [archive.id]


def test_a_failed_look_up_at_the_gateway_is_reported_and_the_others_are_tried(
    source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with letta_server() as target:
        target.tells = {f"/v1/agents/{POSTMAN}": {"id": POSTMAN}}
        target.broken.add(f"/v1/agents/{COOK}")
        to = ["--to", target.url, "--key", target.password, "--agent", COOK, "--agent", POSTMAN]
        assert main(["from-letta", source.url, "--token", source.password, *to]) == 1
    out, err = capsys.readouterr()
    assert f"{COOK} 'cook': not moved. {target.url} answered /v1/agents/{COOK} with 500" in out
    assert f"{POSTMAN} 'postman': is here already" in out
    assert "0 moved, 1 here before, 1 not moved." in err


def test_a_server_does_not_write_to_the_terminal(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = "\x1b]0;owned\x07\nagent-1: moved"
    for agent in source.tells["/v1/agents/"]:
        agent["name"] = bad
    source.tells[f"/v1/agents/{COOK}/messages"] = [{"id": "message-1", "message_type": bad, "content": ""}]
    source.refusal = {"detail": bad}
    assert move(world, source, "--agent", COOK) == 1
    source.password = "another"
    assert main(["from-letta", source.url, "--token", "old-password"]) == 1
    said = "".join(capsys.readouterr())
    assert "owned" in said
    assert "\x1b" not in said
    assert "\x07" not in said
    assert not any(line.startswith("agent-1") for line in said.splitlines())


def test_a_gateway_that_does_not_answer_ends_the_move(
    source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ["--to", "http://127.0.0.1:1"]
    assert main(["from-letta", source.url, "--token", source.password, *to]) == 1
    out, err = capsys.readouterr()
    assert (out, "http://127.0.0.1:1 did not answer" in err) == ("", True)


@pytest.mark.parametrize("key", ["mg-secret\r", "mg-secret\u0431"])
def test_a_key_that_no_request_carries_is_not_quoted(
    source: LettaServer, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    to = ["--to", source.url]
    assert main(["from-letta", source.url, "--token", key, *to]) == 1
    assert main(["from-letta", source.url, "--token", source.password, *to, "--key", key]) == 1
    said = "".join(capsys.readouterr())
    assert said.count("cannot be asked") == 2
    assert "secret" not in said


def test_hidden_agents_come_and_stay_hidden(world: LettaWorld, source: LettaServer) -> None:
    source.tells["/v1/agents/"][-1]["hidden"] = True
    assert move(world, source) == 0
    assert world.letta.agents.retrieve(POSTMAN).hidden
    assert POSTMAN not in [each.id for each in world.letta.agents.list()]


def test_names_that_an_agent_here_cannot_have_are_made_to_fit(world: LettaWorld, source: LettaServer) -> None:
    source.tells["/v1/agents/"][-1]["name"] = ""
    source.tells["/v1/agents/"][0]["name"] = "g" * 300
    assert move(world, source) == 0
    assert world.letta.agents.retrieve(POSTMAN).name == POSTMAN
    assert world.letta.agents.retrieve(GARDENER).name == "g" * 200


def test_a_passage_without_a_text_is_none(world: LettaWorld, source: LettaServer) -> None:
    path = f"/v1/agents/{POSTMAN}/archival-memory"
    source.tells[path].insert(0, {**source.tells[path][0], "id": "passage-1", "text": ""})
    assert move(world, source, "--agent", POSTMAN) == 0
    assert [each.text for each in world.letta.agents.passages.list(POSTMAN)] == ["Number 12 has a dog."]


def test_a_conversation_keeps_the_model_of_its_own(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (said,) = source.tells[f"/v1/conversations/?agent_id={GARDENER}"]
    said |= {"model": "openai/large", "model_settings": {"provider_type": "openai", "temperature": 0.1}}
    said["isolated_block_ids"] = ["block-1"]
    assert move(world, source, "--agent", GARDENER) == 0
    (conversation,) = world.letta.conversations.list(agent_id=GARDENER)
    assert conversation.model == "openai/large"
    assert conversation.model_settings["temperature"] == 0.1
    out, err = capsys.readouterr()
    assert "left out: tools.open_files, isolated blocks of conversations" in out
    assert "openai-proxy/scripted (1), openai/large (1)" in err
    world.letta.agents.delete(GARDENER)
    assert move(world, source, "--agent", GARDENER, "--model", "openai/m") == 0
    (conversation,) = world.letta.conversations.list(agent_id=GARDENER)
    assert conversation.model is None
    assert "Their models: openai/m (1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (
            {
                "mode": "all",
                "model": "openai/gpt-5-mini",
                "prompt": "Your task is to create a detailed summary of the conversation so far, …",
            },
            {"mode": "all"},
        ),
        ({"model": "openai/gpt-5-mini", "prompt": "Mine."}, {"prompt": "Mine."}),
        (
            {"model": "openai/mine", "prompt": "The following messages are being evicted …"},
            {"model": "openai/mine"},
        ),
    ],
)
def test_only_the_users_text_of_a_compaction_comes(settings: dict[str, Any], kept: dict[str, Any]) -> None:
    state = {"id": GARDENER, "name": "x", "compaction_settings": settings}
    (agent,) = orjson.loads(make_agent_file(LettaAgent(state)))["agents"]
    assert agent["compaction_settings"] == kept


def test_a_tool_that_is_here_stays_as_it_is(world: LettaWorld, source: LettaServer) -> None:
    """Somebody may have made it run here, while only some of the agents were moved."""
    schema = {"name": "roll", "description": "Old.", "parameters": {"type": "object", "properties": {}}}
    roll = {"id": "tool-1", "name": "roll", "tool_type": "custom", "source_type": "json", "source_code": ""}
    for agent in source.tells["/v1/agents/"]:
        agent["tools"].append({**roll, "json_schema": schema})
    made = world.letta.tools.create(
        source_type="json", source_code="", json_schema={**schema, "description": "Mended."}
    )
    assert move(world, source) == 0
    (tool,) = (each for each in world.letta.agents.tools.list(COOK) if each.name == "roll")
    assert (tool.id, tool.description) == (made.id, "Mended.")


def test_a_tool_that_cannot_run_here_comes_and_is_named(
    world: LettaWorld, source: LettaServer, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = {"name": "roll", "description": "Rolls.", "parameters": {"type": "object", "properties": {}}}
    roll = {"id": "tool-1", "name": "roll", "tool_type": "custom", "json_schema": schema}
    for agent in source.tells["/v1/agents/"]:
        agent["tools"].append(
            {**roll, "source_type": "typescript", "source_code": "export function roll() {}"}
        )
    assert move(world, source, "--agent", COOK) == 0
    assert "; cannot run here: roll (typescript)\n" in capsys.readouterr().out
    assert "roll" in [tool.name for tool in world.letta.agents.tools.list(COOK)]


def test_a_tool_of_an_mcp_server_is_the_one_that_has_its_name_here(
    upstream: StrictUpstream, source: LettaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
    said = {"metadata_": {"mcp": {"server_name": "sums", "server_id": "mcp_server-1"}}, "tags": ["mcp:sums"]}
    add = {"id": "tool-1", "name": "add", "tool_type": "external_mcp", "json_schema": schema, **said}
    for agent in source.tells["/v1/agents/"]:
        agent["tools"].append(add)
    with letta(upstream, tmp_path, tools=ALLOWED) as world:
        assert move(world, source, "--agent", POSTMAN) == 0
        assert "; left out: tools.add (of the MCP server 'sums')\n" in capsys.readouterr().out
        world.letta.mcp_servers.create(server_name="calc", config=CONFIG)
        assert move(world, source, "--agent", COOK) == 0
        assert "left out: tools.add" not in capsys.readouterr().out
        upstream.queue(call_tools(Call("add", {"a": 3, "b": 4})), say("Seven."))
        reply = world.letta.agents.messages.create(COOK, input="3 + 4?")
        assert [m.tool_return for m in reply.messages if m.message_type == "tool_return_message"] == ["7"]


@pytest.mark.both
def test_an_agent_whose_gateway_died_before_it_had_a_sleeptime_agent_gets_one(
    world: LettaWorld,
    source: LettaServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def dies(*_: object) -> None:
        raise StoreUnavailable("the gateway was killed")

    async def nothing(*_: object) -> None:
        pass

    async def refuses(*_: object) -> None:
        raise Conflict("not now")

    with monkeypatch.context() as patch:
        patch.setattr(AgentImport, "_turn_sleeptime_on", dies)
        patch.setattr(AgentImport, "_roll_back", nothing)
        assert move(world, source, "--agent", GARDENER) == 1
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "change", refuses)
        assert move(world, source, "--agent", GARDENER, "--agent", COOK) == 1
    out = capsys.readouterr().out
    assert "is here already, perhaps without its sleeptime agent. " in out
    assert f"{COOK} 'cook': " in out
    assert move(world, source, "--agent", GARDENER) == 0
    assert "is here already, and has its sleeptime agent now\n" in capsys.readouterr().out
    group = world.letta.agents.retrieve(GARDENER).managed_group
    assert group is not None
    (reader,) = group.agent_ids
    assert world.letta.agents.retrieve(reader).name == "gardener-sleeptime"
    assert move(world, source, "--agent", GARDENER) == 0
    assert "is here already\n" in capsys.readouterr().out


def test_a_list_without_an_end_is_not_followed() -> None:
    """As of a server that does not know `after` as the newer ones mean it."""

    class Circling(Server):
        def get(self, path: str, query: Any = None) -> Any:
            return [{"id": "b" if query.get("after") == "a" else "a"}]

    with pytest.raises(RequestFailed, match="pages that have no end"):
        list(Circling("http://old").list_all("/v1/agents/", {}))


def test_an_id_that_is_none_of_lettas_is_refused(world: LettaWorld) -> None:
    state = {"id": "agent-0", "name": "x", "agent_type": "letta_v1_agent"}
    form = {"file": ("a.af", make_agent_file(LettaAgent(state)), "application/json")}
    reply = world.letta._client.post("/v1/agents/import", files=form)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "file", "agents", 0, "id"]


def test_two_parts_of_a_file_have_no_common_id(world: LettaWorld) -> None:
    uid = "0" * 32
    block = {"id": f"block-{uid}", "label": "human", "value": "x", "tags": ["a"]}
    state = {"id": GARDENER, "name": "x", "llm_config": {"model": "m"}, "blocks": [block]}
    source = {"id": f"source-{uid}", "name": "Plants"}
    form = {"file": ("a.af", make_agent_file(LettaAgent({**state, "sources": [source]})), "application/json")}
    reply = world.letta._client.post("/v1/agents/import", files=form)
    assert (reply.status_code, reply.json()["detail"]) == (409, f"The block '{uid}' is there already.")
    assert list(world.letta.agents.list()) == []


def test_an_agent_whose_id_is_taken_is_not_overwritten(world: LettaWorld, source: LettaServer) -> None:
    assert move(world, source, "--agent", POSTMAN) == 0
    state = source.tells["/v1/agents/"][-1]
    assert state["id"] == POSTMAN
    form = {"file": ("a.af", make_agent_file(LettaAgent(state)), "application/json")}
    assert world.letta._client.post("/v1/agents/import", files=form).status_code == 409
    assert len(list(world.letta.agents.list())) == 1


def test_a_moved_voice_agent_has_the_window_of_its_group() -> None:
    window = {"max_message_buffer_length": 60, "min_message_buffer_length": 20}
    group = {"manager_type": "voice_sleeptime", "agent_ids": [], **window}
    state = {"id": GARDENER, "name": "x", "agent_type": "voice_convo_agent", "multi_agent_group": group}
    (agent,) = read_file(make_agent_file(LettaAgent(state)), ImportForm(), now=0.0).agents
    assert (agent.definition.most_messages, agent.definition.least_messages) == (60, 20)


def listed(kind: str, id: str = "message-1", **more: Any) -> dict[str, Any]:
    return {"id": id, "message_type": kind, "date": "2026-11-23T05:20:05+00:00", **more}


def in_file(*messages: dict[str, Any]) -> Any:
    state = {"id": GARDENER, "name": "x", "agent_type": "letta_v1_agent"}
    (agent,) = orjson.loads(make_agent_file(LettaAgent(state, messages)))["agents"]
    return agent["messages"]


def test_parts_of_one_message_become_one() -> None:
    call = {"name": "send_mail", "arguments": "{}", "tool_call_id": "c1"}
    made = in_file(
        listed("reasoning_message", reasoning="Hm.", signature="s"),
        listed("hidden_reasoning_message", hidden_reasoning="x", state="redacted"),
        listed("assistant_message", content="One moment."),
        listed("approval_request_message", tool_call=call),
        listed("approval_response_message", "message-2", approve=True),
        listed(
            "tool_return_message", "message-3", tool_return={"ok": 1}, tool_call_id="c1", status="success"
        ),
        listed("user_message", "message-4", content=[{"type": "text", "text": "Thanks."}], otid="o"),
    )
    assert [each["role"] for each in made] == ["approval", "tool", "user"]
    assert made[0]["content"] == [
        {"type": "reasoning", "reasoning": "Hm.", "signature": "s"},
        {"type": "redacted_reasoning", "data": "x"},
        {"type": "text", "text": "One moment."},
    ]
    assert made[0]["tool_calls"] == [{"id": "c1", "function": {"name": "send_mail", "arguments": "{}"}}]
    assert made[1]["tool_returns"][0]["func_response"] == '{"ok":1}'
    assert (made[2]["content"], made[2]["otid"]) == ([{"type": "text", "text": "Thanks."}], "o")


def test_calls_and_results_that_are_listed_one_by_one_all_stay() -> None:
    made = in_file(
        *(
            listed(
                "tool_call_message", tool_call={"tool_call_id": call_id, "name": "look", "arguments": "{}"}
            )
            for call_id in "ab"
        ),
        *(
            listed(
                "tool_return_message", "message-2", tool_return="x", tool_call_id=call_id, status="success"
            )
            for call_id in "ab"
        ),
    )
    assert [call["id"] for call in made[0]["tool_calls"]] == ["a", "b"]
    assert [result["tool_call_id"] for result in made[1]["tool_returns"]] == ["a", "b"]


def test_a_summary_in_the_users_name_is_none_of_the_users_words() -> None:
    summary = orjson.dumps({"type": "system_alert", "message": "Note: …"}).decode()
    said = in_file(
        listed("user_message", content=summary),
        listed("user_message", "message-2", content='{"type": "note"}'),
        listed("user_message", "message-3", content="{ I like braces"),
    )
    assert [each["id"] for each in said] == ["message-2", "message-3"]


def test_a_message_of_an_unknown_type_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="hologram_message"):
        in_file(listed("hologram_message"))
