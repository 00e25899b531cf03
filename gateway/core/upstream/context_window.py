"""The context windows of models: from the settings, and from what upstreams report when they refuse or count.

Sizes are in tokens as we count them. An upstream with a vocabulary of its own may take more of them for the same
words, and a window that is full by its count is not full by ours. Its context counts as that much smaller here.
"""

from __future__ import annotations

from math import ceil

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
