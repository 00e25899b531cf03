"""Turns that a client names instead of sending them again: what was answered where, by a name that is told beforehand.

A name is made of the conversation's and of a hash of the path up to the words that are answered. Nothing is stored for
it, and a turn that was edited, superseded or forgotten is not found. Of two answers to the same words the one that
stands is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import orjson

from gateway.core.conversation.canonical import Canon, WireMessage, call_id, squash, text_of
from gateway.core.conversation.private import without_private
from gateway.core.request.chat import ChatRequest, Reference
from gateway.core.request.splice import Splice, dump
from gateway.errors import BadRequest
from gateway.run.memory.known import Known
from storage.errors import NotFound
from storage.listing import Page
from storage.records import Agent, Atom, Exchange, Scope
from storage.sql.store import Store

_PAGE = 200
_TURN_BYTES = 8


def turn_of(known: Known) -> str:
    """Returns the name of the turn that a request asks for, within its conversation."""
    plan = known.plan
    anchor = plan.match.anchor
    return _name(plan.exchange.inputs, b"" if anchor is None else anchor.path)


async def with_references(store: Store, scope: Scope | None, request: ChatRequest) -> ChatRequest:
    """Returns a request with the messages that its references stand for.

    scope: whose memory it is; in another one nothing is found. Raises: BadRequest: one of them is not there;
    StoreError.
    """
    agent = None if scope is None else await store.agents.find(scope)
    splice, before = Splice(request.layout), request.messages
    messages = [[message] for message in before]
    kept: dict[str, _Kept] = {}
    references = sorted(request.references, key=lambda each: (-each.index, each.is_path))
    places = {each.index for each in references if not each.is_path}
    for each in references:
        if each.conversation not in kept:
            kept[each.conversation] = (
                _Kept() if agent is None else await _read(store, agent, each.conversation)
            )
        path = kept[each.conversation].path(each.turn)
        if not path:
            raise _not_found(each)
        read = path if each.is_path else path[-1:]
        found = [message for exchange in read for message in _messages(exchange)]
        for index in range(each.index + (not each.is_path), len(before)):
            if before[index].get("role") not in ("assistant", "tool") or index in places:
                break
            if _says_again(before[index], found[-1]):
                splice.drop_message(index)
                messages[index] = []
        if each.is_path:
            splice.insert_messages(each.index, map(dump, found))
            messages[each.index] = [*found, *messages[each.index]]
        else:
            splice.replace_message(each.index, map(dump, found[-1:]))
            messages[each.index] = found[-1:]
    whole = [*chain.from_iterable(messages)]
    return replace(
        request,
        raw=splice.render(),
        json={**request.json, "messages": whole},
        messages=whole,
        references=(),
        _layout=None,
    )


def _name(inputs: Sequence[Sequence[Atom]], start: bytes) -> str:
    return Canon.path(chain.from_iterable(inputs), start)[:_TURN_BYTES].hex()


class _Kept:
    """The turns that stand in a conversation with all that is above them."""

    def __init__(self) -> None:
        self._by_id: dict[int, Exchange] = {}
        self._by_name: dict[str, Exchange] = {}

    def add(self, e: Exchange) -> None:
        above = None if e.parent is None else self._by_id.get(e.parent)
        if (above is None and e.parent is not None) or e.input is None or e.said is None or e.hush:
            return  # something of its path is gone
        self._by_id[e.id] = e
        self._by_name[_name(e.inputs, b"" if above is None else above.path)] = e

    def path(self, turn: str) -> list[Exchange]:
        """Returns the path that ends with a turn, oldest first; an empty one where it is not there."""
        found: list[Exchange] = []
        e = self._by_name.get(turn)
        while e is not None:
            found.append(e)
            e = None if e.parent is None else self._by_id[e.parent]
        return found[::-1]


async def _read(store: Store, agent: Agent, uid: str) -> _Kept:
    kept = _Kept()
    try:
        conversation = await store.messages.conversation(agent.id, uid)
    except NotFound:
        return kept
    page = Page(limit=_PAGE, newest_first=False)
    while True:
        found = await store.messages.page(agent.id, page, conversation=conversation.id)
        for each in found:
            kept.add(each.exchange)
        if len(found) < _PAGE:
            return kept
        last = found[-1].exchange
        page = replace(page, after=last.seq + len(last.inputs) + 1)


def _messages(exchange: Exchange) -> list[WireMessage]:
    """Returns an exchange as its client has it."""
    assert exchange.input is not None
    assert exchange.said is not None
    return [*map(without_private, orjson.loads(exchange.input)), without_private(orjson.loads(exchange.said))]


def _says_again(message: WireMessage, reply: WireMessage) -> bool:
    """Says whether a message has nothing but what a reply has.

    Vercel's SDK sends a reply's calls behind the id of its words, LiveKit all of it behind that of the response.
    """
    if message.get("role") != "assistant":
        return False
    text, calls = squash(text_of(message)), {*map(call_id, message.get("tool_calls") or ())}
    return text in ("", squash(text_of(reply))) and calls <= {*map(call_id, reply.get("tool_calls") or ())}


def _not_found(reference: Reference) -> BadRequest:
    what = "Previous response" if reference.is_path else "Item"
    return BadRequest(
        f"{what} with id {reference.id[:120]!r} not found. The gateway keeps what was answered to a named user or in a "
        "named conversation, for them alone.",
        param=reference.param,
        code="previous_response_not_found" if reference.is_path else None,
    )
