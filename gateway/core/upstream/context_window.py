"""The context windows of models: from the settings, and from what upstreams report when they refuse or count.

Sizes are in tokens as the gateway counts them. An upstream with a vocabulary of its own may count more tokens for the
same words, so that its window is full while it is not by the gateway's count. Such a window counts as smaller here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from gateway.core.upstream.policy import Target

# The scale of a model that has reported no count: vocabularies for other languages take up to twice the tokens.
GUESSED_SCALE = 2.0
# A scale above this one would come from a faulty count of an upstream: it is twice `GUESSED_SCALE`.
_MAX_SCALE = 4.0
# Scales are rounded up to sixteenths: every new scale moves the window's cut, and costs the provider's cache.
_SCALE_STEPS = 16
# The part by which an upstream may count more, for its chat template and its form of tools. Not measured: with less the
# scale follows such differences, with more a prompt near the end of the window is refused.
_TOLERANCE = 1.05
# The share of a window from which a new scale is worth its price. Not measured: below it a wrong count cuts nothing.
_NEARLY_FULL = 0.9
# The most models with figures. Callers choose the names, and some upstreams serve one model under any name.
MAX_MODELS = 1024


class ModelKey(NamedTuple):
    """A model at an upstream, by the names of a `Target`."""

    # The name of the upstream.
    upstream: str
    # The name of the model at the upstream.
    model: str


@dataclass(slots=True)
class _Figures:
    """The figures of one model, as replies have shown them."""

    # The context window that an error has named, in the upstream's tokens.
    reported_window: int | None = None
    # The upstream's tokens for each token by the gateway's count.
    scale: float | None = None
    # True: the scale is not measured.
    is_guess: bool = False


class ContextWindows:
    """The windows of models, learned from replies for the life of the process."""

    def __init__(self) -> None:
        # The figures by model, the least recently changed first.
        self._figures: dict[ModelKey, _Figures] = {}

    def find_window(self, key: ModelKey, configured: int | None) -> int | None:
        """Returns a model's window in tokens; None: the window is not known.

        The window is smaller than in the settings if an error has named a smaller one, or if the upstream counts more.

        configured: the window in the settings; None: they have none.
        """
        figures = self._figures.get(key)
        if figures is None:
            return configured
        windows = [window for window in (figures.reported_window, configured) if window is not None]
        if not windows:
            return None
        return min(windows) if figures.scale is None else int(min(windows) / figures.scale)

    def with_known_window(self, target: Target) -> Target:
        """Returns a target with the context window that is known by now."""
        key = make_model_key(target)
        if key not in self._figures:
            return target
        return target._replace(context_window=self.find_window(key, target.context_window))

    def note_window(self, key: ModelKey, tokens: int) -> None:
        """Notes the context window that an error named, in the upstream's own tokens."""
        self._change_figures(key).reported_window = tokens

    def note_count(self, key: ModelKey, estimated: int, actual: int, max_tokens: int) -> None:
        """Notes an upstream's count of a prompt's tokens.

        estimated: the tokens of the prompt by the gateway's count.
        actual: the tokens of the prompt by the upstream's count.
        max_tokens: the most tokens for which the window has room, by the gateway's count.
        """
        figures = self._figures.get(key) or _Figures()
        # A first count replaces a guess. Later counts are noted only near the end of the window, where they matter.
        scale = 1.0 if figures.is_guess or figures.scale is None else figures.scale
        is_off = actual > estimated * scale * _TOLERANCE and actual > max_tokens * scale * _NEARLY_FULL
        if figures.is_guess or is_off:
            figures = self._change_figures(key)
            measured_scale = ceil(actual / estimated * _SCALE_STEPS) / _SCALE_STEPS
            figures.scale = max(scale, min(measured_scale, _MAX_SCALE))
            figures.is_guess = False

    def note_guess(self, key: ModelKey) -> None:
        """Notes that a prompt cut to a guessed window was accepted after a longer one was refused."""
        figures = self._change_figures(key)
        if figures.scale is None:
            figures.scale = GUESSED_SCALE
            figures.is_guess = True

    def _change_figures(self, key: ModelKey) -> _Figures:
        """Returns the figures of a model, which the caller changes.

        If too many models have figures, the least recently changed model loses its figures.
        """
        figures = self._figures.pop(key, None) or _Figures()
        self._figures[key] = figures
        if len(self._figures) > MAX_MODELS:
            del self._figures[next(iter(self._figures))]
        return figures


def make_model_key(target: Target) -> ModelKey:
    """Returns the key of a target's model."""
    return ModelKey(target.upstream, target.model)
