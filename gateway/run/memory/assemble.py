"""The body that goes upstream: the client's own bytes, with ours spliced in and what does not fit left out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import orjson

from gateway.core.conversation.canonical import WireMessage, is_system, media_of
from gateway.core.memory.tools import definitions
from gateway.core.prompt.compose import Composition, prefixed
from gateway.core.prompt.eviction import Eviction
from gateway.core.prompt.summary import EARLY, KEPT, ROOMY, WORTH, Overfull, SummaryCut, summary_tokens
from gateway.core.prompt.window import Budget, describe, fit_window, may_begin, plan_budget
from gateway.core.request.chat import ChatRequest
from gateway.core.request.splice import Splice, dump
from gateway.tokens import message_tokens, tokenizer_for, upper_bound
from storage.records import Evicted

__all__ = ["Additions", "Assembly", "assemble", "may_exceed"]


@dataclass(frozen=True, slots=True)
class Additions:
    """What of ours goes in. system: text for the leading system message. offered: memory tools, name -> tool.

    is_summarised: whether a summary shall be made when the window fills up.
    """

    composition: Composition = field(default_factory=Composition)
    system: str = ""
    offered: dict[str, str] = field(default_factory=dict)
    is_summarised: bool = False
    beginning: Eviction = field(default_factory=Eviction)

    @property
    def injected_bytes(self) -> int:
        c = self.composition
        return len(self.system.encode()) + sum(len(note.encode()) for note in c.notes.values())


@dataclass(slots=True)
class Assembly:
    """dropped: indices of the client's messages that do not fit; fill: what goes before them.

    filled: of the composition's fill, the indices of what fits; None: all. summary: what stands for what was left out,
    or "". overfull: the window fills up, and a summary is wanted. evicted: what of the path is left out, for the next
    request to leave out as well. tokens: of the prompt, as we count them; 0: it was not counted, or is not
    text alone. most: how many would have fitted.
    """

    request: ChatRequest
    model: str
    additions: Additions
    fill: list[WireMessage]
    dropped: set[int] = field(default_factory=set)
    filled: list[int] | None = None
    kept_hidden: dict[int, list[WireMessage]] = field(default_factory=dict)
    evicted_tokens: int = 0
    tokens: int = 0
    most: int = 0
    summary: str = ""
    summary_id: int = 0
    overfull: Overfull | None = None
    evicted: Evicted | None = None
    adds_usage: bool = False
    consumed: tuple[str, ...] = ()  # fields of the client's that are not for an upstream
    as_system: tuple[int, ...] = ()  # indices of the client's messages whose role an upstream calls `system`

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
        for index in self.as_system:
            if index not in self.dropped:
                splice.set_role(index, "system")
        if added.system:
            splice.append_system(added.system)
        if self.summary:
            splice.append_system(self.summary)
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
    request: ChatRequest,
    model: str,
    additions: Additions,
    context_tokens: int | None,
    *,
    takes_usage: bool = True,
) -> Assembly:
    """context_tokens: the model's window; None: unknown, and then nothing is left out.

    takes_usage: the upstream is known to count a stream's tokens when it is asked to.
    """
    composition = additions.composition
    found = Assembly(
        request,
        model,
        additions,
        composition.fill,
        kept_hidden=dict(composition.hidden),
        adds_usage=takes_usage and bool(additions.offered) and request.stream and not request.wants_usage
        and request.max_tokens is not None,
    )  # fmt: skip
    if context_tokens is not None:
        await _fit(found, context_tokens)
    return found


async def _fit(found: Assembly, context_tokens: int) -> None:
    """What has left the window stays out, so that a request costs what is in it and not what was ever said."""
    gone = found.additions.beginning.evicted
    if gone is None and not may_exceed(found.request, found.additions, context_tokens):
        return  # bytes are an upper bound of tokens: most requests are never counted
    tokenizer = tokenizer_for(found.model)
    if not tokenizer.is_loaded:
        await asyncio.to_thread(tokenizer.load)
    request, added, begun = found.request, found.additions, found.additions.beginning
    entries = _entries(found)
    room = WindowRoom(
        entries, context_tokens, request.max_tokens, _fixed(found, tokenizer.count), tokenizer.count
    )
    cuts = [
        (at, cut)
        for cut in begun.cuts
        for at in [_place(entries, cut)]
        if (at or gone is not None) and may_begin(room.elements, at)
    ]
    begin, chosen = (
        _choose(room, cuts, gone, begun.in_use) if gone is not None or room.is_over() else (0, None)
    )
    if added.is_summarised:
        at, newest = cuts[-1] if cuts else (0, None)
        is_told = gone is None or newest is not None  # else something has left of which nothing is told
        found.overfull = room.overfull(at, newest.text if newest else "", is_due=not is_told)
    budget = room.budget(chosen.text if chosen else "")
    window = fit_window(room.elements[begin:], budget, lambda i: room.count(begin + i))
    found.tokens, found.most = room.prompt([begin + i for i in window.indices], chosen.text if chosen else "")
    if window.is_whole and chosen is None and gone is None:
        return
    if chosen is not None:
        found.summary, found.summary_id = chosen.text, chosen.id
    kept = {begin + i for i in window.indices}
    found.evicted_tokens = window.evicted_tokens + room.tokens(0, begin) + (gone.tokens if gone else 0)
    first = min(kept, default=len(entries))
    found.evicted = _leaving(found, entries, first, room.tokens(0, first), context_tokens, gone)
    found.filled = [n for n in range(len(found.fill)) if n in kept]
    found.fill = [found.fill[n] for n in found.filled]
    found.dropped.update(range(_first_spoken(request.messages), begun.start))
    found.kept_hidden = {i: messages for i, messages in found.kept_hidden.items() if i >= begun.start}
    hidden: dict[int, list[WireMessage]] = {}
    for n, (index, m) in enumerate(entries):
        if index is None:
            continue
        if index in found.kept_hidden:
            hidden.setdefault(index, [])
            if n in kept:
                hidden[index].append(m)
        elif n not in kept:
            found.dropped.add(index)
    for place, messages in hidden.items():
        if messages:
            found.kept_hidden[place] = messages
        else:
            found.dropped.add(place)
            del found.kept_hidden[place]


def _choose(
    room: WindowRoom, cuts: Sequence[tuple[int, SummaryCut]], gone: Evicted | None, in_use: int
) -> tuple[int, SummaryCut | None]:
    """The summary that stands for the beginning, and the first entry behind it.

    The one in use, so that the prompt begins as it did, if the rest fits and nothing is missing behind its end. Else
    the oldest that leaves room, which will do until the window is full again; else the newest.
    """
    fitting = [(at, cut) for at, cut in cuts if not room.is_over(at, cut.text)]
    whole = [(at, cut) for at, cut in fitting if gone is None or cut.end >= gone.offset] or fitting
    same = [(at, cut) for at, cut in whole if cut.id == in_use]
    roomy = [(at, cut) for at, cut in whole if not room.is_over(at, cut.text, ROOMY)]
    found = [*same, *roomy, *whole[::-1], *cuts[::-1]]
    return found[0] if found else (0, None)


def _where(found: Assembly, entries: Sequence[_Entry], n: int) -> tuple[int, int] | None:
    index = entries[n][0]
    return found.additions.composition.fill_at[n] if index is None else found.additions.beginning.where(index)


def _leaving(
    found: Assembly,
    entries: Sequence[_Entry],
    first: int,
    tokens: int,
    context_tokens: int,
    gone: Evicted | None,
) -> Evicted | None:
    """What the next request need not look at. first: the first entry that is kept; tokens: of those before it."""
    at = _where(found, entries, first) if first < len(entries) else None
    if at is None or not tokens:
        return gone
    if gone is not None:
        tokens, context_tokens = tokens + gone.tokens, min(context_tokens, gone.context)
    return Evicted(*at, tokens, context_tokens)


def may_exceed(request: ChatRequest, added: Additions, context_tokens: int) -> bool:
    """Whether it takes counting to know that a request fits."""
    composition = added.composition
    extra = sum(upper_bound(dump(m)) for m in composition.fill) + added.injected_bytes
    extra += sum(upper_bound(dump(m)) for back in composition.hidden.values() for m in back)
    reserve = request.max_tokens or 4096
    return len(request.raw) + extra + min(reserve, context_tokens // 4) > context_tokens


_Entry = tuple[
    int | None, WireMessage
]  # the client's message by its index, or one of ours that goes in front


def _entries(found: Assembly) -> list[_Entry]:
    """What is said, behind the leading system messages, as it would be sent whole."""
    request, notes = found.request, found.additions.composition.notes
    entries: list[_Entry] = [(None, m) for m in found.fill]
    for i in range(
        max(found.additions.beginning.start, _first_spoken(request.messages)), len(request.messages)
    ):
        if i in found.kept_hidden:
            entries += [(i, m) for m in found.kept_hidden[i]]
        else:
            entries.append((i, prefixed(request.messages[i], notes.get(i, ""))))
    return entries


def _place(entries: Sequence[_Entry], cut: SummaryCut) -> int:
    """The first entry behind a summary."""
    fill = sum(index is None for index, _ in entries)
    if cut.fill < fill:
        return cut.fill
    return next((n for n, (index, _) in enumerate(entries) if (index or 0) >= cut.index and n >= fill), 0)


def _fixed(found: Assembly, count: Callable[[str], int]) -> int:
    request, added = found.request, found.additions
    fixed = sum(message_tokens(m, count) for m in request.messages[: _first_spoken(request.messages)])
    fixed += count(added.system) if added.system else 0
    named = [request.json.get("tools"), request.json.get("functions"), definitions(added.offered)]
    return fixed + sum(count(orjson.dumps(each).decode()) for each in named if each)


class WindowRoom:
    """What a request has of its window, and what its messages take of it."""

    def __init__(
        self,
        entries: Sequence[_Entry],
        context_tokens: int,
        max_tokens: int | None,
        fixed: int,
        count: Callable[[str], int],
    ) -> None:
        self.elements = [describe(m, message_tokens(m, upper_bound)) for _, m in entries]
        self._entries = entries
        self._context = context_tokens
        self._max_tokens = max_tokens
        self._fixed = fixed
        self._count = count
        self._before: list[int] | None = None  # counted when it is needed first

    def budget(self, summary: str = "") -> Budget:
        fixed = self._fixed + (self._count(summary) if summary else 0)
        found = plan_budget(self._context, max_tokens=self._max_tokens, fixed_tokens=fixed)
        assert found is not None
        return found

    def count(self, index: int) -> int:
        return self.tokens(index, index + 1)

    def tokens(self, start: int, end: int) -> int:
        if not end - start:
            return 0
        if self._before is None:
            sizes = (message_tokens(m, self._count) for _, m in self._entries)
            self._before = [0, *accumulate(sizes)]
        return self._before[end] - self._before[start]

    def prompt(self, kept: Sequence[int], summary: str) -> tuple[int, int]:
        """Its tokens, and how many there may be. 0: nothing was counted, or not all of it is text."""
        if self._before is None or any(media_of(self._entries[i][1]) for i in kept):
            return 0, 0
        fixed = self._fixed + (self._count(summary) if summary else 0)
        return fixed + sum(map(self.count, kept)), fixed + self.budget(summary).high

    def is_over(self, start: int = 0, summary: str = "", share: float = 1.0) -> bool:
        """Whether what begins there is more than that share of the window."""
        most = self.budget(summary).high * share
        if sum(element.bound for element in self.elements[start:]) <= most:
            return False
        return self.tokens(start, len(self.elements)) > most

    def overfull(self, start: int, summary: str, *, is_due: bool = False) -> Overfull | None:
        """Whether behind the newest summary there is enough for another one, and the window filling up."""
        high = self.budget(summary).high
        keep = int(high * KEPT)
        if is_due:
            return Overfull(keep, summary_tokens(self._context))
        if not self.is_over(start, summary, EARLY):
            return None
        opens = (i for i in range(len(self.elements) - 1, start, -1) if self.elements[i].role == "user")
        end = next((i for i in opens if self.tokens(i, len(self.elements)) >= keep), start)
        if self.tokens(start, end) < high * WORTH:
            return None
        return Overfull(keep, summary_tokens(self._context))
