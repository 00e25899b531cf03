"""The tools of MCP: each performs an operation on a memory that the page and the command line also have."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import orjson
from msgspec import Struct
from msgspec.structs import asdict

from gateway.core.agent import AgentSpec
from gateway.core.dates import parse_moment, render_iso
from gateway.core.memory.confirm_word import confirms, make_confirm_word
from gateway.core.memory.mcp_tools import (
    KINDS,
    MAX_FACTS,
    ORIGIN,
    ConversationArguments,
    ConversationLine,
    ConversationResult,
    CorrectArguments,
    CorrectResult,
    EditBlockArguments,
    EditBlockResult,
    ForgetAnswer,
    ForgetArguments,
    FoundText,
    McpCaller,
    ReadArguments,
    ReadBlock,
    ReadFact,
    ReadMessage,
    ReadResult,
    RememberArguments,
    RememberResult,
    SearchArguments,
    SearchResult,
    parse_id,
)
from gateway.errors import BadRequest, Conflict, UnknownId
from gateway.run.admin.forgetting.memory_forgetting import MemoryForgetting
from gateway.run.admin.memory.editor import Editor
from gateway.run.admin.memory.exchange_messages import TEXT_CHARS, shorten
from gateway.run.admin.memory.memory_edits import MemoryEdits, read_fact_text
from gateway.run.admin.memory.memory_views import MemoryViews
from gateway.run.admin.records.memory_records import MessageRecord
from gateway.run.memory.query_vectors import EmbedQuery
from gateway.run.tools.searches import SEARCH_MS
from storage.errors import StoreTimeout
from storage.operator_records import ExchangeRef
from storage.records import Agent, Message, Scope
from storage.sql.store import Store


class McpToolCall(Struct, frozen=True):
    """A call that is being performed."""

    # The key or the command by which the call came.
    caller: McpCaller
    # The person of the memory.
    user: str
    # The agent of the caller's profile.
    spec: AgentSpec
    # The memory; None: nothing is remembered of the user yet.
    agent: Agent | None

    @property
    def scope(self) -> Scope:
        return make_mcp_scope(self.caller, self.user)

    @property
    def editor(self) -> Editor:
        return Editor(ORIGIN, self.caller.project, self.caller.origin)

    def get_memory_with_id(self, id: str) -> Agent:
        """Returns the memory in which an id is searched. Raises: UnknownId: nothing is remembered of the user."""
        if self.agent is None:
            raise _make_not_found_error(id)
        return self.agent


class McpTools(Struct, frozen=True):
    """Performs the tools by operations on memories."""

    store: Store
    # Reads memories.
    views: MemoryViews
    # Returns the vector of a query; None: texts are searched by words alone.
    embed_query: EmbedQuery | None
    # Edits facts and blocks.
    edits: MemoryEdits
    # Forgets texts.
    forgetting: MemoryForgetting
    # Returns the seconds since the epoch.
    now: Callable[[], float]

    async def perform(self, tool: str, call: McpToolCall, arguments: Struct) -> Struct:
        """Returns the result of a tool. tool: one of TOOLS; arguments: an object of its type. Raises: GatewayError."""
        return await _TOOLS[tool](self, call, arguments)

    async def _search_memory(self, call: McpToolCall, arguments: SearchArguments) -> SearchResult:
        """Returns the texts that a query finds; `late` if the search took too long. Raises: BadRequest."""
        if not arguments.query.strip():
            raise BadRequest("query must say what to look for.", param="query")
        since = _read_time(arguments.after, "after", default=-math.inf)
        until = _read_time(arguments.before, "before", default=math.inf)
        if call.agent is None:
            return SearchResult((), late=False)

        def takes(hit: Message) -> bool:
            return hit.kind in arguments.kinds and since <= hit.at < until

        agent = call.agent
        query = arguments.query
        try:
            vector = None
            if self.embed_query is not None:
                vector = await self.embed_query([agent.id], query, SEARCH_MS)
            hits = await self.store.recall.search(
                agent, query, limit=arguments.limit, takes=takes, deadline_ms=SEARCH_MS, vector=vector
            )
        except StoreTimeout:
            return SearchResult((), late=True)
        exchange_rows = sorted({hit.exchange_row for hit in hits if hit.kind == "message"})
        refs = await self.store.memory_pages.load_exchange_refs(agent.id, exchange_rows)
        return SearchResult(tuple(_make_found_text(hit, refs) for hit in hits), late=False)

    async def _read_memory(self, call: McpToolCall, _: ReadArguments) -> ReadResult:
        """Returns the blocks and the first facts; of a caller without a memory, none."""
        agent = call.agent
        if agent is None:
            return ReadResult(call.user, (), (), 0)
        memory = await self.views.get(call.caller.project, agent.uid)
        blocks = await self.store.facts.load_blocks(agent.id)
        # No model is shown muted facts; only the lists for people have them.
        facts = await self.store.facts.list_unmuted(agent.id, MAX_FACTS)
        return ReadResult(
            call.user,
            tuple(
                ReadBlock(block.label, block.value, block.limit, block.version, block.read_only)
                for block in blocks
            ),
            tuple(ReadFact(f"fact:{fact.seq}", fact.text, render_iso(fact.valid_from)) for fact in facts),
            memory.conversations,
        )

    async def _read_conversation(
        self, call: McpToolCall, arguments: ConversationArguments
    ) -> ConversationResult:
        """Returns messages around one, those of a conversation, or the list of conversations. Raises: GatewayError."""
        project = call.caller.project
        views = self.views
        if arguments.around:
            seq = parse_id(arguments.around, ("message",), argument="around").seq
            agent = call.get_memory_with_id(arguments.around)
            with _name_id_in_error(arguments.around):
                messages = await views.messages.read_around(project, agent.uid, seq, arguments.limit)
            if arguments.conversation not in ("", messages.conversation):
                raise BadRequest("around is a message of another conversation.", param="around")
            return ConversationResult(
                conversation=messages.conversation, messages=_make_shown_messages(messages.items)
            )
        if arguments.conversation:
            agent = call.get_memory_with_id(arguments.conversation)
            with _name_id_in_error(arguments.conversation):
                page = await views.conversations.show(
                    project, agent.uid, arguments.conversation, limit=arguments.limit
                )
            return ConversationResult(
                conversation=page.conversation.id, messages=_make_shown_messages(page.items)
            )
        if call.agent is None:
            return ConversationResult(conversations=())
        conversations = await views.conversations.list_page(project, call.agent.uid, limit=arguments.limit)
        return ConversationResult(
            conversations=tuple(
                ConversationLine(each.id, render_iso(each.begun), render_iso(each.last_turn), each.messages)
                for each in conversations.items
            )
        )

    async def _remember_fact(self, call: McpToolCall, arguments: RememberArguments) -> RememberResult:
        text = read_fact_text(arguments.text)
        agent = call.agent or await self.store.agents.find_or_create(
            call.scope, call.spec.own_blocks, call.spec.shared_blocks, self.now()
        )
        fact, is_new = await self.edits.remember_fact(call.editor, agent, text)
        return RememberResult(f"fact:{fact.seq}", known=not is_new, muted=fact.muted)

    async def _correct_fact(self, call: McpToolCall, arguments: CorrectArguments) -> CorrectResult:
        seq = parse_id(arguments.id, ("fact",)).seq
        uid = call.get_memory_with_id(arguments.id).uid
        with _name_id_in_error(arguments.id):
            fact = await self.edits.correct_fact(call.editor, uid, seq, arguments.text)
        return CorrectResult(f"fact:{fact.seq}", arguments.id)

    async def _edit_block(self, call: McpToolCall, arguments: EditBlockArguments) -> EditBlockResult:
        """Replaces the named version of a block. Raises: Conflict, which has the present value; UnknownId."""
        agent = call.agent
        label = arguments.label
        if agent is None:
            raise _make_unknown_label_error(label)
        try:
            block = await self.edits.blocks.edit(
                call.editor, agent.uid, label, arguments.value, arguments.version
            )
        except UnknownId as error:
            raise _make_unknown_label_error(label) from error
        except Conflict as error:
            blocks = await self.store.facts.load_blocks(agent.id)
            present_block = next((block for block in blocks if block.label == label), None)
            if present_block is None:
                raise
            shown_fields = {"label": label, "version": present_block.version, "value": present_block.value}
            raise Conflict(
                f"version {arguments.version} is not the block's present one, and nothing was written; "
                f"it is now {orjson.dumps(shown_fields).decode()}",
                param="version",
            ) from error
        return EditBlockResult(block.label, block.version)

    async def _forget_text(self, call: McpToolCall, arguments: ForgetArguments) -> ForgetAnswer:
        """Forgets a text if the call confirms it; else returns what would go, and the word that confirms it."""
        kind, seq = parse_id(arguments.id)
        agent = call.get_memory_with_id(arguments.id)
        forgetting = self.forgetting
        with _name_id_in_error(arguments.id):
            preview = await forgetting.previews.show(call.caller.project, agent.uid, kind, seq)
            goes = {name: count for name, count in asdict(preview.will_go).items() if count != 0}
            if not arguments.confirm:
                word = make_confirm_word(agent.secret, arguments.id, self.now())
                return ForgetAnswer(forgotten=False, goes=goes, confirm=word)
            if not confirms(arguments.confirm, agent.secret, arguments.id, self.now()):
                raise BadRequest(
                    "confirm is not the word for this id, or older than five minutes; nothing was forgotten.",
                    param="confirm",
                )
            await forgetting.forget(call.editor, agent.uid, kind, seq)
        return ForgetAnswer(forgotten=True, goes=goes)


_TOOLS: Final[Mapping[str, Callable[[McpTools, McpToolCall, Any], Awaitable[Struct]]]] = {
    "memory_search": McpTools._search_memory,
    "memory_read": McpTools._read_memory,
    "conversation_read": McpTools._read_conversation,
    "memory_remember": McpTools._remember_fact,
    "memory_correct": McpTools._correct_fact,
    "memory_edit_block": McpTools._edit_block,
    "memory_forget": McpTools._forget_text,
}


def make_mcp_scope(caller: McpCaller, user: str) -> Scope:
    """Returns the scope of the memory that a caller uses."""
    return Scope(caller.project, caller.profile, f"user:{user}")


def _make_found_text(hit: Message, refs: Mapping[int, ExchangeRef]) -> FoundText:
    """Returns a hit as a tool shows it. refs: the references of exchanges, by the rows of the exchanges."""
    kind = next(kind for kind in KINDS if kind == hit.kind)
    is_message = kind == "message"
    ref = refs.get(hit.exchange_row)
    return FoundText(
        id=f"{kind}:{hit.seq}",
        kind=kind,
        text=shorten(hit.text, TEXT_CHARS),
        at=render_iso(hit.at),
        role=hit.role if is_message else None,
        conversation=ref.conversation_uid if is_message and ref is not None else None,
    )


def _make_shown_messages(records: Sequence[MessageRecord]) -> tuple[ReadMessage, ...]:
    return tuple(
        ReadMessage(f"message:{record.seq}", record.role, record.text, render_iso(record.at))
        for record in records
        if record.text is not None
    )


def _read_time(text: str, name: str, *, default: float) -> float:
    """Returns the time of an argument, in seconds since the epoch.

    name: the name of the argument, for the error.
    default: the time if the text is empty.

    Raises: BadRequest.
    """
    if not text:
        return default
    try:
        return parse_moment(text)
    except ValueError as error:
        raise BadRequest(f"{name} must be a date (2026-03-01) or a time in ISO 8601.", param=name) from error


@contextmanager
def _name_id_in_error(id: str) -> Iterator[None]:
    """Replaces an UnknownId that is raised inside by one that names the id as the caller sent it."""
    try:
        yield
    except UnknownId as error:
        raise _make_not_found_error(id) from error


def _make_not_found_error(id: str) -> UnknownId:
    return UnknownId(f"{id} is not found.")


def _make_unknown_label_error(label: str) -> UnknownId:
    return UnknownId(f"There is no block with the label {label!r}.")
