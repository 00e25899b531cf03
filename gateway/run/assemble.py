"""The body that goes upstream: the client's own bytes, with ours spliced in and what does not fit left out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from gateway.core.canonical import WireMessage, is_system
from gateway.core.compose import Composition, prefixed
from gateway.core.request import ChatRequest
from gateway.core.splice import Splice, dump
from gateway.core.tools import definitions
from gateway.core.window import Budget, describe, fit_window, plan_budget
from gateway.tokens import message_tokens, tokenizer_for, upper_bound

__all__ = ["Additions", "Assembly", "assemble"]


@dataclass(frozen=True, slots=True)
class Additions:
    """What of ours goes in. system: text for the leading system message. offered: memory tools, name -> tool."""

    composition: Composition = field(default_factory=Composition)
    system: str = ""
    offered: dict[str, str] = field(default_factory=dict)

    @property
    def injected_bytes(self) -> int:
        c = self.composition
        return len(self.system.encode()) + sum(len(note.encode()) for note in c.notes.values())


@dataclass(slots=True)
class Assembly:
    """dropped: indices of the client's messages that do not fit; fill: what goes before them.

    filled: of the composition's fill, the indices of what fits; None: all.
    """

    request: ChatRequest
    model: str
    additions: Additions
    fill: list[WireMessage]
    dropped: set[int] = field(default_factory=set)
    filled: list[int] | None = None
    kept_hidden: dict[int, list[WireMessage]] = field(default_factory=dict)
    evicted_tokens: int = 0
    adds_usage: bool = False
    consumed: tuple[str, ...] = ()  # fields of the client's that are not for an upstream

    def body(
        self,
        more: Sequence[WireMessage] = (),
        budget_tokens: int | None = None,
        *,
        tools_final: bool = False,
    ) -> bytes:
        """more: hidden rounds of this turn. budget_tokens: what is left of the client's limit."""
        request, added = self.request, self.additions
        splice = Splice(request.layout, request.raw)
        if request.model != self.model:
            splice.set_member("model", orjson.dumps(self.model))
        for key in self.consumed:
            splice.drop_member(key)
        if added.system:
            splice.append_system(added.system)
        for index in self.dropped:
            splice.drop_message(index)
        for index, messages in self.kept_hidden.items():
            splice.replace_message(index, map(dump, messages))
        for index, note in added.composition.notes.items():
            if index not in self.dropped:
                splice.prefix_text(index, note)
        if self.fill:
            splice.insert_messages(_first_spoken(request.messages), map(dump, self.fill))
        if added.offered:
            splice.add_tools(map(dump, definitions(added.offered)))
            if self.adds_usage:
                options = {**(request.json.get("stream_options") or {}), "include_usage": True}
                splice.set_member("stream_options", orjson.dumps(options))
        if more:
            splice.insert_messages(len(request.messages), map(dump, more))
            if budget_tokens is not None and request.max_tokens_key is not None:
                splice.set_member(request.max_tokens_key, orjson.dumps(budget_tokens))
        if tools_final:
            splice.set_member("tool_choice", b'"none"')
        return splice.render()


def _first_spoken(messages: Sequence[WireMessage]) -> int:
    return next((i for i, m in enumerate(messages) if not is_system(m)), len(messages))


async def assemble(
    request: ChatRequest, model: str, additions: Additions, context_tokens: int | None
) -> Assembly:
    """context_tokens: the model's window; None: unknown, and then nothing is left out."""
    composition = additions.composition
    found = Assembly(
        request,
        model,
        additions,
        composition.fill,
        kept_hidden=dict(composition.hidden),
        adds_usage=bool(additions.offered) and request.stream and not request.wants_usage
        and request.max_tokens is not None,
    )  # fmt: skip
    if context_tokens is not None:
        await _fit(found, context_tokens)
    return found


async def _fit(found: Assembly, context_tokens: int) -> None:
    request, added = found.request, found.additions
    extra = sum(upper_bound(dump(m)) for m in found.fill) + added.injected_bytes
    extra += sum(upper_bound(dump(m)) for back in found.kept_hidden.values() for m in back)
    reserve = request.max_tokens or 4096
    if len(request.raw) + extra + min(reserve, context_tokens // 4) <= context_tokens:
        return  # bytes are an upper bound of tokens: most requests are never counted
    tokenizer = tokenizer_for(found.model)
    start = _first_spoken(request.messages)
    entries: list[tuple[int | None, WireMessage]] = [(None, m) for m in found.fill]
    for i in range(start, len(request.messages)):
        if i in found.kept_hidden:
            entries += [(i, m) for m in found.kept_hidden[i]]
        else:
            note = added.composition.notes.get(i, "")
            entries.append((i, prefixed(request.messages[i], note)))
    if not tokenizer.is_loaded:
        await asyncio.to_thread(tokenizer.load)
    fixed = sum(message_tokens(m, tokenizer.count) for m in request.messages[:start])
    fixed += tokenizer.count(added.system) if added.system else 0
    named = [request.json.get("tools"), request.json.get("functions"), definitions(added.offered)]
    fixed += sum(tokenizer.count(orjson.dumps(each).decode()) for each in named if each)
    budget: Budget | None = plan_budget(context_tokens, max_tokens=request.max_tokens, fixed_tokens=fixed)
    elements = [describe(m, message_tokens(m, upper_bound)) for _, m in entries]

    window = fit_window(elements, budget, lambda i: message_tokens(entries[i][1], tokenizer.count))
    if window.is_whole:
        return
    kept = set(window.indices)
    found.evicted_tokens = window.evicted_tokens
    found.filled = [n for n in range(len(found.fill)) if n in kept]
    found.fill = [found.fill[n] for n in found.filled]
    hidden: dict[int, list[WireMessage]] = {}
    for n, (at, m) in enumerate(entries):
        if at is None:
            continue
        if at in found.kept_hidden:
            hidden.setdefault(at, [])
            if n in kept:
                hidden[at].append(m)
        elif n not in kept:
            found.dropped.add(at)
    for place, messages in hidden.items():
        if messages:
            found.kept_hidden[place] = messages
        else:
            found.dropped.add(place)
            del found.kept_hidden[place]
