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
    """The changes that a prompt makes in a request: additions, omissions and replacements.

    Messages are named by their index in the chat completion.
    """

    # The texts that are added to the system prompt.
    system: Sequence[str] = ()
    # The notes before the words of messages.
    notes: Mapping[int, str] = {}
    # The messages that are left out.
    dropped: frozenset[int] = frozenset()
    # The messages that replace a message: a reply as the model wrote it, with its hidden rounds.
    replacements: Mapping[int, Sequence[Json]] = {}
    # The stored messages that go before the first message that is no system message, each with its note.
    stored_messages: Sequence[tuple[Json, str]] = ()
    # The gateway's tools that are added.
    tools: Sequence[Json] = ()
    # The messages of this turn's hidden rounds.
    hidden_rounds: Sequence[Json] = ()
    # The limit of tokens for this round; None: the client's own limit.
    max_tokens: int | None = None
    # The fields of a chat completion that narrow the choice of tools.
    tool_choice: Mapping[str, Any] = {}
    # True: messages before the conversation's thoughts may differ from the previous request.
    changes_prefix: bool = False
    # True: messages before `hidden_rounds` may differ from the previous request.
    moves_hidden_rounds: bool = False
    # True: the request goes to another model than the requested one, which has no use for the conversation's thoughts.
    is_fallback: bool = False


NO_CHANGES = NativeChanges()


class UpstreamBody(Struct, frozen=True):
    """A request for the upstream."""

    # The JSON of the request.
    body: bytes
    # The values that the header `anthropic-beta` must have besides the client's.
    anthropic_betas: Sequence[str] = ()
    # The index that the first block of the reply has for the client, after the blocks of hidden rounds.
    first_block_index: int = 0
    # The fields that are left out, since the model does not take them.
    consumed: Sequence[str] = ()


class MessageThread(Struct, frozen=True):
    """A conversation that the upstream holds for some minutes, so that its client sends the new messages alone."""

    # The id that the upstream gave the reply from which the request goes on; None: the request begins the thread.
    previous: str | None = None


class NativeBody(Protocol):
    """A request in its own dialect."""

    @property
    def thread(self) -> MessageThread | None:
        """The thread to which the request belongs; None: the request has all messages of its conversation."""

    @property
    def untranslatable(self) -> Sequence[str]:
        """The names of parts that the request needs and no chat completion has, such as Anthropic's web search."""

    def with_messages_before(self, count: int) -> NativeBody:
        """Returns a copy of the body for a chat completion with `count` messages before the request's own."""

    @property
    def upstream_path(self) -> str:
        """The path below the upstream's base URL, with the query."""

    def render(self, model: str, changes: NativeChanges = NO_CHANGES) -> UpstreamBody:
        """Returns the request for a model; without changes the bytes that came, but for the model's name."""
