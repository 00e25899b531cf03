"""Rules of forgetting: the notes that may quote erased messages, and the rebuilding of a block without erased words.

The erased words are gone already when a rule decides. It decides by the text around a quotation: a note gives the day
of each message that it quotes. In doubt the note is erased as well, since a note can be written again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set

import orjson
from msgspec.structs import replace

from gateway.core.conversation.private import (
    LEGACY_OWN_LENGTH,
    find_own_length,
    without_private,
    without_private_fields,
)
from gateway.core.conversation.stored_messages import map_calls_to_tool_names
from gateway.core.conversation.wire_message import WireMessage, read_result_id, read_text
from gateway.core.dates import render_day_number
from gateway.core.memory.block_edit import apply_edit
from gateway.core.memory.builtin import ToolUse, list_built_in_tools
from gateway.core.memory.edits import digest_seen_value
from gateway.core.memory.fact_words import DESIGNATIONS, list_distinctive_words
from gateway.core.memory.memory_tools import REWRITE_OPERATIONS, EditOperation
from gateway.core.prompt.note_text import mentions_blocks
from gateway.core.words import list_folded_words
from storage.forget_commands import ErasedMarks, RebuiltValues, RevisedValue
from storage.records import REPLY, Block, Exchange, MemoryEdit

# The built-in tools with results that quote the hits of a search.
_SEARCHING_TOOLS = frozenset(list_built_in_tools(ToolUse.SEARCH))
# The text in place of the hits of a search; no hit is shorter.
_FORGOTTEN_RESULT = "(forgotten)"


def may_quote(text: str, erased: ErasedMarks) -> bool:
    """Returns whether a text may quote erased messages. text: a note, or hidden rounds with results of searches."""
    if erased.has_blocks and mentions_blocks(text):
        return True
    # The day of the week follows in notes, and not in all other texts. The year is left out while it stays the same; a
    # day that no calendar has is shown without one.
    dates = (render_day_number(day).split()[0] for day in erased.days)
    return any(f"[{date}" in text or f"[{date.partition('-')[2] or date} " in text for date in dates)


def drop_quotations(step: Exchange, calling_step: Exchange, erased: ErasedMarks) -> Exchange:
    """Returns a step without search hits and block changes in its results that may quote erased messages.

    Results of calls that were erased themselves go as a whole.

    step: the step with the results, and with its content.
    calling_step: the step with the calls that the results answer, with its content.
    """
    is_gone = calling_step.is_forgotten or REPLY in calling_step.redactions
    calls = None if is_gone else map_calls_to_tool_names(calling_step)
    messages = orjson.loads(step.input or b"[]")
    cleaned_messages = [_clean_result(message, calls, erased) for message in messages]
    return step if cleaned_messages == messages else replace(step, input=orjson.dumps(cleaned_messages))


def rebuild_block(
    block: Block,
    later_values: Sequence[RevisedValue],
    pending: Sequence[MemoryEdit],
    is_function_word: Callable[[str], bool],
) -> RebuiltValues:
    """Returns the later values of a block without erased words, and the pending edits that may bring these back.

    Edits by tools are done again on the remaining text, and an undo brings back the remaining text of the value that it
    brought back. Values that were written without such an edit lose the new lines that may repeat erased words. A line
    that an operator or the person wrote is left out only if it has little else: "City: Zurich" stays when
    "City: Basel" is erased. If remaining messages are among the sources of a value, its new lines stay that have the
    words of one.

    block: the block with its last value from before the message.
    later_values: the values that the block had since, oldest first.
    pending: the edits of the block by turns that are not confirmed yet.
    is_function_word: returns whether a word is a function word, which reveals no erased text.
    """
    rebuilder = _BlockRebuilder(block, later_values, is_function_word)
    for revision in later_values:
        rebuilder.add_value(revision)
    tainted_words = rebuilder.tainted_words.difference(list_folded_words(rebuilder.value))
    repeating_edits = [edit for edit in pending if _may_bring_back(edit, tainted_words, rebuilder.value)]
    return RebuiltValues(rebuilder.values, repeating_edits)


class _BlockRebuilder:
    """Makes the later values of a block without erased words, one after the other, as `rebuild_block` documents it."""

    def __init__(
        self, block: Block, later_values: Sequence[RevisedValue], is_function_word: Callable[[str], bool]
    ) -> None:
        self._is_function_word = is_function_word
        # The new values, oldest first.
        self.values: list[str] = []
        # The newest of them; at first the value from before the message.
        self.value = block.value
        # The words that erased edits have brought in.
        self.tainted_words: set[str] = set()
        # Room for the pieces of all values: a block may have become smaller since, and an edit that was made in each
        # place of its text must not grow without end where the text is another one now.
        room = len(block.value) + sum(len(revision.value) for revision in later_values)
        # The block as it was before the message, with this room.
        self._block = replace(block, read_only=False, limit=room)
        # The newest value as it is stored.
        self._stored_value = block.value
        # The words that may come back in a later value.
        self._clean_words = {*list_folded_words(block.value)}
        # The lines that an operator or the person wrote.
        self._manual_lines: set[str] = set()

    def add_value(self, revision: RevisedValue) -> None:
        """Adds the next value, without erased words."""
        if revision.is_manual and not revision.is_erased:
            self._manual_lines |= _list_new_lines(self._stored_value, revision.value)
        self.value = self._make_value(revision)
        self.values.append(self.value)
        self._stored_value = revision.value

    def _make_value(self, revision: RevisedValue) -> str:
        """Returns the value of a revision without the erased words."""
        if revision.restores is not None:
            return self.values[revision.restores]
        if revision.is_clean:
            return revision.value
        if revision.is_erased:
            return self._make_remaining_value(revision)
        if revision.edit is not None and revision.edit.op not in REWRITE_OPERATIONS:
            # Such an edit holds what it adds, so it can be done without the erased part.
            return _reapply_edit(replace(self._block, value=self.value), revision.edit)
        # A line that the remaining text has does not come from the erased part, whatever words it shares with it.
        lines_before = {*self.value.split("\n")}
        return "\n".join(
            line for line in revision.value.split("\n") if line in lines_before or not self._may_repeat(line)
        )

    def _make_remaining_value(self, revision: RevisedValue) -> str:
        """Returns the remaining text of an erased value, and notes the words that it brought in."""
        new_lines = _list_new_lines(self._stored_value, revision.value)
        staying_lines = {
            line for line in new_lines if _is_in_texts(line, revision.remaining, self._block.value)
        }
        self._clean_words.update(list_folded_words("\n".join(staying_lines)))
        # The words that this edit brought in may come back in a later value; those from before may stay.
        self.tainted_words |= self._list_revealing_words("\n".join(new_lines)) - self._clean_words
        return _with_lines(self.value, revision, new_lines, staying_lines)

    def _may_repeat(self, line: str) -> bool:
        """Returns whether a line may repeat erased words: by one word, or by most words if a person has written it."""
        words = self._list_revealing_words(line)
        repeated_count = len(words & self.tainted_words)
        return 2 * repeated_count > len(words) if line in self._manual_lines else repeated_count > 0

    def _list_revealing_words(self, text: str) -> set[str]:
        """Returns the words of a text that can reveal erased text: all but function words.

        In scripts without capitals each run of letters counts: it may be a part of a word, or several words.
        """
        return {
            word for word in list_folded_words(text) if not (word.islower() and self._is_function_word(word))
        }


def _clean_result(message: WireMessage, calls: Mapping[str, str] | None, erased: ErasedMarks) -> WireMessage:
    """Returns a message of a step, and of a result a copy without its quotations.

    calls: the names of the tools by the ids of the calls; None: the calls were erased.
    """
    if message.get("role") != "tool":
        return message
    whole_text = read_text(message)
    own_text = whole_text[: find_own_length(message)]
    changes = whole_text[len(own_text) :]
    is_search = calls is not None and calls.get(read_result_id(message)) in _SEARCHING_TOOLS
    if calls is None or (is_search and may_quote(own_text, erased)):
        return {**without_private(message), "content": _FORGOTTEN_RESULT}
    if may_quote(changes, erased):
        return {
            **without_private_fields(message, "own_length", LEGACY_OWN_LENGTH, "shown_blocks"),
            "content": own_text,
        }
    return message


def _list_new_lines(old: str, new: str) -> set[str]:
    """Returns the lines of a value that the value before does not have."""
    return {*new.split("\n")} - {*old.split("\n")}


def _is_in_texts(line: str, texts: Collection[str], known_text: str) -> bool:
    """Returns whether one of the texts has all words of a line that the block did not have before.

    known_text: the text of the block before.
    """
    words = list_distinctive_words(line, DESIGNATIONS) or frozenset(list_folded_words(line))
    for text in texts:
        text_words = list_distinctive_words(text).union(list_folded_words(text))
        if not words or (
            words <= text_words | list_distinctive_words(known_text) and not words.isdisjoint(text_words)
        ):
            return True
    return False


def _with_lines(
    value_before: str, revision: RevisedValue, new_lines: Collection[str], staying_lines: Collection[str]
) -> str:
    """Returns the value before an erased revision, with the new lines of the revision that stay.

    Where one of the new lines goes, the lines that the revision had replaced come back.
    """
    lines = revision.value.split("\n")
    if revision.remaining and len(staying_lines) == len(new_lines):
        lines_before = {*value_before.split("\n")}
        return "\n".join(line for line in lines if line in staying_lines or line in lines_before)
    return "\n".join([*filter(None, [value_before]), *(line for line in lines if line in staying_lines)])


def _may_bring_back(edit: MemoryEdit, tainted_words: Set[str], value: str) -> bool:
    """Returns whether an edit may bring back erased words.

    tainted_words: the erased words. An edit that has one of them may bring it back.
    value: the value of the block. An edit that overwrites another value may bring back any word: its model saw that
        other value.
    """
    if edit.seen not in (None, digest_seen_value(value)):
        return True
    texts = map(str, orjson.loads(edit.arguments).values())
    return not tainted_words.isdisjoint(list_folded_words("\n".join(texts)))


def _reapply_edit(block: Block, edit: MemoryEdit) -> str:
    """Returns the value of a block after an edit is made again; the old value where this is not possible any more."""
    arguments = orjson.loads(edit.arguments)
    result = apply_edit(edit.op, arguments, block)
    if result.value is None and edit.op == EditOperation.INSERT:  # lines before its place are gone
        result = apply_edit(edit.op, {**arguments, "insert_line": None}, block)
    return block.value if result.value is None else result.value
