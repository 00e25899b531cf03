"""The tools of MCP on a memory: each performs an operation that the page and the command line have, too.

A call is let in by the limits on requests, and counted. It runs to its end even when its caller has left, so it writes
all or nothing. A failure is an answer of one sentence; nothing of a memory is logged.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import orjson
from msgspec import Struct
from msgspec.structs import asdict

from gateway.checked import InvalidValue, convert
from gateway.core.agent import AgentSpec
from gateway.core.dates import iso_text, parse_moment
from gateway.core.memory.mcp_tools import (
    KINDS,
    MAX_FACTS,
    ORIGIN,
    TOOLS,
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
    McpAnswer,
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
    client_name,
    confirm_word,
    confirms,
    parse_id,
)
from gateway.core.nul import without_nul
from gateway.errors import BadRequest, Conflict, GatewayError, MemoryUnavailable, NotAllowed, UnknownId
from gateway.run.admin.exchange_messages import TEXT_CHARS, shorten
from gateway.run.admin.memory_edits import Editor, MemoryEdits
from gateway.run.admin.memory_forgetting import MemoryForgetting
from gateway.run.admin.memory_records import MessageRecord
from gateway.run.admin.memory_search import SearchOperation, TextSearch
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.operation_arguments import Arguments, RawArguments, refusal
from gateway.run.memory.memory_context import check_not_paused
from gateway.run.receipt import Receipt
from gateway.run.usage.accounting import Accounting
from storage.errors import StoreError
from storage.records import Agent, Message, Scope
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The operation by which the command line performs a call.
MCP_CALL: Final = "mcp-call"
_UNNAMED = (
    "No user was named: the key can be one person's, else name them by the header x-mnemogate-user or by ?user= in the "
    "URL."
)


class McpOperations(Struct, frozen=True):
    """The operations that the tools perform."""

    views: MemoryViews
    search: SearchOperation
    edits: MemoryEdits
    forgetting: MemoryForgetting


class _Call(Struct, frozen=True):
    """A call that is being performed."""

    caller: McpCaller
    user: str
    # The memory; None: nothing is remembered of the user yet.
    agent: Agent | None

    @property
    def editor(self) -> Editor:
        return Editor(ORIGIN, self.caller.project, self.caller.origin)

    def memory_of(self, id: str) -> Agent:
        """Returns the memory in which an id is looked for. Raises: UnknownId: there is none."""
        if self.agent is None:
            raise _not_found(id)
        return self.agent


class McpMemory:
    """Performs the calls of one process."""

    def __init__(
        self,
        store: Store,
        operations: McpOperations,
        spec_of: Callable[[str], AgentSpec | None],
        now: Callable[[], float],
        accounting: Accounting,
        default_profile: Callable[[str], str],
    ) -> None:
        """Makes the operations of a process in which no call is under way.

        spec_of: returns the agent of a profile; None: there is no such profile.
        now: seconds since the epoch.
        default_profile: returns the default profile of a project.
        """
        self._store = store
        self._operations = operations
        self._spec_of = spec_of
        self._now = now
        self._receipts = accounting.receipts
        self._limiter = accounting.limiter
        self._default_profile = default_profile
        self._calls: set[asyncio.Task[McpAnswer]] = set()
        self._tools: dict[str, Callable[[_Call, Any], Awaitable[Struct]]] = {
            "memory_search": self._search,
            "memory_read": self._read,
            "conversation_read": self._read_conversation,
            "memory_remember": self._remember,
            "memory_correct": self._correct,
            "memory_edit_block": self._edit_block,
            "memory_forget": self._forget,
        }

    async def call(self, caller: McpCaller, tool: str, arguments: RawArguments) -> McpAnswer:
        """Performs a call. tool: one of TOOLS."""
        task = asyncio.create_task(self._answer_counted(caller, tool, arguments))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await asyncio.shield(task)

    async def call_for_command_line(self, raw: RawArguments) -> dict[str, Any]:
        """Performs a call for the command line. Raises: BadRequest."""
        fields = Arguments(raw)
        project, tool = fields.text("project"), fields.text("tool")
        arguments = fields.optional("arguments") or {}
        if tool not in TOOLS or not isinstance(arguments, dict):
            raise BadRequest(f"There is no tool {tool!r}.", param="tool")
        profile = fields.optional_text("profile") or self._default_profile(project)
        client = client_name(fields.optional_text("client") or "", "")
        user = fields.optional_id("user")
        caller = McpCaller(project, profile, user, may_write=not fields.flag("read"), client=client)
        answer = await self.call(caller, tool, arguments)
        return {"value": answer.value, "error": answer.error}

    async def drain(self, timeout_s: float) -> None:
        """Waits for calls that are under way, for this time at most."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_s)
        await self._operations.forgetting.aclose()

    # -- a call

    async def _answer_counted(self, caller: McpCaller, tool: str, arguments: RawArguments) -> McpAnswer:
        receipt = Receipt(time.perf_counter(), project=caller.project, key=caller.key)
        receipt.user = caller.user or ""
        receipt.asks_model = False
        receipt.status = 200
        try:
            return await self._answer(receipt, caller, tool, arguments)
        except GatewayError as error:
            return McpAnswer(error=error.message)
        except StoreError as error:
            receipt.status = MemoryUnavailable.status
            return McpAnswer(error=MemoryUnavailable.since(error.status).message)
        except Exception as error:
            receipt.status = 500
            _log.error(
                "The tool %s failed by a fault in the gateway: %s", tool, type(error).__name__, exc_info=error
            )
            return McpAnswer(error="Something went wrong inside the gateway. Its log says more.")
        finally:
            self._receipts.hand_on(receipt)

    async def _answer(
        self, receipt: Receipt, caller: McpCaller, tool: str, arguments: RawArguments
    ) -> McpAnswer:
        definition = TOOLS[tool]
        await self._limiter.admit(receipt, None)
        if caller.user is None:
            raise BadRequest(_UNNAMED, param="user")
        if definition.writes and not caller.may_write:
            raise NotAllowed(f"This connection only reads, so {tool} is refused.")
        if self._spec_of(caller.profile) is None:
            raise BadRequest(f"There is no profile {caller.profile!r}.", param="profile")
        read_arguments = _read_arguments(arguments, definition.arguments)
        agent = await self._find_agent(_scope_of(caller, caller.user))
        result = await self._tools[tool](_Call(caller, caller.user, agent), read_arguments)
        return McpAnswer(msgspec.to_builtins(result))

    async def _find_agent(self, scope: Scope) -> Agent | None:
        """Returns the memory of a user; None: it has not begun. Raises: NotAllowed: the memory is paused."""
        agent = await self._store.agents.find_current(scope)
        if agent is not None:
            check_not_paused(agent)
        return agent

    async def _find_or_begin_agent(self, call: _Call) -> Agent:
        """Returns the memory of a call that writes, which begins now if it is not there."""
        if call.agent is not None:
            return call.agent
        spec = self._spec_of(call.caller.profile)
        assert spec is not None  # `_answer` has checked the profile
        scope = _scope_of(call.caller, call.user)
        return await self._store.agents.find_or_begin(scope, spec.own_blocks, spec.shared_blocks, self._now())

    # -- the tools

    async def _search(self, call: _Call, arguments: SearchArguments) -> SearchResult:
        if not arguments.query.strip():
            raise BadRequest("query must say what to look for.", param="query")
        since = _read_time(arguments.after, "after", default=-math.inf)
        until = _read_time(arguments.before, "before", default=math.inf)
        if call.agent is None:
            return SearchResult((), late=False)
        search = TextSearch(arguments.query, arguments.limit, arguments.kinds, since, until)
        texts = await self._operations.search.search(call.agent, search)
        return SearchResult(
            tuple(_found_text(hit, texts.conversations) for hit in texts.hits), texts.has_timed_out
        )

    async def _read(self, call: _Call, _: ReadArguments) -> ReadResult:
        agent = call.agent
        if agent is None:
            return ReadResult(call.user, (), (), 0)
        memory = await self._operations.views.find(call.caller.project, agent.uid)
        blocks = await self._store.facts.blocks(agent.id)
        # Muted facts stay in lists that people read; no model is shown them.
        facts = await self._store.facts.list_unmuted(agent.id, MAX_FACTS)
        return ReadResult(
            call.user,
            tuple(ReadBlock(b.label, b.value, b.limit, b.version, b.read_only) for b in blocks),
            tuple(ReadFact(f"fact:{f.seq}", f.text, iso_text(f.valid_from)) for f in facts),
            memory.conversations,
        )

    async def _read_conversation(self, call: _Call, arguments: ConversationArguments) -> ConversationResult:
        project = call.caller.project
        views = self._operations.views
        if arguments.around:
            _, seq = parse_id(arguments.around, ("message",), argument="around")
            agent = call.memory_of(arguments.around)
            with _name_id_in_error(arguments.around):
                around = await views.conversations.read_around(project, agent.uid, seq, arguments.limit)
            if arguments.conversation not in ("", around.conversation):
                raise BadRequest("around is a message of another conversation.", param="around")
            return ConversationResult(
                conversation=around.conversation, messages=_shown_messages(around.items)
            )
        if arguments.conversation:
            agent = call.memory_of(arguments.conversation)
            with _name_id_in_error(arguments.conversation):
                page = await views.conversations.show(
                    project, agent.uid, arguments.conversation, limit=arguments.limit
                )
            return ConversationResult(conversation=page.conversation.id, messages=_shown_messages(page.items))
        if call.agent is None:
            return ConversationResult(conversations=())
        conversations = await views.conversations.page(project, call.agent.uid, limit=arguments.limit)
        return ConversationResult(
            conversations=tuple(
                ConversationLine(c.id, iso_text(c.begun), iso_text(c.last_turn), c.messages)
                for c in conversations.items
            )
        )

    async def _remember(self, call: _Call, arguments: RememberArguments) -> RememberResult:
        agent = await self._find_or_begin_agent(call)
        fact, is_known = await self._operations.edits.remember_fact(call.editor, agent, arguments.text)
        return RememberResult(f"fact:{fact.seq}", is_known, fact.muted)

    async def _correct(self, call: _Call, arguments: CorrectArguments) -> CorrectResult:
        _, seq = parse_id(arguments.id, ("fact",))
        uid = call.memory_of(arguments.id).uid
        with _name_id_in_error(arguments.id):
            fact = await self._operations.edits.correct_fact(call.editor, uid, seq, arguments.text)
        return CorrectResult(f"fact:{fact.seq}", arguments.id)

    async def _edit_block(self, call: _Call, arguments: EditBlockArguments) -> EditBlockResult:
        agent = await self._find_or_begin_agent(call)
        edits, label = self._operations.edits, arguments.label
        try:
            block = await edits.edit_block(call.editor, agent.uid, label, arguments.value, arguments.version)
        except UnknownId as error:
            raise UnknownId(f"There is no block with the label {label!r}.") from error
        except Conflict as error:
            blocks = await self._store.facts.blocks(agent.id)
            current = next((block for block in blocks if block.label == label), None)
            if current is None:
                raise
            present = {"label": label, "version": current.version, "value": current.value}
            raise Conflict(
                f"version {arguments.version} is not the block's present one, and nothing was written; "
                f"it is now {orjson.dumps(present).decode()}",
                param="version",
            ) from error
        return EditBlockResult(block.label, block.version)

    async def _forget(self, call: _Call, arguments: ForgetArguments) -> ForgetAnswer:
        kind, seq = parse_id(arguments.id)
        agent = call.memory_of(arguments.id)
        forgetting = self._operations.forgetting
        with _name_id_in_error(arguments.id):
            preview = await forgetting.preview(call.caller.project, agent.uid, kind, seq)
            goes = {name: count for name, count in asdict(preview.will_go).items() if count != 0}
            if not arguments.confirm:
                word = confirm_word(agent.secret, arguments.id, self._now())
                return ForgetAnswer(forgotten=False, goes=goes, confirm=word)
            if not confirms(arguments.confirm, agent.secret, arguments.id, self._now()):
                raise BadRequest(
                    "confirm is not the word for this id, or older than five minutes; nothing was forgotten.",
                    param="confirm",
                )
            await forgetting.forget(call.editor, agent.uid, kind, seq)
        return ForgetAnswer(forgotten=True, goes=goes)


def _scope_of(caller: McpCaller, user: str) -> Scope:
    return Scope(caller.project, caller.profile, f"user:{user}")


def _found_text(hit: Message, conversations: Mapping[int, str]) -> FoundText:
    """Returns a hit as a tool shows it. conversations: their public names, by the exchanges of messages."""
    kind = next(kind for kind in KINDS if kind == hit.source)
    is_message = kind == "message"
    return FoundText(
        f"{kind}:{hit.seq}",
        kind,
        shorten(hit.text, TEXT_CHARS),
        iso_text(hit.at),
        hit.role if is_message else None,
        conversations.get(hit.exchange) if is_message else None,
    )


def _shown_messages(records: Sequence[MessageRecord]) -> tuple[ReadMessage, ...]:
    return tuple(
        ReadMessage(f"message:{r.seq}", r.role, r.text, iso_text(r.at)) for r in records if r.text is not None
    )


def _read_arguments(raw: RawArguments, kind: type[Struct]) -> Struct:
    """Returns the arguments of a tool. One that is null counts as left out. Raises: BadRequest, which names it."""
    for name, value in raw.items():
        try:
            orjson.dumps(value)
        except (TypeError, ValueError) as error:
            raise BadRequest(f"{name} holds text or a number that no JSON can say.", param=name) from error
    try:
        return convert(without_nul({name: value for name, value in raw.items() if value is not None}), kind)
    except InvalidValue as error:
        raise refusal(error.fault) from error


def _read_time(text: str, name: str, *, default: float) -> float:
    """Returns an argument as seconds since the epoch. Raises: BadRequest, which names it."""
    if not text:
        return default
    try:
        return parse_moment(text)
    except ValueError as error:
        raise BadRequest(f"{name} must be a date (2026-03-01) or a time in ISO 8601.", param=name) from error


@contextmanager
def _name_id_in_error(id: str) -> Iterator[None]:
    """Has an UnknownId that is raised within its block name the id as the caller sent it."""
    try:
        yield
    except UnknownId as error:
        raise _not_found(id) from error


def _not_found(id: str) -> UnknownId:
    return UnknownId(f"{id} is not found.")
