"""Every method of the client has a verdict: it is served, or a 400 says why not. None can be forgotten.

A row of TABLE is what a served method is called with, or words of the reason for which one is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, get_args, get_type_hints

import pytest
from letta_client import AsyncLetta, BadRequestError, Letta
from letta_client._base_client import BasePage, SyncAPIClient
from letta_client._models import validate_type
from letta_client._resource import AsyncAPIResource, SyncAPIResource
from letta_client._streaming import Stream

from tests.agents.letta import LettaWorld, letta
from tests.agents.plain_mcp import ALLOWED, CONFIG
from tests.doubles.upstream import StrictUpstream

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Things:
    """What methods are called with. A property is made once; a method makes another one, to be deleted."""

    def __init__(self, world: LettaWorld) -> None:
        self.world = world
        self.letta = world.make_client(_strict_response_validation=True)

    @cached_property
    def agent(self) -> str:
        return self.world.agent(tools=["archival_memory_search"]).id

    @cached_property
    def run(self) -> Any:
        self.letta.agents.messages.create(self.agent, input="Hi")
        return self.letta.runs.list(agent_id=self.agent).items[0].id

    @cached_property
    def step(self) -> Any:
        return self.letta.runs.steps.list(self.run).items[0].id

    @cached_property
    def message(self) -> Any:
        return self.letta.runs.messages.list(self.run).items[0].id

    @cached_property
    def own_tool(self) -> str:
        return next(each.id for each in self.letta.agents.tools.list(self.agent).items)

    def new_agent(self) -> str:
        return self.world.agent().id

    def new_block(self) -> str:
        return self.letta.blocks.create(label="pets", value="Miso").id

    def new_tool(self) -> str:
        schema: dict[str, object] = {
            "name": f"tool_{len(self.letta.tools.list(limit=1000).items)}",
            "parameters": {},
        }
        return self.letta.tools.create(source_code="", source_type="json", json_schema=schema).id

    def new_archive(self) -> str:
        return str(self.letta.archives.create(name="books").id)

    def new_identity(self) -> str:
        count = self.world.ask("GET", "/v1/identities/count")[1]
        body = {"identifier_key": f"user_{count}", "name": "Ann", "identity_type": "user"}
        return str(self.world.ask("POST", "/v1/identities/", body)[1]["id"])

    def long_agent(self) -> str:
        id = self.new_agent()
        for _ in range(4):
            self.letta.agents.messages.create(id, input="A longer tale. " * 20)
        return id

    def new_conversation(self) -> str:
        return self.letta.conversations.create(agent_id=self.agent).id

    def new_folder(self) -> str:
        return str(self.letta.folders.create(name=f"folder {len(self.letta.folders.list().items)}").id)

    def new_file(self) -> dict[str, Any]:
        folder = self.new_folder()
        file = self.letta.folders.files.upload(folder, file=("a.txt", b"Rome is old."))
        return {"folder_id": folder, "file_id": file.id}

    def new_passage(self) -> str:
        return str(self.letta.agents.passages.create(self.agent, text="Rome is old.")[0].id)

    def new_server(self) -> Any:
        # Their tools have the same names, so there is one at a time.
        for each in self.letta.mcp_servers.list():
            self.letta.mcp_servers.delete(str(each.id))
        return self.letta.mcp_servers.create(server_name="calc", config=CONFIG).id

    def server_tool(self) -> dict[str, Any]:
        server = self.new_server()
        tools = self.letta.mcp_servers.tools.list(server)
        return {"mcp_server_id": server, "tool_id": next(each.id for each in tools if each.name == "add")}

    def agent_with_server(self) -> str:
        return self.world.agent(tool_ids=[self.server_tool()["tool_id"]]).id


CallsWith = Callable[[Things], dict[str, Any]]

LATER = "not served yet"
HOSTED = "hosted product"
FILES = "Files are searched"

TABLE: dict[str, CallsWith | str] = {
    "access_tokens.create": HOSTED,
    "access_tokens.delete": HOSTED,
    "access_tokens.list": HOSTED,
    "agents.archives.attach": lambda t: {"agent_id": t.new_agent(), "archive_id": t.new_archive()},
    "agents.archives.detach": lambda t: {"agent_id": t.agent, "archive_id": t.new_archive()},
    "agents.blocks.attach": lambda t: {"agent_id": t.new_agent(), "block_id": t.new_block()},
    "agents.blocks.detach": lambda t: {"agent_id": (a := t.world.agent()).id, "block_id": a.blocks[0].id},
    "agents.blocks.list": lambda t: {"agent_id": t.agent},
    "agents.blocks.retrieve": lambda t: {"agent_id": t.agent, "block_label": "human"},
    "agents.blocks.update": lambda t: {"agent_id": t.agent, "block_label": "human", "value": "Name: Bo"},
    "agents.create": lambda t: {"model": "openai/m"},
    "agents.delete": lambda t: {"agent_id": t.new_agent()},
    "agents.export_file": lambda t: {"agent_id": t.agent},
    "agents.files.close": FILES,
    "agents.files.close_all": FILES,
    "agents.files.list": lambda t: {"agent_id": t.agent},
    "agents.files.open": FILES,
    "agents.folders.attach": lambda t: {"agent_id": t.new_agent(), "folder_id": t.new_folder()},
    "agents.folders.detach": lambda t: {"agent_id": t.agent, "folder_id": t.new_folder()},
    "agents.folders.list": lambda t: {"agent_id": t.agent},
    "agents.identities.attach": lambda t: {"agent_id": t.new_agent(), "identity_id": t.new_identity()},
    "agents.identities.detach": lambda t: {"agent_id": t.agent, "identity_id": t.new_identity()},
    "agents.import_file": lambda t: {"file": ("a.af", t.letta.agents.export_file(t.new_agent()).encode())},
    "agents.list": lambda t: {},
    "agents.messages.cancel": lambda t: {"agent_id": t.agent},
    "agents.messages.compact": lambda t: {"agent_id": t.long_agent()},
    "agents.messages.create": lambda t: {"agent_id": t.agent, "input": "Hi"},
    "agents.messages.create_async": lambda t: {"agent_id": t.new_agent(), "input": "Hi"},
    "agents.messages.list": lambda t: {"agent_id": t.agent},
    "agents.messages.reset": lambda t: {"agent_id": t.new_agent()},
    "agents.messages.stream": lambda t: {"agent_id": t.agent, "input": "Hi"},
    "agents.passages.create": lambda t: {"agent_id": t.agent, "text": "Rome is old."},
    "agents.passages.delete": lambda t: {"agent_id": t.agent, "memory_id": t.new_passage()},
    "agents.passages.list": lambda t: {"agent_id": t.agent},
    "agents.passages.search": lambda t: {"agent_id": t.agent, "query": "Rome"},
    "agents.recompile": lambda t: {"agent_id": t.agent},
    "agents.retrieve": lambda t: {"agent_id": t.agent},
    "agents.schedule.create": LATER,
    "agents.schedule.delete": LATER,
    "agents.schedule.list": LATER,
    "agents.schedule.retrieve": LATER,
    "agents.tools.attach": lambda t: {"agent_id": t.new_agent(), "tool_id": t.new_tool()},
    "agents.tools.detach": lambda t: {"agent_id": t.new_agent(), "tool_id": t.own_tool},
    "agents.tools.list": lambda t: {"agent_id": t.agent},
    "agents.tools.run": lambda t: {
        "agent_id": t.agent_with_server(), "tool_name": "add", "args": {"a": 1, "b": 2},
    },
    "agents.tools.update_approval": lambda t: {
        "agent_id": t.agent, "tool_name": "archival_memory_search", "body_requires_approval": True,
    },
    "agents.update": lambda t: {"agent_id": t.agent, "description": "Helps."},
    "archives.create": lambda t: {"name": "books"},
    "archives.delete": lambda t: {"archive_id": t.new_archive()},
    "archives.list": lambda t: {},
    "archives.passages.create": lambda t: {"archive_id": t.new_archive(), "text": "Rome is old."},
    "archives.passages.create_many": lambda t: {"archive_id": t.new_archive(), "passages": [{"text": "One."}]},
    "archives.passages.delete": lambda t: {
        "archive_id": (archive := t.new_archive()),
        "passage_id": t.letta.archives.passages.create(archive, text="Rome is old.").id,
    },
    "archives.retrieve": lambda t: {"archive_id": t.new_archive()},
    "archives.update": lambda t: {"archive_id": t.new_archive(), "name": "maps"},
    "blocks.agents.list": lambda t: {"block_id": t.new_block()},
    "blocks.create": lambda t: {"label": "pets", "value": "Miso"},
    "blocks.delete": lambda t: {"block_id": t.new_block()},
    "blocks.list": lambda t: {},
    "blocks.retrieve": lambda t: {"block_id": t.new_block()},
    "blocks.update": lambda t: {"block_id": t.new_block(), "value": "Tom"},
    "conversations.cancel": lambda t: {"conversation_id": t.new_conversation()},
    "conversations.create": lambda t: {"agent_id": t.agent},
    "conversations.delete": lambda t: {"conversation_id": t.new_conversation()},
    "conversations.fork": lambda t: {"conversation_id": t.new_conversation()},
    "conversations.list": lambda t: {"agent_id": t.agent},
    "conversations.messages.compact": lambda t: {"conversation_id": t.long_agent()},
    "conversations.messages.create": lambda t: {"conversation_id": t.new_conversation(), "input": "Hi"},
    "conversations.messages.list": lambda t: {"conversation_id": t.new_conversation()},
    "conversations.messages.stream": lambda t: {"conversation_id": "default", "agent_id": t.agent, "run_id": t.run},
    "conversations.recompile": lambda t: {"conversation_id": t.new_conversation()},
    "conversations.retrieve": lambda t: {"conversation_id": t.new_conversation()},
    "conversations.update": lambda t: {"conversation_id": t.new_conversation(), "summary": "Cats"},
    "environments.list": HOSTED,
    "environments.retrieve": HOSTED,
    "environments.send_message": HOSTED,
    "folders.agents.list": lambda t: {"folder_id": t.new_folder()},
    "folders.create": lambda t: {"name": "maps"},
    "folders.delete": lambda t: {"folder_id": t.new_folder()},
    "folders.files.delete": lambda t: t.new_file(),
    "folders.files.list": lambda t: {"folder_id": t.new_folder()},
    "folders.files.retrieve": lambda t: t.new_file(),
    "folders.files.upload": lambda t: {"folder_id": t.new_folder(), "file": ("a.txt", b"Rome is old.")},
    "folders.list": lambda t: {},
    "folders.retrieve": lambda t: {"folder_id": t.new_folder()},
    "folders.update": lambda t: {"folder_id": t.new_folder(), "description": "Old ones."},
    "health": lambda t: {},
    "mcp_servers.create": lambda t: {"server_name": "sums", "config": CONFIG},
    "mcp_servers.delete": lambda t: {"mcp_server_id": t.new_server()},
    "mcp_servers.list": lambda t: {},
    "mcp_servers.refresh": lambda t: {"mcp_server_id": t.new_server()},
    "mcp_servers.retrieve": lambda t: {"mcp_server_id": t.new_server()},
    "mcp_servers.tools.list": lambda t: {"mcp_server_id": t.new_server()},
    "mcp_servers.tools.retrieve": lambda t: t.server_tool(),
    "mcp_servers.tools.run": lambda t: {**t.server_tool(), "args": {"a": 1, "b": 2}},
    "mcp_servers.update": lambda t: {"mcp_server_id": t.new_server(), "config": CONFIG},
    "messages.list": lambda t: {},
    "messages.retrieve": lambda t: {"message_id": t.message},
    "messages.search": lambda t: {"query": "Hi"},
    "models.embeddings.list": lambda t: {},
    "models.list": lambda t: {},
    "passages.search": lambda t: {"agent_id": t.agent, "query": "Rome"},
    "runs.list": lambda t: {},
    "runs.messages.list": lambda t: {"run_id": t.run},
    "runs.messages.stream": lambda t: {"path_run_id": t.run},
    "runs.retrieve": lambda t: {"run_id": t.run},
    "runs.steps.list": lambda t: {"run_id": t.run},
    "runs.trace.retrieve": lambda t: {"run_id": t.run},
    "runs.usage.retrieve": lambda t: {"run_id": t.run},
    "steps.feedback.create": lambda t: {"step_id": t.step, "feedback": "positive"},
    "steps.list": lambda t: {"agent_id": t.agent},
    "steps.messages.list": lambda t: {"step_id": t.step},
    "steps.metrics.retrieve": lambda t: {"step_id": t.step},
    "steps.retrieve": lambda t: {"step_id": t.step},
    "steps.trace.retrieve": lambda t: {"step_id": t.step},
    "tags.list": lambda t: {},
    "templates.agents.create": HOSTED,
    "templates.create": HOSTED,
    "templates.delete": HOSTED,
    "templates.rollback": HOSTED,
    "templates.save": HOSTED,
    "templates.update": HOSTED,
    "tools.create": lambda t: {
        "source_code": "", "source_type": "json", "json_schema": {"name": "made", "parameters": {}},
    },
    "tools.delete": lambda t: {"tool_id": t.new_tool()},
    "tools.list": lambda t: {},
    "tools.retrieve": lambda t: {"tool_id": t.new_tool()},
    "tools.search": lambda t: {"query": "memory"},
    "tools.update": lambda t: {"tool_id": t.new_tool(), "description": "Another."},
    "tools.upsert": lambda t: {
        "source_code": "", "source_type": "json", "json_schema": {"name": "put", "parameters": {}},
    },
}  # fmt: skip


def methods(part: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each method of the client with its name, `agents.blocks.list`."""
    for key in dir(type(part)):
        if key.startswith(("_", "with_")) or (not name and hasattr(SyncAPIClient, key)):
            continue
        found, path = inspect.getattr_static(type(part), key), f"{name}.{key}".lstrip(".")
        if inspect.isfunction(found):
            if path not in ("copy", "close"):
                yield path, getattr(part, key)
        elif isinstance(value := getattr(part, key), SyncAPIResource | AsyncAPIResource):
            yield from methods(value, path)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Things]:
    with StrictUpstream() as upstream, letta(upstream, tmp_path_factory.mktemp("all"), tools=ALLOWED) as made:
        yield Things(made)


def test_every_method_has_a_row() -> None:
    names = sorted(name for name, _ in methods(Letta(base_url="http://here", api_key="none")))
    assert names == sorted(TABLE)
    # The asynchronous client has the same ones, whose requests are the same.
    assert sorted(name for name, _ in methods(AsyncLetta(base_url="http://here", api_key="none"))) == names


@pytest.mark.parametrize("name", sorted(TABLE))
def test_each_method_does_what_the_table_says(name: str, things: Things) -> None:
    row = TABLE[name]
    method = dict(methods(things.letta))[name]
    if isinstance(row, str):
        with pytest.raises(BadRequestError, match=row):
            _call(method, _anything(method))
    else:
        _call(method, row(things))


def _call(method: Any, arguments: dict[str, Any]) -> None:
    """Calls a method, and checks that what comes is what it declares; of single things the client does so itself."""
    result, declared = method(**arguments), get_type_hints(method)["return"]
    if isinstance(result, Stream):
        said = [event.to_dict() for event in result]
        assert said
        validate_type(type_=list[get_args(declared)[0]], value=said)  # type: ignore[misc]
    elif isinstance(result, BasePage):
        shown = [each.to_dict() for each in result._get_page_items()]
        validate_type(type_=next(iter(declared.model_fields.values())).annotation, value=shown)
    else:
        assert result is not None or declared in (type(None), object) or type(None) in get_args(declared)


def _anything(method: Any) -> dict[str, Any]:
    """Returns arguments for a method that is refused whatever it is called with."""
    if method.__qualname__ == "TemplatesResource.create":
        return {"agent_id": "1", "type": "agent"}
    kinds = {
        "messages": [],
        "schedule": {},
        "policy": {},
        "file": b"",
        "type": "agent",
        "agent_file_json": {},
    }
    return {
        name: "default" if name == "conversation_id" else kinds.get(name, "1")
        for name, each in inspect.signature(method).parameters.items()
        if each.default is inspect.Parameter.empty
    }
