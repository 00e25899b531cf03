"""Turns the stored messages of lists and runs into the JSON of the agents API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from gateway.agents.runs.calls.call_record import load_waiting_calls
from gateway.agents.runs.message_listing import MessageView
from gateway.agents.runs.system_message import SystemMessage
from gateway.agents.wire.message import Envelope, Showing, render_as_object, render_messages, render_summary
from gateway.agents.wire.shown_values import make_conversation_id
from gateway.core import ids
from gateway.core.conversation.stored_messages import ListedMessage, list_messages, map_calls_to_tool_names
from gateway.core.conversation.wire_message import WireMessage
from gateway.core.turn.stop_reason import StopReason
from storage.records import Agent, Exchange
from storage.run_records import Run, WaitKind
from storage.sql.store import Store


class MessageRenderer(Struct, frozen=True):
    """Renders the messages of one agent in one way."""

    # The store with the steps and the summaries of runs.
    store: Store
    # The agent of the messages.
    agent: Agent
    # The messages that are shown, and their form.
    showing: Showing

    def render_message(self, view: MessageView | SystemMessage) -> list[dict[str, Any]]:
        """Returns the JSON of a listed message: up to three messages, with its thoughts, its text and its calls."""
        if isinstance(view, SystemMessage):
            return render_messages(_make_wire_message(view), self._make_system_envelope(view), self.showing)
        listed = view.listed
        return render_messages(
            listed.message,
            self._make_envelope(view),
            self.showing,
            waiting=view.waiting,
            tool_names=view.tool_names,
            results=listed.results,
        )

    async def load_summaries(
        self, views: Sequence[MessageView]
    ) -> dict[tuple[int, int], list[dict[str, Any]]]:
        """Returns the JSON of the summaries to be shown, by the sort key of the message that precedes each."""
        if not self.showing.shows_summaries:
            return {}
        exchanges = {view.listed.exchange.id: view.listed.exchange for view in views}
        last_keys = {row: list_messages(exchange)[-1].sort_key for row, exchange in exchanges.items()}
        summaries = await self.store.summaries.list_exchange_summaries(self.agent.id, list(last_keys))
        uid, showing = self.agent.uid, self.showing
        return {last_keys[each.exchange.id]: render_summary(each, uid, showing) for each in summaries}

    def render_message_object(self, view: MessageView | SystemMessage) -> dict[str, Any]:
        """Returns a message of a list in Letta 0.6's form."""
        agent_id = ids.make_id("agent", self.agent.uid)
        if isinstance(view, SystemMessage):
            return render_as_object(_make_wire_message(view), self._make_system_envelope(view), agent_id)
        return render_as_object(view.listed.message, self._make_envelope(view), agent_id)

    def _make_system_envelope(self, message: SystemMessage) -> Envelope:
        # The name of a conversation is `default` or its uid.
        name = message.conversation_name
        return Envelope(message.id, message.at, conversation_id=make_conversation_id(name, name))

    def _make_envelope(self, view: MessageView) -> Envelope:
        listed = view.listed
        run = None if view.run_uid is None else ids.make_id("run", view.run_uid)
        step = None if view.step_seq is None else ids.make_id_with_seq("step", self.agent.uid, view.step_seq)
        conversation_id = make_conversation_id(view.conversation_uid, view.key)
        return Envelope(self._make_message_id(listed), listed.at, run, step, conversation_id)

    def _make_run_envelope(self, listed: ListedMessage, run: Run, step: Exchange) -> Envelope:
        step_id = ids.make_id_with_seq("step", self.agent.uid, step.seq)
        return Envelope(self._make_message_id(listed), listed.at, ids.make_id("run", run.uid), step_id)

    def _make_message_id(self, listed: ListedMessage) -> str:
        return ids.make_id_with_seq("message", self.agent.uid, listed.seq, hidden=listed.hidden_index)

    async def render_output(self, run: Run, steps: Sequence[Exchange]) -> list[dict[str, Any]]:
        """Returns the JSON of a run's output.

        A run without steps has answered only some of the calls of an earlier step: its output is the calls that wait.
        """
        if not steps and run.stop == StopReason.REQUIRES_APPROVAL:
            return await self._render_waiting_calls(run)
        return await self.render_run(run, steps, has_input=False)

    async def _render_waiting_calls(self, run: Run) -> list[dict[str, Any]]:
        """Returns the JSON of the calls that still wait after a run without steps."""
        step = await self.store.runs.find_waiting_step(self.agent.id, run.conversation_row)
        # A run can only answer the calls of an earlier run.
        if step is None or step.run_row > run.id:
            return []
        exchange = await self.store.turns.find_exchange(self.agent, step.exchange_row)
        return [] if exchange is None else await self.render_approval_requests(run, exchange)

    async def render_approval_requests(self, run: Run, step: Exchange) -> list[dict[str, Any]]:
        """Returns the JSON of the messages with the calls of a run's step that wait for answers."""
        messages = await self.render_run(run, [step], has_input=False)
        return [message for message in messages if message["message_type"] == "approval_request_message"]

    async def render_run(
        self, run: Run, steps: Sequence[Exchange], *, has_input: bool
    ) -> list[dict[str, Any]]:
        """Returns the JSON of the messages of a run's steps.

        has_input: True if the messages that were sent to the run are returned, too.
        """
        if not steps:
            return []
        calling_step, tool_names = await self._find_calls_before(steps[0])
        waiting = await self._find_waiting(run, steps[-1])
        messages = []
        for previous, step in zip((calling_step, *steps), steps, strict=False):
            tool_names.update(map_calls_to_tool_names(step))
            # A result belongs to the step that made the call.
            caller = previous if previous is not None and previous.id == step.parent else step
            for listed in list_messages(step):
                if has_input or listed.is_reply or listed.is_result:
                    owner = caller if listed.is_result else step
                    messages += render_messages(
                        listed.message,
                        self._make_run_envelope(listed, run, owner),
                        self.showing,
                        waiting=waiting if step is steps[-1] else {},
                        tool_names=tool_names,
                        results=listed.results,
                    )
        return messages

    async def _find_calls_before(self, first_step: Exchange) -> tuple[Exchange | None, dict[str, str]]:
        """Returns the step that made the calls whose results a run begins with, and the names of its tools by call id.

        The step is None if the run begins without results, or with results of its own calls.
        """
        if first_step.parent is None or not any(message.is_result for message in list_messages(first_step)):
            return None, {}
        entries = await self.store.messages.load_exchanges(self.agent.id, [first_step.parent, first_step.id])
        if (parent := entries.get(first_step.parent)) is None:
            return None, {}
        # If the turn ended with these results, they can belong to no other step.
        is_end = first_step.id in entries and entries[first_step.id].run_uid is None
        return parent.exchange if is_end else None, dict(map_calls_to_tool_names(parent.exchange))

    async def _find_waiting(self, run: Run, last_step: Exchange) -> dict[str, WaitKind]:
        """Returns the kind of answer for which each call of a run's last step waits, by call id."""
        if run.stop != StopReason.REQUIRES_APPROVAL:
            return {}
        step = await self.store.runs.find_waiting_step(self.agent.id, last_step.conversation_row)
        if step is None or step.exchange_row != last_step.id:
            return {}
        return await load_waiting_calls(self.store, step, last_step)


def _make_wire_message(message: SystemMessage) -> WireMessage:
    return {"role": "system", "content": message.text}
