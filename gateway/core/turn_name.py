"""The name of a turn, by which a client goes on from the turn without sending it again."""

from __future__ import annotations

from typing import NamedTuple

# The characters of a conversation's public id.
_CONVERSATION_CHARS = 32


class TurnName(NamedTuple):
    """The name of a turn. Both parts are hexadecimal."""

    # The public id of the turn's conversation.
    conversation_uid: str
    # The name within the conversation, which gateway.core.conversation.turn_hex makes.
    turn: str

    @property
    def tag(self) -> str:
        """The part that the ids of a reply and of its items share: the whole name."""
        return self.conversation_uid + self.turn

    def encode(self) -> bytes:
        """Returns the name as it is stored with a run."""
        return bytes.fromhex(self.tag)

    @classmethod
    def from_tag(cls, tag: str) -> TurnName:
        """Returns the name with this tag."""
        return cls(tag[:_CONVERSATION_CHARS], tag[_CONVERSATION_CHARS:])

    @classmethod
    def decode(cls, stored: bytes) -> TurnName:
        """Returns the name from the bytes of `encode`."""
        return cls.from_tag(stored.hex())
