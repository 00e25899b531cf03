"""Requests: the list of the last ones, and why one was answered as it was."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct, UnsetType
from msgspec.structs import replace

from gateway.errors import UnknownId
from gateway.page.page_operations import PageOperations
from gateway.page.reply_sources import (
    PromptText,
    ReplyPart,
    find_repetitions,
    list_other_sources,
    list_prompt_texts,
    list_tool_results,
    make_turn,
    mark_reply,
    select_words_without_source,
)
from gateway.page.screen import Action, ListQuery, NoFields, Screen, ScreenRequest, View
from gateway.page.window_bar import FREE_PART, WINDOW_PARTS, make_cells
from gateway.run.admin.memory.block_views import BlocksSince
from gateway.run.admin.memory.question_views import Question
from gateway.run.admin.memory_names import make_memory_label
from gateway.run.admin.page_paths import page_path
from gateway.run.admin.plain_text import count_noun
from gateway.run.admin.records.memory_records import FactRecord, MessageRecord, VersionRecord
from gateway.run.admin.records.request_records import ExplainedRequest, RequestRecord
from gateway.run.admin.requests.reply_words import find_lines, select_words_without
from gateway.run.admin.requests.request_lists import RequestPage, RequestSelection
from storage.search.text_words import find_spans_with_words

T = TypeVar("T")
# The most words of a reply that are named because older texts have them.
_NAMED_WORDS = 3
# The lines of a block that are quoted because a reply has their words.
_LINES_PER_BLOCK = 2
# The longest question that is tried again, in characters: the link has it.
_MAX_TRIED_CHARS = 1_000


class _RequestsQuery(ListQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # The uid of the only memory with listed requests; None: all requests.
    memory: str | None = None
    # True if the list of all requests shows the questions, too. The audit then has a read of each memory.
    words: bool = False
    # The requests that are listed; None: all requests.
    only: RequestSelection | None = None


class BlockLine(Struct, frozen=True):
    """A line of a block in the prompt that has words of the reply."""

    # The block, as the prompt had it.
    block: PromptText
    # The text of the line.
    line: str
    # The version since which the block has had the line; None: it is not known.
    version: VersionRecord | None


class _RequestScreens(Struct, frozen=True):
    """The screens of requests, each as it is called for a request to the page."""

    operations: PageOperations

    async def show_list(self, request: ScreenRequest, query: _RequestsQuery) -> View:
        requests, memories = self.operations.requests, self.operations.memories
        page = await requests.lists.read_page(
            memory=query.memory,
            project=request.visitor.project,
            only=query.only,
            after=query.after,
            limit=query.limit,
        )
        memory_name = paused = None
        if query.memory is not None:
            await request.note_read(query.memory)
            memory = await memories.get(request.visitor.project, query.memory)
            memory_name, paused = make_memory_label(memory), memory.paused_at
        questions = await self._find_questions(request, query, page)
        if request.is_twin and questions is not None:
            page = replace(page, items=tuple(_with_question(each, questions) for each in page.items))
        # In a list of one memory its name is in the heading alone.
        named_requests = () if query.memory else (*page.in_flight, *page.items)
        context = {
            "memory": query.memory,
            "selection": query.only,
            "memory_name": memory_name,
            "paused": paused,
            "questions": questions,
            "agents": await requests.lists.load_agent_names(named_requests),
            "projects": requests.logged.find_projects(named_requests),
            "resent": requests.logged.find_resent(page.items),
            "unsearched": requests.logged.find_unsearched(page.items),
            # With the words of all people each new row would be another read in the audit.
            "is_live": query.after is None and (query.memory is not None or not query.words),
            "keep": count_noun(requests.retention.days, "days"),
        }
        return View(page, "requests.html", "Requests", context)

    async def _find_questions(
        self, request: ScreenRequest, query: _RequestsQuery, page: RequestPage
    ) -> dict[str, Question] | None:
        """Returns what was asked, by the ids of a page's requests; None: no questions are listed.

        Notes the read of each memory with a question in a list of all memories.
        """
        requests, views = self.operations.requests, self.operations.memories.questions
        ids = [each.id for each in (*page.in_flight, *page.items) if each.id]
        if query.memory is not None:
            if request.is_twin and not query.words:
                return None
            logged = requests.logged.find(query.memory, ids)
            return await views.load_questions(request.visitor.project, query.memory, ids, logged)
        if not query.words:
            return None
        # A client may give several requests the same id, also one of another project.
        memories_by_id: defaultdict[str, set[str | None]] = defaultdict(set)
        for each in page.items:
            memories_by_id[each.id].add(each.memory)
        logged = [
            each
            for each in requests.logged.find(None, ids)
            if each.memory_uid and memories_by_id[each.id] == {each.memory_uid}
        ]
        questions = await views.load_questions_of_all(logged)
        for uid in {each.memory_uid for each in logged if each.id in questions and each.memory_uid}:
            await request.note_read(uid)
        return questions

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
        turn = make_turn(messages)
        blocks, standing = await self._load_blocks(explained), await self._find_standing_facts(explained)
        speakers = await self._find_speakers(searched)
        prompt_texts = [
            *list_prompt_texts(searched, speakers, blocks, standing),
            *list_tool_results(explained, messages),
        ]
        repeated = await asyncio.to_thread(find_repetitions, turn.reply_text, prompt_texts)
        words = ""
        if turn.reply and not repeated:
            words = await select_words_without_source(turn, prompt_texts)
            explained = await self._add_texts_before(explained, words)
        if request.is_twin:
            return View(explained)
        reply_parts = await mark_reply(turn, prompt_texts, repeated)
        context = {
            "agents": await self.operations.requests.lists.load_agent_names([explained]),
            "cells": make_cells(explained.window),
            "parts": WINDOW_PARTS,
            "free": FREE_PART,
            "turn": turn.messages,
            "later": self.operations.requests.logged.list_later(id, explained.memory),
            "repeated": repeated,
            "reply_parts": reply_parts,
            "block_lines": await self._find_block_lines(explained, blocks, reply_parts),
            # The question and the request that searched memory for it, to try it again; None: it has none, or is long.
            "trial": _find_trial(turn.question_text, searched),
            # The hits that were in the prompt, also if an earlier request has found them.
            "chosen_hits": searched.chosen,
            "speakers": speakers,
            "blocks": blocks,
            "prompt_blocks": [each for each in prompt_texts if each.kind == "block" and each.text],
            "standing": standing,
            "spans": lambda text: find_spans_with_words(text, words),
            "sent_along": _find_sent_along(explained),
            "words_before": await self._list_words_before(explained, words),
            "other_sources": list_other_sources(explained.window),
            "has_embedder": self.operations.trials.has_embedder,
        }
        return View(explained, "request.html", f"Request {id}", context)

    async def _find_block_lines(
        self, explained: ExplainedRequest, blocks: BlocksSince, reply_parts: Sequence[ReplyPart]
    ) -> list[BlockLine]:
        """Returns the lines of blocks with marked words of a reply, at most `_LINES_PER_BLOCK` of each block."""
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
            blocks_of_memory = self.operations.memories.blocks
            finding = blocks_of_memory.find_origins(explained.memory or "", label, lines, version)
            origins = await _or_if_forgotten(finding, [])  # [] also means that no line is quoted
            block_lines += [BlockLine(block, *each) for each in zip(lines, origins, strict=False)]
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
        views = self.operations.memories.messages
        reading = views.read_exchange(None, explained.memory, explained.exchange)
        return await _or_if_forgotten(reading, [])

    async def _add_texts_before(self, explained: ExplainedRequest, words: str) -> ExplainedRequest:
        """Returns a request with the older texts that have some words of its reply."""
        if explained.memory is None or explained.exchange is None:
            return explained
        if not words:
            return replace(explained, before_reply=())
        finding = self.operations.words.find_before_reply(None, explained.memory, words, explained.exchange)
        texts = await _or_if_forgotten(finding, None)
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
        first = await _or_if_forgotten(
            self.operations.requests.explain(explained.repeats, project), explained
        )
        return first if (first.memory, first.note) == (explained.memory, explained.note) else explained

    async def _find_speakers(self, explained: ExplainedRequest) -> dict[int, str]:
        """Returns the speakers of the recalled messages, by the messages' numbers."""
        hits = (*explained.chosen, *explained.left_out)
        if explained.memory is None or not hits:
            return {}
        views = self.operations.memories.messages
        return await _or_if_forgotten(views.load_speakers(None, explained.memory, hits), {})

    async def _load_blocks(self, explained: ExplainedRequest) -> BlocksSince:
        """Returns the blocks as they are now, and which have changed since the request."""
        none = BlocksSince({}, {})
        if explained.memory is None or not _has_section(explained):
            return none
        blocks = self.operations.memories.blocks
        changed = blocks.list_changed_since(explained.memory, _compute_beginning(explained))
        return await _or_if_forgotten(changed, none)

    async def _find_standing_facts(self, explained: ExplainedRequest) -> tuple[FactRecord, ...]:
        """Returns the standing facts that still hold and were in the prompt."""
        if explained.memory is None or not _has_section(explained):
            return ()
        facts = self.operations.memories.facts
        standing = facts.list_standing(explained.memory, _compute_beginning(explained))
        return await _or_if_forgotten(standing, ())


async def _or_if_forgotten(found: Awaitable[T], default: T) -> T:
    """Returns what an operation finds; `default` if it was forgotten since the request was read."""
    try:
        return await found
    except UnknownId:
        return default


def _with_question(record: RequestRecord, questions: Mapping[str, Question]) -> RequestRecord:
    question = questions.get(record.id)
    return record if question is None or not question.text else replace(record, question=question.text)


def _has_section(explained: ExplainedRequest) -> bool:
    """Returns whether the prompt may have had memory blocks or standing facts."""
    if not explained.window.parts:  # nothing is noted of a prompt for which memory was not searched
        return explained.exchange is not None and explained.mode in ("on", "strict")
    return any(each.part == "section" and each.tokens for each in explained.window.parts)


def _find_trial(question: str, searched: ExplainedRequest) -> dict[str, str] | None:
    """Returns the query with which the trial of recall tries the question of a request again."""
    if not question.strip() or len(question) > _MAX_TRIED_CHARS or not searched.window.parts:
        return None
    return {"q": question, "request": searched.id}


def _compute_beginning(explained: ExplainedRequest) -> float:
    """Returns when a request began. `explained.at` is when its turn ended, since its recall is noted then."""
    return explained.at - explained.ms / 1000


def _find_sent_along(explained: ExplainedRequest) -> set[str]:
    """Returns the links of the older messages with words of a reply that its request may have had in its history."""
    if not explained.before_reply or "history" not in {
        each.part for each in explained.window.parts if each.tokens
    }:
        return set()
    path = f"{page_path('m', explained.memory or '', 'c', explained.conversation or '')}?"
    return {each.href for each in explained.before_reply if each.href and each.href.startswith(path)}


def make_screens(operations: PageOperations) -> list[Screen | Action]:
    requests = _RequestScreens(operations)
    return [Screen("requests", requests.show_list, _RequestsQuery), Screen("r/{id}", requests.show_request)]
