"""The origin of a chat completion's message in a Messages request."""

from __future__ import annotations

from msgspec import Struct


class MessageOrigin(Struct, frozen=True):
    """The part of a request of which a message of the chat completion is made, by indexes."""

    # The index of the message in the request; -1: the system prompt.
    message_index: int
    # The index of the block with the person's words, before which a note goes; None: the message has no such words.
    words_block: int | None = None
    # The index of the block with the result of a call; None: the message is no result.
    result_block: int | None = None
