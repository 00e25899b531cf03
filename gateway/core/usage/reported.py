"""The tokens that a reply reports, in any dialect, and the length of its text.

A reply that passes in its own bytes is read here as it passes. Its text is counted only if the upstream reports no
tokens, so the end of a stream is held until then; no text outlives its reply.

reply_facts.py reads the same replies for traces: only their first and last pieces, once they have ended and if they are
traced. The tokens for limits are read here, from every reply, also from a body that is not held.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import orjson
from msgspec import Struct

from adapters.json_escapes import read_json
from adapters.token_counts import count_completion_tokens, read_cached_tokens, read_token_count
from adapters.types import READABLE_THOUGHT_FIELDS, Json
from storage.run_records import TokenCounts

# The largest body that is parsed, if it is no event stream. Chosen: a long completion.
MAX_PARSED_BYTES: Final = 64 * 1024
# The first and the last bytes of a larger body, in which its usage is looked for. Chosen: far above a usage's size.
_SEARCHED_BYTES: Final = 4 * 1024
# The bytes of a stream that are held before its text is counted. Chosen: two hundred events of a token each.
MAX_HELD_BYTES: Final = 64 * 1024
# In JSON text a quotation mark inside a string is escaped, so these bytes are a field and nothing else.
_USAGE_FIELD: Final = re.compile(rb'"usage"\s*:\s*(?=\{)')
# A string, or the beginning or end of an object.
_STRING_OR_BRACE: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}]')
# The report in an event of a response: a usage, or that the response is made in the background.
_USAGE_OR_BACKGROUND: Final = re.compile(_USAGE_FIELD.pattern + rb'|"background"')
# A look for an integer takes a fifth of the time of a look for bytes.
_BACKSLASH: Final = ord("\\")
# The statuses of a response that its upstream goes on making.
PENDING_STATUSES: Final = ("queued", "in_progress")
# The fields of tokens that were read from a cache, and of tokens that were written to it.
_CACHE_FIELDS: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")
# The kinds of Claude's `iterations` that are billed, and are no part of its totals: the summary of a context that was
# full, and the replies of an advisor. A fallback that declined is not billed.
# (platform.claude.com/docs/en/build-with-claude/compaction)
_BILLED_APART: Final = ("compaction", "advisor_message")


def _make_string_pattern(*names: str) -> re.Pattern[bytes]:
    """Returns the pattern of fields with these names and their string values, both as they stand in JSON."""
    # Possessive, since each event of a stream is searched: it takes 1.7 times as long with plain repeats.
    return re.compile(rb'"(%b)"\s*+:\s*+"([^"\\]*+(?:\\.[^"\\]*+)*+)"' % "|".join(names).encode())


# The text of chat completions: content, thoughts and arguments.
_CHAT_TEXT: Final = _make_string_pattern(
    *("content", "refusal", "transcript", *READABLE_THOUGHT_FIELDS, "name", "arguments", "input")
)
_THOUGHT_NAMES: Final = [name.encode() for name in READABLE_THOUGHT_FIELDS]
# The text of messages.
_MESSAGE_TEXT: Final = _make_string_pattern("text", "thinking", "partial_json")
_TEXT_FIELD: Final = _make_string_pattern("text")
_DELTA_FIELD: Final = _make_string_pattern("delta")


class _TextPatterns(NamedTuple):
    """The patterns of the text that a model wrote; None: such text does not exist, or is not searched."""

    # The pattern in the events of a stream.
    in_stream: re.Pattern[bytes] | None
    # The pattern in a whole body.
    in_body: re.Pattern[bytes] | None


# No model writes the reply, which may have megabytes and is not searched.
_NO_TEXT: Final = _TextPatterns(None, None)
# The patterns by the paths of upstreams where calls cost tokens.
_TEXT_PATTERNS: Final[Mapping[str, _TextPatterns]] = {
    "/chat/completions": _TextPatterns(_CHAT_TEXT, _CHAT_TEXT),
    "/responses": _TextPatterns(_DELTA_FIELD, _make_string_pattern("text", "arguments")),
    "/responses/compact": _TextPatterns(_DELTA_FIELD, _TEXT_FIELD),
    "/messages": _TextPatterns(_MESSAGE_TEXT, _MESSAGE_TEXT),
    "/completions": _TextPatterns(_TEXT_FIELD, _TEXT_FIELD),
    **dict.fromkeys(("/embeddings", "/rerank", "/moderations", "/decisions"), _NO_TEXT),
    **dict.fromkeys(("/images/generations", "/images/edits", "/images/variations", "/videos"), _NO_TEXT),
    "/audio/speech": _NO_TEXT,
    "/audio/transcriptions": _TextPatterns(_DELTA_FIELD, _TEXT_FIELD),
    "/audio/translations": _TextPatterns(_DELTA_FIELD, _TEXT_FIELD),
}


class _Body(Struct):
    """The fields of a body from which its usage is read."""

    usage: Any = None
    id: Any = None
    status: Any = None
    background: Any = None


_BODY_DECODER: Final = msgspec.json.Decoder(_Body)


def costs_tokens(method: str, path: str) -> bool:
    """Returns whether a call of an upstream makes a model work. path: the path below the base URL, with its query."""
    return method == "POST" and _choose_pattern_path(path) in _TEXT_PATTERNS


def _choose_pattern_path(path: str) -> str:
    """Returns the path under which `_TEXT_PATTERNS` has a call: a video is remixed or extended below its own id."""
    return "/videos" if path.startswith("/videos/") else path.partition("?")[0]


def find_reported_counts(usage: Any) -> TokenCounts | None:
    """Returns the tokens of a `usage` in any dialect; None: it has no tokens, or zeros alone.

    Some upstreams send zeros if they have not counted: each call takes some tokens. Anthropic counts the tokens that
    are read from its cache and written to it apart from the input; here both are a part of the input.
    (platform.claude.com/docs/en/build-with-claude/prompt-caching)
    """
    counts = _read_counts(usage) if isinstance(usage, dict) else None
    if counts is not None and isinstance(iterations := usage.get("iterations"), list):
        for iteration in iterations:
            if (
                isinstance(iteration, dict)
                and iteration.get("type") in _BILLED_APART
                and (iteration_counts := _read_counts(iteration))
            ):
                counts = counts.plus(iteration_counts)
    return counts if counts is not None and (counts.prompt or counts.completion) else None


def find_usage(chunk: Json) -> Any:
    """Returns the `usage` of a chunk or of a whole completion, wherever its upstream puts it; None: no usage."""
    if (usage := chunk.get("usage")) is not None:
        return usage
    # Kimi has it in the choice that ends a stream, and Groq in a field of its own.
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    holders = (choice, chunk.get("x_groq"))
    return next((each["usage"] for each in holders if isinstance(each, dict) and each.get("usage")), None)


def _read_counts(usage: Json) -> TokenCounts | None:
    """Returns the tokens of a usage in the form of chat completions, responses or messages; None: no tokens."""
    if "prompt_tokens" in usage or "completion_tokens" in usage:
        prompt_details = usage.get("prompt_tokens_details")
        completion_details = usage.get("completion_tokens_details")
        return TokenCounts(
            prompt=read_token_count(usage, "prompt_tokens"),
            completion=count_completion_tokens(usage),
            cached=read_cached_tokens(usage),
            written=read_token_count(prompt_details, "cache_write_tokens"),
            reasoning=read_token_count(completion_details, "reasoning_tokens"),
        )
    if "input_tokens" in usage or "output_tokens" in usage:
        prompt_details = usage.get("input_tokens_details")
        completion_details = usage.get("output_tokens_details")
        read_tokens, written_tokens = (read_token_count(usage, name) for name in _CACHE_FIELDS)
        return TokenCounts(
            prompt=read_token_count(usage, "input_tokens") + read_tokens + written_tokens,
            completion=read_token_count(usage, "output_tokens"),
            cached=read_tokens or read_token_count(prompt_details, "cached_tokens"),
            written=written_tokens or read_token_count(prompt_details, "cache_write_tokens"),
            reasoning=read_token_count(completion_details, "reasoning_tokens"),
        )
    return TokenCounts(read_token_count(usage, "total_tokens")) if "total_tokens" in usage else None


def is_pending(response: Json) -> bool:
    """Returns whether a response is still being made after the answer that has it."""
    return response.get("background") is True and response.get("status") in PENDING_STATUSES


class ReplyUsage(Protocol):
    """The usage of one reply, which fills as the reply comes in.

    Only replies that pass in their own bytes may report tokens before their end, or go on after it.
    """

    __slots__ = ()

    @property
    def counts(self) -> TokenCounts | None:
        """The reported tokens; None: the reply reports no tokens."""

    @property
    def prompt_counts(self) -> TokenCounts | None:
        """The tokens of the prompt as reported before the reply; None: no such report."""
        return None

    @property
    def pending_id(self) -> str | None:
        """The id of a response that its upstream goes on making after this reply; None: no such response."""
        return None

    @property
    def char_count(self) -> int:
        """The number of characters that the model wrote."""


class UsageReader(ReplyUsage):
    """Reads one reply as it passes.

    A reply is fed in one of three ways: a stream by `read_events`, a body that is held by `read_body`, another body by
    `read_piece`, then `end`.
    """

    __slots__ = (
        "_body_texts",
        "_char_count",
        "_first_bytes",
        "_held_bytes",
        "_held_events",
        "_last_bytes",
        "_report_pattern",
        "_reported",
        "_stream_texts",
        "counts",
        "pending_id",
        "prompt_counts",
    )

    def __init__(self, path: str) -> None:
        """Begins a reply. path: the path of a call that costs tokens, below the upstream's base URL."""
        path = _choose_pattern_path(path)
        self._stream_texts, self._body_texts = _TEXT_PATTERNS[path]
        # Finds the events of a stream with a report.
        self._report_pattern = _USAGE_OR_BACKGROUND if path == "/responses" else _USAGE_FIELD
        # The fields of `ReplyUsage`.
        self.counts: TokenCounts | None = None
        self.prompt_counts: TokenCounts | None = None
        self.pending_id: str | None = None
        # The number of characters that the model wrote, without the events that are held.
        self._char_count = 0
        # The events of a stream with text that is not counted yet.
        self._held_events: list[bytes] = []
        # The bytes of `_held_events`.
        self._held_bytes = 0
        # The fields of all reports so far.
        self._reported: Json = {}
        # The first bytes of a body that comes in pieces.
        self._first_bytes = b""
        # The last bytes of such a body.
        self._last_bytes = b""

    @property
    def char_count(self) -> int:
        self._count_held_events()
        return self._char_count

    def read_events(self, data: bytes) -> None:
        """Reads events of a stream, each of them whole."""
        self._held_events.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > MAX_HELD_BYTES:
            self._count_held_events()
        if self._report_pattern.search(data) is None:
            return
        for line in data.splitlines():
            if line.startswith(b"data:") and self._report_pattern.search(line) is not None:
                self._read_event(line[5:])

    def read_body(self, body: bytes) -> None:
        """Reads a body that is whole."""
        if len(body) > MAX_PARSED_BYTES:
            self.read_piece(body)
            self.end()
        else:
            # The body may be no JSON, such as audio, or nested more deeply than msgspec reads.
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                fields = _BODY_DECODER.decode(body)
                self._add_report(fields.usage)
                if fields.background and is_pending(msgspec.structs.asdict(fields)):
                    self.pending_id = str(fields.id)
        if self.counts is None:
            self._count_texts(self._body_texts, body)

    def read_piece(self, data: bytes) -> None:
        """Reads the next piece of a body that is not held."""
        if len(self._first_bytes) < _SEARCHED_BYTES:
            self._first_bytes += data[: _SEARCHED_BYTES - len(self._first_bytes)]
        self._last_bytes = (self._last_bytes + data[-_SEARCHED_BYTES:])[-_SEARCHED_BYTES:]

    def end(self) -> None:
        """Ends a body that came in pieces."""
        for part in (self._last_bytes, self._first_bytes):
            matches = [*_USAGE_FIELD.finditer(part)]
            if matches and self.counts is None:
                self._add_report(_read_object_at(part, matches[-1].end()))

    def _read_event(self, data: bytes) -> None:
        """Reads an event's data, which has a usage wherever its dialect puts it."""
        event, _ = read_json(data)
        if not isinstance(event, dict):
            return
        if isinstance(message := event.get("message"), dict):
            # Anthropic's streams count the input first, with a token of output, and all of the output last.
            if isinstance(usage := message.get("usage"), dict):
                self._reported = usage
                self.prompt_counts = find_reported_counts({**usage, "output_tokens": 0})
            return
        response = event.get("response")
        if isinstance(response, dict) and is_pending(response):
            self.pending_id = str(response.get("id"))
        for inner in (event, response):
            if isinstance(inner, dict) and isinstance(usage := find_usage(inner), dict):
                self._add_report(usage)
                return

    def _add_report(self, usage: Any) -> None:
        """Adds a report, which completes earlier reports."""
        if isinstance(usage, dict):
            self._reported = {
                **self._reported,
                **{key: value for key, value in usage.items() if value is not None},
            }
            self.counts = find_reported_counts(self._reported)

    def _count_held_events(self) -> None:
        self._count_texts(self._stream_texts, b"".join(self._held_events))
        self._held_events.clear()
        self._held_bytes = 0

    def _count_texts(self, pattern: re.Pattern[bytes] | None, data: bytes) -> None:
        """Counts the characters of the texts that the model wrote. pattern: finds them; None: they are not searched."""
        counts: Counter[bytes] = Counter()
        for name, text in () if pattern is None else pattern.findall(data):
            counts[name] += _count_chars(text)
        # An upstream that sends its thoughts in both fields sends the same text in both.
        self._char_count += counts.total() - min(counts[name] for name in _THOUGHT_NAMES)


def _read_object_at(data: bytes, start: int) -> Any:
    """Returns the JSON object that begins at an offset; None: its end is missing."""
    depth = 0
    for string_or_brace in _STRING_OR_BRACE.finditer(data, start):
        depth += {b"{": 1, b"}": -1}.get(string_or_brace[0], 0)
        if not depth:
            try:
                return orjson.loads(data[start : string_or_brace.end()])
            except orjson.JSONDecodeError:
                return None
    return None


def _count_chars(text: bytes) -> int:
    """Returns the number of characters of a string. text: the string in JSON, without its quotation marks."""
    if _BACKSLASH in text:
        try:
            return len(orjson.loads(b'"%b"' % text))
        except orjson.JSONDecodeError:
            return len(text)
    return len(text) if text.isascii() else len(text.decode("utf-8", "replace"))
