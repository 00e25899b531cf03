"""The context windows of models: from the settings, and from what upstreams report when they refuse or count.

Sizes are in tokens as we count them. An upstream with a vocabulary of its own may take more of them for the same
words, and a window that is full by its count is not full by ours. Its context counts as that much smaller here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil

import orjson

# Vocabularies made for other languages take up to about so many tokens for each of ours.
GUESS = 2.0
_MOST_SCALE = 4.0
# Scales are rounded up to sixteenths: every new scale moves what fits, and costs the provider's cache.
_STEPS = 16
_TOLERANCE = 1.05  # chosen: what a chat's template and the form of its tools may add
_NEARLY_FULL = 0.9  # of the window: before that no correction is worth its price

ModelAt = tuple[str, str]  # upstream, model


class ContextWindows:
    """Learned from replies, for the life of the process. Its methods take a model as (upstream, name)."""

    def __init__(self) -> None:
        self._reported: dict[ModelAt, int] = {}
        self._measured: dict[ModelAt, float] = {}  # tokens by the upstream's count for each of ours
        self._guessed: dict[ModelAt, float] = {}

    def of(self, at: ModelAt, known: int | None) -> int | None:
        """Returns a model's window in tokens, or None. known: the one of the settings.

        It is smaller where an error has named a smaller one, or where the upstream counts more than we do.
        """
        reported = self._reported.get(at)
        if reported is None and known is None:
            return None
        found = min(each for each in (reported, known) if each is not None)
        scale = self._measured.get(at) or self._guessed.get(at)
        return found if scale is None else int(found / scale)

    def reported(self, at: ModelAt, tokens: int) -> None:
        """Notes the context that an error named, in the upstream's own tokens."""
        self._reported[at] = tokens

    def counted(self, at: ModelAt, ours: int, theirs: int, most: int) -> None:
        """Notes an upstream's count for a prompt of `ours` tokens; `most` tokens would have fitted."""
        scale = self._measured.get(at, 1.0)
        # A first count replaces a guess. Later ones count only near the end of the window, where they matter.
        is_guess = at in self._guessed and at not in self._measured
        is_off = theirs > ours * scale * _TOLERANCE and theirs > most * scale * _NEARLY_FULL
        if is_guess or is_off:
            self._measured[at] = max(scale, min(ceil(theirs / ours * _STEPS) / _STEPS, _MOST_SCALE))

    def guessed(self, at: ModelAt) -> None:
        """Notes that a prompt cut to a guessed window was taken, after one that fitted by our count was not."""
        self._guessed[at] = GUESS


# No context is as long, and Python refuses to parse a number of thousands of digits.
_MOST_DIGITS = 12
# The sentences in which servers name the length of their context; the group is the number.
_CONTEXT_SENTENCES = (
    re.compile(
        r"maximum (?:context|prompt) length (?:is|of) (\d[\d,]*)", re.I
    ),  # OpenAI, vLLM, OpenRouter; xAI
    re.compile(r"context limit: \d+ \+ \d+ > (\d[\d,]*)", re.I),  # Anthropic, with the reply
    re.compile(r"`max_new_tokens` must be <= (\d[\d,]*)", re.I),  # TGI, with the reply
    re.compile(r"(?<!\d)(\d[\d,]{0,15}) maximum context length", re.I),  # Mistral
    re.compile(r"context (?:size|length|window)[^.\d]{0,30}(\d[\d,]*)", re.I),  # llama.cpp, LM Studio, Groq
    re.compile(r"\d tokens > (\d[\d,]*) maximum", re.I),  # Anthropic
    re.compile(r"maximum number of tokens allowed \(?(\d[\d,]*)", re.I),  # Gemini
    re.compile(r"\"n_ctx\"\s*:\s*(\d+)", re.I),  # llama.cpp, a field of its error
)
_ESCAPE = re.compile(r"\\.", re.DOTALL)


def context_from_error(body: str, request: bytes = b"") -> int | None:
    """Returns the context length in tokens that an upstream's error names, or None.

    request: the JSON it is about. Some errors repeat the request, and a length that stands there does not count.
    """
    named = list(_contexts(body))
    if not named or not request:
        return named[0] if named else None
    # Serialised again, the request has no escaped letters, so that the same words are found in both.
    text = orjson.dumps(orjson.loads(request)).decode()
    quoted = set(_contexts(_ESCAPE.sub(" ", text)))
    return next((tokens for tokens in named if tokens not in quoted), None)


def _contexts(text: str) -> Iterator[int]:
    for sentence in _CONTEXT_SENTENCES:
        for found in sentence.finditer(text):
            digits = found[1].replace(",", "")
            # A smaller number is a count of something else.
            if len(digits) < _MOST_DIGITS and int(digits) >= 256:
                yield int(digits)
