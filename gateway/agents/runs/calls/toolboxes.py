"""The toolboxes of turns: the tools of a memory, and all tools of an agent of the agents API.

A call that leaves the gateway is made once. For a step with stored calls `CallRecord` ensures this, for a chat
completion `RecentCalls` by the path that the completion continues, and for an item of a batch or a response in the
background `CallJournal`.
"""

from __future__ import annotations

from collections.abc import Hashable

from msgspec import Struct
from msgspec.structs import replace

from gateway.agents.core.waits import Waiter
from gateway.agents.registry.memory_passages import MemoryPassages
from gateway.agents.runs.agent_messaging import AgentMessaging, AgentOutbox, Sender
from gateway.agents.runs.calls.call_record import CallRecord
from gateway.agents.tools.agent_tools import AgentTools
from gateway.agents.tools.defined_tools import DefinedTools
from gateway.core.conversation.canonical import is_user
from gateway.core.conversation.wire_message import read_text
from gateway.core.words import is_grown_transcript
from gateway.run.call import Forwarded
from gateway.run.memory.block_edits import BlockEdits
from gateway.run.memory.keeper import MemoryKeeper
from gateway.run.memory.memory_context import MemoryContext
from gateway.run.tools.memory import make_memory_tools
from gateway.run.tools.recent_calls import RecentCalls
from gateway.run.tools.toolbox import NO_TOOLS, CallDeduplicator, Toolbox
from storage.records import Atom, Exchange
from storage.run_records import Run


class Toolboxes:
    """Makes toolboxes. There is one object of this class for the process."""

    def __init__(self, keeper: MemoryKeeper, defined_tools: DefinedTools, messaging: AgentMessaging) -> None:
        """Begins without recent calls.

        defined_tools: performs calls of the tools that callers have defined.
        messaging: sends messages to other agents.
        """
        self._keeper = keeper
        self._defined_tools = defined_tools
        self._messaging = messaging
        self._passages = MemoryPassages(keeper.store, keeper.embed_query)
        self._recent_calls = RecentCalls(continues=_is_continued)

    def make_for_step(
        self, context: MemoryContext, edits: BlockEdits, run: Run, calling_run_row: int, *, sender: Sender
    ) -> Toolbox:
        """Returns the tools of one step of a run. A stored step has a record of its calls.

        run: the run, with the id 0 until it is stored.
        calling_run_row: the row of the run whose last step made the calls; 0: the calls are not stored yet.
        sender: the run as the sender of messages to other agents, without its row.
        """
        if not calling_run_row or not context.path:
            return self.make(context, edits, sender, run=run)
        step = context.path[-1]
        call_record = CallRecord(self._keeper.store, context.agent.id, calling_run_row, step)
        return self.make(context, edits, sender, run=run, step=step, call_record=call_record)

    def make_for_item(
        self, context: MemoryContext, edits: BlockEdits, run: Run, journal: CallDeduplicator
    ) -> Toolbox:
        """Returns the tools of an item of a batch, which holds no conversation's queue while they run.

        journal: the record of the calls that leave the gateway.
        """
        sender = Sender.of(context, Waiter(context.agent.uid), Forwarded())
        return self.make(context, edits, sender, run=run, call_record=journal)

    def make_for_chat(
        self,
        context: MemoryContext,
        edits: BlockEdits,
        sender: Sender | None,
        journal: CallDeduplicator | None,
    ) -> Toolbox:
        """Returns the tools of a chat completion.

        sender: the turn as the sender of messages to other agents; None: the agent is a profile, which sends none.
        journal: the record of the calls that leave the gateway; None: a completion with a name has the record of its
            path.
        """
        if journal is None and sender is not None and (continued := _find_continuation(context)) is not None:
            journal = self._recent_calls.for_turn(continued)
        return self.make(context, edits, sender, call_record=journal)

    def make(
        self,
        context: MemoryContext,
        edits: BlockEdits,
        sender: Sender | None = None,
        *,
        run: Run | None = None,
        step: Exchange | None = None,
        call_record: CallDeduplicator | None = None,
    ) -> Toolbox:
        """Returns the tools of a turn.

        sender: the turn as the sender of messages to other agents; None: the tools are only described, not called.
        run: the run of the turn; None: the turn is written as a whole.
        step: the stored step that made the calls; None: the calls are not stored yet.
        call_record: the record of the calls that leave the gateway; None: they are not recorded.
        """
        if not context.offered_tools:
            return NO_TOOLS
        memory = make_memory_tools(self._keeper, context, edits, self._passages)
        request = context.request
        if request.spec.is_profile:
            return memory
        outbox = None
        if sender is not None:
            run_row = run.id if run is not None and run.is_stored else None
            outbox = AgentOutbox(self._messaging, replace(sender, run_row=run_row))
        return AgentTools(
            memory,
            self._defined_tools,
            request.spec,
            client_tools=request.chat.tool_names,
            window=request.target.context_window,
            run_uid=None if run is None else run.uid,
            step=step,
            agent_sender=outbox,
            call_record=call_record,
        )


class _Continuation(Struct, frozen=True):
    """The new messages of a chat completion, and the path that they continue."""

    # The agent, the user and the conversation, and the last exchange of the path.
    path: tuple[Hashable, ...]
    # The atoms of each new message.
    inputs: tuple[tuple[Atom, ...], ...]
    # The texts of the new messages.
    texts: tuple[str, ...]


def _is_continued(new: _Continuation, earlier: _Continuation) -> bool:
    """Returns whether a request begins with the messages of an earlier request, the last perhaps as a grown transcript.

    A voice agent sends such a request if it did not wait for the end of a sentence, or if its caller goes on.
    """
    last = len(earlier.inputs) - 1
    if not 0 <= last < len(new.inputs):
        return False
    if new.path != earlier.path or new.inputs[:last] != earlier.inputs[:last]:
        return False
    message, before = new.inputs[last], earlier.inputs[last]
    return message == before or (
        is_user(message) and is_user(before) and is_grown_transcript(new.texts[last], earlier.texts[last])
    )


def _find_continuation(context: MemoryContext) -> _Continuation | None:
    """Returns the new messages of a request with the path that they continue.

    Returns None if the request begins a conversation without a name, since another conversation may begin alike.
    """
    identity, match_point = context.request.identity, context.plan.match.match_point
    if match_point is None and identity.conversation_key is None and identity.user is None:
        return None
    # The id, not the hash of the path: a reply may be cut to its heard part meanwhile, which changes the hash.
    last_row = None if match_point is None else match_point.id
    agent, plan = context.agent, context.plan
    path = agent.id, agent.epoch, identity.user, identity.conversation_key, last_row
    return _Continuation(path, plan.exchange.inputs, tuple(map(read_text, plan.messages)))
