"""The values that pass between the gateway and a provider.

The gateway speaks one dialect inside: OpenAI's chat completion, as bytes. A provider that speaks another
one translates both ways in its own module. Only fields that are acted on are typed; everything else stays in the bytes.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct

_PLAIN = ("text/plain", "application/octet-stream")  # what frameworks send for bytes without a type

Header = tuple[str, str]
Json = dict[str, Any]  # an object as orjson returns it
# Whether an upstream has `/responses`: with all that belongs to it, without what is stored, or not at all.
ResponsesEndpoint = Literal["stored", "stateless", False]
# How a caller's credential begins that came as `x-api-key`: the header's value follows.
API_KEY: Final = "x-api-key "
# The path of a chat completion whose tokens are only counted, for a provider that `counts_tokens`. It is the gateway's
# own: the adapter knows the provider's.
COUNT_TOKENS: Final = "/chat/completions/count_tokens"
BYTES_PER_TOKEN = 4  # an estimate, where an upstream does not say what it counted
# Chosen: above what any call costs; sums of millions of calls fit into the numbers of a database.
_MOST_TOKENS = 1 << 40


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
    """Returns whether the type of a reply is none, or a plain one, which may be anything."""
    kind = next((value for name, value in headers if name == "content-type"), "")
    return not kind or kind.lower().lstrip().startswith(_PLAIN)


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

    # It takes this field, by which our own calls are limited; else the older `max_tokens`.
    max_completion_tokens: bool = False
    # False where it is known to have no such role, so that `system` stands in; None where not known.
    developer_role: bool | None = None
    # It takes `metadata` without `store`; for others the field is held back then.
    metadata: bool = False
    # It takes `stream_options.include_usage`, which we add where hidden rounds share a client's limit, and
    # where a client always gets the usage. None: not known, so it is asked for in the latter case alone.
    stream_usage: bool | None = None
    # "stored": it has `/responses` and keeps them, so that requests go there as they are; "stateless": it
    # stores nothing of them; False: it has none. The gateway answers the latter two by way of chat
    # completions.
    responses: ResponsesEndpoint = False
    # Its chat completions take OpenAI's custom tools, and `allowed_tools` among the choices.
    custom_tools: bool = False
    # They take Claude's web search among the tools.
    web_search: bool = False
    # It speaks Anthropic's Messages API itself, so that requests in that dialect go there as they are.
    messages: bool = False
    # It counts the tokens of a request (`COUNT_TOKENS`), without answering it.
    counts_tokens: bool = False
    # Returns for a model's name whether its thoughts count only after what they were thought about.
    binds_thoughts: Callable[[str], bool] = no_model
    # Returns for a model's name whether it thinks only when it is told to.
    thinks_when_asked: Callable[[str], bool] = no_model
    # Pieces of tool calls in its streams have no `index`, so we add one.
    omits_call_index: bool = False
    # It takes tool calls under ids of any form; False: only under such as it makes itself.
    any_call_id: bool = True
    # It takes none but such as bear its signature, or say that they have none.
    signs_calls: bool = False
    # Fields of a request that its translation reads and does not pass on.
    spends: tuple[str, ...] = ()
    # A model that is asked to think can also be made to call a tool.
    forces_thinkers: bool = True
    # Returns for a model's name whether it can be forced to call one at all.
    can_force: Callable[[str], bool] = any_model
    # Returns for a model's name the fields that it refuses; they are left out where they are an agent's settings and
    # not the application's.
    refused: Callable[[str], frozenset[str]] = refuses_nothing


# A NamedTuple, because a frozen dataclass costs three times as much to make, and each round makes one.
class ModelRequest(NamedTuple):
    """A request to an upstream."""

    # The whole JSON body in OpenAI's chat completion dialect, as it shall reach the upstream.
    body: bytes
    # The caller's headers that go on (never a credential of the gateway's).
    headers: tuple[Header, ...] = ()
    # The caller's own `Authorization` value, or `API_KEY` and a key; used only by an upstream without a key of its own.
    credential: str | None = None
    # The client's, without its "?"; a `path` may have one of its own instead.
    query: str = ""
    # It asks for a stream.
    streams: bool = False
    # Below the upstream's base URL.
    path: str = "/chat/completions"
    method: str = "POST"
    # The body piece by piece as it comes in, instead of `body`; it is read once, so nothing sends it again.
    upload: AsyncIterator[bytes] | None = None
    # Its size, if it is known.
    upload_bytes: int | None = None
    # The dialect is the upstream's own, and its reply is read along as a chat completion: its events keep their bytes
    # and have a chunk as their data, its body is a chat completion with itself as `native_message`. The number is that
    # of the reply's first block; None: the reply is what its path says.
    first_block: int | None = None


class Embedded(Struct, frozen=True):
    """The vectors of some texts.

    vectors: one for each text, float32, little endian, of one dimension and of length 1 (or all zeros). tokens: billed.
    """

    vectors: Sequence[bytes]
    tokens: int = 0


# A NamedTuple likewise: each piece of a stream makes one.
class Event(NamedTuple):
    """A server-sent event.

    raw: its bytes as they came, line ends and the closing blank line included; joining all `raw` gives the stream.
    data: the joined `data:` lines, or None for a comment or an event without data.
    """

    raw: bytes
    data: bytes | None
    name: str | None = None  # the `event:` field
