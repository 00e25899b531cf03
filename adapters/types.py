"""What passes between the gateway and a provider.

The gateway speaks one dialect inside: OpenAI's chat completion, as bytes. A provider that speaks another
one translates both ways in its own module. Only what is acted on is typed; everything else rides in the bytes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

__all__ = ["Capabilities", "Event", "Header", "ModelRequest", "announces_events"]

Header = tuple[str, str]


def announces_events(headers: Iterable[Header]) -> bool:
    """Whether a reply with these headers is server-sent events."""
    return any(
        name == "content-type" and value.lower().lstrip().startswith("text/event-stream")
        for name, value in headers
    )


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an upstream is known to take. Columns are opt-in: an unknown upstream gets the plainest form."""

    context_tokens: int | None = None  # None: unknown, and then nothing is ever trimmed
    max_completion_tokens: bool = False  # takes `max_completion_tokens` beside the older `max_tokens`
    tools: bool = False
    parallel_tools: bool = False  # several calls in one message
    json_schema: bool = False  # `response_format` of type `json_schema`
    images: bool = False  # of some of its models at least
    developer_role: bool = False  # `developer` beside `system`
    metadata: bool = False  # takes `metadata` without `store`
    stream_usage: bool = False  # `stream_options.include_usage`


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call of a model.

    body: the whole JSON body in OpenAI's chat completion dialect, as it shall reach the upstream.
    path: below the upstream's base URL, `/chat/completions` unless said otherwise.
    headers: what of the caller's headers goes on (never a credential of ours).
    credential: the caller's own `Authorization` value; used only by an upstream without a key of its own.
    upload: the body piece by piece as it comes in, instead of `body`; it is read once, so nothing sends it again.
    upload_bytes: how much that is, if it is known.
    """

    body: bytes
    headers: tuple[Header, ...] = ()
    credential: str | None = None
    path: str = "/chat/completions"
    method: str = "POST"
    upload: AsyncIterator[bytes] | None = None
    upload_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event.

    raw: its bytes as they came, line ends and the closing blank line included; joining all `raw` gives the stream.
    data: the joined `data:` lines, or None for a comment or an event without data.
    """

    raw: bytes
    data: bytes | None
    name: str | None = None  # the `event:` field
