"""The tools of MCP on a memory: each is a face of the operation that the page and the command line have, too.

A call is let in by the limits on requests, and counted. It writes all or nothing: one that its caller has left goes on
to its end. Failures are answers, in one sentence; nothing of a memory is logged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
import orjson
from msgspec import Struct

from gateway.checked import InvalidValue, convert
from gateway.core.agent import AgentSpec
from gateway.core.dates import iso_text, parse_moment
from gateway.core.memory.mcp_tools import (
    KINDS,
    MOST_FACTS,
    ORIGIN,
    TEXT_CHARS,
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
    TextKind,
    client_name,
    confirm_word,
    confirms,
    parse_id,
)
from gateway.core.nul import without_nul
from gateway.errors import BadRequest, Conflict, GatewayError, MemoryUnavailable, NotAllowed, UnknownId
from gateway.run.admin.exchange_messages import TEXT_CHARS as SHOWN_CHARS
from gateway.run.admin.exchange_messages import shortened
from gateway.run.admin.memory_edits import Editor, MemoryEdits
from gateway.run.admin.memory_forgetting import MemoryForgetting
from gateway.run.admin.memory_search import SearchOperation, TextSearch
from gateway.run.admin.memory_views import MemoryViews
from gateway.run.admin.operation_arguments import Arguments, RawArguments, refusal
from gateway.run.admin.page_records import MessageRecord
from gateway.run.receipt import Receipt
from gateway.run.usage.accounting import Accounting
from storage.errors import StoreError
from storage.records import Agent, Scope
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")

# The operation by which the command line performs a call.
MCP_CALL: Final = "mcp-call"
_UNNAMED = (
    "No user was named: the key can be one person's, else name them by the header x-mnemogate-user or by ?user= in the "
    "URL."
)
_PAUSED = "This memory is paused: nothing is remembered or recalled until its person resumes it."


class McpOperations(Struct, frozen=True):
    """The operations that the tools are faces of."""

    views: MemoryViews
    search: SearchOperation
    edits: MemoryEdits
    forgetting: MemoryForgetting


class _Asked(Struct, frozen=True):
    """A call that is being performed. agent: None: nothing is remembered of the person yet."""

    caller: McpCaller
    user: str
    agent: Agent | None

    @property
    def editor(self) -> Editor:
        return Editor(ORIGIN, self.caller.project, self.caller.origin)

    def known(self, id: str) -> Agent:
        """Returns the memory in which something is looked for. Raises: UnknownId: there is none."""
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
        """Makes it.

        spec_of: returns the agent of a profile, None where there is no such profile.
        now: seconds since the epoch.
        default_profile: by project.
        """
        self._store, self._operations, self._spec_of = store, operations, spec_of
        self._now, self._accounts, self._limiter = now, accounting.accounts, accounting.limiter
        self._default_profile = default_profile
        self._calls: set[asyncio.Task[McpAnswer]] = set()
        self._tools: dict[str, Callable[[_Asked, Any], Awaitable[Struct]]] = {
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
        task = asyncio.create_task(self._account(caller, tool, arguments))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return await asyncio.shield(task)

    async def perform(self, raw: RawArguments) -> dict[str, Any]:
        """Performs a call for the command line. Raises: BadRequest."""
        given = Arguments(raw)
        project, tool, arguments = (
            given.text("project"),
            given.text("tool"),
            given.optional("arguments") or {},
        )
        if tool not in TOOLS or not isinstance(arguments, dict):
            raise BadRequest(f"There is no tool {tool!r}.", param="tool")
        profile = given.optional_text("profile") or self._default_profile(project)
        client = client_name(given.optional_text("client") or "", "")
        caller = McpCaller(
            project, profile, given.text("user"), may_write=not given.flag("read"), client=client
        )
        answer = await self.call(caller, tool, arguments)
        return {"value": answer.value, "error": answer.error}

    async def drain(self, timeout_s: float) -> None:
        """Waits for calls that are under way, so long at most."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=timeout_s)
        await self._operations.forgetting.aclose()

    # -- a call

    async def _account(self, caller: McpCaller, tool: str, arguments: RawArguments) -> McpAnswer:
        receipt = Receipt(time.perf_counter(), project=caller.project, key=caller.key)
        receipt.user, receipt.asks_model, receipt.status = caller.user or "", False, 200
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
            self._accounts.hand_on(receipt)

    async def _answer(
        self, receipt: Receipt, caller: McpCaller, tool: str, arguments: RawArguments
    ) -> McpAnswer:
        definition = TOOLS[tool]
        await self._limiter.admit(receipt, 0, None, ("", ""))
        if caller.user is None:
            raise BadRequest(_UNNAMED, param="user")
        if definition.writes and not caller.may_write:
            raise NotAllowed(f"This connection only reads, so {tool} is refused.")
        if self._spec_of(caller.profile) is None:
            raise BadRequest(f"There is no profile {caller.profile!r}.", param="profile")
        read = _read_arguments(arguments, definition.arguments)
        agent = await self._store.agents.find(_scope_of(caller, caller.user))
        if agent is not None:
            # One that another process has forgotten may be known here still, and it may be paused meanwhile.
            agent = await self._store.agents.load(agent.id)
            if agent is None:
                self._store.agents.uncache(_scope_of(caller, caller.user))
            elif agent.paused is not None:
                raise NotAllowed(_PAUSED)
        result = await self._tools[tool](_Asked(caller, caller.user, agent), read)
        return McpAnswer(msgspec.to_builtins(result))

    async def _begun(self, asked: _Asked) -> Agent:
        """Returns the memory of a call that writes, which begins now if it is not there."""
        if asked.agent is not None:
            return asked.agent
        spec = self._spec_of(asked.caller.profile)
        assert spec is not None  # it was looked at
        scope = _scope_of(asked.caller, asked.user)
        return await self._store.agents.find_or_begin(scope, spec.own_blocks, spec.shared_blocks, self._now())

    # -- the tools

    async def _search(self, asked: _Asked, given: SearchArguments) -> SearchResult:
        if not given.query.strip():
            raise BadRequest("query must say what to look for.", param="query")
        since, until = (
            _moment(given.after, "after", -float("inf")),
            _moment(given.before, "before", float("inf")),
        )
        if asked.agent is None:
            return SearchResult((), late=False)
        wanted = TextSearch(given.query, given.limit, given.kinds, since, until)
        found = await self._operations.search.search(asked.agent, wanted)
        results = []
        for m in found.hits:
            kind = next(each for each in KINDS if each == m.source)
            is_message = kind == "message"
            results.append(
                FoundText(
                    f"{kind}:{m.seq}",
                    kind,
                    shortened(m.text, SHOWN_CHARS),
                    iso_text(m.at),
                    m.role if is_message else None,
                    found.conversations.get(m.exchange) if is_message else None,
                )
            )
        return SearchResult(tuple(results), found.has_timed_out)

    async def _read(self, asked: _Asked, _: ReadArguments) -> ReadResult:
        agent = asked.agent
        if agent is None:
            return ReadResult(asked.user, (), (), 0)
        memory = await self._operations.views.find(asked.caller.project, agent.uid)
        blocks = await self._store.facts.blocks(agent.id)
        # Muted ones stay in lists that people read, and no model is told them.
        facts = [f for f in await self._store.facts.list(agent.id, limit=MOST_FACTS) if not f.muted]
        return ReadResult(
            asked.user,
            tuple(ReadBlock(b.label, b.value, b.limit, b.version, b.read_only) for b in blocks),
            tuple(ReadFact(f"fact:{f.seq}", f.text, iso_text(f.valid_from)) for f in facts),
            memory.conversations,
        )

    async def _read_conversation(self, asked: _Asked, given: ConversationArguments) -> ConversationResult:
        project, views = asked.caller.project, self._operations.views
        if given.around:
            _, seq = parse_id(given.around, ("message",), argument="around")
            agent = asked.known(given.around)
            try:
                found = await views.around(project, agent.uid, seq, given.limit)
            except UnknownId as error:
                raise _not_found(given.around) from error
            if given.conversation not in ("", found.conversation):
                raise BadRequest("around is a message of another conversation.", param="around")
            return ConversationResult(conversation=found.conversation, messages=_messages(found.items))
        if given.conversation:
            agent = asked.known(given.conversation)
            try:
                page = await views.conversation(project, agent.uid, given.conversation, limit=given.limit)
            except UnknownId as error:
                raise _not_found(given.conversation) from error
            return ConversationResult(conversation=page.conversation.id, messages=_messages(page.items))
        if asked.agent is None:
            return ConversationResult(conversations=())
        conversations = await views.conversations(project, asked.agent.uid, limit=given.limit)
        return ConversationResult(
            conversations=tuple(
                ConversationLine(c.id, iso_text(c.begun), iso_text(c.last_turn), c.messages)
                for c in conversations.items
            )
        )

    async def _remember(self, asked: _Asked, given: RememberArguments) -> RememberResult:
        agent = await self._begun(asked)
        fact, known = await self._operations.edits.remember_fact(asked.editor, agent, given.text, TEXT_CHARS)
        return RememberResult(f"fact:{fact.seq}", known)

    async def _correct(self, asked: _Asked, given: CorrectArguments) -> CorrectResult:
        _, seq = parse_id(given.id, ("fact",))
        uid = asked.known(given.id).uid
        try:
            fact = await self._operations.edits.correct_fact(asked.editor, uid, seq, given.text, TEXT_CHARS)
        except UnknownId as error:
            raise _not_found(given.id) from error
        return CorrectResult(f"fact:{fact.seq}", given.id)

    async def _edit_block(self, asked: _Asked, given: EditBlockArguments) -> EditBlockResult:
        agent = await self._begun(asked)
        label, edits = given.label, self._operations.edits
        try:
            block = await edits.edit_block(asked.editor, agent.uid, label, given.value, given.version)
        except UnknownId as error:
            raise UnknownId(f"There is no block with the label {label!r}.") from error
        except Conflict as error:
            now = next((b for b in await self._store.facts.blocks(agent.id) if b.label == label), None)
            if now is None:
                raise
            shown = orjson.dumps({"label": label, "version": now.version, "value": now.value}).decode()
            raise Conflict(
                f"version {given.version} is not the block's present one, and nothing was written; it is now {shown}",
                param="version",
            ) from error
        return EditBlockResult(block.label, block.version)

    async def _forget(self, asked: _Asked, given: ForgetArguments) -> ForgetAnswer:
        kind, seq = parse_id(given.id)
        agent, forgetting = asked.known(given.id), self._operations.forgetting
        try:
            goes = await self._going(asked, agent, kind, seq)
            if not given.confirm:
                return ForgetAnswer(
                    forgotten=False, goes=goes, confirm=confirm_word(agent.secret, given.id, self._now())
                )
            if not confirms(given.confirm, agent.secret, given.id, self._now()):
                raise BadRequest(
                    "confirm is not the word for this id, or older than five minutes; nothing was forgotten.",
                    param="confirm",
                )
            await forgetting.forget(asked.editor, agent.uid, kind, seq)
        except UnknownId as error:
            raise _not_found(given.id) from error
        return ForgetAnswer(forgotten=True, goes=goes)

    async def _going(self, asked: _Asked, agent: Agent, kind: TextKind, seq: int) -> dict[str, int | None]:
        """Returns how much of each kind a forgetting takes. Raises: UnknownId."""
        preview = await self._operations.forgetting.preview(asked.caller.project, agent.uid, kind, seq)
        return {name: count for name, count in msgspec.structs.asdict(preview.will_go).items() if count != 0}


def _scope_of(caller: McpCaller, user: str) -> Scope:
    return Scope(caller.project, caller.profile, f"user:{user}")


def _messages(records: Sequence[MessageRecord]) -> tuple[ReadMessage, ...]:
    return tuple(
        ReadMessage(f"message:{r.seq}", r.role, r.text, iso_text(r.at)) for r in records if r.text is not None
    )


def _read_arguments(raw: RawArguments, kind: type[Struct]) -> Struct:
    """Makes the arguments of a tool. One that is null counts as left out. Raises: BadRequest, which names it."""
    for name, value in raw.items():
        try:
            orjson.dumps(value)
        except (TypeError, ValueError) as error:
            raise BadRequest(f"{name} holds text or a number that no JSON can say.", param=name) from error
    try:
        return convert(without_nul({name: value for name, value in raw.items() if value is not None}), kind)
    except InvalidValue as error:
        raise refusal(error.fault) from error


def _moment(text: str, name: str, missing: float) -> float:
    if not text:
        return missing
    try:
        return parse_moment(text)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{name} must be a date (2026-03-01) or a time in ISO 8601.", param=name) from error


def _not_found(id: str) -> UnknownId:
    return UnknownId(f"{id} is not found.")
