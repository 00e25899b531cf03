"""The seam to a dialect whose requests go upstream in it, with memory added (gateway.core.turn.native_form)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from adapters.types import Json
from gateway.core.request.chat_request import ChatRequest
from gateway.core.turn.native_form import Earlier, Memory, NativeReader, ReplyChange


class NativeRequest(Protocol):
    """A request in its own dialect."""

    @property
    def chat(self) -> ChatRequest:
        """Returns it as a chat completion, without the gateway's tools."""

    @property
    def raw(self) -> bytes:
        """Returns its body as it came."""

    @property
    def path(self) -> str:
        """Returns its path below the upstream's base URL."""

    @property
    def previous(self) -> str | None:
        """Returns the id of the upstream's reply that it goes on from."""

    @property
    def heard(self) -> Json | None:
        """Returns that reply, if its client heard the beginning alone."""

    @property
    def conversation(self) -> str | None:
        """Returns the upstream's conversation that it goes on with."""

    @property
    def named(self) -> frozenset[str]:
        """Returns the id of `previous`, and all others that it refers to."""

    @property
    def new(self) -> Sequence[Json]:
        """Returns the messages of `chat` that it brings itself, its instructions aside."""

    @property
    def is_stored(self) -> bool:
        """Returns whether the upstream stores the reply, so that another request may name it."""

    def with_history(self, earlier: Earlier, memory: Memory) -> NativeRequest:
        """Returns it with what it only refers to in `chat`, as far as that is known."""

    def body(self, model: str, system: str = "", notes: Mapping[int, str] | None = None) -> bytes:
        """Returns the body for the upstream.

        system: goes after the instructions.
        notes: each in front of a message, by its index in `chat`.
        """

    def reader(self) -> NativeReader: ...

    def change(self) -> ReplyChange:
        """Returns what takes from its reply what memory has put into the request."""
