"""The seam to a request that goes upstream in its client's own dialect, with the gateway's changes put into it.

Memory and prompt work on a chat completion that was read from the request. So the changes are described for that chat
completion, and the dialect makes them in the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from adapters.types import Json


class NativeChanges(Struct, frozen=True):
    """The changes that a prompt makes in a request: what is added, left out and replaced.

    Messages are named by their index in the chat completion.
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
    # Something before the conversation's thoughts may differ from the request before.
    changes_prefix: bool = False
    # Something before the messages in `hidden_rounds` may differ.
    moves_hidden_rounds: bool = False
    # The request goes to another model than was asked for, which has no use for the conversation's thoughts.
    is_fallback: bool = False


NO_CHANGES = NativeChanges()


class UpstreamBody(Struct, frozen=True):
    """A request for the upstream."""

    body: bytes
    # Values that the header `anthropic-beta` must have besides the client's.
    anthropic_betas: Sequence[str] = ()
    # The index that the first block of its reply has for the client, after those of hidden rounds.
    first_block_index: int = 0
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
    def untranslatable(self) -> Sequence[str]:
        """The names of what the request needs and no chat completion has, such as Anthropic's web search."""

    def with_messages_before(self, count: int) -> NativeBody:
        """Returns the body for a chat completion that has `count` messages before those of the request."""

    @property
    def upstream_path(self) -> str:
        """The path below the upstream's base URL, with the query."""

    def render(self, model: str, changes: NativeChanges = NO_CHANGES) -> UpstreamBody:
        """Returns the request for a model; without changes the bytes that came, but for the model's name."""
