"""Requests: the list of the last ones, and why one was answered as it was."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct, UnsetType
from msgspec.structs import replace

from gateway.errors import UnknownId
from gateway.page.page_operations import PageOperations
from gateway.page.screen import Action, ListQuery, NoFields, Screen, ScreenRequest, View
from gateway.run.admin.block_views import BlocksSince
from gateway.run.admin.conversation_views import Question
from gateway.run.admin.memory_names import name_of
from gateway.run.admin.memory_records import FactRecord, MessageRecord, VersionRecord
from gateway.run.admin.page_paths import make_fact_href, page_path
from gateway.run.admin.plain_text import count_noun
from gateway.run.admin.request_records import ExplainedRequest, RequestRecord, WindowPart, WindowRecord
from gateway.run.admin.word_search import (
    find_lines,
    find_shared,
    select_uncommon_without,
    select_words_without,
)
from storage.search.text_words import find_spans_with_words

# The cells of the bar that shows a window.
_BAR_CELLS = 50
_SENTENCE = re.compile(r"[^.!?;:\n…。！？]+")
_WORD = re.compile(r"\w+")
# What may stand before the words of a sentence, such as the sign of a list.
_BEFORE_WORDS = re.compile(r"^\W+")
# The first sentences of a reply are looked for in the texts of its prompt, if they have so many characters.
_MAX_SENTENCES = 200
_MIN_SENTENCE_CHARS = 12
# The first characters of a reply, and of a text of its prompt, that are compared, since both may have megabytes.
_MAX_CHARS = 10_000
# The characters that are shown of a reply.
_SHOWN_REPLY_CHARS = 2_000
# The most words of a reply that are named because older texts have them.
_NAMED_WORDS = 3
# The lines of a block that are quoted because a reply has their words.
_LINES_PER_BLOCK = 2
# The longest question that is tried again, in characters: the link has it.
_MAX_TRIED_CHARS = 1_000


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
# What may have words that no text of memory has, by the part of the prompt.
_OTHER_SOURCES: dict[WindowPart, str] = {
    "history": "earlier messages",
    "summary": "the summary of earlier messages",
    "system": "the application’s instructions",
    "tools": "a tool",
}
_FREE = _PartLabel("·", "free")


class _RequestsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # The uid of the only memory with listed requests; None: all requests.
    memory: str | None = None
    # What was asked is shown in the list of all requests, too. The audit then has a read of each memory.
    words: bool = False


class Cell(Struct, frozen=True):
    """A cell of the bar of a window."""

    # The part of the window that fills the cell, or "free".
    part: str
    letter: str


class PromptText(Struct, frozen=True):
    """A text in the prompt of a reply, or a hit that was left out of the prompt since another text repeats it."""

    # "message", "fact", "passage", "block", or "tool": what one of the gateway's tools returned.
    kind: str
    # The number of the text, the label of the block, or the name of the tool.
    id: int | str
    # The page that shows the text, relative to /ui/.
    href: str
    text: str
    # The rank among the recalled hits, from 1 on; None: the text was not recalled.
    rank: int | None = None
    # The text is an earlier reply, and not what a user has said, a fact, a passage or a block.
    is_reply: bool = False
    is_left_out: bool = False
    # The text is a fact that is no longer true.
    is_ended: bool = False
    # A tool has returned the text, the gateway's or (as a message) the application's.
    is_tool_result: bool = False
    # The text is that of a block that has changed since.
    is_changed: bool = False

    @property
    def name(self) -> str:
        """The name of the text, such as "message 3", or the name of the tool."""
        name = str(self.id) if self.kind == "tool" else f"{self.kind} {self.id}"
        return f"{name} as it was then" if self.is_changed else name


class Repetition(Struct, frozen=True):
    """Words of a reply that its prompt has as well: a sentence, or several that follow one another."""

    words: str
    # The texts that have the words, in the order of the prompt, but replies last.
    texts: Sequence[PromptText]
    # In the reply.
    start: int
    end: int

    @property
    def rank(self) -> int | None:
        """The best rank of the texts, or None if none was recalled."""
        return min((each.rank for each in self.texts if each.rank is not None), default=None)


class ReplyPart(Struct, frozen=True):
    """A part of a reply."""

    text: str
    # The texts of the prompt that have the same words; without any the part is not marked.
    sources: Sequence[PromptText] = ()


class BlockLine(Struct, frozen=True):
    """A line of a block in the prompt that has words of the reply."""

    block: PromptText
    line: str
    # The version since which the block has had the line; None: it is not known.
    version: VersionRecord | None


class _RequestScreens(Struct, frozen=True):
    """The screens of requests, each as it is called for a request to the page."""

    operations: PageOperations

    async def show_list(self, request: ScreenRequest, query: _RequestsQuery) -> View:
        requests, memories = self.operations.requests, self.operations.memories
        page = await requests.list(
            memory=query.memory, project=request.visitor.project, after=query.after, limit=query.limit
        )
        ids = [each.id for each in (*page.in_flight, *page.items) if each.id]
        memory_name = paused = questions = None
        if query.memory is not None:
            await request.note_read(query.memory)
            memory = await memories.get(request.visitor.project, query.memory)
            memory_name, paused = name_of(memory.scope), memory.paused
            if query.words or not request.is_twin:
                questions = await memories.conversations.load_questions(
                    request.visitor.project, query.memory, ids, requests.find_logged(query.memory, ids)
                )
        elif query.words:
            # A client may give several requests the same id, also one of another project.
            memories_by_id: defaultdict[str, set[str | None]] = defaultdict(set)
            for each in page.items:
                memories_by_id[each.id].add(each.memory)
            logged = [
                each
                for each in requests.find_logged(None, ids)
                if each.memory_uid and memories_by_id[each.id] == {each.memory_uid}
            ]
            questions = await memories.conversations.load_questions_of_all(logged)
            for uid in {each.memory_uid for each in logged if each.id in questions and each.memory_uid}:
                await request.note_read(uid)
        if request.is_twin and questions is not None:
            page = replace(page, items=tuple(_with_question(each, questions) for each in page.items))
        context = {
            "memory": query.memory,
            "memory_name": memory_name,
            "paused": paused,
            # What was asked, by the ids of requests; None: no questions are listed.
            "questions": questions,
            "resent": requests.find_resent(page.items),
            "unsearched": requests.find_unsearched(page.items),
            # With the words of all people each new row would be another read in the audit.
            "is_live": query.after is None and (query.memory is not None or not query.words),
            "keep": count_noun(requests.keep_why_days, "days"),
        }
        return View(page, "requests.html", "Requests", context)

    async def show_request(self, request: ScreenRequest, query: NoFields) -> View:
        id = request.params["id"]
        try:
            explained = await self.operations.requests.explain(id, request.visitor.project)
        except UnknownId as error:
            return await self._view_forgotten(request, error)
        if explained.memory is not None:
            await request.note_read(explained.memory)
        searched = await self._load_searching_request(explained, request.visitor.project)
        messages = await self._read_messages(explained)
        turn = _find_turn(messages)
        blocks, standing = await self._load_blocks(explained), await self._find_standing_facts(explained)
        speakers = await self._find_speakers(searched)
        prompt_texts = [
            *_list_prompt_texts(searched, speakers, blocks, standing),
            *_list_tool_results(explained, messages),
        ]
        repeated = await asyncio.to_thread(_find_repetitions, turn, prompt_texts)
        words = ""  # of the reply, which neither its question nor a text of the prompt has; no common ones
        reply = _choose_text("assistant", turn)
        if reply and not repeated:
            known_texts = [_choose_text("user", turn), *(each.text for each in prompt_texts)]
            words = await select_uncommon_without(
                reply[:_MAX_CHARS], [each[:_MAX_CHARS] for each in known_texts]
            )
            explained = await self._add_texts_before(explained, words)
        if request.is_twin:
            return View(explained)
        reply_parts = await self._mark_reply(turn, prompt_texts, repeated)
        context = {
            "cells": _make_cells(explained.window),
            "parts": _PARTS,
            "free": _FREE,
            "turn": turn,
            "later": self.operations.requests.list_later(id, explained.memory),
            "repeated": repeated,
            "reply_parts": reply_parts,
            "block_lines": await self._find_block_lines(explained, blocks, reply_parts),
            # The question and the request that searched memory for it, to try it again; None: it has none, or is long.
            "trial": _find_trial(turn, searched),
            # The hits that the model was told, also if an earlier request has found them.
            "chosen_hits": searched.chosen,
            "speakers": speakers,
            "blocks": blocks,
            "prompt_blocks": [each for each in prompt_texts if each.kind == "block" and each.text],
            "standing": standing,
            "spans": lambda text: find_spans_with_words(text, words),
            "words_before": await self._list_words_before(explained, words),
            "other_sources": _list_other_sources(explained.window),
        }
        return View(explained, "request.html", f"Request {id}", context)

    async def _mark_reply(
        self, turn: Sequence[MessageRecord], texts: Sequence[PromptText], repeated: Sequence[Repetition]
    ) -> list[ReplyPart]:
        """Returns the beginning of a reply in parts.

        Marked are the sentences that it repeats. If it repeats none, the words are that its question lacks and a text
        of its prompt has.
        """
        reply = _choose_text("assistant", turn)
        if repeated:
            spans = sorted((each.start, each.end, each.texts) for each in repeated)
        else:
            sources = sorted(texts, key=lambda each: each.is_reply)
            shared = await find_shared(
                reply[:_SHOWN_REPLY_CHARS],
                _choose_text("user", turn)[:_MAX_CHARS],
                [each.text[:_SHOWN_REPLY_CHARS] for each in sources],
            )
            spans = [(start, end, [sources[each] for each in indices]) for start, end, indices in shared]
        return _split_reply(reply, spans)

    async def _find_block_lines(
        self, explained: ExplainedRequest, blocks: BlocksSince, reply_parts: Sequence[ReplyPart]
    ) -> list[BlockLine]:
        """Returns the lines of blocks that have words which are marked in a reply, at most two of each block."""
        words_by_block: defaultdict[PromptText, list[str]] = defaultdict(list)
        for part in reply_parts:
            for source in part.sources:
                if source.kind == "block":
                    words_by_block[source].append(part.text)
        block_lines: list[BlockLine] = []
        for block, words in words_by_block.items():
            lines = await find_lines(block.text, " ".join(words), _LINES_PER_BLOCK)
            label = str(block.id)
            version = blocks.changed[label].before if block.is_changed else None
            try:
                origins = await self.operations.memories.blocks.find_origins(
                    explained.memory or "", label, lines, version
                )
            except UnknownId:
                continue  # it was forgotten meanwhile
            block_lines += [BlockLine(block, *each) for each in zip(lines, origins, strict=True)]
        return block_lines

    async def _view_forgotten(self, request: ScreenRequest, error: UnknownId) -> View:
        """Returns the screen of a request of which something was forgotten, with who forgot it.

        Raises: UnknownId: the error, where no more is known.
        """
        id, project = request.params["id"], request.visitor.project
        forgotten = await self.operations.requests.find_forgotten(id, project)
        if forgotten is None or request.is_twin:
            raise error
        forgettings = await self.operations.audit.list_forgettings(forgotten.memory)
        of_turn = [each for each in forgettings if each.what in forgotten.parts and each.at >= forgotten.at]
        context = {"request": forgotten, "forgettings": of_turn, "back": request.referrer}
        return View(None, "request_forgotten.html", error.message, context, error)

    async def _read_messages(self, explained: ExplainedRequest) -> list[MessageRecord]:
        """Returns the messages of a request's exchange, as far as they are stored."""
        if explained.memory is None or explained.exchange is None:
            return []
        try:
            return await self.operations.memories.conversations.read_exchange(
                None, explained.memory, explained.exchange
            )
        except UnknownId:
            return []  # it was forgotten meanwhile

    async def _add_texts_before(self, explained: ExplainedRequest, words: str) -> ExplainedRequest:
        """Returns a request with the older texts that have some words of its reply."""
        if explained.memory is None or explained.exchange is None:
            return explained
        if not words:
            return replace(explained, before_reply=())
        try:
            texts = await self.operations.words.find_before_reply(
                None, explained.memory, words, explained.exchange
            )
        except UnknownId:
            return explained  # the memory was forgotten meanwhile
        return explained if texts is None else replace(explained, before_reply=texts)

    async def _list_words_before(self, explained: ExplainedRequest, words: str) -> list[str]:
        """Returns the first of some words of a reply that the older texts have."""
        if not explained.before_reply:
            return []
        texts = [each.text or "" for each in explained.before_reply]
        others = set((await select_words_without(words, texts)).split())
        return [word for word in words.split() if word not in others][:_NAMED_WORDS]

    async def _load_searching_request(
        self, explained: ExplainedRequest, project: str | None
    ) -> ExplainedRequest:
        """Returns the request that searched memory for the note of a request: itself, or the first one."""
        if isinstance(explained.repeats, UnsetType) or not explained.note:
            return explained
        try:
            first = await self.operations.requests.explain(explained.repeats, project)
        except UnknownId:
            return explained
        return first if (first.memory, first.note) == (explained.memory, explained.note) else explained

    async def _find_speakers(self, explained: ExplainedRequest) -> dict[int, str]:
        """Returns the speakers of the recalled messages, by the messages' numbers."""
        hits = (*explained.chosen, *explained.left_out)
        if explained.memory is None or not hits:
            return {}
        try:
            return await self.operations.memories.conversations.load_speakers(None, explained.memory, hits)
        except UnknownId:
            return {}  # the memory was forgotten meanwhile

    async def _load_blocks(self, explained: ExplainedRequest) -> BlocksSince:
        """Returns the blocks as they are now, and which have changed since the request."""
        if explained.memory is None or not _has_section(explained):
            return BlocksSince({}, {})
        try:
            return await self.operations.memories.blocks.list_changed_since(
                explained.memory, _began_at(explained)
            )
        except UnknownId:
            return BlocksSince({}, {})  # the memory was forgotten meanwhile

    async def _find_standing_facts(self, explained: ExplainedRequest) -> tuple[FactRecord, ...]:
        """Returns the standing facts that still hold and were in the prompt."""
        if explained.memory is None or not _has_section(explained):
            return ()
        try:
            return await self.operations.memories.facts.list_standing(explained.memory, _began_at(explained))
        except UnknownId:
            return ()  # the memory was forgotten meanwhile


def _with_question(record: RequestRecord, questions: Mapping[str, Question]) -> RequestRecord:
    question = questions.get(record.id)
    return record if question is None or not question.text else replace(record, question=question.text)


def _has_section(explained: ExplainedRequest) -> bool:
    """Returns whether the prompt may have had memory blocks or standing facts."""
    if not explained.window.parts:  # nothing is noted of a prompt for which memory was not searched
        return explained.exchange is not None and explained.mode in ("on", "strict")
    return any(each.part == "section" and each.tokens for each in explained.window.parts)


def _list_prompt_texts(
    explained: ExplainedRequest,
    speakers: Mapping[int, str],
    blocks: BlocksSince,
    standing: Sequence[FactRecord],
) -> list[PromptText]:
    """Returns the texts that a reply may repeat: the texts of its prompt, and the hits that such a text repeats."""
    memory = explained.memory or ""
    ranked = [(hit, rank) for rank, hit in enumerate(explained.chosen, 1)]
    left_out = [(hit, None) for hit in explained.left_out if hit.reason == "repeats"]
    texts = [
        PromptText(
            hit.kind,
            hit.seq,
            hit.href,
            hit.text,
            rank,
            is_reply=hit.kind == "message" and speakers.get(hit.seq) == "assistant",
            is_left_out=rank is None,
            is_ended=bool(hit.until),
        )
        for hit, rank in (*ranked, *left_out)
        if hit.href and hit.text
    ]
    for label, text in blocks.same.items():
        texts.append(PromptText("block", label, page_path("m", memory, "b", label), text))
    for label, block in blocks.changed.items():
        versions = f"?from={block.before}&to={block.now}#compared"
        href = page_path("m", memory, "b", label) + versions
        if block.text_before:
            texts.append(PromptText("block", label, href, block.text_before, is_changed=True))
    for fact in standing:
        texts.append(PromptText("fact", fact.seq, make_fact_href(memory, fact.seq), fact.text))
    return texts


def _list_tool_results(explained: ExplainedRequest, messages: Sequence[MessageRecord]) -> list[PromptText]:
    """Returns what tools returned before the reply. messages: those of its exchange."""
    conversation = page_path("m", explained.memory or "", "c", explained.conversation or "")
    results: list[PromptText] = []
    for each in messages:
        href = f"{conversation}?branch={each.exchange}#message-{each.seq}"
        if each.role == "tool" and each.text:
            results.append(PromptText("message", each.seq, href, each.text, is_tool_result=True))
        results += [
            PromptText("tool", call.tool, href, call.result, is_tool_result=True)
            for call in each.rounds
            if call.result
        ]
    return results


def _find_turn(messages: Sequence[MessageRecord]) -> list[MessageRecord]:
    """Returns the question and the reply of an exchange; without one that is not stored."""
    last_by_role = {each.role: each for each in messages if each.text}
    return [last_by_role[role] for role in ("user", "assistant") if role in last_by_role]


def _find_repetitions(turn: Sequence[MessageRecord], texts: Sequence[PromptText]) -> list[Repetition]:
    """Returns the words of a reply that one of some texts has as well, first those of a text that is no reply.

    Words that only other replies have may be a set phrase: they are left out if several have them, unless there is
    nothing else.
    """
    reply = _choose_text("assistant", turn)[:_MAX_CHARS]
    # The spaces: words are found as a whole.
    texts_with_words = [(each, f" {_only_words(each.text[:_MAX_CHARS])} ") for each in texts]
    repetitions: list[Repetition] = []
    seen_sentences: set[str] = set()
    start, end = 0, -1  # of the last repetition, in the reply
    for sentence in islice(_SENTENCE.finditer(reply), _MAX_SENTENCES):
        words = _only_words(sentence[0])
        if len(words) < _MIN_SENTENCE_CHARS or words in seen_sentences:
            continue
        sources = [each for each, text_words in texts_with_words if f" {words} " in text_words]
        if not sources:
            continue
        seen_sentences.add(words)
        sources.sort(key=lambda each: each.is_reply)
        is_next_to_last = not _WORD.search(reply, end, sentence.start())
        if repetitions and is_next_to_last and repetitions[-1].texts[0] == sources[0]:
            # The sentence goes on with the last repetition.
            earlier_sources = repetitions.pop().texts
            sources = [each for each in sources if each in earlier_sources]
        else:
            before_words = _BEFORE_WORDS.match(sentence[0])
            start = sentence.start() + (before_words.end() if before_words else 0)
        end = sentence.end()
        repeated_words = " ".join(reply[start:end].split())
        repetitions.append(Repetition(repeated_words, sources, start, end))
    no_set_phrases = [each for each in repetitions if not each.texts[0].is_reply or len(each.texts) == 1]
    return sorted(no_set_phrases or repetitions, key=lambda each: (each.texts[0].is_reply, each.rank or 0))


def _split_reply(reply: str, spans: Iterable[tuple[int, int, Sequence[PromptText]]]) -> list[ReplyPart]:
    """Returns the first characters of a reply in parts. spans: the marked parts, in order: start, end and sources."""
    shown, end = reply[:_SHOWN_REPLY_CHARS], 0
    parts: list[ReplyPart] = []
    for start, next_end, sources in spans:
        if not end <= start < len(shown):
            continue
        if parts and parts[-1].sources == sources and not _WORD.search(shown, end, start):
            # One mark goes on, so that a screen reader names its sources once.
            parts[-1] = ReplyPart(parts[-1].text + shown[end:next_end], sources)
        else:
            parts += [ReplyPart(shown[end:start]), ReplyPart(shown[start:next_end], sources)]
        end = next_end
    rest = shown[end:] + ("…" if len(reply) > len(shown) else "")
    return [*parts, ReplyPart(rest)]


def _find_trial(turn: Sequence[MessageRecord], searched: ExplainedRequest) -> dict[str, str] | None:
    """Returns the query with which the trial of recall tries the question of a request again."""
    question = _choose_text("user", turn)
    if not question.strip() or len(question) > _MAX_TRIED_CHARS or not searched.window.parts:
        return None
    return {"q": question, "request": searched.id}


def _list_other_sources(window: WindowRecord) -> list[str]:
    """Returns what a prompt had besides its question and the texts of memory."""
    if not window.parts:  # it is not noted
        return list(_OTHER_SOURCES.values())
    parts = {each.part for each in window.parts if each.tokens}
    return [name for part, name in _OTHER_SOURCES.items() if part in parts]


def _choose_text(role: str, turn: Sequence[MessageRecord]) -> str:
    """Returns the question ("user") or the reply ("assistant") of a turn; "": there is none."""
    return next((each.text or "" for each in turn if each.role == role), "")


def _only_words(text: str) -> str:
    """Returns the words of a text in small letters, with one space between them."""
    return " ".join(_WORD.findall(text.casefold()))


def _began_at(explained: ExplainedRequest) -> float:
    """Returns when a request began. `explained.at` is when its turn ended, since its recall is noted then."""
    return explained.at - explained.ms / 1000


def _make_cells(window: WindowRecord) -> list[Cell]:
    """Returns the bar of a window, in which each part that has tokens has at least one cell."""
    tokens_by_part = {each.part: each.tokens for each in window.parts if each.tokens}
    if not tokens_by_part:
        return []
    used_tokens = sum(tokens_by_part.values())
    free_tokens = max(0, (window.context or 0) - used_tokens)
    all_tokens = used_tokens + free_tokens
    counts = {
        part: max(1, round(tokens * _BAR_CELLS / all_tokens)) for part, tokens in tokens_by_part.items()
    }
    while sum(counts.values()) > _BAR_CELLS:  # small parts have a cell that they do not fill
        counts[max(counts, key=lambda part: counts[part])] -= 1
    if not free_tokens:
        # Rounding may have left cells over.
        counts[max(counts, key=lambda part: counts[part])] += _BAR_CELLS - sum(counts.values())
    cells = [Cell(part, _PARTS[part].letter) for part, count in counts.items() for _ in range(count)]
    return cells + [Cell("free", _FREE.letter)] * (_BAR_CELLS - len(cells))


def screens(operations: PageOperations) -> list[Screen | Action]:
    requests = _RequestScreens(operations)
    return [Screen("requests", requests.show_list, _RequestsQuery), Screen("r/{id}", requests.show_request)]
