"""Moves the agents of a Letta server to a gateway: reads agents from the server and imports them into the gateway, both
over REST.

Agents keep their ids, so that programs find them, and so do blocks, folders, conversations and shared archives. An
agent that the gateway has already is passed over, so a move that was broken off can simply be run again. Nothing
changes on Letta's server.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from adapters.types import Json
from gateway.agents.migrate.agents_server import RequestFailed, Server
from gateway.agents.migrate.letta_agent import (
    LettaAgent,
    LettaConversation,
    find_mcp_servers,
    list_readers,
    make_agent_file,
    upgrade_state,
)
from gateway.agents.migrate.letta_messages import count_messages
from gateway.core import ids

_PARTS = ("blocks", "tools", "sources", "managed_group", "identities", "tags", "secrets")
# The query of a list of agents: all of them, the oldest first, with their parts.
_WHOLE_AGENTS = {
    "order": "asc", "order_by": "created_at", "include": tuple(f"agent.{part}" for part in _PARTS),
    "show_hidden_agents": "true",
}  # fmt: skip
# The query of a list of messages: all of them, the oldest first, with texts as texts.
_WHOLE_MESSAGES = {"order": "asc", "use_assistant_message": "false"}
# The name by which an import reports a tool that it has made and the gateway cannot run as it is.
_IDLE_TOOL = re.compile(r"tools\.(.+)\.(python|typescript|webhook)")


@dataclass(slots=True)
class LettaMoveOutcome:
    """The outcome of a move, in numbers of agents."""

    moved: int = 0
    already_there: int = 0
    failed: int = 0
    # The models that the moved agents name, with the number of agents that name each.
    models: Counter[str] = field(default_factory=Counter)


class _ListedAgent(Struct, frozen=True):
    """An agent to move."""

    # The agent as the server lists it.
    state: Json
    # The agent's archive if other agents share it; None: its archive is its own.
    shared_archive: Json | None


class LettaMove:
    """Moves agents from a Letta server to a gateway, one at a time."""

    def __init__(self, source: Server, target: Server, model: str | None = None) -> None:
        self._source = source
        self._target = target
        # The model of all moved agents; None: each agent retains the model that it had on Letta's server.
        self._model = model
        self._outcome = LettaMoveOutcome()

    def run(
        self, agent_ids: Sequence[str], report: Callable[[str], None], progress: Callable[[int, int], None]
    ) -> LettaMoveOutcome:
        """Moves the agents.

        agent_ids: of the agents to move; empty for all.
        report: is called with a line of what became of each agent.
        progress: is called with how many agents are done, and how many there are.

        Raises: RequestFailed if a server cannot be reached, or lists no agents.
        """
        agents = self._list_agents(agent_ids)
        for number, agent in enumerate(agents):
            progress(number, len(agents))
            name = f"{agent.state['id']} {agent.state.get('name')!r:.200}"
            report(f"{name}: {self._move_unless_here(agent)}")
        return self._outcome

    def _list_agents(self, agent_ids: Sequence[str]) -> list[_ListedAgent]:
        """Returns the agents to move. Raises: RequestFailed."""
        with _expect_form(self._source, "Letta 0.16"):
            states = list(map(upgrade_state, self._source.list_all("/v1/agents/", _WHOLE_AGENTS)))
            readers = {id for state in states for id in list_readers(state)}
            archives = {state["id"]: list(self._list_archives(state["id"])) for state in states}
        if lost := {*agent_ids} - {state["id"] for state in states}:
            raise RequestFailed(f"{self._source.url} has no agent {', '.join(sorted(lost))}.", 404)
        users = Counter(archive["id"] for agent_archives in archives.values() for archive in agent_archives)
        shared = {
            id: next((archive for archive in agent_archives if users[archive["id"]] > 1), None)
            for id, agent_archives in archives.items()
        }
        return [
            _ListedAgent(state, shared[state["id"]])
            for state in states
            # A sleeptime agent is made with the agent for which it reads.
            if (state["id"] in agent_ids if agent_ids else state["id"] not in readers)
        ]

    def _list_archives(self, agent_id: str) -> Iterator[Json]:
        return self._source.list_if_served("/v1/archives/", {"agent_id": agent_id})

    def _move_unless_here(self, agent: _ListedAgent) -> str:
        """Moves an agent. Returns a line of what became of it. Raises: RequestFailed if the gateway does not answer."""
        here = self._get_here(agent.state["id"])
        try:
            if here is None:
                line = self._move(agent)
                self._outcome.moved += 1
            else:
                line = f"is here already{self._complete(here)}"
                self._outcome.already_there += 1
        except RequestFailed as error:
            self._outcome.failed += 1
            what = "not moved" if here is None else "is here already, perhaps without its sleeptime agent"
            line = f"{what}. {error.message}"
        return line

    def _get_here(self, agent_id: str) -> Any:
        """Returns an agent as the gateway shows it; None if it is not there. Raises: RequestFailed."""
        try:
            return self._target.get(f"/v1/agents/{quote(agent_id, safe='')}")
        except RequestFailed as error:
            if error.reply_status == 404:
                return None
            raise

    def _complete(self, here: Mapping[str, Any]) -> str:
        """Has a missing sleeptime agent made, after a gateway was killed. Returns a clause for the report, or ""."""
        with _expect_form(self._target, "Mnemogate"):
            group = here.get("managed_group")
            if group is None or group["agent_ids"]:
                return ""
            self._target.patch(f"/v1/agents/{here['id']}", {"enable_sleeptime": True})
        return ", and has its sleeptime agent now"

    def _move(self, listed: _ListedAgent) -> str:
        """Moves an agent. Returns a line of what was moved and what was not. Raises: RequestFailed."""
        with _expect_form(self._source, "Letta 0.16"):
            agent = self._read(listed)
            counts = _describe_counts(agent)
            models = {self._model} if self._model else _list_models(agent)
            servers = find_mcp_servers(agent.state)
            agent_file = make_agent_file(agent)
        with _expect_form(self._target, "Mnemogate"):
            losses = _describe_losses(self._import(agent, agent_file), servers)
        self._outcome.models.update(models)
        return f"{counts}{losses}"

    def _read(self, listed: _ListedAgent) -> LettaAgent:
        """Reads all that belongs to an agent. Raises: RequestFailed."""
        source, state = self._source, listed.state
        path = f"/v1/agents/{state['id']}"
        conversations = [
            LettaConversation(
                record, list(source.list_all(f"/v1/conversations/{record['id']}/messages", _WHOLE_MESSAGES))
            )
            for record in source.list_if_served("/v1/conversations/", {"agent_id": state["id"]})
        ]
        # An agent's list has the messages of all of its conversations.
        other_ids = {message["id"] for conversation in conversations for message in conversation.messages}
        all_messages = source.list_all(f"{path}/messages", _WHOLE_MESSAGES)
        messages = [message for message in all_messages if message["id"] not in other_ids]
        passages = list(source.list_all(f"{path}/archival-memory", {"ascending": "true"}))
        files = [
            file
            for folder in state.get("sources") or ()
            for file in source.list_all(f"/v1/sources/{folder['id']}/files", {"include_content": "true"})
        ]
        return LettaAgent(state, messages, conversations, passages, files, listed.shared_archive)

    def _import(self, agent: LettaAgent, agent_file: bytes) -> list[str]:
        """Imports an agent. Returns the names of the parts that the gateway leaves out, or cannot run.

        Raises: RequestFailed.
        """
        # What is here already stays, as with blocks: it may have been corrected.
        fields = {"append_copy_suffix": "false", "override_existing_tools": "false"}
        if self._model is not None:
            fields["model"] = self._model
        answer = self._target.send_file("/v1/agents/import", "agent.af", agent_file, fields)
        left_out = list((answer.get("mnemogate") or {}).get("left_out") or ())
        made_ids = answer["agent_ids"]
        if made_ids != [ids.make_id("agent", ids.parse_uid("agent", agent.state["id"]) or "")]:
            raise RequestFailed(f"{self._target.url} is no gateway that keeps ids: it made {made_ids}.")
        if any(conversation.record.get("isolated_block_ids") for conversation in agent.conversations):
            left_out.append("isolated blocks of conversations")
        return left_out


@contextmanager
def _expect_form(server: Server, form: str) -> Iterator[None]:
    """Turns the errors of reading an answer that a server gave in another form into RequestFailed."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"{server.url} has answered in another form than {form}: {error!r:.300}"
        raise RequestFailed(message) from error


def _list_models(agent: LettaAgent) -> set[str]:
    """Returns the models that an agent and its conversations name."""
    config = agent.state.get("llm_config") or {}
    model = agent.state.get("model") or config.get("handle") or config.get("model") or "none"
    records = [conversation.record for conversation in agent.conversations]
    return {str(model), *(record["model"] for record in records if record.get("model"))}


def _describe_losses(left_out: Sequence[str], servers: Mapping[str, str]) -> str:
    """Returns which parts of an agent the gateway leaves out or cannot run, to be added to a line; "": none.

    servers: the MCP servers of the agent's tools, by the tool's name.
    """
    idle = [_IDLE_TOOL.sub(r"\1 (\2)", tool) for tool in left_out if _IDLE_TOOL.fullmatch(tool)]
    lost = [
        f"{tool} (of the MCP server {servers[tool]!r})" if tool in servers else tool
        for tool in left_out
        if not _IDLE_TOOL.fullmatch(tool)
    ]
    idle_part = f"; cannot run here: {', '.join(idle)}" if idle else ""
    lost_part = f"; left out: {', '.join(lost)}" if lost else ""
    return f"{idle_part}{lost_part}"


def _describe_counts(agent: LettaAgent) -> str:
    """Returns how many messages and other parts an agent has, in words."""
    counts = (
        (count_messages(agent.messages), "message"),
        (len(agent.conversations), "further conversation"),
        (len(agent.passages), "passage"),
        (len(agent.state.get("blocks") or ()), "block"),
        (len(agent.state.get("sources") or ()), "folder"),
    )
    texts = [f"{number} {part}{'' if number == 1 else 's'}" for number, part in counts if number]
    return ", ".join(texts) or "nothing was said to it"
