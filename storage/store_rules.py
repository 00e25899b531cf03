"""The pure functions of the core that the store calls, since it does not know the content of messages."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from msgspec import Struct

from storage.commands import BlockMerge
from storage.forget_commands import ErasedMarks, RebuiltValues, RevisedValue
from storage.records import Block, Exchange, MemoryEdit, Message


class Rules(Struct, frozen=True):
    """The functions, which are passed to the store when it is opened. They have no side effects."""

    # Returns the messages of an exchange that may be found. Its arguments: the exchange with its content, whether
    # another conversation opened with its prefix, the number of the message before it, the wanted numbers (None: all).
    list_messages: Callable[[Exchange, bool, int | None, Container[int] | None], Sequence[Message]]
    # Returns a text without words that the gateway has added to it. Its arguments: the text, its `Message.kind`.
    get_own_text: Callable[[str, str], str]
    # Returns the result of pending edits on the blocks as they are now.
    make_block_merge: Callable[[Sequence[Block], Sequence[MemoryEdit]], BlockMerge]
    # Returns whether a note or hidden round may quote erased content.
    may_quote: Callable[[str, ErasedMarks], bool]
    # Returns a block without erased content. Its arguments: the block with its last untouched value, its values since,
    # oldest first, its pending edits, and the function that returns whether a word is a function word.
    rebuild_block: Callable[
        [Block, Sequence[RevisedValue], Sequence[MemoryEdit], Callable[[str], bool]], RebuiltValues
    ]
    # Returns the names of the tools that an exchange has called, also in hidden rounds.
    list_tools_used: Callable[[Exchange], Sequence[str]]
    # Returns a step without the results that may quote erased content. Its arguments: the step with the results, the
    # step with their calls, the marks of the erased content.
    drop_quotations: Callable[[Exchange, Exchange, ErasedMarks], Exchange]
    # Returns whether an exchange has calls without results.
    has_open_calls: Callable[[Exchange], bool]
