"""The seam to a request that goes upstream in its client's own dialect, with what the gateway adds put into it.

The chat completion that memory reads is made of it, and all that is added is named by the messages of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from adapters.types import Json


class NativeAdditions(Struct, frozen=True):
    """The parts that a prompt adds to a request, and leaves out of it.

    Indices are those of the chat completion's messages.
    """

    # Texts for the system prompt.
    system: Sequence[str] = ()
    # Texts before the words of these messages.
    notes: Mapping[int, str] = {}
    # Messages that are left out.
    dropped: frozenset[int] = frozenset()
    # Messages that replace one: a reply as the model wrote it, with its hidden rounds.
    replacements: Mapping[int, Sequence[Json]] = {}
    # Stored messages that go before the first one that is not a system message, each with its note.
    stored_messages: Sequence[tuple[Json, str]] = ()
    # The gateway's tools.
    tools: Sequence[Json] = ()
    # The messages of this turn's hidden rounds.
    hidden_rounds: Sequence[Json] = ()
    # The limit of tokens that is left; None: the client's own.
    max_tokens: int | None = None
    # Fields of a chat completion by which the choice of tools is narrowed.
    tool_choice: Mapping[str, Any] = {}
    # Something before the conversation's thoughts may be another one than it was.
    changes_prefix: bool = False
    # Another model than the one that was asked stands in, which has no use for the conversation's thoughts.
    is_fallback: bool = False


NO_ADDITIONS = NativeAdditions()


class UpstreamBody(Struct, frozen=True):
    """A request for the upstream."""

    body: bytes
    # Values that `anthropic-beta` has to have as well.
    betas: Sequence[str] = ()
    # The index of the first block of its reply.
    first_block: int = 0
    # Fields that the model does not take, and that are left out.
    consumed: Sequence[str] = ()


class MessageThread(Struct, frozen=True):
    """A conversation that the upstream holds for some minutes, so that its client sends the new messages alone."""

    # The reply that the request goes on from, by the upstream's id; None: it begins the thread.
    previous: str | None = None


class NativeBody(Protocol):
    """A request in its own dialect."""

    @property
    def thread(self) -> MessageThread | None:
        """The thread that the request belongs to; None: the request has all messages of its conversation."""

    @property
    def left_out(self) -> Sequence[str]:
        """The names of what the request needs and the chat completion lacks, such as a search that its model makes."""

    def with_messages_before(self, count: int) -> NativeBody:
        """Returns the body for a chat completion that has `count` messages before those of the request."""

    @property
    def path(self) -> str:
        """The path below the upstream's base URL, with the query."""

    def render(self, model: str, additions: NativeAdditions = NO_ADDITIONS) -> UpstreamBody:
        """Returns the request for a model; without additions the bytes that came, but for the model's name."""
