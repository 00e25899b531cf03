"""Moves agents of a Letta server to a gateway, by the agents API of both.

The gateway imports the agents that `letta_source.py` reads.

Agents keep their ids, so that programs find them, and so do blocks, folders, conversations and shared archives. An
agent that the gateway has already is skipped, so a move that was broken off can simply be run again. Nothing changes
on Letta's server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from gateway.agents.migrate.agents_server import RequestFailed, Server
from gateway.agents.migrate.letta_agent import LettaAgent, find_mcp_servers, list_models, make_agent_file
from gateway.agents.migrate.letta_source import LETTA_FORM, LettaSource, ListedAgent
from gateway.agents.migrate.move_report import describe_counts, describe_losses
from gateway.core import ids


@dataclass(slots=True)
class LettaMoveOutcome:
    """The outcome of a move, in numbers of agents."""

    # The agents that were imported.
    moved: int = 0
    # The agents that the gateway had already.
    already_there: int = 0
    # The agents that could not be moved.
    failed: int = 0
    # The models that the moved agents name, with the number of agents that name each.
    models: Counter[str] = field(default_factory=Counter)


class LettaMove:
    """Moves agents from a Letta server to a gateway, one at a time."""

    def __init__(self, source: Server, target: Server, model: str | None = None) -> None:
        self._source = LettaSource(source)
        self._target = target
        # The model of all moved agents; None: each agent retains the model that it had on Letta's server.
        self._model = model
        self._outcome = LettaMoveOutcome()

    def run(
        self, agent_ids: Sequence[str], report: Callable[[str], None], progress: Callable[[int, int], None]
    ) -> LettaMoveOutcome:
        """Moves the agents.

        agent_ids: the ids of the agents to move; empty: all agents.
        report: the function to call with a line about the outcome of each agent.
        progress: the function to call with the number of agents that are done, and the number of all agents.

        Raises: RequestFailed if a server cannot be reached, or lists no agents.
        """
        agents = self._source.select_agents(agent_ids)
        for number, agent in enumerate(agents):
            progress(number, len(agents))
            name = f"{agent.state['id']} {agent.state.get('name')!r:.200}"
            report(f"{name}: {self._move_if_missing(agent)}")
        return self._outcome

    def _move_if_missing(self, agent: ListedAgent) -> str:
        """Moves an agent. Returns a line about the outcome.

        Raises: RequestFailed if the gateway does not answer, or refuses the key.
        """
        existing, is_known = None, False
        try:
            existing, is_known = self._find_in_target(agent.state["id"]), True
            if existing is None:
                line = self._move(agent)
                self._outcome.moved += 1
            else:
                line = f"is here already{self._ensure_sleeptime_agent(existing)}"
                self._outcome.already_there += 1
        except RequestFailed as error:
            if not is_known and error.reply_status < 500:
                raise
            self._outcome.failed += 1
            state_text = (
                "not moved" if existing is None else "is here already, perhaps without its sleeptime agent"
            )
            line = f"{state_text}. {error.message}"
        return line

    def _find_in_target(self, agent_id: str) -> Any:
        """Returns the gateway's JSON of an agent; None if the gateway lacks the agent. Raises: RequestFailed."""
        try:
            return self._target.get(f"/v1/agents/{quote(agent_id, safe='')}")
        except RequestFailed as error:
            if error.reply_status == 404:
                return None
            raise

    def _ensure_sleeptime_agent(self, existing: Mapping[str, Any]) -> str:
        """Has the gateway make the sleeptime agent that a killed import has not made.

        existing: the gateway's JSON of the agent.

        Returns a clause for the report; "" if the sleeptime agent was not missing.
        """
        with self._target.expect_form("Mnemogate"):
            group = existing.get("managed_group")
            if group is None or group["agent_ids"]:
                return ""
            self._target.patch(f"/v1/agents/{existing['id']}", {"enable_sleeptime": True})
        return ", and has its sleeptime agent now"

    def _move(self, listed_agent: ListedAgent) -> str:
        """Moves an agent. Returns a line about the parts that were moved and the parts that were not.

        Raises: RequestFailed.
        """
        with self._source.server.expect_form(LETTA_FORM):
            agent = self._source.read_agent(listed_agent)
            counts = describe_counts(agent)
            models = {self._model} if self._model else list_models(agent)
            servers = find_mcp_servers(agent.state)
            agent_file = make_agent_file(agent)
        with self._target.expect_form("Mnemogate"):
            losses = describe_losses(self._import_agent(agent, agent_file), servers)
        self._outcome.models.update(models)
        return f"{counts}{losses}"

    def _import_agent(self, agent: LettaAgent, agent_file: bytes) -> list[str]:
        """Imports an agent. Returns the names of the parts that the gateway leaves out, or cannot run.

        Raises: RequestFailed.
        """
        # The gateway's existing tools stay, as its blocks do, since they may have been corrected.
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
