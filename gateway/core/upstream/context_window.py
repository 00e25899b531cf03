"""What is known of the contexts of models: what settings say, and what upstreams tell when they refuse or count.

Sizes are in tokens as we count them. An upstream with a vocabulary of its own may take more of them for the same
words, and a window that is full by its count is not by ours: so its context counts as that much smaller here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import ceil

import orjson

__all__ = ["GUESS", "Contexts", "context_from_error"]

GUESS = 2.0  # vocabularies made for other languages take up to about so many tokens for each of ours
_MOST_SCALE = 4.0
_STEPS = 16  # in which a scale is rounded up: every new one moves what fits, and costs the provider's cache
_TOLERANCE = 1.05  # chosen: what a chat's template and the form of its tools may add
_NEARLY_FULL = 0.9  # of the window: before that no correction is worth its price

ModelAt = tuple[str, str]  # upstream, model


class Contexts:
    """Learned from replies, for the life of the process."""

    def __init__(self) -> None:
        self._told: dict[ModelAt, int] = {}
        self._measured: dict[ModelAt, float] = {}  # tokens by the upstream's count for each of ours
        self._guessed: dict[ModelAt, float] = {}

    def of(self, place: ModelAt, known: int | None) -> int | None:
        """known: what the settings say. Less where an error has said less, or where the upstream counts more."""
        told = self._told.get(place)
        found = told if known is None else known if told is None else min(told, known)
        scale = self._measured.get(place) or self._guessed.get(place)
        return found if found is None or scale is None else int(found / scale)

    def told(self, place: ModelAt, tokens: int) -> None:
        """By an error, in the upstream's own tokens."""
        self._told[place] = tokens

    def counted(self, place: ModelAt, ours: int, theirs: int, most: int) -> None:
        """What an upstream has counted for a prompt of `ours`; `most` would have fitted."""
        scale = self._measured.get(place, 1.0)
        is_guess = place in self._guessed and place not in self._measured
        is_off = theirs > ours * scale * _TOLERANCE and theirs > most * scale * _NEARLY_FULL
        if is_guess or is_off:
            self._measured[place] = max(scale, min(ceil(theirs / ours * _STEPS) / _STEPS, _MOST_SCALE))

    def guessed(self, place: ModelAt) -> None:
        """A prompt was taken that had been cut by guess, after one that fitted by our count was not."""
        self._guessed[place] = GUESS


_MOST_DIGITS = 12  # no context is as long, and Python refuses to read a number of thousands of them
# The sentences of servers that say how long their context is; the number wanted is the group.
_CONTEXT_SENTENCES = (
    re.compile(r"maximum context length (?:is|of) (\d[\d,]*)", re.I),  # OpenAI, vLLM, TGI, OpenRouter
    re.compile(r"(\d[\d,]*) maximum context length", re.I),  # Mistral
    re.compile(r"context (?:size|length|window)[^.\d]{0,30}(\d[\d,]*)", re.I),  # llama.cpp, LM Studio, Groq
    re.compile(r"\d[\d,]* tokens > (\d[\d,]*) maximum", re.I),  # Anthropic
    re.compile(r"maximum number of tokens allowed \(?(\d[\d,]*)", re.I),  # Gemini
    re.compile(r"\"n_ctx\"\s*:\s*(\d+)", re.I),  # llama.cpp, a field of its error
)


_ESCAPE = re.compile(r"\\.", re.DOTALL)


def context_from_error(body: str, request: bytes = b"") -> int | None:
    """The context length in tokens that an upstream's error names, or None.

    request: the JSON it is about. Some errors repeat it, and what somebody said in it is nothing the upstream told.
    """
    told = list(_contexts(body))
    if not told or not request:
        return told[0] if told else None
    text = orjson.dumps(orjson.loads(request)).decode()  # no letter is escaped any more
    said = set(_contexts(_ESCAPE.sub(" ", text)))
    return next((tokens for tokens in told if tokens not in said), None)


def _contexts(text: str) -> Iterator[int]:
    for sentence in _CONTEXT_SENTENCES:
        for found in sentence.finditer(text):
            digits = found[1].replace(",", "")
            if (
                len(digits) < _MOST_DIGITS and int(digits) >= 256
            ):  # smaller ones are a count of something else
                yield int(digits)
