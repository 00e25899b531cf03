"""The seam to dialects in which a request goes upstream as it is, with memory added; the reply passes as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from adapters.types import Json
from gateway.core.request.chat_request import ChatRequest
from gateway.core.request.known_replies import KnownReplies, MemoryKey
from gateway.core.turn.native_reader import NativeReader
from gateway.core.turn.reply_change import ReplyChange


class NativeRequest(Protocol):
    """A request in its own dialect."""

    @property
    def chat(self) -> ChatRequest:
        """The request as a chat completion, without the gateway's tools."""

    @property
    def raw(self) -> bytes:
        """The body as it came."""

    @property
    def upstream_path(self) -> str:
        """The path below the upstream's base URL, with the query."""

    @property
    def previous_id(self) -> str | None:
        """The id of the upstream's reply that it continues."""

    @property
    def heard(self) -> Json | None:
        """The part of that reply that the client heard; None: the client heard all of it."""

    @property
    def conversation_id(self) -> str | None:
        """The id of the upstream's conversation that it continues."""

    @property
    def referenced_ids(self) -> frozenset[str]:
        """`previous_id`, and the ids of all other replies to which the request refers."""

    @property
    def refers_to_stored(self) -> bool:
        """True if the request continues an object that the upstream stores, or refers to an item of it."""

    @property
    def new_messages(self) -> Sequence[Json]:
        """The messages of `chat` that the client sent, without its instructions."""

    @property
    def is_stored(self) -> bool:
        """True if the upstream stores the reply, so that another request may refer to its id."""

    def with_history(self, known_replies: KnownReplies, memory: MemoryKey) -> NativeRequest:
        """Returns the request with the replies to which the client refers by id put into `chat`, as far as known."""

    def render_body(self, model: str, system: str = "", notes: Mapping[int, str] | None = None) -> bytes:
        """Returns the body for the upstream.

        system: goes after the instructions.
        notes: index of a message in `chat` -> the note before its text.
        """

    def make_reader(self) -> NativeReader:
        """Returns a reader of one reply to the request."""

    def make_change(self) -> ReplyChange:
        """Returns the change that removes from its reply what memory has added to the request."""
