"""Counts the tokens of texts and messages.

Byte-level BPE never makes more tokens than there are bytes, so `count_upper_bound` answers most questions without a
tokenizer. The exact count needs ranks (78 MB once parsed). They are in gateway/data, and are read on first use, never
at start or from the network. Loading takes 0.2 s: call `Tokenizer.load` in a thread first.
"""

from __future__ import annotations

import gzip
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from itertools import accumulate
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import tiktoken

Encoding = Literal["o200k_base", "cl100k_base"]

# The fields of a message with text that a model reads.
_TEXT_FIELDS = frozenset({"content", "name", "refusal", "reasoning_content", "reasoning"})
# The fields of a content part with text, or with parts of its own as Mistral's thoughts have.
_PART_TEXT_FIELDS = ("text", "refusal", "thinking")
# The tokens of a message's role and separators. OpenAI's cookbook ("How to count tokens") has 3, and 1 more for a name.
_MESSAGE_TOKENS = 4
# The tokens of a high-detail image of common size: 85, and 170 a tile, are 765 to 1,105 (OpenAI's vision guide).
_IMAGE_TOKENS = 1_000
# The tokens of an image with `detail: low`, by the same guide.
_IMAGE_LOW_TOKENS = 85
# The base64 characters of WAV audio for a token. A second has 10 tokens, and at 24 kHz, 16 bit mono 64,000 characters.
_WAV_BASE64_PER_TOKEN = 6_400
# The same for MP3 at 128 kbit/s, and for other formats.
_AUDIO_BASE64_PER_TOKEN = 2_000
# The tokens of audio that is only named by a reference: those of a minute.
_AUDIO_TOKENS = 600
# The tokens of a file that is only named by a reference: those of two pages of a PDF, as text and image.
_FILE_TOKENS = 3_000
# The base64 characters of a file for a token. Not measured: 60 kB for a page of 1,500 tokens.
_FILE_BASE64_PER_TOKEN = 40
# The factor for models with other vocabularies, which take up to about a fifth more tokens for the same text.
OTHER_SCALE = 1.2
# A longer text is counted in pieces, and each cut may count a token or two more. tiktoken panics at a million blanks in
# a row, with an exception that is no `Exception`.
PIECE_CHARS = 50_000
# The most counts that a tokenizer caches, some 4 MB. A conversation is sent again with every turn, with the same texts.
CACHED_COUNTS = 16_384


def count_upper_bound(text: str | bytes) -> int:
    """Returns the most tokens that a text can take: its bytes in UTF-8."""
    if isinstance(text, bytes) or text.isascii():
        return len(text)
    return len(text.encode("utf-8", "surrogatepass"))


class EncodingData(NamedTuple):
    """The data of an encoding."""

    # The regular expression by which a text is split into words.
    pattern: str
    # The number of each token, by its bytes.
    ranks: dict[bytes, int]


def read_ranks(encoding: Encoding) -> EncodingData:
    """Reads the data of an encoding, as gateway/data/README lays them out."""
    packed = gzip.decompress(resources.files("gateway").joinpath("data", f"{encoding}.ranks.gz").read_bytes())
    pattern_size, token_count = struct.unpack_from("<II", packed)
    start = 8 + pattern_size
    pattern = packed[8:start].decode()
    lengths = packed[start : start + token_count]
    joined = packed[start + token_count :]
    ends = list(accumulate(lengths))
    # With map and slice instead of a loop of statements, since this runs 200,000 times.
    pieces = map(joined.__getitem__, map(slice, [0, *ends], ends))
    return EncodingData(pattern, dict(zip(pieces, range(token_count), strict=True)))


class TooMuchToCount(Exception):
    """Counting takes too long for the event loop."""


class Tokenizer:
    """Counts tokens with one encoding, times a factor if it stands for an encoding that is not published.

    Counts are cached by the text's hash, so a conversation that is sent again costs only its new messages.
    """

    def __init__(self, encoding: Encoding, scale: float = 1.0) -> None:
        self.encoding: Encoding = encoding
        self.scale = scale
        self._counts: OrderedDict[tuple[int, int], int] = OrderedDict()

    @property
    def is_loaded(self) -> bool:
        """True if counting need not wait for `load`."""
        return self.encoding in _loaded

    def load(self) -> None:
        """Loads the encoding. Blocks for about 0.2 s the first time. Thread-safe and idempotent."""
        _load_encoding(self.encoding)

    def count(self, text: str) -> int:
        """Returns the tokens of a text, in which special tokens are plain text. Loads the encoding if need be."""
        if not text:
            return 0
        key = (hash(text), len(text))
        tokens = self._counts.get(key)
        if tokens is None:
            encode = _load_encoding(self.encoding).encode_ordinary
            pieces = (text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))
            tokens = sum(len(encode(piece)) for piece in pieces)
            if self.scale != 1.0:
                tokens = min(ceil(tokens * self.scale), count_upper_bound(text))
            while len(self._counts) >= CACHED_COUNTS:
                self._counts.popitem(last=False)  # in one step, since several threads count
            self._counts[key] = tokens
        return tokens

    def count_within(self, chars: int) -> Callable[[str], int]:
        """Returns a function that counts a text as `count` does.

        It raises TooMuchToCount when its texts without a cached count have more than `chars` characters together.
        """
        counts = self._counts
        remaining_chars = chars

        def count(text: str) -> int:
            nonlocal remaining_chars
            tokens = counts.get((hash(text), len(text)))
            if tokens is not None:
                return tokens
            remaining_chars -= len(text)
            if remaining_chars < 0:
                raise TooMuchToCount
            return self.count(text)

        return count


_loaded: dict[Encoding, tiktoken.Encoding] = {}
_lock = threading.Lock()


def _load_encoding(encoding: Encoding) -> tiktoken.Encoding:
    encoder = _loaded.get(encoding)
    if encoder is not None:
        return encoder
    with _lock:
        encoder = _loaded.get(encoding)
        if encoder is None:
            # Not at start: most processes never come near a budget.
            import tiktoken

            data = read_ranks(encoding)
            encoder = tiktoken.Encoding(
                encoding, pat_str=data.pattern, mergeable_ranks=data.ranks, special_tokens={}
            )
            _loaded[encoding] = encoder
    return encoder


# One tokenizer for each encoding and scale, since a tokenizer caches counts.
_tokenizer = cache(Tokenizer)


def choose_tokenizer(model: str) -> Tokenizer:
    """Returns the tokenizer for a model's name. Models with the same encoding and scale share one.

    OpenAI's own names are counted exactly, all others with o200k_base and a margin.
    """
    name = model.rsplit("/", 1)[-1].removeprefix("ft:")
    encoding: Encoding = "o200k_base"
    scale = OTHER_SCALE
    if name == "gpt-4" or name.startswith(("gpt-4-", "gpt-3.5", "gpt-35")):
        encoding = "cl100k_base"
        scale = 1.0
    elif name.startswith(("gpt-", "chatgpt-", "o1", "o3", "o4")):
        scale = 1.0
    return _tokenizer(encoding, scale)


def estimate_media_tokens(part: Mapping[str, Any]) -> int:
    """Returns the estimated tokens of a content part that is not text, by its type.

    The size of its data shows little, and a URL nothing.
    """
    part_type = part.get("type")
    body = part.get(part_type) if isinstance(part_type, str) else None
    body = body if isinstance(body, Mapping) else {}
    if part_type == "input_audio":
        data = body.get("data")
        if not isinstance(data, str):
            return _AUDIO_TOKENS
        is_wav = body.get("format") == "wav"
        return max(10, len(data) // (_WAV_BASE64_PER_TOKEN if is_wav else _AUDIO_BASE64_PER_TOKEN))
    if part_type in ("file", "document"):
        data = body.get("file_data")
        return max(1_500, len(data) // _FILE_BASE64_PER_TOKEN) if isinstance(data, str) else _FILE_TOKENS
    detail = body.get("detail", part.get("detail"))
    return _IMAGE_LOW_TOKENS if detail == "low" else _IMAGE_TOKENS


def count_message_tokens(message: Mapping[str, Any], count: Callable[[str], int]) -> int:
    """Returns the tokens of a chat message: of its text, calls and media.

    message: any JSON object. Fields of the wrong type are ignored here, and refused elsewhere.
    count: returns the tokens of a text, or with `count_upper_bound` their upper bound.
    """
    total = _MESSAGE_TOKENS
    for field, value in message.items():
        if value and field in _TEXT_FIELDS:
            total += count(value) if isinstance(value, str) else _count_value_tokens(value, count)
    calls = message.get("tool_calls")
    legacy_call = message.get("function_call")
    if calls or legacy_call:
        for call in [*(calls if isinstance(calls, list) else ()), {"function": legacy_call}]:
            spec = call.get("function", call.get("custom")) if isinstance(call, Mapping) else None
            if isinstance(spec, Mapping):
                total += _MESSAGE_TOKENS
                for field in ("name", "arguments", "input"):
                    total += _count_value_tokens(spec.get(field), count)
    return total


def _count_value_tokens(value: Any, count: Callable[[str], int]) -> int:
    if isinstance(value, str):
        return count(value)
    total = 0
    for part in value if isinstance(value, list) else ():
        if isinstance(part, str):
            total += count(part)
        elif isinstance(part, Mapping):
            texts = [part[field] for field in _PART_TEXT_FIELDS if isinstance(part.get(field), str | list)]
            text_tokens = sum(_count_value_tokens(text, count) for text in texts)
            total += text_tokens if texts else estimate_media_tokens(part)
    return total
