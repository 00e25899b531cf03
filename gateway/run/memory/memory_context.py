"""A request as memory sees it, and its context: the conversation that it continues, and the additions of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from gateway.core.agent import AgentSpec
from gateway.core.conversation.kind import ConversationKind
from gateway.core.conversation.plan import Plan
from gateway.core.conversation.tree import Tree
from gateway.core.memory import builtin
from gateway.core.memory.memory_tools import MEMORY_TOOLS
from gateway.core.prompt.eviction import find_evicted
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.identity import Identity
from gateway.core.request.memory_mode import Mode
from gateway.core.upstream.policy import Target
from gateway.run.memory.queue import QueueTicket
from gateway.run.receipt import mask_model_name
from storage.commands import MemorySnapshot
from storage.records import Agent, Block, EvictedPart, Exchange, SentSection, Summary

# The tools that the memory section names, for profiles and for agents of the agents API.
_NAMED_IN_SECTION = MEMORY_TOOLS.keys() | builtin.list_built_in_tools(*builtin.MEMORY_USES)


class MemoryRequest(Struct, frozen=True):
    """A request as memory sees it."""

    # The client's request.
    chat: ChatRequest
    # The user, the conversation and the memory mode that the request names.
    identity: Identity
    # The agent that answers.
    spec: AgentSpec
    # The time of the request, in seconds since the epoch.
    now: float
    # The upstream and model that are expected to answer, with the model's window.
    target: Target
    # The kind of its conversation.
    kind: ConversationKind
    # The request's turn in the queue of its conversation.
    ticket: QueueTicket = field(default_factory=QueueTicket)


class MemoryContext(Struct, frozen=True):
    """Everything that was read for one request."""

    # The request.
    request: MemoryRequest
    # The memory's owner as it is stored, or a draft of it.
    agent: Agent
    # The snapshot of the memory, which one statement has read.
    snapshot: MemorySnapshot
    # The plan of the additions to the conversation.
    plan: Plan
    # The exchanges that were loaded.
    tree: Tree
    # The exchanges before the request, oldest first, as far back as the prompt needs them.
    path: tuple[Exchange, ...]
    # True: the client's list is the stored path word for word. Then only the exchanges to which the gateway has added
    # something are in `tree` and `path`.
    is_plain: bool
    # The conversation's public id, a new one if it is new.
    conversation_uid: str
    # The memory section that the path has; None: the path has no section yet.
    section: SentSection | None = None
    # The memory blocks with the path's own pending edits.
    blocks: tuple[Block, ...] = ()
    # The own names of the gateway's tools for the model, by the names in this request.
    offered_tools: Mapping[str, str] = field(default_factory=dict)
    # The row of the exchange, once its user message is written; negative before.
    exchange_row: int = -1
    # The exchange as it was written with its user message; None: it was not written, or more of the memory has changed
    # since it was read.
    opened_exchange: Exchange | None = None
    # The summaries of the conversation, newest first; None: no summaries were read.
    summaries: Sequence[Summary] | None = None
    # An exchange that a process left open when it died, in the form in which it ends. It is written with the next one.
    abandoned_exchange: Exchange | None = None

    @property
    def is_off(self) -> bool:
        """True if memory is off for this request: nothing is added, and only hashes of the turn are stored."""
        return self.request.identity.mode is Mode.OFF

    @property
    def is_agent_conversation(self) -> bool:
        """True if the conversation is an agent's stored one, so that all its messages are one path."""
        return self.request.kind is ConversationKind.AGENT

    @property
    def tools_in_section(self) -> dict[str, str]:
        """The offered tools that read or edit memory, which the memory section names."""
        return {name: tool for name, tool in self.offered_tools.items() if tool in _NAMED_IN_SECTION}

    @property
    def is_continued(self) -> bool:
        """True if the request continues a stored conversation."""
        return self.plan.match.match_point is not None

    @property
    def used_summary_id(self) -> int:
        """The id of the summary that the last request of the path used; 0: it used no summary."""
        return 0 if self.section is None else self.section.known.get("summary", 0)

    @property
    def last_exchange(self) -> Exchange | None:
        """The last exchange of `path`; None: the path is empty."""
        return self.path[-1] if self.path else None

    @property
    def path_ids(self) -> set[int]:
        """The ids of the exchanges in `path`."""
        return {exchange.id for exchange in self.path}

    @property
    def evicted(self) -> EvictedPart | None:
        """The part of the path that had left the window before this request."""
        return find_evicted(self.plan.match.match_point, self.request.target.context_window)

    def with_answering_target(self, target: Target) -> MemoryContext:
        """Returns the context with the answering target's model in the plan. The expected target stays the same."""
        model = mask_model_name(target.upstream, target.model)
        if model == self.plan.query.model:
            return self
        return replace(self, plan=replace(self.plan, query=replace(self.plan.query, model=model)))

    def with_expected_target(self, target: Target) -> MemoryContext:
        """Returns a copy with another target that is expected to answer, in the request and in the plan."""
        return replace(self.with_answering_target(target), request=replace(self.request, target=target))
