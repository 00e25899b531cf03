"""A chat completion request as the rest of the gateway knows it: the client's bytes, and the fields we act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.request.edit import BodyEdit

NEWER_LIMIT = "max_completion_tokens"
LIMITS = (NEWER_LIMIT, "max_tokens")


class Reference(Struct, frozen=True):
    """A place in a list where stored messages are inserted: an earlier reply, or the path that ends
    with it.
    """

    # Of the message that they replace, or that the path precedes.
    index: int
    # As the client has it.
    id: str
    # conversation, turn: the names in it.
    conversation: str
    turn: str
    # The field that has it.
    param: str
    is_path: bool = False


# Not frozen: fields set through object.__setattr__ cost 3 us a request.
class ChatRequest(Struct):
    """A request as it came, and the fields we act on."""

    # The body as it came; it goes upstream where nothing is added.
    raw: bytes
    # Its value, which is never changed.
    json: dict[str, Any]
    model: str
    # Those of `json` without private fields.
    messages: list[dict[str, Any]]
    stream: bool = False
    # The client asked for the usage of a stream.
    wants_usage: bool = False
    # Names of the client's own tools (legacy `functions` too), those without a readable name left out.
    tools: tuple[str, ...] = ()
    # It sent tools, named or not.
    has_tools: bool = False
    n: int = 1
    # The completion's limit.
    max_tokens: int | None = None
    # The field it came in.
    max_tokens_key: str | None = None
    # Of its URL, as it came.
    query: str = ""
    # Fields from the agent's definition that the client did not send.
    added_fields: frozenset[str] = frozenset()
    # The stored messages in `messages`, by their positions.
    references: tuple[Reference, ...] = ()

    def edit(self) -> BodyEdit:
        return BodyEdit(self.raw, self.json)


def with_fields(request: ChatRequest, fields: Mapping[str, Any]) -> ChatRequest:
    """Returns the request with fields that it does not say itself: those of an agent's definition."""
    set_fields = {key for key, value in request.json.items() if value is not None}
    if set_fields.intersection(LIMITS):
        set_fields.update(LIMITS)
    new = {key: value for key, value in fields.items() if key not in set_fields}
    if not new:
        return request
    edit = request.edit()
    for key, value in new.items():
        edit.set_member(key, value)
    named = next((key for key in LIMITS if key in new), None)
    limit = request.max_tokens if named is None else new[named]
    return replace(
        request,
        raw=edit.render(),
        json={**request.json, **new},
        max_tokens=limit if isinstance(limit, int) else None,
        max_tokens_key=named or request.max_tokens_key,
        added_fields=frozenset(new),
    )
