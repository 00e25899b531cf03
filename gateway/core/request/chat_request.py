"""A chat completion request as the rest of the gateway knows it: the client's bytes, and the fields we act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.request.edit import BodyEdit
from gateway.core.request.identity import Identity
from gateway.core.request.native_body import NativeBody
from storage.records import Scope

# The fields with the most tokens of a completion.
NEWER_LIMIT_FIELD = "max_completion_tokens"
LIMIT_FIELDS = (NEWER_LIMIT_FIELD, "max_tokens")


class Reference(Struct, frozen=True):
    """A reference to what is stored and belongs into the list: a turn's path, one of its messages, or its thoughts."""

    # Index of the message that the stored ones replace, or that the path is inserted before.
    index: int
    # The id by which the client names the turn.
    id: str
    # The conversation that the id names.
    conversation: str
    # The turn that it names.
    turn: str
    # The request's field with the id, for errors.
    param: str
    # It stands for the whole path up to the turn's reply.
    is_path: bool = False
    # It stands for the thoughts of the reply alone, which the message at `index` gets.
    is_thoughts: bool = False
    # The place in the turn of a message that the client sent; None: the reply is meant.
    place: int | None = None


class MemoryChoice(Struct, frozen=True):
    """The memory of a request that names neither a user nor a conversation, or asks to be stored."""

    # The client's own id of a conversation, or one that was made for it; None: the memory is a person's.
    conversation: str | None
    # Whose memory it is; None: that conversation's.
    scope: Scope | None = None
    # The request asks to be stored, whatever its form (`Identity.mode_with_history`) and whomever it names.
    is_asked: bool = False


# Not frozen: fields set through object.__setattr__ cost 3 us a request.
class ChatRequest(Struct):
    """A request as it came, and the fields that the gateway acts on."""

    # The body as it came; it goes upstream where nothing is added.
    raw: bytes
    # The parsed body, which is never changed.
    json: dict[str, Any]
    model: str
    # The messages of `json` without private fields.
    messages: list[dict[str, Any]]
    stream: bool = False
    # The client asked for the usage of a stream.
    wants_usage: bool = False
    # Names of the client's own tools (legacy `functions` too), those without a readable name left out.
    tools: tuple[str, ...] = ()
    # The client wants to see thoughts, and names no effort for them.
    shows_thoughts: bool = False
    # The client sent tools, named or not.
    has_tools: bool = False
    n: int = 1
    # The most tokens of the completion; None: the client sets no limit.
    max_tokens: int | None = None
    # The field with that limit, such as max_completion_tokens.
    max_tokens_key: str | None = None
    # The query of the request's URL.
    query: str = ""
    # Fields from the agent's definition that the client did not send.
    added_fields: frozenset[str] = frozenset()
    # The stored messages in `messages`, by their positions.
    references: tuple[Reference, ...] = ()
    # False: where the window is full it is refused, and no message is left out.
    may_be_cut: bool = True
    # Fields of the dialect in which it came that are read here and have no effect upstream.
    consumed: tuple[str, ...] = ()
    # Fields of its client's dialect that `json` lacks or has otherwise, for `identity_fields`.
    dialect_fields: dict[str, Any] | None = None
    # The name of the side request that its dialect has recognised it as; memory has no part in it then.
    side_request: str | None = None
    # The request in its client's dialect, for an upstream that speaks that; None: it goes as a chat completion.
    native_body: NativeBody | None = None
    # The memory of a request that names neither a user nor a conversation; None: it has none then.
    memory_choice: MemoryChoice | None = None
    # The identity, where it was decided when the request came; None: it is still to be decided.
    identity: Identity | None = None

    @property
    def identity_fields(self) -> dict[str, Any]:
        """The fields by which user and conversation are found, as its client sent them."""
        return self.json if self.dialect_fields is None else {**self.json, **self.dialect_fields}

    def edit(self) -> BodyEdit:
        return BodyEdit(self.raw, self.json)


def add_missing_fields(request: ChatRequest, fields: Mapping[str, Any]) -> ChatRequest:
    """Returns the request with the fields that it does not set itself. fields: of the agent's definition."""
    set_fields = {key for key, value in request.json.items() if value is not None}
    if set_fields.intersection(LIMIT_FIELDS):
        set_fields.update(LIMIT_FIELDS)
    new = {key: value for key, value in fields.items() if key not in set_fields}
    if not new:
        return request
    edit = request.edit()
    for key, value in new.items():
        edit.set_member(key, value)
    limit_field = next((key for key in LIMIT_FIELDS if key in new), None)
    limit = request.max_tokens if limit_field is None else new[limit_field]
    return replace(
        request,
        raw=edit.render(),
        json={**request.json, **new},
        max_tokens=limit if isinstance(limit, int) else None,
        max_tokens_key=limit_field or request.max_tokens_key,
        added_fields=frozenset(new),
    )
