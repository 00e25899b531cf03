"""Where in a Messages request a message of the chat completion comes from."""

from __future__ import annotations

from msgspec import Struct


class MessageOrigin(Struct, frozen=True):
    """The part of a request that a message of the chat completion is made of, by indexes."""

    # -1: the system prompt.
    message_index: int
    # The block with the person's words, before which a note goes; None: the message has no such words.
    words_block: int | None = None
    # The block with the result of a call; None: the message is no result.
    result_block: int | None = None
