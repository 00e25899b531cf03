"""Reads agents with all their parts from a Letta server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from adapters.types import Json
from gateway.agents.migrate.agents_server import RequestFailed, Server
from gateway.agents.migrate.letta_agent import LettaAgent, LettaConversation, list_readers, upgrade_state

# The name of the server in errors.
LETTA_FORM = "Letta 0.16"
_PARTS = ("blocks", "tools", "sources", "managed_group", "identities", "tags", "secrets")
# The query of a list of agents: all of them, the oldest first, with their parts.
_WHOLE_AGENTS = {
    "order": "asc", "order_by": "created_at", "include": tuple(f"agent.{part}" for part in _PARTS),
    "show_hidden_agents": "true",
}  # fmt: skip
# The query of a list of messages: all of them, the oldest first, with texts as texts.
_WHOLE_MESSAGES = {"order": "asc", "use_assistant_message": "false"}


class ListedAgent(Struct, frozen=True):
    """An agent as the server lists it, with the archive that it shares."""

    # The server's JSON of the agent.
    state: Json
    # The agent's archive if other agents share it; None: its archive is its own.
    shared_archive: Json | None
    # The error of the request for the agent's archives; None: its archives are known.
    archives_error: RequestFailed | None


class LettaSource(Struct, frozen=True):
    """A Letta server from which agents are read."""

    # The server, with its address and its key.
    server: Server

    def select_agents(self, agent_ids: Sequence[str]) -> list[ListedAgent]:
        """Returns the agents to move. Raises: RequestFailed.

        agent_ids: the ids of the agents to move; empty: all agents but sleeptime agents.
        """
        with self.server.expect_form(LETTA_FORM):
            states = list(map(upgrade_state, self.server.list_all("/v1/agents/", _WHOLE_AGENTS)))
            readers = {agent_id for state in states for agent_id in list_readers(state)}
            archives: dict[str, list[Json]] = {}
            errors: dict[str, RequestFailed] = {}
            for agent_id in (state["id"] for state in states):
                try:
                    query = {"agent_id": agent_id}
                    archives[agent_id] = list(self.server.list_if_served("/v1/archives/", query))
                except RequestFailed as error:
                    errors[agent_id] = error
        if missing_ids := {*agent_ids} - {state["id"] for state in states}:
            raise RequestFailed(f"{self.server.url} has no agent {', '.join(sorted(missing_ids))}.", 404)
        agent_counts = Counter(archive["id"] for records in archives.values() for archive in records)
        # An agent whose archives are not known may share any archive.
        shared_ids = {archive_id for archive_id, count in agent_counts.items() if count + len(errors) > 1}
        shared_archives = {
            agent_id: next((archive for archive in records if archive["id"] in shared_ids), None)
            for agent_id, records in archives.items()
        }
        return [
            ListedAgent(state, shared_archives.get(state["id"]), errors.get(state["id"]))
            for state in states
            # A sleeptime agent is made with the agent for which it reads.
            if (state["id"] in agent_ids if agent_ids else state["id"] not in readers)
        ]

    def read_agent(self, listed: ListedAgent) -> LettaAgent:
        """Reads all parts of an agent. Raises: RequestFailed."""
        if listed.archives_error is not None:
            raise listed.archives_error
        server, state = self.server, listed.state
        path = f"/v1/agents/{state['id']}"
        conversations = [
            LettaConversation(
                record, list(server.list_all(f"/v1/conversations/{record['id']}/messages", _WHOLE_MESSAGES))
            )
            for record in server.list_if_served("/v1/conversations/", {"agent_id": state["id"]})
        ]
        # An agent's list has the messages of all of its conversations.
        other_ids = {message["id"] for conversation in conversations for message in conversation.messages}
        all_messages = server.list_all(f"{path}/messages", _WHOLE_MESSAGES)
        messages = [message for message in all_messages if message["id"] not in other_ids]
        passages = list(server.list_all(f"{path}/archival-memory", {"ascending": "true"}))
        files = [
            file
            for folder in state.get("sources") or ()
            for file in server.list_all(f"/v1/sources/{folder['id']}/files", {"include_content": "true"})
        ]
        return LettaAgent(state, messages, conversations, passages, files, listed.shared_archive)
