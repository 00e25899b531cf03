"""Where the words of a reply come from: the texts of its prompt that have them as well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from gateway.core.memory.orders import get_own_text
from gateway.run.admin.memory.block_views import BlocksSince
from gateway.run.admin.page_paths import make_fact_href, page_path
from gateway.run.admin.records.memory_records import FactRecord, MessageRecord
from gateway.run.admin.records.request_records import ExplainedRequest, WindowPart, WindowRecord
from gateway.run.admin.requests.reply_words import find_shared_words, select_uncommon_without

_SENTENCE = re.compile(r"[^.!?;:\n…。！？]+")
_WORD = re.compile(r"\w+")
# What may stand before the words of a sentence, such as the sign of a list.
_BEFORE_WORDS = re.compile(r"^\W+")
# The first sentences of a reply are looked for in the texts of its prompt, if they have so many characters. 200 of them
# take 170 ms in 60 texts of `_MAX_CHARS`, in a thread.
_MAX_SENTENCES = 200
_MIN_SENTENCE_CHARS = 12
# The first characters of a reply, and of a text of its prompt, that are compared, since both may have megabytes.
_MAX_CHARS = 10_000
# The characters of a reply that are shown, and of a text of its prompt that are compared with them word by word.
_SHOWN_CHARS = 2_000
# What may have words that no text of memory has, by the part of the prompt.
_OTHER_SOURCES: dict[WindowPart, str] = {
    "history": "earlier messages",
    "summary": "the summary of earlier messages",
    "system": "the application’s instructions",
    "tools": "a tool",
}


class ShownTurn(NamedTuple):
    """The question and the reply of an exchange."""

    # The user's message; None: the message is not stored.
    question: MessageRecord | None
    # The reply; None: the reply is not stored.
    reply: MessageRecord | None

    @property
    def messages(self) -> list[MessageRecord]:
        """The question and the reply, without one that is not stored."""
        return [each for each in self if each is not None]

    @property
    def question_text(self) -> str:
        """The text of the question; "": it is not stored."""
        return self.question.text or "" if self.question else ""

    @property
    def reply_text(self) -> str:
        """The text of the reply; "": it is not stored."""
        return self.reply.text or "" if self.reply else ""


class PromptText(Struct, frozen=True):
    """A text in the prompt of a reply, or a hit that was left out of the prompt since another text repeats it."""

    # "message", "fact", "passage", "block", or "tool": what one of the gateway's tools returned.
    kind: str
    # The number of the text, the label of the block, or the name of the tool.
    id: int | str
    # The page that shows the text, relative to /ui/.
    href: str
    # The text.
    text: str
    # The rank among the recalled hits, from 1 on; None: the text was not recalled.
    rank: int | None = None
    # True if the text is an earlier reply, and not what a user wrote, a fact, a passage or a block.
    is_reply: bool = False
    # True if the text was left out of the prompt.
    is_left_out: bool = False
    # True if the text is a fact that is no longer true.
    is_ended: bool = False
    # True if a tool has returned the text, the gateway's or (as a message) the application's.
    is_tool_result: bool = False
    # True if the text is that of a block that has changed since.
    is_changed: bool = False

    @property
    def name(self) -> str:
        """The name of the text, such as "message 3", or the name of the tool."""
        name = str(self.id) if self.kind == "tool" else f"{self.kind} {self.id}"
        return f"{name} as it was then" if self.is_changed else name


class Repetition(Struct, frozen=True):
    """Words of a reply that its prompt has as well: a sentence, or several that follow one another."""

    # The words, as the reply has them.
    words: str
    # The texts that have the words, in the order of the prompt, but replies last.
    texts: Sequence[PromptText]
    # The offset in the reply at which the words begin.
    start: int
    # The offset after the words.
    end: int

    @property
    def rank(self) -> int | None:
        """The best rank of the texts, or None if none was recalled."""
        return min((each.rank for each in self.texts if each.rank is not None), default=None)


class ReplyPart(Struct, frozen=True):
    """A part of a reply."""

    # The text of the part.
    text: str
    # The texts of the prompt that have the same words; without any the part is not marked.
    sources: Sequence[PromptText] = ()


def list_prompt_texts(
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
            get_own_text(hit.text, hit.kind),
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
        text = get_own_text(fact.text)
        texts.append(PromptText("fact", fact.seq, make_fact_href(memory, fact.seq), text))
    return texts


def list_tool_results(explained: ExplainedRequest, messages: Sequence[MessageRecord]) -> list[PromptText]:
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


def make_turn(messages: Sequence[MessageRecord]) -> ShownTurn:
    """Returns the question and the reply of an exchange. messages: those of the exchange."""
    last_by_role = {each.role: each for each in messages if each.text}
    return ShownTurn(last_by_role.get("user"), last_by_role.get("assistant"))


def find_repetitions(reply: str, texts: Sequence[PromptText]) -> list[Repetition]:
    """Returns the words of a reply that one of some texts has as well, first those of a text that is no reply.

    Words that only other replies have may be a set phrase: they are left out if several have them, unless there is
    nothing else.
    """
    reply = reply[:_MAX_CHARS]
    # The spaces: words are found as a whole.
    texts_with_words = [(each, f" {_join_words(each.text[:_MAX_CHARS])} ") for each in texts]
    repetitions: list[Repetition] = []
    seen_sentences: set[str] = set()
    start, end = 0, -1  # of the last repetition, in the reply
    for sentence in islice(_SENTENCE.finditer(reply), _MAX_SENTENCES):
        words = _join_words(sentence[0])
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


async def select_words_without_source(turn: ShownTurn, texts: Sequence[PromptText]) -> str:
    """Returns the words of a reply that neither its question nor a text of its prompt has; no common ones."""
    known_texts = [turn.question_text, *(each.text for each in texts)]
    return await select_uncommon_without(
        turn.reply_text[:_MAX_CHARS], [each[:_MAX_CHARS] for each in known_texts]
    )


async def mark_reply(
    turn: ShownTurn, texts: Sequence[PromptText], repeated: Sequence[Repetition]
) -> list[ReplyPart]:
    """Returns the beginning of a reply in parts.

    Marked are the sentences that it repeats. If it repeats none, the words are that its question lacks and a text
    of its prompt has.
    """
    if repeated:
        spans = sorted((each.start, each.end, each.texts) for each in repeated)
    else:
        sources = sorted(texts, key=lambda each: each.is_reply)
        shared = await find_shared_words(
            turn.reply_text[:_SHOWN_CHARS],
            turn.question_text[:_MAX_CHARS],
            [each.text[:_SHOWN_CHARS] for each in sources],
        )
        spans = [(start, end, [sources[each] for each in indices]) for start, end, indices in shared]
    return _split_reply(turn.reply_text, spans)


def list_other_sources(window: WindowRecord) -> list[str]:
    """Returns the names of the parts of a prompt, without its question and the texts of memory."""
    if not window.parts:  # it is not noted
        return list(_OTHER_SOURCES.values())
    parts = {each.part for each in window.parts if each.tokens}
    return [name for part, name in _OTHER_SOURCES.items() if part in parts]


def _split_reply(reply: str, spans: Iterable[tuple[int, int, Sequence[PromptText]]]) -> list[ReplyPart]:
    """Returns the first characters of a reply in parts. spans: the marked parts, in order: start, end and sources."""
    shown, end = reply[:_SHOWN_CHARS], 0
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


def _join_words(text: str) -> str:
    """Returns the words of a text in small letters, with one space between them."""
    return " ".join(_WORD.findall(text.casefold()))
