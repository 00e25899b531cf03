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

# A name and a value.
Header = tuple[str, str]
# An object as orjson returns it.
Json = dict[str, Any]
JSON_TYPE: Final = "application/json"
JSON_HEADER: Final[Header] = ("content-type", JSON_TYPE)
EVENT_STREAM_TYPE: Final = "text/event-stream; charset=utf-8"
EVENT_STREAM_HEADER: Final[Header] = ("content-type", EVENT_STREAM_TYPE)
# Whether an upstream has `/responses`. "stored": the upstream stores responses, and has the routes of stored responses.
# "stateless": the upstream stores no responses. False: the upstream has no such endpoint.
ResponsesEndpoint = Literal["stored", "stateless", False]
# The prefix of a credential that the caller sent as `x-api-key`, before the header's value.
X_API_KEY_PREFIX: Final = "x-api-key "
# The path of a chat completion below an upstream's base URL.
CHAT_PATH: Final = "/chat/completions"
# The path of a chat completion to count only, for a provider that `counts_tokens`. No provider has this path: the
# adapter translates it.
COUNT_TOKENS: Final = f"{CHAT_PATH}/count_tokens"
# A field of a message that came in Anthropic's own dialect: its blocks in order as `content`, with placeholders for the
# calls that are in `tool_calls`, and its `container`.
NATIVE_REPLY: Final = "native_reply"
# A field of a chat completion that was made of a whole message in Anthropic's own dialect: the message, as it came.
NATIVE_MESSAGE: Final = "native_message"
# The fields of a reply with all that its model wrote but thoughts.
ANSWER_FIELDS: Final = ("content", "refusal", "tool_calls", "function_call", "audio")
# The fields of a reply with thoughts as text. Some upstreams send the same text in both.
READABLE_THOUGHT_FIELDS: Final = ("reasoning_content", "reasoning")
# An estimate for upstreams that report no count.
BYTES_PER_TOKEN = 4
# Above what any call costs, and so low that the sums of millions of calls fit into 64 bits of a database.
_MAX_TOKENS = 1 << 40
# Python refuses to parse a number of thousands of digits.
_MAX_DIGITS = 20


def read_token_count(usage: Any, key: str) -> int:
    """Returns a number of tokens in a `usage`, where an upstream may put anything; 0: there is no such number."""
    value = usage.get(key) if usage.__class__ is dict else None
    # Nearly all counts are integers.
    if value.__class__ is not int:
        return 0 if value is None else _read_written_count(value)
    return value if 0 <= value <= _MAX_TOKENS else 0


def _read_written_count(value: Any) -> int:
    """Returns a number of tokens that is written as a text or with a decimal point; 0: the value is no such number."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() and len(value) < _MAX_DIGITS else 0
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if value.__class__ is int and 0 <= value <= _MAX_TOKENS else 0


def count_completion_tokens(usage: Any) -> int:
    """Returns the tokens that the model wrote by the `usage` of a chat completion, its thoughts among them.

    Gemini and xAI count thoughts in the total, and not in `completion_tokens`; Gemini often counts them nowhere else.
    (docs.x.ai/docs/key-information/consumption-and-rate-limits)
    """
    prompt, written = read_token_count(usage, "prompt_tokens"), read_token_count(usage, "completion_tokens")
    return max(written, read_token_count(usage, "total_tokens") - prompt) if prompt else written


def is_event_stream(status: int, headers: Iterable[Header]) -> bool:
    """Returns whether a reply is server-sent events by its status and its content type."""
    if 200 <= status < 300:
        for name, value in headers:
            if name == "content-type" and value.lower().lstrip().startswith("text/event-stream"):
                return True
    return False


def with_content_type(headers: Iterable[Header], content_type: str) -> tuple[Header, ...]:
    """Returns a copy of a reply's headers with another content type, for a body that was translated."""
    return (*(header for header in headers if header[0] != "content-type"), ("content-type", content_type))


def read_retry_after(headers: Iterable[Header], now_s: float) -> float | None:
    """Returns the seconds to wait by `retry-after-ms` (OpenAI's own) or `retry-after` (RFC 9110 10.2.3); None: neither.

    now_s: the present time in seconds since the epoch, for a date in the header.
    """
    values = dict(headers)
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(values.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(values.get("retry-after", "")).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


# The defaults of capabilities that depend on the model.
def _always(model: str) -> bool:
    return True


def _never(model: str) -> bool:
    return False


def allow_any_effort(model: str) -> None:
    """Returns None: a model may be asked for any effort (`Capabilities.effort_with_tools`)."""


def _refuse_no_field(model: str) -> frozenset[str]:
    return frozenset()


class Capabilities(Struct, frozen=True):
    """The capabilities of an upstream on which the gateway acts. The defaults are those of an unknown upstream.

    The abilities of models (tools, images, schemas) have no field here: a request that needs them goes upstream, and
    the upstream answers.
    """

    # True if the upstream takes `max_completion_tokens`; False: the gateway's own calls send the older `max_tokens`.
    max_completion_tokens: bool = False
    # True if the upstream has the role `developer`; False: the gateway sends `system` instead; None: not known.
    developer_role: bool | None = None
    # True if the upstream takes `metadata` without `store`; False: `metadata` is dropped from requests without `store`.
    metadata: bool = False
    # The upstream takes `stream_options.include_usage`. True: the gateway adds this field where hidden rounds share a
    # client's limit, and where a client always gets the usage. None: not known, so the field is added only where a
    # client always gets the usage.
    stream_usage: bool | None = None
    # "stored": the upstream has `/responses` and stores responses, so requests to `/responses` go upstream as they are.
    # "stateless" (it stores no responses) and False (it has no `/responses`): the gateway answers by way of chat
    # completions.
    responses: ResponsesEndpoint = False
    # True if its chat completions take OpenAI's custom tools, and `allowed_tools` among the choices.
    custom_tools: bool = False
    # True if its chat completions take Claude's web search among the tools.
    web_search: bool = False
    # True if the upstream speaks Anthropic's Messages API itself, so requests in this dialect go upstream as they are.
    speaks_messages: bool = False
    # True if the upstream counts the tokens of a request (`COUNT_TOKENS`) without answering the request.
    counts_tokens: bool = False
    # Returns for a model's name whether its thoughts are valid only after the messages that they were about.
    binds_thoughts: Callable[[str], bool] = _never
    # Returns for a model's name whether it thinks only when the request asks it to.
    thinks_on_request: Callable[[str], bool] = _never
    # True if pieces of tool calls in its streams have no `index`, so the adapter adds one.
    omits_call_index: bool = False
    # True if the upstream takes tool calls with ids of any form; False: only ids of the form that it makes itself.
    any_call_id: bool = True
    # True if the upstream refuses tool calls without its signature, unless they have the mark of unsigned calls.
    requires_call_signatures: bool = False
    # True if the upstream takes replies without `reasoning_content` in a request with tools. False: each reply needs
    # this field, perhaps empty, and the upstream's models think without being asked, and cannot be forced to call a
    # tool.
    replies_without_thoughts: bool = True
    # Fields of a chat completion that the translation drops, since the upstream's dialect has no place for them.
    untranslatable_fields: tuple[str, ...] = ()
    # True if a model that is asked to think can be forced to call a tool.
    can_force_when_thinking: bool = True
    # Returns for a model's name whether it can be forced to call a tool at all.
    can_force: Callable[[str], bool] = _always
    # Returns for a model's name the effort that a chat completion with functions must name, since the model does not
    # think there; "": the request must name no effort; None: the request may name any effort.
    effort_with_tools: Callable[[str], str | None] = allow_any_effort
    # Returns for a model's name the fields that the model refuses. Such a field is left out if an agent's settings have
    # it, and sent if the application has it.
    refused_fields: Callable[[str], frozenset[str]] = _refuse_no_field


# A NamedTuple: a frozen dataclass takes three times as long to make, and each round makes one.
class ModelRequest(NamedTuple):
    """A request to an upstream."""

    # The whole JSON body of a chat completion, as the upstream gets it.
    body: bytes
    # The caller's headers that are passed on, without any credential of the gateway's.
    headers: tuple[Header, ...] = ()
    # The caller's own `Authorization` value, or `X_API_KEY_PREFIX` and a key. Used only by an upstream without a key of
    # its own.
    credential: str | None = None
    # The client's query without its "?"; a `path` may have one of its own instead.
    query: str = ""
    # True if the request asks for a stream.
    wants_stream: bool = False
    # The path below the upstream's base URL.
    path: str = CHAT_PATH
    # The method of HTTP.
    method: str = "POST"
    # The body piece by piece as it comes in, instead of `body`. It can be read only once, so it is not sent again.
    upload: AsyncIterator[bytes] | None = None
    # The size of the upload, if it is known.
    upload_bytes: int | None = None
    # True if the request is not sent again, since each sending may have an effect.
    sends_once: bool = False
    # For a request in the upstream's own dialect, if its reply is read as a chat completion as well: the index of the
    # reply's first content block. Its events then have their own bytes and a chunk as data, and its body is a chat
    # completion with the reply itself as `NATIVE_MESSAGE`. None: the reply is in the dialect of `path`.
    native_first_block_index: int | None = None


class EmbeddingResult(Struct, frozen=True):
    """The vectors of some texts."""

    # One for each text: float32, little endian, all of one dimension, of length 1 or all zeros.
    vectors: Sequence[bytes]
    # The tokens that were billed.
    tokens: int = 0


# A NamedTuple for the same reason: each event of a stream makes one.
class Event(NamedTuple):
    """A server-sent event."""

    # The event's bytes as they came, with the blank line that ends it: all `raw` joined are the stream.
    raw: bytes
    # The joined `data:` lines; None: a comment, or an event without data.
    data: bytes | None
    # The `event:` field.
    name: str | None = None
