"""Folders and files by the client's own methods, and an agent that searches them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from letta_client import APIStatusError, BadRequestError, ConflictError, NotFoundError
from letta_client.types import Folder

from gateway.agents.api._route import read_uid
from gateway.agents.files.folder_contents import FolderContents
from gateway.agents.files.folders import Folders
from gateway.agents.tools import file_tools
from gateway.agents.tools.file_tools import SEARCH_UNAVAILABLE
from gateway.run.tools.searches import INCOMPLETE
from storage.definition_records import DefinitionKind
from storage.errors import NotFound, StoreUnavailable
from storage.forget_commands import ForgetTarget
from storage.sql.agents_api.folder_files import Files
from tests.agents.letta import LettaWorld, letta
from tests.agents.test_recall_memory import make_late
from tests.doubles.upstream import Call, StrictUpstream, call_tools, say
from tests.patience import SHORT_S
from tests.storage.api import bytes_in

PLAN = "# Plan\n\nThe boat is called Albatross.\n\nIt sails on Friday.\n"


@pytest.fixture
def world(upstream: StrictUpstream, tmp_path: Path) -> Iterator[LettaWorld]:
    with letta(upstream, tmp_path) as made:
        yield made


def folder(world: LettaWorld, name: str = "notes", **files: str) -> Folder:
    made = world.letta.folders.create(name=name)
    for file, text in files.items():
        world.letta.folders.files.upload(made.id, file=(f"{file}.md", text.encode(), "text/markdown"))
    return made


def results(world: LettaWorld) -> list[str]:
    """What tools answered, as the model was sent it last."""
    return [m["content"] for m in world.upstream.requests[-1].json["messages"] if m["role"] == "tool"]


def ask(world: LettaWorld, agent: str, tool: str, **arguments: Any) -> str:
    world.upstream.queue(call_tools(Call(tool, orjson.dumps(arguments).decode())), say("Done."))
    world.letta.agents.messages.create(agent, input="Look it up.")
    return results(world)[-1]


@pytest.mark.parametrize("query", ["boat", ""])
def test_a_model_finds_nothing_of_a_file_that_is_being_deleted(world: LettaWorld, query: str) -> None:
    """Its text goes a page at a time, and later where the process ends meanwhile."""
    agent = world.agent(name="vera", tools=["recall_memory", "archival_memory_search"])
    made = folder(world, plan="The boat was built in 1954.", notes="A boat needs a name.")
    world.letta.agents.folders.attach(made.id, agent_id=agent.id)
    [(file, memory)] = world.world.query("SELECT id, memory FROM files WHERE name = 'plan.md'")
    world.world.gateway.call(world.world.store.forgetting.begin(memory, ForgetTarget(file_rows=[file])))
    found = ask(world, agent.id, "archival_memory_search", query=query)
    assert "needs a name" in found
    assert "1954" not in found


def test_folders_are_made_listed_changed_and_deleted(world: LettaWorld) -> None:
    folders = world.letta.folders
    one = folders.create(name="one", description="d", instructions="i", metadata={"a": 1})
    two = folders.create(name="two", embedding_config={})  # type: ignore[arg-type]
    assert two.embedding_config.embedding_dim == 0  # which the client's type demands
    assert one.id.startswith("source-")
    assert (one.description, one.instructions, one.metadata) == ("d", "i", {"a": 1})
    assert [each.id for each in folders.list(order="asc", limit=1)] == [one.id, two.id]
    # 0.16.8 lists folders oldest first where the query says nothing, unlike most of its lists.
    assert [each.id for each in folders.list(limit=1)] == [one.id, two.id]
    assert [each.id for each in folders.list(order="desc")] == [two.id, one.id]
    assert [each.id for each in folders.list(name="two")] == [two.id]
    assert folders.update(one.id, name="uno").description == "d"
    with pytest.raises(ConflictError):
        folders.create(name="uno")
    with pytest.raises(ConflictError):
        folders.update(one.id, name="two")
    folders.delete(one.id)
    with pytest.raises(NotFoundError):
        folders.retrieve(one.id)
    assert [each.id for each in folders.list()] == [two.id]


def test_a_file_is_saved_shown_as_it_was_and_forgotten(world: LettaWorld) -> None:
    made, files = folder(world), world.letta.folders.files
    text = "Ein Fährmann.\r\n\n  " + "Satz um Satz. " * 400
    file = files.upload(made.id, file=("a.md", text.encode(), "text/markdown"))
    assert (file.file_name, file.original_file_name, file.file_size) == (
        "notes/a.md",
        "a.md",
        len(text.encode()),
    )
    assert (file.processing_status, file.source_id) == ("completed", made.id)
    assert file.total_chunks is not None
    assert file.total_chunks > 2
    assert files.retrieve(file.id, folder_id=made.id).content is None
    assert files.retrieve(file.id, folder_id=made.id, include_content=True).content == text
    other = files.upload(made.id, file=("b.txt", b"\xff\xfe" + "Größe".encode("utf-16-le"), "text/plain"))
    assert [each.content for each in files.list(made.id, order="asc", include_content=True)] == [
        text,
        "Größe",
    ]
    assert [each.id for each in files.list(made.id, order="desc", limit=1)] == [other.id, file.id]
    files.delete(file.id, folder_id=made.id)
    with pytest.raises(NotFoundError):
        files.retrieve(file.id, folder_id=made.id)
    assert [each.id for each in files.list(made.id)] == [other.id]


@pytest.mark.parametrize(
    ("name", "data", "type"),
    [
        ("a.pdf", b"%PDF-1.4 text", "text/plain"),
        ("a.png", b"plain", "image/png"),
        ("a.bin", b"a\0b", "text/plain"),
        ("a.txt", "Größe".encode("latin-1"), "text/plain"),
    ],
)
def test_a_file_that_is_no_text_is_refused(world: LettaWorld, name: str, data: bytes, type: str) -> None:
    made = folder(world)
    with pytest.raises(APIStatusError, match="no text that can be read") as error:
        world.letta.folders.files.upload(made.id, file=(name, data, type))
    assert error.value.status_code == 415
    assert list(world.letta.folders.files.list(made.id)) == []


def test_a_file_too_large_and_one_without_a_name_are_refused(world: LettaWorld) -> None:
    made, upload = folder(world), world.letta.folders.files.upload
    with pytest.raises(APIStatusError, match="at most 10000000 bytes") as error:
        upload(made.id, file=("a.txt", b"x" * 10_000_001, "text/plain"))
    assert error.value.status_code == 413
    with pytest.raises(BadRequestError, match="Name the file"):
        upload(made.id, file=("../..", b"x", "text/plain"))
    status, said = world.ask("POST", f"/v1/folders/{made.id}/upload", {})
    assert (status, said["detail"][0]["type"]) == (422, "form_invalid")


def test_a_name_that_is_taken_is_handled_as_it_is_asked(world: LettaWorld) -> None:
    made, files = folder(world, plan=PLAN), world.letta.folders.files
    (first,) = files.list(made.id)

    def again(**options: Any) -> Any:
        return files.upload(made.id, file=("plan.md", b"new", "text/markdown"), **options)

    assert again(duplicate_handling="skip").id == first.id
    with pytest.raises(ConflictError):
        again(duplicate_handling="error")
    assert again().original_file_name == "plan_(1).md"
    assert again().original_file_name == "plan_(2).md"
    assert again(name="other.md").original_file_name == "other.md"
    replaced = again(duplicate_handling="replace")
    assert (replaced.original_file_name, replaced.id == first.id) == ("plan.md", False)
    with pytest.raises(NotFoundError):
        files.retrieve(first.id, folder_id=made.id)


def test_a_file_that_cannot_be_saved_replaces_none(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, files = folder(world, plan=PLAN), world.letta.folders.files
    (first,) = files.list(made.id)

    def again(text: str) -> Any:
        sent = ("plan.md", text.encode(), "text/markdown")
        return files.upload(made.id, file=sent, duplicate_handling="replace")

    async def write(*_: Any) -> None:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Files, "add_parts", write)
        with pytest.raises(APIStatusError) as error:
            again("lost")
    assert error.value.status_code == 503
    assert [each.id for each in files.list(made.id)] == [first.id]
    assert files.retrieve(first.id, folder_id=made.id, include_content=True).content == PLAN
    # One that was not removed is removed with the next.
    with monkeypatch.context() as patch:
        patch.setattr(FolderContents, "remove", write)
        with pytest.raises(APIStatusError):
            again("two")
    assert len(list(files.list(made.id))) == 2
    again("three")
    assert [each.content for each in files.list(made.id, include_content=True)] == ["three"]


def test_files_of_one_name_in_two_directories_are_two(world: LettaWorld) -> None:
    """As Letta's example has it that keeps a directory in a folder."""
    made, files = folder(world), world.letta.folders.files
    for directory in ("docs", "v1.2/src", "docs"):
        sent = ("/home/ann/readme.md", directory.encode(), "text/markdown")
        files.upload(made.id, file=sent, name=f"{directory}/readme.md", duplicate_handling="replace")
    names = [each.original_file_name for each in files.list(made.id, order="asc")]
    assert names == ["v1.2/src/readme.md", "docs/readme.md"]
    again = files.upload(made.id, file=("x", b"new", "text/markdown"), name="v1.2/src/readme.md")
    assert again.original_file_name == "v1.2/src/readme_(1).md"
    plain = files.upload(made.id, file=("/home/ann/readme.md", b"new", "text/markdown"))
    assert plain.original_file_name == "readme.md"


def test_an_agent_has_the_tools_of_files_while_it_has_a_folder(world: LettaWorld) -> None:
    notes, more = folder(world, plan=PLAN), folder(world, "more")
    agent, agents = world.agent(folder_ids=[notes.id]), world.letta.agents
    reads = {"grep_files", "semantic_search_files"}

    def tools() -> set[str]:
        return reads & {tool.name or "" for tool in agents.retrieve(agent.id).tools}

    assert tools() == reads
    assert [each.id for each in agent.sources] == [notes.id]
    agents.folders.attach(more.id, agent_id=agent.id)
    assert [each.id for each in agents.folders.list(agent.id, order="asc")] == [notes.id, more.id]
    assert [list(each) for each in [world.letta.folders.agents.list(more.id)]] == [[agent.id]]
    assert [each.file_name for each in agents.files.list(agent.id)] == ["notes/plan.md"]
    agents.folders.detach(notes.id, agent_id=agent.id)
    assert tools() == reads
    world.letta.folders.delete(more.id)
    assert tools() == set()
    agents.update(agent.id, extra_body={"source_ids": [notes.id]})
    assert tools() == reads
    agents.update(agent.id, folder_ids=[])
    assert (tools(), agents.retrieve(agent.id).sources) == (set(), [])
    with pytest.raises(BadRequestError, match="not held in the prompt"):
        agents.files.close_all(agent.id)


def test_the_files_of_an_agent_come_in_pages(world: LettaWorld) -> None:
    notes = folder(world, a="one", b="two", c="three")
    agent, files = world.agent(folder_ids=[notes.id]), world.letta.agents.files
    for order in ("asc", "desc"):
        first = files.list(agent.id, order=order, limit=2)
        second = first.get_next_page()
        ids = [each.id for each in (*first.files, *second.files)]
        assert (len(set(ids)), first.has_more, first.next_cursor) == (3, True, ids[1])
        behind = files.list(agent.id, order=order, after=ids[-1])
        for page in (second, behind):
            assert (page.has_more, page.next_cursor) == (False, None)


def test_an_agent_searches_its_files(world: LettaWorld) -> None:
    notes = folder(world, plan=PLAN, other="Nothing of that kind.\n")
    folder(world, "secret", key="The boat is sold.")
    agent = world.agent(folder_ids=[notes.id])
    assert ask(world, agent.id, "semantic_search_files", query="boat") == f"- [notes/plan.md] {PLAN.strip()}"
    found = ask(world, agent.id, "grep_files", pattern="albatr.ss")
    assert found == "notes/plan.md:3\n  2: \n> 3: The boat is called Albatross.\n  4: "
    assert ask(world, agent.id, "grep_files", pattern="kind", include="plan*") == "Nothing was found."
    assert ask(world, agent.id, "grep_files", pattern="kind", include="x*").startswith("No file fits")
    assert "no regular expression" in ask(world, agent.id, "grep_files", pattern="(")
    assert "300 characters at most" in ask(world, agent.id, "grep_files", pattern="a", include="x*" * 200)
    uid = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    assert ask(world, agent.id, "grep_files", pattern=uid) == "Nothing was found."
    found_by_search = world.letta.agents.passages.search(agent.id, query="boat").results
    assert [each.content for each in found_by_search] == [PLAN]
    world.letta.agents.folders.detach(notes.id, agent_id=agent.id)
    assert list(world.letta.agents.passages.search(agent.id, query="boat").results) == []


def test_a_folder_that_is_deleted_while_it_is_read_is_not_found(world: LettaWorld) -> None:
    made, store, call = folder(world), world.world.store, world.world.gateway.call
    found = call(store.definitions.get("default", DefinitionKind.FOLDER, read_uid("source", made.id)))
    world.letta.folders.delete(made.id)
    registry: Any = world.world.gateway.app.services.agents.registry
    with pytest.raises(NotFound):
        call(Folders(store, registry, world.world.clock).load_memory(found))


def test_a_folder_that_cannot_be_searched_takes_nothing_from_the_others(world: LettaWorld) -> None:
    notes, more = folder(world, plan=PLAN), folder(world, "more", boats="A boat needs a name.")
    agent, late = world.agent(folder_ids=[notes.id, more.id]), {notes.id}
    make_late(world, late)
    found = ask(world, agent.id, "semantic_search_files", query="boat")
    assert found.splitlines() == ["- [more/boats.md] A boat needs a name.", INCOMPLETE]
    late.add(more.id)
    assert ask(world, agent.id, "semantic_search_files", query="boat") == SEARCH_UNAVAILABLE


def test_many_matches_are_shown_a_page_at_a_time_and_long_lines_are_cut(world: LettaWorld) -> None:
    lines = [f"line {n} {'x' * 400}" for n in range(50)]
    notes = folder(world, long="\n".join(lines))
    agent = world.agent(folder_ids=[notes.id])
    first = ask(world, agent.id, "grep_files", pattern="line", context_lines=0)
    assert first.count("> ") == 20
    assert "offset 20" in first
    assert max(map(len, first.splitlines())) < 320
    last = ask(world, agent.id, "grep_files", pattern="line", context_lines=0, offset=40)
    assert (last.count("> "), "offset" in last) == (10, False)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "((a{1,100}){1,100}){1,100}b", "(a|b)*c"])
def test_a_pattern_that_takes_time_or_memory_without_end_ends(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(file_tools, "_GREP_S", SHORT_S)
    notes = folder(world, evil="a" * 3_000_000 + "!")
    agent = world.agent(folder_ids=[notes.id])
    assert "longer than a second, or too much memory" in ask(world, agent.id, "grep_files", pattern=pattern)


def test_matches_before_a_grep_is_stopped_are_shown_as_incomplete(
    world: LettaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_tools, "_GREP_S", 4 * SHORT_S)  # also for the first file
    notes = folder(world, calm="aaa", evil="a" * 3_000_000 + "!")
    agent = world.agent(folder_ids=[notes.id])
    first, match, end = ask(world, agent.id, "grep_files", pattern="(a+)+$").splitlines()
    assert (first, match) == ("notes/calm.md:1", "> 1: aaa")
    assert end.startswith("[More lines may match: the search took longer than a second")


@pytest.mark.parametrize("pattern", ["(?R)?a", "(?1)(a)", r"(?<=a+)b", "a{99999999999}", "("])
def test_a_pattern_that_python_cannot_compile_is_refused(world: LettaWorld, pattern: str) -> None:
    """A pattern within itself is none: one took 800 MB for a call."""
    agent = world.agent(folder_ids=[folder(world, evil="a" * 5000 + "!").id])
    assert "no regular expression" in ask(world, agent.id, "grep_files", pattern=pattern)


def test_the_paths_of_sources_are_the_same(world: LettaWorld) -> None:
    notes = folder(world, plan=PLAN)
    agent = world.agent()
    status, found = world.ask("GET", "/v1/sources/")
    assert (status, [each["id"] for each in found]) == (200, [notes.id])
    assert world.ask("GET", "/v1/sources/name/notes") == (200, notes.id)
    assert world.ask("GET", "/v1/folders/count") == (200, 1)
    assert world.ask("PATCH", f"/v1/agents/{agent.id}/sources/attach/{notes.id}")[0] == 200
    status, found = world.ask("GET", f"/v1/sources/{notes.id}/passages")
    assert [(each["text"], each["file_name"], each["source_id"]) for each in found] == [
        (PLAN, "plan.md", notes.id)
    ]
    assert [each["id"] for each in world.ask("GET", f"/v1/agents/{agent.id}/sources")[1]] == [notes.id]


@pytest.mark.sqlite
def test_a_forgotten_file_and_a_deleted_folder_leave_no_word(world: LettaWorld, tmp_path: Path) -> None:
    made = folder(world, "zqfolderx", keeps="zqkeepsx")
    text = "\n".join(f"zqwordx {n}" for n in range(1000))
    file = world.letta.folders.files.upload(made.id, file=("zqnamex.md", text.encode(), "text/markdown"))
    world.world.settle()
    world.letta.folders.files.delete(file.id, folder_id=made.id)
    data = bytes_in(tmp_path)
    assert [word for word in ("word", "name", "keeps") if f"zq{word}x".encode() in data] == ["keeps"]
    world.letta.folders.delete(made.id)
    data = bytes_in(tmp_path)
    assert not [word for word in ("word", "name", "keeps", "folder") if f"zq{word}x".encode() in data]


def test_a_project_does_not_show_the_folders_of_another(world: LettaWorld) -> None:
    made = folder(world, plan=PLAN)
    (file,) = world.letta.folders.files.list(made.id)
    gateway = world.world.gateway
    other = world.make_client(gateway.call(gateway.app.services.store.keys.create("elsewhere", "test"))[1])
    assert list(other.folders.list()) == []
    for asks in (
        lambda: other.folders.retrieve(made.id),
        lambda: list(other.folders.files.list(made.id)),
        lambda: other.folders.files.retrieve(file.id, folder_id=made.id),
        lambda: other.agents.create(model="openai/m", folder_ids=[made.id]),
    ):
        with pytest.raises(NotFoundError):
            asks()
