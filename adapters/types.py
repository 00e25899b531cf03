"""The values that pass between the gateway and a provider.

Requests and replies are OpenAI's chat completions, as bytes. A provider that speaks another dialect translates both
ways in its own module. Only fields that are acted on are typed; everything else stays in the bytes.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct

Header = tuple[str, str]  # a name and a value
Json = dict[str, Any]  # an object as orjson returns it
# Whether an upstream has `/responses`: with all that belongs to it, without what is stored, or not at all.
ResponsesEndpoint = Literal["stored", "stateless", False]
# The prefix of a credential that the caller sent as `x-api-key`, before the header's value.
API_KEY: Final = "x-api-key "
# The path of a chat completion whose tokens are only counted, for a provider that `counts_tokens`. It is the gateway's
# own: the adapter knows the provider's.
COUNT_TOKENS: Final = "/chat/completions/count_tokens"
BYTES_PER_TOKEN = 4  # an estimate, where an upstream reports no count
# Above what any call costs, and so low that the sums of millions of calls fit into 64 bits of a database.
_MOST_TOKENS = 1 << 40
# The types that frameworks send for bytes of which they know no type.
_UNKNOWN_TYPES = ("text/plain", "application/octet-stream")


def token_count(usage: Any, key: str) -> int:
    """Returns a number of tokens in a `usage`, where an upstream may put anything; 0: there is none."""
    value = usage.get(key) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and 0 <= value <= _MOST_TOKENS else 0


def is_event_stream(status: int, headers: Iterable[Header]) -> bool:
    """Returns whether a reply is server-sent events by its type (else it is one body, as far as its type says)."""
    if 200 <= status < 300:
        for name, value in headers:
            if name == "content-type" and value.lower().lstrip().startswith("text/event-stream"):
                return True
    return False


def lacks_content_type(headers: Iterable[Header]) -> bool:
    """Returns whether a reply has no type, or one that frameworks send for bytes of any kind."""
    kind = next((value for name, value in headers if name == "content-type"), "")
    return not kind or kind.lower().lstrip().startswith(_UNKNOWN_TYPES)


def read_retry_after(headers: Iterable[Header], now_s: float) -> float | None:
    """Returns the seconds that `retry-after-ms` (OpenAI's own) or `retry-after` (RFC 9110 10.2.3) names, or None.

    now_s: seconds since the epoch, for a date in the header.
    """
    found = dict(headers)
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(found.get(name, "")) / unit
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(found.get("retry-after", "")).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


# The defaults of capabilities that depend on the model.


def any_model(name: str) -> bool:
    return True


def no_model(name: str) -> bool:
    return False


def refuses_nothing(name: str) -> frozenset[str]:
    return frozenset()


class Capabilities(Struct, frozen=True):
    """The capabilities of an upstream that the gateway acts on; those of an unknown upstream are the defaults.

    The abilities of its models (tools, images, schemas) have no column: a request that needs one goes on, and
    the upstream answers.
    """

    # It takes this field, by which the gateway limits its own calls; else they have the older `max_tokens`.
    max_completion_tokens: bool = False
    # False: it has no such role, so the gateway sends `system`; None: not known.
    developer_role: bool | None = None
    # It takes `metadata` without `store`; for others the field is held back then.
    metadata: bool = False
    # It takes `stream_options.include_usage`, which the gateway adds where hidden rounds share a client's limit, and
    # where a client always gets the usage. None: not known, so it is added in the latter case alone.
    stream_usage: bool | None = None
    # "stored": it has `/responses` and stores them, so requests go there as they are. For "stateless" (it stores
    # none) and False (it has no `/responses`) the gateway answers by way of chat completions.
    responses: ResponsesEndpoint = False
    # Its chat completions take OpenAI's custom tools, and `allowed_tools` among the choices.
    custom_tools: bool = False
    # Its chat completions take Claude's web search among the tools.
    web_search: bool = False
    # It speaks Anthropic's Messages API itself, so that requests in that dialect go there as they are.
    messages: bool = False
    # It counts the tokens of a request (`COUNT_TOKENS`) without answering it.
    counts_tokens: bool = False
    # Returns for a model's name whether its thoughts are valid only after the messages that they were about.
    binds_thoughts: Callable[[str], bool] = no_model
    # Returns for a model's name whether it thinks only when the request asks it to.
    thinks_when_asked: Callable[[str], bool] = no_model
    # Pieces of tool calls in its streams have no `index`, so the adapter adds one.
    omits_call_index: bool = False
    # It takes tool calls with ids of any form; False: only with ids of the form that it makes itself.
    any_call_id: bool = True
    # It takes only tool calls that carry its signature, or the mark of calls that have none.
    signs_calls: bool = False
    # Fields of a request that its translation reads and has no place for.
    consumed_fields: tuple[str, ...] = ()
    # A model that is asked to think can be forced to call a tool.
    can_force_when_thinking: bool = True
    # Returns for a model's name whether it can be forced to call a tool at all.
    can_force: Callable[[str], bool] = any_model
    # Returns for a model's name the fields that it refuses. They are left out where an agent's settings have them, and
    # sent where the application does.
    refused: Callable[[str], frozenset[str]] = refuses_nothing


# A NamedTuple: a frozen dataclass takes three times as long to make, and each round makes one.
class ModelRequest(NamedTuple):
    """A request to an upstream."""

    # The whole JSON body of a chat completion, as the upstream gets it.
    body: bytes
    # The caller's headers that are passed on, without any credential of the gateway's.
    headers: tuple[Header, ...] = ()
    # The caller's own `Authorization` value, or `API_KEY` and a key; used only by an upstream without a key of its own.
    credential: str | None = None
    # The client's query without its "?"; a `path` may have one of its own instead.
    query: str = ""
    # It asks for a stream.
    streams: bool = False
    # It is added to the upstream's base URL.
    path: str = "/chat/completions"
    method: str = "POST"
    # The body piece by piece as it comes in, instead of `body`; it is read once, so nothing sends it again.
    upload: AsyncIterator[bytes] | None = None
    # The size of the upload, if it is known.
    upload_bytes: int | None = None
    # The number of the reply's first block, of a request in the upstream's own dialect whose reply is read as a chat
    # completion as well: its events have their own bytes and a chunk as data, its body is a chat completion with the
    # reply itself as `native_message`. None: the reply is in the dialect of `path`.
    first_block: int | None = None


class Embedded(Struct, frozen=True):
    """The vectors of some texts."""

    # One for each text: float32, little endian, all of one dimension, of length 1 or all zeros.
    vectors: Sequence[bytes]
    # The tokens that were billed.
    tokens: int = 0


# A NamedTuple likewise: each event of a stream makes one.
class Event(NamedTuple):
    """A server-sent event."""

    # Its bytes as they came, with the blank line that ends it: all `raw` joined are the stream.
    raw: bytes
    # The joined `data:` lines; None: a comment, or an event without data.
    data: bytes | None
    # The `event:` field.
    name: str | None = None
