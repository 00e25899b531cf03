"""The context windows of models: from the settings, and from what upstreams report when they refuse or count.

Sizes are in tokens as the gateway counts them. An upstream with a vocabulary of its own may count more tokens for the
same words, so that its window is full while it is not by the gateway's count. Such a window counts as smaller here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from gateway.core.upstream.policy import Target

# The scale of a model that has reported no count: vocabularies for other languages take up to twice the tokens.
GUESS = 2.0
# A scale above this one would come from a faulty count of an upstream. Chosen, not measured.
_MAX_SCALE = 4.0
# Scales are rounded up to sixteenths: every new scale moves what fits, and costs the provider's cache.
_STEPS = 16
_TOLERANCE = 1.05  # room for what the chat template and the form of tools add; not measured
# The share of a window from which a new scale is worth its price.
_NEARLY_FULL = 0.9

MAX_MODELS = 1024  # callers choose the names, and some upstreams serve one model under any

# (upstream, model)
ModelKey = tuple[str, str]


@dataclass(slots=True)
class _Learned:
    """The figures of one model, as replies reported them."""

    # The context window of the model, in the upstream's tokens.
    reported: int | None = None
    # The upstream's tokens for each token by the gateway's count.
    scale: float | None = None
    # The scale is not measured.
    is_guess: bool = False


class ContextWindows:
    """The windows of models, learned from replies for the life of the process."""

    def __init__(self) -> None:
        self._learned: dict[ModelKey, _Learned] = {}  # the least recently changed first

    def window_of(self, key: ModelKey, configured: int | None) -> int | None:
        """Returns a model's window in tokens, or None if it is unknown. configured: the window of the settings.

        It is smaller than configured if an error has named a smaller one, or if the upstream counts more tokens.
        """
        learned = self._learned.get(key)
        if learned is None:
            return configured
        sizes = [size for size in (learned.reported, configured) if size is not None]
        if not sizes:
            return None
        return min(sizes) if learned.scale is None else int(min(sizes) / learned.scale)

    def with_known_window(self, target: Target) -> Target:
        """Returns a target with the context window that is known by now."""
        key = target[:2]
        if key not in self._learned:
            return target
        return target._replace(context_window=self.window_of(key, target.context_window))

    def note_reported(self, key: ModelKey, tokens: int) -> None:
        """Notes the context that an error named, in the upstream's own tokens."""
        self._record_of(key).reported = tokens

    def note_count(self, key: ModelKey, estimated: int, actual: int, fitting: int) -> None:
        """Notes an upstream's count for a prompt of `estimated` tokens; `fitting` tokens would have fitted."""
        learned = self._learned.get(key) or _Learned()
        # A first count replaces a guess. Later ones count only near the end of the window, where they matter.
        scale = 1.0 if learned.is_guess or learned.scale is None else learned.scale
        is_off = actual > estimated * scale * _TOLERANCE and actual > fitting * scale * _NEARLY_FULL
        if learned.is_guess or is_off:
            learned = self._record_of(key)
            learned.scale = max(scale, min(ceil(actual / estimated * _STEPS) / _STEPS, _MAX_SCALE))
            learned.is_guess = False

    def note_guess(self, key: ModelKey) -> None:
        """Notes that a prompt cut to a guessed window was accepted after a longer one was refused."""
        learned = self._record_of(key)
        if learned.scale is None:
            learned.scale = GUESS
            learned.is_guess = True

    def _record_of(self, key: ModelKey) -> _Learned:
        """Returns the record of a model, which the caller may change."""
        learned = self._learned.pop(key, None) or _Learned()
        self._learned[key] = learned
        if len(self._learned) > MAX_MODELS:
            del self._learned[next(iter(self._learned))]
        return learned
