"""The ends of a reply's choices: which of them have ended, whatever finish_reasons an upstream gives."""

from __future__ import annotations

from adapters.types import Json
from gateway.core.conversation.provider_fields import REPLY_FIELDS


class ChoiceEnds:
    """The ends of one reply's choices so far.

    Some proxies give a finish_reason with the first chunk already, or with each.
    """

    def __init__(self, choice_count: int) -> None:
        self._choice_count = choice_count
        # The indices of the choices that had their finish_reason, and no content after it.
        self._ended: set[str] = set()
        # True if a finish_reason came, with or without content after it.
        self.has_finish_reason = False
        # True if content came after a finish_reason, so that no finish_reason shows the end of the reply.
        self.has_gone_on = False

    @property
    def are_complete(self) -> bool:
        """True if each choice had its finish_reason, and no content after it."""
        return len(self._ended) >= self._choice_count

    def note(self, choice: Json) -> bool:
        """Notes whether a choice of a chunk has ended. Returns whether it goes on after its finish_reason."""
        delta = choice.get("delta")
        index = str(choice.get("index") or 0)
        goes_on = index in self._ended and isinstance(delta, dict) and any(map(delta.get, REPLY_FIELDS))
        if goes_on:
            self._ended.remove(index)
            self.has_gone_on = True
        if choice.get("finish_reason"):
            self._ended.add(index)
            self.has_finish_reason = True
        return goes_on
