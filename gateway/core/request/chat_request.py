"""A chat completion request as the gateway knows it: the client's bytes, and the fields on which the gateway acts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.request.edit import BodyEdit
from gateway.core.request.identity import Identity
from gateway.core.request.native_body import MessageThread, NativeBody
from gateway.core.turn_name import TurnName
from storage.records import Scope

# The newer field with the limit of a completion's tokens.
MAX_COMPLETION_TOKENS = "max_completion_tokens"
# The fields with that limit, the newer one first.
MAX_TOKENS_FIELDS = (MAX_COMPLETION_TOKENS, "max_tokens")


class Reference(Struct, frozen=True):
    """A reference to stored messages that belong into the list: a turn's path, one of its messages, or its thoughts."""

    # The index of the message that the stored messages replace, or before which the path is inserted.
    index: int
    # The id by which the client names the turn.
    id: str
    # The turn that the id names; None: the gateway did not make it.
    turn: TurnName | None
    # The request's field with the id, for errors.
    param: str
    # The content to which the id refers.
    # "path": all messages up to the turn's reply.
    # "message": one message of the turn.
    # "thoughts": the thoughts of the turn's reply, which the message at `index` gets.
    kind: Literal["path", "message", "thoughts"] = "message"
    # The index of the message in the turn's input; None: the id is of the reply.
    input_index: int | None = None


class TokenLimit(NamedTuple):
    """The limit of a completion's tokens."""

    # The most tokens.
    tokens: int
    # The field with the limit, one of `MAX_TOKENS_FIELDS`.
    field: str


class MemoryChoice(Struct, frozen=True):
    """The memory of a request that names neither a user nor a conversation, or that asks to be stored."""

    # The client's own id of a conversation, or an id that was made for it; None: the memory is a person's.
    conversation_key: str | None
    # The scope of the memory; None: the memory belongs to that conversation alone.
    scope: Scope | None = None
    # True: the client asks for storage, whatever the request's form (`Identity.mode_with_history`) and its user.
    asks_to_be_stored: bool = False


# Not frozen: a dialect's parser sets fields after the chat completion's, and in a frozen one each costs time.
class ChatRequest(Struct):
    """A request as a chat completion, and the fields on which the gateway acts."""

    # -- the request as a chat completion

    # The body, the client's own bytes where nothing was translated or added.
    raw: bytes
    # The parsed body, which is never changed.
    json: dict[str, Any]
    # The name of the model.
    model: str
    # The messages of `json` without private fields.
    messages: list[dict[str, Any]]
    # The query of the request's URL.
    query: str = ""
    # True: the client wants a stream.
    stream: bool = False
    # True: the client asked for the usage of a stream.
    wants_usage: bool = False
    # The number of choices that the client asks for.
    n: int = 1
    # The names of the client's own tools (legacy `functions` too), without tools that have no readable name.
    tool_names: tuple[str, ...] = ()
    # True: the client sent tools; also true for tools without a readable name.
    has_tools: bool = False
    # The limit of the completion's tokens; None: the client sets no limit, or a negative one.
    token_limit: TokenLimit | None = None
    # The fields of `json` that the client has not chosen freely: fields of an agent's definition, and fields that the
    # client's dialect demands. A field that a model refuses is renamed or left out.
    gateway_fields: frozenset[str] = frozenset()

    # -- the additions of the client's dialect

    # True: the client speaks another dialect, so it cannot know the gaps of a chat completion.
    is_translated: bool = False
    # True: the client wants to see thoughts, and names no effort for them.
    wants_thoughts: bool = False
    # The names of the fields of the client's dialect that the gateway reads and that have no effect upstream.
    consumed: tuple[str, ...] = ()
    # The fields of the client's dialect that `json` lacks, or has in another form, for `identity_fields`.
    dialect_fields: dict[str, Any] | None = None
    # The name of the side request that the dialect has recognised, without a part of memory; None: no side request.
    side_request: str | None = None
    # The request in the client's dialect, for an upstream of that dialect; None: each upstream gets a chat completion.
    native_body: NativeBody | None = None

    # -- stored messages

    # The references that the client gives in place of messages.
    references: tuple[Reference, ...] = ()
    # The models (as `Exchange.model`) of the replies that the gateway has put into `messages`, by their indexes. Each
    # reply still has the fields that its model alone reads.
    reply_models: Mapping[int, str] = {}
    # The indexes of all messages that the gateway has put into `messages`.
    stored_indexes: frozenset[int] = frozenset()
    # True: the client continues a response by its id, so it sends new messages alone.
    follows_response: bool = False
    # The rows of the memories from which earlier messages of the list were read.
    memories: frozenset[int] = frozenset()
    # True: messages may be left out to fit the window; False: a request that does not fit is refused.
    may_evict: bool = True
    # True: the client gets an id for the reply, by which it reads the reply and goes on from it (a stored response).
    makes_response: bool = False

    # -- memory

    # The memory that was chosen; None: user and conversation decide, and without both the request has no memory.
    memory_choice: MemoryChoice | None = None
    # The identity that was decided when the request came; None: the identity is still to be decided.
    identity: Identity | None = None

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of the completion; None: no limit."""
        return None if self.token_limit is None else self.token_limit.tokens

    @property
    def thread(self) -> MessageThread | None:
        """The message thread of the request; None: no message thread."""
        return None if self.native_body is None else self.native_body.thread

    @property
    def identity_fields(self) -> dict[str, Any]:
        """The request's fields as the client sent them, which name user, conversation and the client's own calls."""
        return self.json if self.dialect_fields is None else {**self.json, **self.dialect_fields}

    def begin_edit(self) -> BodyEdit:
        return BodyEdit(self.raw, self.json)


def find_token_limit(fields: Mapping[str, Any]) -> TokenLimit | None:
    """Returns the limit of a completion's tokens; None: no limit.

    A negative number is no limit: LM Studio and llama.cpp take -1 for no limit.
    """
    field = next((key for key in MAX_TOKENS_FIELDS if fields.get(key) is not None), None)
    if field is None:
        return None
    tokens = fields[field]
    return TokenLimit(tokens, field) if isinstance(tokens, int) and tokens >= 0 else None


def add_missing_fields(request: ChatRequest, fields: Mapping[str, Any]) -> ChatRequest:
    """Returns a copy of the request with the fields that it does not set itself.

    fields: the fields of the agent's definition.
    """
    set_fields = {key for key, value in request.json.items() if value is not None}
    if set_fields.intersection(MAX_TOKENS_FIELDS):
        set_fields.update(MAX_TOKENS_FIELDS)
    new_fields = {key: value for key, value in fields.items() if key not in set_fields}
    if not new_fields:
        return request
    edit = request.begin_edit()
    for key, value in new_fields.items():
        edit.set_member(key, value)
    json = {**request.json, **new_fields}
    sets_limit = not new_fields.keys().isdisjoint(MAX_TOKENS_FIELDS)
    return replace(
        request,
        raw=edit.render(),
        json=json,
        token_limit=find_token_limit(json) if sets_limit else request.token_limit,
        gateway_fields=request.gateway_fields | new_fields.keys(),
    )
