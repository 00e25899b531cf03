"""The values that pass between the gateway and a provider.

Requests and replies are OpenAI's chat completions, as bytes. A provider that speaks another dialect translates both
ways in its own module. Only fields that are acted on are typed; everything else stays in the bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

from msgspec import Struct

# A name and a value.
Header = tuple[str, str]
# An object as orjson returns it.
Json = dict[str, Any]
JSON_TYPE: Final = "application/json"
JSON_HEADER: Final[Header] = ("content-type", JSON_TYPE)
EVENT_STREAM_TYPE: Final = "text/event-stream; charset=utf-8"
EVENT_STREAM_HEADER: Final[Header] = ("content-type", EVENT_STREAM_TYPE)
# The prefix of a credential that the caller sent as `x-api-key`, before the header's value.
X_API_KEY_PREFIX: Final = "x-api-key "
# The path of a chat completion below an upstream's base URL.
CHAT_PATH: Final = "/chat/completions"
# The path of a chat completion to count only, for a provider that `counts_tokens`. No provider has this path: the
# adapter translates it.
COUNT_TOKENS_PATH: Final = f"{CHAT_PATH}/count_tokens"
# A field of a message that came in Anthropic's own dialect: its blocks in order as `content`, with placeholders for the
# calls that are in `tool_calls`, and its `container`.
NATIVE_REPLY: Final = "native_reply"
# A field of a chat completion that was made of a whole message in Anthropic's own dialect: the message, as it came.
NATIVE_MESSAGE: Final = "native_message"
# The fields of a reply with all that its model wrote but thoughts.
ANSWER_FIELDS: Final = ("content", "refusal", "tool_calls", "function_call", "audio")
# The fields of a reply with thoughts as text. Some upstreams send the same text in both.
READABLE_THOUGHT_FIELDS: Final = ("reasoning_content", "reasoning")


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
    # True if the request asks for a stream; None: it was not read for that.
    wants_stream: bool | None = None
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
