"""The options of an agent's summaries, which its definition sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from gateway.core.prompt.summary import RETAINED_SHARE, ROOMY_SHARE
from gateway.core.prompt.summary_check import without_broken_line


class SummaryOptions(Struct, frozen=True):
    """The options of one agent's summaries. None: the option has its default."""

    # True: a summary covers the whole conversation. False: it covers the messages that are about to leave the window.
    covers_all: bool = False
    # The share of the window that a summary does not cover, if it does not cover all.
    own_retained_share: float | None = None
    # The model that writes the summaries, as the definition names it.
    model: str | None = None
    # The instructions to that model.
    instructions: str | None = None
    # The most characters of a summary.
    max_chars: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SummaryOptions:
        """Reads an agent's definition (`AgentDefinition.compaction`)."""
        share = values.get("sliding_window_percentage")
        model = values.get("model") or None
        # Letta Code sends `letta/auto` for each agent, a model of the hosted product that means "any".
        if model is not None and model.startswith("letta/"):
            model = None
        return cls(
            covers_all=values.get("mode") == "all",
            # The retained messages must leave room for new ones.
            own_retained_share=None if share is None else min(float(share), ROOMY_SHARE),
            model=model,
            instructions=values.get("prompt") or None,
            max_chars=values.get("clip_chars"),
        )

    @property
    def retained_share(self) -> float:
        """The share of the window that a summary does not cover."""
        if self.covers_all:
            return 0.0
        return RETAINED_SHARE if self.own_retained_share is None else self.own_retained_share

    def clip(self, text: str) -> str:
        """Returns a summary that is cut to the limit of its characters."""
        if self.max_chars is None or len(text) <= self.max_chars:
            return text
        return without_broken_line(text[: self.max_chars])
