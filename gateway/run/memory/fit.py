"""Fitting a prompt into the model's window: what of the conversation goes in, and which summary stands for the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import orjson
from msgspec.structs import replace

from adapters.types import Json
from gateway.core.conversation.canonical import WireMessage, are_results, first_spoken, media_in
from gateway.core.message_text import with_text_before
from gateway.core.prompt.note import estimate_tokens
from gateway.core.prompt.summary import EARLY, ROOMY, WORTH, Overfull, SummaryCut, summary_tokens
from gateway.core.prompt.window import (
    Budget,
    Window,
    WindowItem,
    begin_window,
    describe,
    fit_window,
    may_begin,
    plan_budget,
)
from gateway.errors import BadRequest
from gateway.run.memory.prompt import NO_NOTE, FittedWindow, NoteRoom, Prompt
from gateway.tokens import message_tokens, tokenizer_for, upper_bound
from storage.records import ANY_WINDOW, Evicted

# A message that would be sent, and its index in the client's list; None: a stored one, which goes before the list.
_Entry = tuple[int | None, WireMessage]


async def fit(
    prompt: Prompt,
    *,
    renewed: str | None = None,
    note: NoteRoom = NO_NOTE,
    rounds: Sequence[WireMessage] = (),
) -> FittedWindow:
    """Returns the part of the prompt that fits its target's window.

    renewed: the system text for a summary that was not in use before; None: the prompt's own.
    note: the room for a note, which is made later, when it is known what is visible.
    rounds: messages of hidden rounds, which follow the prompt and always stay.

    Raises: BadRequest: it does not fit, and the request may not be cut.
    """
    context = prompt.target.context_window
    evicted = prompt.beginning.evicted  # before this request
    # Bytes are an upper bound of tokens: most requests are never counted.
    more = note.most + sum(message_tokens(m, upper_bound) for m in rounds)
    may_fill = is_crowded(prompt) or (bool(context) and may_exceed(prompt, context or 0, more))
    if evicted is None and not may_fill:
        return FittedWindow()
    count = estimate_tokens if context is None else await _counter(prompt.target.model)
    room = _WindowRoom(prompt, context or ANY_WINDOW, count, renewed=renewed, note=note, rounds=rounds)
    # A summary can be used where the list may begin after it, and where it stands for something.
    cuts = [  # (the first entry after a summary, the summary)
        (at, cut)
        for cut in prompt.beginning.cuts
        for at in [room.first_after(cut)]
        if (at or evicted is not None) and may_begin(room.items, at)
    ]
    begin, chosen = 0, None
    if evicted is not None or room.is_over():
        begin, chosen = _choose(room, cuts, evicted, prompt.beginning.in_use)
    overfull = (
        room.overfull(cuts, is_due=evicted is not None and not cuts) if prompt.beginning.summarises else None
    )
    # The messages after the summary may still be too many; then the oldest of them leave too.
    begin += room.surplus(begin)
    window = fit_window(room.items[begin:], room.budget(chosen), lambda i: room.count(begin + i))
    staying = [begin + i for i in window.indices]
    note_tokens = room.note_tokens(staying, chosen)
    tokens, most = room.prompt_tokens(staying, chosen)
    if not begin and window.is_whole and chosen is None and evicted is None:
        return FittedWindow(tokens=tokens, most=most, overfull=overfull, note_tokens=note_tokens)
    if context is not None and not prompt.request.may_be_cut:
        raise _context_exceeded(context)
    # The next request leaves out everything before the first entry that stays, too.
    first = min(staying, default=len(room.entries))
    before = evicted.tokens if evicted is not None else 0
    filled, dropped, hidden = _split(prompt, room.entries, frozenset(staying))
    return FittedWindow(
        dropped=dropped,
        filled=filled,
        hidden=hidden,
        summary=chosen.text if chosen is not None else "",
        summary_id=chosen.id if chosen is not None else 0,
        evicted=_evicted_after(prompt, room, first, room.context(window)),
        evicted_tokens=window.evicted_tokens + room.tokens(0, begin) + before,
        tokens=tokens,
        most=most,
        overfull=overfull,
        note_tokens=note_tokens,
    )


def _context_exceeded(context_tokens: int) -> BadRequest:
    return BadRequest(
        f"Your input exceeds the context window of this model ({context_tokens} tokens), and `truncation` is "
        "'disabled'. Send less of it, or `truncation: auto`.",
        param="input",
        code="context_length_exceeded",
    )


async def fit_rounds(prompt: Prompt, rounds: Sequence[WireMessage]) -> Prompt:
    """Returns the prompt for a call after hidden rounds of its own turn.

    Where there is no room for all, more of the conversation stays out of this call.
    """
    window, target = prompt.window, prompt.target
    if target.context_window is None:
        return prompt
    if window.tokens:
        count = await _counter(target.model)
        if window.tokens + sum(message_tokens(m, count) for m in rounds) <= window.most:
            return prompt
    window, parts = await fit(prompt, rounds=rounds), prompt.section.parts
    if parts is not None and prompt.hides(window):
        prompt = replace(prompt, system=parts.render())
        window = await fit(prompt, rounds=rounds)
    return replace(prompt, window=window)


def may_exceed(prompt: Prompt, context_tokens: int, more_tokens: int = 0) -> bool:
    """Returns whether a request may be too long with the gateway's additions, so that its tokens have to be counted.

    Bytes are an upper bound of a text's tokens. A link to an image has few, and stands for many tokens.
    """
    request, composition = prompt.request, prompt.composition
    added = [each.message for each in composition.fill]
    added += chain.from_iterable(composition.hidden.values())
    texts = (prompt.system, *composition.notes.values())
    extra = sum(map(len, map(orjson.dumps, (*added, *prompt.tools)))) + sum(map(len, map(str.encode, texts)))
    extra += sum(
        message_tokens(m, _no_tokens)
        for m in (*request.messages, *added)
        if isinstance(m.get("content"), list)
    )
    reserve = min(request.max_tokens or 4096, context_tokens // 4)
    return len(request.raw) + extra + more_tokens + reserve > context_tokens


def _no_tokens(text: str) -> int:
    return 0


def is_crowded(prompt: Prompt) -> bool:
    """Returns whether the window has about as many messages as its agent allows, or more."""
    bounds = prompt.beginning.bounds
    if bounds is None:
        return False
    after = len(prompt.request.messages) - max(prompt.beginning.start, first_spoken(prompt.request.messages))
    more = sum(len(rounds) - 1 for rounds in prompt.composition.hidden.values())
    return len(prompt.composition.fill) + after + more > bounds.early


async def count_tokens(model: str, text: str) -> int:
    """Returns the tokens of a text by a model's tokenizer."""
    return (await _counter(model))(text)


async def request_tokens(model: str, body: Mapping[str, Any]) -> int:
    """Returns the tokens of a chat completion request: its messages and tools."""
    count = await _counter(model)
    tools = body.get("tools")
    return sum(message_tokens(m, count) for m in body["messages"]) + (
        count(orjson.dumps(tools).decode()) if tools else 0
    )


async def prompt_tokens(prompt: Prompt) -> int:
    """Returns the tokens of a prompt by its model's tokenizer, which is loaded for it."""
    return prompt.window.tokens or _prompt_tokens(prompt, await _counter(prompt.target.model))


def counted_usage(prompt: Prompt, text: str) -> Json:
    """Returns the usage of a reply with this text, where the upstream reports none: what its tokens are by our count.

    It is exact for OpenAI's models once their tokenizer is loaded, and an estimate otherwise: nothing waits for it.
    """
    tokenizer = tokenizer_for(prompt.target.model)
    count = tokenizer.count if tokenizer.is_loaded else estimate_tokens
    input_tokens = prompt.window.tokens or _prompt_tokens(prompt, count)
    output_tokens = count(text)
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }


def _prompt_tokens(prompt: Prompt, count: Callable[[str], int]) -> int:
    request, window, composition = prompt.request, prompt.window, prompt.composition
    hidden = prompt.hidden
    sent = [
        with_text_before(message, composition.notes.get(i, ""))
        for i, message in enumerate(request.messages)
        if i not in window.dropped and i not in hidden
    ]
    sent += [each.message for each in window.fill(composition)]
    sent += chain.from_iterable(hidden.values())
    tools = [*(request.json.get("tools") or ()), *prompt.tools]
    return (
        sum(message_tokens(message, count) for message in sent)
        + sum(count(text) for text in (prompt.system, window.summary))
        + sum(count(orjson.dumps(tool).decode()) for tool in tools)
    )


async def _counter(model: str) -> Callable[[str], int]:
    tokenizer = tokenizer_for(model)
    if not tokenizer.is_loaded:
        await asyncio.to_thread(tokenizer.load)
    return tokenizer.count


def _choose(
    room: _WindowRoom, cuts: Sequence[tuple[int, SummaryCut]], evicted: Evicted | None, in_use: int
) -> tuple[int, SummaryCut | None]:
    """Returns the first entry after the summary that stands for the beginning, and that summary.

    The summary in use stays, so that the prompt begins as before, if the rest fits and no message after its end is
    missing. Otherwise the oldest summary that leaves enough room is taken, and otherwise the newest that fits.
    """
    fitting = [(at, cut) for at, cut in cuts if not room.is_over(at, cut)]
    whole = [(at, cut) for at, cut in fitting if evicted is None or cut.end >= evicted.offset] or fitting
    same = [(at, cut) for at, cut in whole if cut.id == in_use]
    roomy = [(at, cut) for at, cut in whole if not room.is_over(at, cut, ROOMY)]
    found = [*same, *roomy, *whole[::-1], *cuts[::-1]]
    return found[0] if found else (0, None)


def _split(
    prompt: Prompt, entries: Sequence[_Entry], staying: frozenset[int]
) -> tuple[tuple[int, ...], frozenset[int], dict[int, list[WireMessage]]]:
    """Returns which messages of the fill stay, which of the client's do not, and which hidden rounds stay.

    A message that hidden rounds stand for is dropped when none of them stays.
    """
    fill = len(prompt.composition.fill)
    dropped = set(range(first_spoken(prompt.request.messages), prompt.beginning.start))
    hidden: dict[int, list[WireMessage]] = {index: [] for index in prompt.composition.hidden}
    for n, (index, message) in enumerate(entries):
        if index is None:
            continue
        # The window may have room for the last hidden rounds only.
        if index in prompt.composition.hidden:
            if n in staying:
                hidden[index].append(message)
        elif n not in staying:
            dropped.add(index)
    dropped.update(index for index, rounds in hidden.items() if not rounds)
    filled = tuple(n for n in range(fill) if n in staying)
    return filled, frozenset(dropped), {index: rounds for index, rounds in hidden.items() if rounds}


def _evicted_after(prompt: Prompt, room: _WindowRoom, first: int, context_tokens: int) -> Evicted | None:
    """Returns what the next request need not look at. first: the first entry that stays."""
    evicted, tokens = prompt.beginning.evicted, room.tokens(0, first)
    at: tuple[int, int] | None = None
    if first < len(room.entries):
        index = room.entries[first][0]
        at = (
            prompt.composition.fill[first].at
            if index is None
            else prompt.beginning.where(index, prompt.composition)
        )
    if at is None or not tokens:
        return evicted
    # Messages that left a smaller window may come back in a larger one, so the size of the smallest is stored too.
    if evicted is not None:
        tokens, context_tokens = tokens + evicted.tokens, min(context_tokens, evicted.context)
    return Evicted(*at, tokens, context_tokens)


def _entries(prompt: Prompt) -> list[_Entry]:
    """Returns the messages after the leading system messages, as they would be sent whole."""
    messages, composition = prompt.request.messages, prompt.composition
    entries: list[_Entry] = [(None, each.message) for each in composition.fill]
    for i in range(max(prompt.beginning.start, first_spoken(messages)), len(messages)):
        if i in composition.hidden:
            entries += [(i, m) for m in composition.hidden[i]]
        else:
            entries.append((i, with_text_before(messages[i], composition.notes.get(i, ""))))
    return entries


def _is_hidden_nudge(prompt: Prompt, index: int | None, message: WireMessage) -> bool:
    """Returns whether an entry is a nudge within a hidden round: no other message comes there."""
    return index in prompt.composition.hidden and message.get("role") == "user"


def _items(prompt: Prompt, entries: Sequence[_Entry]) -> list[WindowItem]:
    """Returns the entries as the window sees them."""
    nudges = {n for n, each in enumerate(prompt.composition.fill) if each.is_nudge}
    items = []
    for n, ((at, message), is_result) in enumerate(
        zip(entries, are_results(message for _, message in entries), strict=True)
    ):
        is_nudge = n in nudges or _is_hidden_nudge(prompt, at, message)
        item = describe(message, message_tokens(message, upper_bound), is_nudge=is_nudge)
        # The media of a result stay with it.
        items.append(replace(item, role="tool") if is_result and item.role == "user" else item)
    return items


class _WindowRoom:
    """The window of a request, and the tokens its messages take of it. Nothing is counted before it has to be.

    `entries` are the messages that would be sent, and `items` the same as the window sees them. `start`, `end` and
    `index` of the methods count entries.
    """

    def __init__(
        self,
        prompt: Prompt,
        context_tokens: int,
        count: Callable[[str], int],
        *,
        renewed: str | None,
        note: NoteRoom,
        rounds: Sequence[WireMessage],
    ) -> None:
        self.entries = _entries(prompt)
        self.items = _items(prompt, self.entries)
        self._fill = len(prompt.composition.fill)
        self._context = context_tokens
        self._max_tokens = prompt.request.max_tokens
        self._count = count
        self._note = note
        self._in_use = prompt.beginning.in_use
        self._bounds = prompt.beginning.bounds
        self._retained_share = prompt.beginning.retained_share
        self._newest = max((cut.id for cut in prompt.beginning.cuts), default=0)
        system = prompt.system
        self._system = count(system) if system else 0
        self._renewed = self._system if renewed is None else count(renewed)
        self._fixed = self._count_fixed(prompt) + sum(message_tokens(m, count) for m in rounds)
        # Counted when it is needed first.
        self._before: list[int] | None = None

    def _count_fixed(self, prompt: Prompt) -> int:
        """Counts what is sent whatever stays: the client's leading system messages, and all tools."""
        request, count = prompt.request, self._count
        lead = request.messages[: first_spoken(request.messages)]
        named = [request.json.get("tools"), request.json.get("functions"), prompt.tools]
        return sum(message_tokens(m, count) for m in lead) + sum(
            count(orjson.dumps(each).decode()) for each in named if each
        )

    def _fixed_with(self, cut: SummaryCut | None) -> int:
        if cut is None:
            return self._fixed + self._system
        # With another summary the prompt's beginning changes anyway, so the memory section is rendered again.
        system = self._system if cut.id == self._in_use else self._renewed
        return self._fixed + system + self._count(cut.text)

    def budget(self, cut: SummaryCut | None = None) -> Budget:
        """Returns what the messages may take with this summary in front of them."""
        return plan_budget(
            self._context,
            max_tokens=self._max_tokens,
            fixed_tokens=self._fixed_with(cut),
            note_tokens=self._note.least,
        )

    def first_after(self, cut: SummaryCut) -> int:
        """Returns the first entry after a summary."""
        if cut.fill < self._fill:
            return cut.fill
        after = (
            n for n, (index, _) in enumerate(self.entries) if (index or 0) >= cut.index and n >= self._fill
        )
        return next(after, 0)

    def count(self, index: int) -> int:
        return self.tokens(index, index + 1)

    def tokens(self, start: int, end: int) -> int:
        if start == end:
            return 0
        if self._before is None:
            sizes = (message_tokens(m, self._count) for _, m in self.entries)
            self._before = [0, *accumulate(sizes)]
        return self._before[end] - self._before[start]

    def prompt_tokens(self, staying: Sequence[int], cut: SummaryCut | None) -> tuple[int, int]:
        """Returns the prompt's tokens if these entries stay, and how many there may be.

        0: nothing was counted, or not all of it is text.
        """
        if (
            self._context == ANY_WINDOW
            or self._before is None
            or any(media_in(self.entries[i][1]) for i in staying)
        ):
            return 0, 0
        fixed = self._fixed_with(cut)
        return fixed + sum(map(self.count, staying)), fixed + self.budget(cut).most

    def note_tokens(self, staying: Sequence[int], cut: SummaryCut | None) -> int:
        """Returns what a note may take: all that these messages leave free, up to its most."""
        free = self.budget(cut).most
        if free - sum(self.items[i].bound for i in staying) >= self._note.most:
            return self._note.most
        return max(0, min(self._note.most, free - sum(map(self.count, staying))))

    def surplus(self, start: int) -> int:
        """Returns how many messages from `start` on leave because they are too many."""
        return 0 if self._bounds is None else begin_window(self.items[start:], self._bounds)

    def context(self, window: Window) -> int:
        """Returns the tokens of the largest window in which there is no room for what left this one."""
        return ANY_WINDOW if window.is_whole and self._is_crowded() else self._context

    def _is_crowded(self, start: int = 0, share: float = 1.0) -> bool:
        return self._bounds is not None and len(self.items) - start > self._bounds.most * share

    def is_over(self, start: int = 0, cut: SummaryCut | None = None, share: float = 1.0) -> bool:
        """Returns whether the entries from `start` on take more than that share of the window."""
        if self._is_crowded(start, share):
            return True
        most = self.budget(cut).high * share
        # Bytes are an upper bound of tokens: where they fit, nothing has to be counted.
        if sum(item.bound for item in self.items[start:]) <= most:
            return False
        return self.tokens(start, len(self.items)) > most

    def overfull(self, cuts: Sequence[tuple[int, SummaryCut]], *, is_due: bool) -> Overfull | None:
        """Returns the summary that is wanted: the window fills up, and there is enough after the newest one.

        is_due: something has left the window, and no summary stands for it.
        """
        start, newest = cuts[-1] if cuts else (0, None)
        high = self.budget(newest).high
        # Where no number of tokens is the limit, the messages say what stays.
        keep = 0 if self._context == ANY_WINDOW else int(high * self._retained_share)
        least = 0 if self._bounds is None else self._bounds.least
        wanted = Overfull(keep, summary_tokens(self._context), least, self._newest)
        is_early = self._bounds is not None and len(self.items) - start > self._bounds.early
        if is_due or is_early:
            return wanted
        if not self.is_over(start, newest, EARLY):
            return None
        # A summary covers whole turns, and leaves the last ones as they are.
        opens = (i for i in range(len(self.items) - 1, start, -1) if self.items[i].role == "user")
        at = next((i for i in opens if self.tokens(i, len(self.items)) >= keep), start)
        return wanted if self.tokens(start, at) >= high * WORTH else None
