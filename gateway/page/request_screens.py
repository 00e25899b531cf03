"""Requests: the list of the last ones, and why one was answered as it was."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from gateway.errors import UnknownId
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ListQuery, NoFields, Screen, ScreenRequest, View
from gateway.run.admin.block_views import BlocksSince
from gateway.run.admin.hits import fact_href
from gateway.run.admin.memory_names import name_of
from gateway.run.admin.memory_records import FactRecord, MessageRecord
from gateway.run.admin.page_paths import page_path
from gateway.run.admin.request_records import ExplainedRequest, WindowPart, WindowRecord

_BAR_CELLS = 50  # of the bar that shows a window
# A sentence. The shortest one of a reply that is looked for in what was recalled, and how many are.
_SENTENCE = re.compile(r"[^.!?;:\n…。！？]+")
_WORD = re.compile(r"\w+")
# What may stand before the words of a sentence, such as the sign of a list.
_UNSPOKEN = re.compile(r"^\W+")
_LEAST_CHARS, _MAX_SENTENCES = 12, 200
# The characters of a recalled text, and of a reply, that are compared: they may have megabytes, and the loop waits.
_MAX_CHARS = 10_000


class _PartLabel(NamedTuple):
    """The letter and the name of a part of a window, so that none is known by its colour alone."""

    letter: str
    name: str


_PARTS: dict[WindowPart, _PartLabel] = {
    "system": _PartLabel("s", "system"),
    "tools": _PartLabel("T", "tools"),
    "section": _PartLabel("B", "memory blocks"),
    "summary": _PartLabel("u", "summary"),
    "history": _PartLabel("h", "history"),
    "note": _PartLabel("N", "note"),
    "message": _PartLabel("m", "message"),
}
_FREE = _PartLabel("·", "free")


class _RequestsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # The uid of the memory to list requests of; None lists all requests.
    memory: str | None = None


class Cell(Struct, frozen=True):
    """A cell of the bar of a window. part: of the window, or "free"."""

    part: str
    letter: str


def screens(operations: PageOperations) -> list[Screen | Action]:
    """Returns the screens of requests."""
    requests = _RequestScreens(operations)
    return [Screen("requests", requests.show_list, _RequestsQuery), Screen("r/{id}", requests.show_request)]


class PromptText(Struct, frozen=True):
    """A text in the prompt of a reply, or one that stayed out of it since another repeats it."""

    # Such as "message 3".
    name: str
    # Its page, relative to /ui/.
    href: str
    text: str
    # Its place among the hits that were recalled, from 1 on; None: it is none of them.
    place: int | None = None
    # It is a reply, and not what a user has said, a fact, a passage or a block.
    is_reply: bool = False
    # It stayed out.
    is_left_out: bool = False


class Repetition(Struct, frozen=True):
    """Words of a reply that its prompt has as well: a sentence, or several that follow one another."""

    words: str
    # The texts that have them: what is no reply first, and then as in the prompt.
    texts: Sequence[PromptText]

    @property
    def place(self) -> int | None:
        """The best place of the texts; None: none was recalled."""
        return min((each.place for each in self.texts if each.place is not None), default=None)


class _RequestScreens(Struct, frozen=True):
    """The screens of requests, each as it is called for a request to the page."""

    operations: PageOperations

    async def show_list(self, request: ScreenRequest, query: _RequestsQuery) -> View:
        requests, memories = self.operations.requests, self.operations.memories
        page = await requests.list(
            memory=query.memory, project=request.visitor.project, after=query.after, limit=query.limit
        )
        name = paused = questions = None
        if query.memory is not None:
            await request.note_read(query.memory)
            memory = await memories.find(request.visitor.project, query.memory)
            name, paused = name_of(memory.scope), memory.paused
            if not request.is_twin:
                ids = [each.id for each in (*page.in_flight, *page.items) if each.id]
                questions = await memories.conversations.questions(
                    request.visitor.project, query.memory, ids, requests.find_logged(query.memory, ids)
                )
        context = {
            "memory": query.memory,
            "name": name,
            "paused": paused,
            # What was asked, by the ids of requests; None: requests of all are listed.
            "questions": questions,
            "resent": requests.find_resent(page.items),
            "is_first": query.after is None,
            "keep": f"{requests.keep_why_days:g} days",
        }
        return View(page, "requests.html", "Requests", context)

    async def show_request(self, request: ScreenRequest, query: NoFields) -> View:
        id = request.params["id"]
        explained = await self.operations.requests.explain(id, request.visitor.project)
        if explained.memory is not None:
            await request.note_read(explained.memory)
        if request.is_twin:
            return View(explained)
        turn = await self._read_turn(explained)
        blocks, standing = await self._find_blocks(explained), await self._find_standing_facts(explained)
        speakers = await self._find_speakers(explained)
        context = {
            "cells": window_cells(explained.window),
            "parts": _PARTS,
            "free": _FREE,
            "turn": turn,
            "later": self.operations.requests.list_later(id, explained.memory),
            "repeated": _find_repetitions(turn, _prompt_texts(explained, speakers, blocks, standing)),
            "speakers": speakers,
            "blocks": blocks,
            "standing": standing,
        }
        return View(explained, "request.html", f"Request {id}", context)

    async def _read_turn(self, explained: ExplainedRequest) -> list[MessageRecord]:
        """Returns the question and the reply of a request, as far as they are stored."""
        if explained.memory is None or explained.exchange is None:
            return []
        try:
            messages = await self.operations.memories.conversations.read_exchange(
                None, explained.memory, explained.exchange
            )
        except UnknownId:
            return []  # it was forgotten meanwhile
        last = {each.role: each for each in messages if each.text}
        return [last[role] for role in ("user", "assistant") if role in last]

    async def _find_speakers(self, explained: ExplainedRequest) -> dict[int, str]:
        """Returns the speakers of the recalled messages, by the messages' numbers."""
        hits = (*explained.chosen, *explained.left_out)
        if explained.memory is None or not hits:
            return {}
        try:
            return await self.operations.memories.conversations.speakers(None, explained.memory, hits)
        except UnknownId:
            return {}  # the memory was forgotten meanwhile

    async def _find_blocks(self, explained: ExplainedRequest) -> BlocksSince:
        """Returns the blocks, and which have changed since the request."""
        if explained.memory is None or not _has_section(explained):
            return BlocksSince({}, {})
        try:
            return await self.operations.memories.blocks.changed_since(explained.memory, _begun(explained))
        except UnknownId:
            return BlocksSince({}, {})  # the memory was forgotten meanwhile

    async def _find_standing_facts(self, explained: ExplainedRequest) -> tuple[FactRecord, ...]:
        """Returns the standing facts that were in the prompt, of those that hold today."""
        if explained.memory is None or not _has_section(explained):
            return ()
        try:
            return await self.operations.memories.facts.standing(explained.memory, _begun(explained))
        except UnknownId:
            return ()  # the memory was forgotten meanwhile


def _has_section(explained: ExplainedRequest) -> bool:
    """Returns whether the prompt may have had memory blocks or standing facts."""
    if not explained.window.parts:  # nothing is noted of a prompt for which memory was not searched
        return explained.exchange is not None and explained.mode in ("on", "strict")
    return any(each.part == "section" and each.tokens for each in explained.window.parts)


def _prompt_texts(
    explained: ExplainedRequest,
    speakers: Mapping[int, str],
    blocks: BlocksSince,
    standing: Sequence[FactRecord],
) -> list[PromptText]:
    """Returns the texts that a reply may repeat: those of its prompt, and those that these repeat."""
    memory = explained.memory or ""
    recalled = [(hit, place) for place, hit in enumerate(explained.chosen, 1)]
    left_out = [(hit, None) for hit in explained.left_out if hit.reason == "repeats"]
    hits = [
        PromptText(
            f"{hit.kind} {hit.seq}",
            hit.href,
            hit.text,
            place,
            is_reply=hit.kind == "message" and speakers.get(hit.seq) == "assistant",
            is_left_out=place is None,
        )
        for hit, place in (*recalled, *left_out)
        if hit.href and hit.text
    ]
    return [
        *hits,
        *(
            PromptText(f"block {each}", page_path("m", memory, "b", each), text)
            for each, text in blocks.same.items()
        ),
        *(PromptText(f"fact {each.seq}", fact_href(memory, each.seq), each.text) for each in standing),
    ]


def _find_repetitions(turn: Sequence[MessageRecord], texts: Sequence[PromptText]) -> list[Repetition]:
    """Returns the words of a reply that one of some texts has as well, those of the best places first.

    Words that several replies have, and nothing else, are a set phrase: they are left out where there are others.
    """
    reply = next((each.text or "" for each in turn if each.role == "assistant"), "")[:_MAX_CHARS]
    bare = [(each, f" {_bare(each.text[:_MAX_CHARS])} ") for each in texts]
    repetitions = list[Repetition]()
    seen = set[str]()
    start, end = 0, -1  # of the words of the last repetition, in the reply
    for sentence in islice(_SENTENCE.finditer(reply), _MAX_SENTENCES):
        words = _bare(sentence[0])
        having = [each for each, text in bare if f" {words} " in text] if len(words) >= _LEAST_CHARS else []
        if not having or words in seen:
            continue
        seen.add(words)
        having.sort(key=lambda each: each.is_reply)
        if (
            repetitions
            and repetitions[-1].texts[0] == having[0]
            and not _WORD.search(reply, end, sentence.start())
        ):
            before = repetitions.pop().texts
            having = [each for each in having if each in before]
        else:
            start = sentence.start()
        end = sentence.end()
        repetitions.append(Repetition(_UNSPOKEN.sub("", " ".join(reply[start:end].split())), having))
    telling = [each for each in repetitions if not each.texts[0].is_reply or not each.texts[1:]]
    return sorted(telling or repetitions, key=lambda each: (each.texts[0].is_reply, each.place or 0))


def _bare(text: str) -> str:
    """Returns the words of a text alone, in small letters."""
    return " ".join(_WORD.findall(text.casefold()))


def _begun(explained: ExplainedRequest) -> float:
    """Returns when a request began: its recall is noted when its turn ends."""
    return explained.at - explained.ms / 1000


def window_cells(window: WindowRecord) -> list[Cell]:
    """Returns the bar of a window, in which each part that has tokens has at least one cell."""
    used = {each.part: each.tokens for each in window.parts if each.tokens}
    if not used:
        return []
    free = max(0, (window.context or 0) - sum(used.values()))
    whole = sum(used.values()) + free
    counts = {part: max(1, round(tokens * _BAR_CELLS / whole)) for part, tokens in used.items()}
    while sum(counts.values()) > _BAR_CELLS:  # small parts have a cell that they do not fill
        counts[max(counts, key=lambda part: counts[part])] -= 1
    if not free:
        # Where the others were rounded down, the largest part has the rest.
        counts[max(counts, key=lambda part: counts[part])] += _BAR_CELLS - sum(counts.values())
    cells = [Cell(part, _PARTS[part].letter) for part, count in counts.items() for _ in range(count)]
    return cells + [Cell("free", _FREE.letter)] * (_BAR_CELLS - len(cells))
