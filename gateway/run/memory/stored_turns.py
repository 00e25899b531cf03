"""Turns that a client names instead of sending them again: found by an id that was sent with the reply.

A name is made of the time at which the request came, by which its exchange is known in whatever form its words come
back, and of a hash of its words and their place: the same answer to the same words is stored once, under the time of
the first. Nothing is stored for it. A turn is found whether it stands or not, but not where it was forgotten.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence, Set
from itertools import chain

import orjson
from msgspec import Struct
from msgspec.structs import replace

from gateway.core.conversation.canonical import Canon, WireMessage, call_id, text_of, visible_reply
from gateway.core.conversation.directions import Direction, insert_directions, stored_directions
from gateway.core.conversation.heard import as_heard
from gateway.core.conversation.private import private_of, with_private, without_private
from gateway.core.conversation.provider_fields import THOUGHTS
from gateway.core.request.chat_request import ChatRequest, MemoryChoice, Reference
from gateway.errors import BadRequest, BodyTooLarge
from gateway.run.memory.memory_context import MemoryContext
from storage.errors import NotFound
from storage.listing import ListedExchange
from storage.records import Agent, Exchange, Scope, State
from storage.sql.store import Store

_PAGE = 200
_NEWEST = 100  # a client that continues by an id nearly always continues from a recent reply; no measurement
_TIME = struct.Struct(">d")
_TIME_CHARS = 2 * _TIME.size
_PLACE_BYTES = 4
_CONVERSATION_CHARS = 32  # of a conversation's public name


def turn_name(context: MemoryContext) -> str:
    """Returns the name of the turn that a request asks for, within its conversation."""
    plan = context.plan
    return _time(plan.exchange.begun) + _place(plan.exchange, plan.match.match_point)


async def with_references(
    store: Store, project: str, scope: Scope | None, request: ChatRequest, most_bytes: int
) -> ChatRequest:
    """Returns a request with the messages that its references stand for.

    scope: the memory's scope, in another one nothing is found; None: the request names nobody, and is then one of the
        memory in which its ids are.
    most_bytes: of the replies that are put in their places.

    Raises: BadRequest: one of them is not there; BodyTooLarge; StoreError.
    """
    filled, turns = _Filled(request, most_bytes), _Turns(store, project, scope)
    for each in request.references:
        found = await turns.path_to(each)
        if found:
            filled.put(each, found)
        elif not each.is_thoughts:  # which are lost like those of another maker
            raise _not_found(each)
    whole = filled.request()
    if scope is None and turns.owner is not None:
        agent, key = turns.owner
        return replace(
            whole, unnamed=MemoryChoice(None if agent.scope.spans_conversations else key, agent.scope)
        )
    return whole


class _Turns:
    """The turns that references name. owner: whose they are, and the client's id of the first one's conversation."""

    def __init__(self, store: Store, project: str, scope: Scope | None) -> None:
        self.owner: tuple[Agent, str | None] | None = None
        self._store = store
        self._project = project
        self._scope = scope
        self._paths: dict[tuple[str, str, bool, int | None], list[WireMessage]] = {}
        self._by_conversation: dict[str, _ConversationTurns] = {}

    async def path_to(self, each: Reference) -> list[WireMessage]:
        """Returns what a reference stands for: the path, or the reply alone; an empty one: it is not there."""
        if not each.conversation:
            return []
        key = each.conversation, each.turn, each.is_path, each.place
        if key not in self._paths:
            self._paths[key] = await self._find(each)
        return self._paths[key]

    async def _find(self, each: Reference) -> list[WireMessage]:
        found = await self._store.messages.begun(self._project, each.conversation, begun_of(each.turn))
        if found is not None:
            agent, there = found
            if not self._may_read(agent, there.key):
                return []
            if each.place is not None:
                sent = dict(NamedTurn((each.conversation, each.turn), there.exchange).inputs)
                return [without_private(sent[each.place])] if each.place in sent else []
            if there.run is None:
                if not each.is_path:
                    return [] if there.exchange.redactions else _reply_of_one(there.exchange)
                turns = _ConversationTurns()
                for above in await self._store.messages.path_to(agent.id, there.exchange.id):
                    turns.add(above)
                return turns.path_to(each.turn, is_whole=True)
        name = await _name_of_run(self._store, self._project, each.conversation + each.turn)
        if name is not None:
            return await self._find(replace(each, conversation=name[0], turn=name[1]))
        # The same words were answered before, or several steps are one reply.
        if each.conversation not in self._by_conversation:
            owner = await self._store.messages.owner(self._project, each.conversation)
            may_read = owner is not None and self._may_read(*owner)
            self._by_conversation[each.conversation] = (
                await _read(self._store, owner[0], each.conversation)
                if owner and may_read
                else _ConversationTurns()
            )
        return self._by_conversation[each.conversation].path_to(each.turn, is_whole=each.is_path)

    def _may_read(self, agent: Agent, key: str | None) -> bool:
        if self._scope is not None:
            return agent.scope == self._scope
        if self.owner is None:
            self.owner = agent, key
        return agent.id == self.owner[0].id


class NamedTurn(Struct, frozen=True):
    """A stored turn of a path."""

    # The names of conversation and turn, of which ids are made.
    name: tuple[str, str]
    exchange: Exchange

    @property
    def reply(self) -> WireMessage:
        """The reply with its private fields; an empty one: there is none."""
        stored = self.exchange.shown_reply
        return {} if stored is None or -1 in self.exchange.redactions else orjson.loads(stored)

    @property
    def inputs(self) -> list[tuple[int, WireMessage]]:
        """The messages before the reply that are still there, each with its place."""
        messages = orjson.loads(self.exchange.input or b"[]")
        return [(n, m) for n, m in enumerate(messages) if n not in self.exchange.redactions]

    @property
    def directions(self) -> list[Direction]:
        """The system and developer messages among these, each with the number of those that follow it."""
        own = len(self.exchange.inputs)
        return [each for each in stored_directions(self.reply) if each[0] <= own]


async def find_turn(
    store: Store, project: str, conversation: str, turn: str
) -> tuple[Agent, Exchange, tuple[int, ...]] | None:
    """Returns the exchange of a project that a turn's name stands for, its memory, and the rows of all its steps.

    Of several steps the exchange has the joined reply. Raises: StoreError.
    """
    found = await store.messages.begun(project, conversation, begun_of(turn))
    if found is not None and found[1].run is None:
        return found[0], found[1].exchange, (found[1].exchange.id,)
    if found is None and (name := await _name_of_run(store, project, conversation + turn)) is not None:
        return await find_turn(store, project, *name)
    # The same words were answered before, under the time of then; or several steps are one reply.
    owner = await store.messages.owner(project, conversation)
    if owner is None:
        return None
    turns = await _read(store, owner[0], conversation)
    there = turns.find(turn)
    if there is None:
        return None
    return owner[0], *turns.joined(there)


async def _name_of_run(store: Store, project: str, uid: str) -> tuple[str, str] | None:
    """Returns the name of the turn in which a response lies that was made in the background; None: it is none."""
    found = await store.runs.response(project, uid)
    if found is None or found[1].otid is None:
        return None
    name = found[1].otid.hex()
    return name[:_CONVERSATION_CHARS], name[_CONVERSATION_CHARS:]


async def turns_to(store: Store, agent: Agent, exchange: Exchange) -> list[NamedTurn]:
    """Returns the turns of the path that ends with an exchange, oldest first. Raises: StoreError."""
    return named_turns(await store.messages.path_to(agent.id, exchange.id))


def named_turns(path: Sequence[ListedExchange]) -> list[NamedTurn]:
    """Returns exchanges, each after the one that it continues, with the names that they have in ids."""
    named, above = list[NamedTurn](), None
    for each in path:
        e = each.exchange
        named.append(NamedTurn((each.conversation, _time(e.begun) + _place(e, above)), e))
        above = e
    return named


def begun_of(turn: str) -> float:
    """Returns when a turn began, by its name."""
    begun: float = _TIME.unpack(bytes.fromhex(turn[:_TIME_CHARS]))[0]
    return begun


async def paths_to(store: Store, scope: Scope, ids: Set[str]) -> dict[str, list[WireMessage]]:
    """Returns the messages down to the replies that an upstream gave these ids, each with the reply at its end.

    They are found among the newest turns of a memory. Raises: StoreError.
    """
    agent, found = await store.agents.find(scope), dict[str, list[WireMessage]]()
    if agent is None:
        return found
    turns: dict[str, _ConversationTurns] = {}
    for conversation, begun, reply in await store.messages.newest(agent.id, _NEWEST):
        if not any(id.encode() in reply for id in ids):
            continue
        if conversation not in turns:
            turns[conversation] = await _read(store, agent, conversation)
        path = turns[conversation].path_to(_time(begun), is_whole=True)
        named = private_of(orjson.loads(reply)).get("ids") or ()
        found.update((id, path) for id in named if path and id in ids)
    return found


class _Filled:
    """A request; its references are replaced by what they stand for, one after the other."""

    def __init__(self, request: ChatRequest, most_bytes: int) -> None:
        self._request = request
        self._most_bytes = self._left_bytes = most_bytes
        self._answers = _Answers(request.messages)
        self._edit = request.edit()
        self._places = [[message] for message in request.messages]
        self._replaced = {each.index for each in request.references if not (each.is_path or each.is_thoughts)}

    def put(self, reference: Reference, messages: Sequence[WireMessage]) -> None:
        """Puts a path in front of its place, or a reply in its place. messages: ends with the reply."""
        at = reference.index
        if reference.is_thoughts:
            self._add_thoughts(at, messages[-1])
            return
        messages = self._as_heard(messages, at if reference.is_path else at + 1)
        if reference.is_path:
            self._edit.insert_messages(at, messages)
            self._places[at][:0] = messages
        else:
            # The same reply may be named again and again.
            self._left_bytes -= len(orjson.dumps(messages[-1]))
            if self._left_bytes < 0:
                raise BodyTooLarge(
                    f"What the items stand for has more than {self._most_bytes} bytes (server.max_body_bytes)."
                )
            is_reply = reference.place is None
            reply = _with_calls(messages[-1], self._answers.after(at)) if is_reply else messages[-1]
            self._edit.replace_message(at, [reply])
            self._places[at][-1:] = [reply]

    def _add_thoughts(self, at: int, reply: WireMessage) -> None:
        message = self._places[at][-1]
        thoughts = {key: reply[key] for key in THOUGHTS if key in reply and key not in message}
        self._left_bytes -= len(orjson.dumps(thoughts))
        if thoughts and self._left_bytes >= 0:
            message = {**message, **thoughts}
            self._edit.replace_message(at, [message])
            self._places[at][-1:] = [message]

    def request(self) -> ChatRequest:
        messages = [*chain.from_iterable(self._places)]
        return replace(
            self._request,
            raw=self._edit.render(),
            json={**self._request.json, "messages": messages},
            messages=messages,
            references=(),
        )

    def _as_heard(self, found: Sequence[WireMessage], after: int) -> Sequence[WireMessage]:
        """Returns it as far as it was heard, and drops the client's repeats of it. after: from where on."""
        messages = self._request.messages
        end = min((at for at in self._replaced if at >= after), default=len(messages))
        heard = as_heard(found, messages[after:end])
        for index in heard.repeats:
            self._edit.drop_message(after + index)
            self._places[after + index].clear()
        return heard.path


class _Answers:
    """Where a list has the results of calls: within a run of replies and results, a result is known by its call."""

    def __init__(self, messages: Sequence[WireMessage]) -> None:
        self._runs: list[int] = []
        self._last: dict[tuple[int, str], int] = {}
        run = 0
        for at, message in enumerate(messages):
            run += message.get("role") not in ("assistant", "tool")
            self._runs.append(run)
            if message.get("role") == "tool":
                self._last[run, message["tool_call_id"]] = at

    def after(self, at: int) -> Callable[[str], bool]:
        """Returns a test whether the result of a call follows a reply, in its run."""
        return lambda id: self._last.get((self._runs[at], id), -1) > at


def _with_calls(reply: WireMessage, has: Callable[[str], bool]) -> WireMessage:
    """Returns a reply with some of its calls. An item stands for one part of it, and a call may have been left out."""
    calls = [call for call in reply.get("tool_calls") or () if has(call_id(call))]
    rest = {key: value for key, value in reply.items() if key != "tool_calls"}
    return {**rest, "tool_calls": calls} if calls else {**rest, "content": rest.get("content") or ""}


def _time(begun: float) -> str:
    return _TIME.pack(begun).hex()


def _place(e: Exchange, above: Exchange | None) -> str:
    start = b"" if above is None else b"%d" % above.seq
    return Canon.path(chain.from_iterable(e.inputs), start)[:_PLACE_BYTES].hex()


class _ConversationTurns:
    """The turns of a conversation with all that is above them."""

    def __init__(self) -> None:
        self._by_id: dict[int, ListedExchange] = {}
        self._by_name: dict[str, ListedExchange] = {}
        self._runs: dict[str, list[ListedExchange]] = {}

    def add(self, each: ListedExchange) -> None:
        e = each.exchange
        above = None if e.parent is None else self._by_id.get(e.parent)
        if e.state is State.FORGOTTEN or e.redactions or (above is None and e.parent is not None):
            return  # something of its path is gone
        self._by_id[e.id] = each
        if each.run is not None:
            steps = self._runs.setdefault(each.run, [])
            steps.append(each)
            if len(steps) > 1:
                return  # its client has one reply of a run, named by the first step
        self._by_name[_time(e.begun)] = each
        place = _place(e, None if above is None else above.exchange)
        if e.active or place not in self._by_name:
            self._by_name[place] = each

    def joined(self, each: ListedExchange) -> tuple[Exchange, tuple[int, ...]]:
        """Returns a turn with its reply as its client has it, and the rows of its steps."""
        steps = [each.exchange] if each.run is None else [step.exchange for step in self._runs[each.run]]
        reply, last = _reply(steps), steps[-1].shown_reply
        if len(steps) == 1 or not reply or last is None:
            return each.exchange, (each.exchange.id,)
        shown = with_private(reply[0], **private_of(orjson.loads(last)))
        return replace(each.exchange, shown_reply=orjson.dumps(shown)), tuple(e.id for e in steps)

    def find(self, turn: str) -> ListedExchange | None:
        return self._by_name.get(turn[:_TIME_CHARS]) or self._by_name.get(turn[_TIME_CHARS:])

    def path_to(self, turn: str, *, is_whole: bool) -> list[WireMessage]:
        """Returns the path that ends with a turn as its client has it, oldest first; an empty one: it is not there.

        is_whole: else its reply alone.
        """
        each = self.find(turn)
        turns: list[tuple[list[WireMessage], Exchange, list[WireMessage]]] = []
        while each is not None:
            steps = [each.exchange] if each.run is None else [step.exchange for step in self._runs[each.run]]
            reply = _reply(steps)
            if not (turns or reply):
                return []
            if not is_whole:
                return reply
            asked = [*map(without_private, orjson.loads(steps[0].input or b"[]"))]
            turns.append((asked, steps[-1], reply))
            above = steps[0].parent
            each = None if above is None else self._by_id[above]
        path = list[WireMessage]()
        for asked, last, reply in reversed(turns):
            stored: WireMessage = orjson.loads(last.shown_reply or b"{}")
            path = insert_directions([*path, *asked], len(asked), stored_directions(stored)) + reply
        return path


async def _read(store: Store, agent: Agent, uid: str) -> _ConversationTurns:
    turns = _ConversationTurns()
    try:
        conversation = await store.messages.conversation(agent.id, uid)
    except NotFound:
        return turns
    after = -1
    while True:
        found = await store.messages.of_conversation(agent.id, conversation.id, after, _PAGE)
        for each in found:
            turns.add(each)
        if len(found) < _PAGE:
            return turns
        after = found[-1].exchange.seq


def _reply(steps: Sequence[Exchange]) -> list[WireMessage]:
    """Returns the reply of a turn as its client has it, of several steps one message; none: it has none."""
    replies = [each for each in map(_reply_of, steps) if each]
    if len(steps) == 1 or not replies:
        return replies
    gateway_calls = {m.get("tool_call_id") for e in steps[1:] for m in orjson.loads(e.input or b"[]")}
    return [visible_reply(replies, gateway_calls)]


def _reply_of_one(e: Exchange) -> list[WireMessage]:
    reply = _reply_of(e)
    return [reply] if reply else []


def _reply_of(e: Exchange) -> WireMessage:
    reply: WireMessage = {} if e.shown_reply is None else without_private(orjson.loads(e.shown_reply))
    if e.state is State.FINISHED:
        return reply
    # Its calls may be cut, and get no answer.
    text = text_of(reply)
    return {"role": "assistant", "content": text} if text else {}


def _not_found(reference: Reference) -> BadRequest:
    what = "Previous response" if reference.is_path else "Item"
    return BadRequest(
        f"{what} with id {reference.id[:120]!r} not found. It has not ended yet, was not stored, or was forgotten, or "
        "another user or project has it.",
        param=reference.param,
        code="previous_response_not_found" if reference.is_path else None,
    )
