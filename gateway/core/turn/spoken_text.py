"""The text that is shown to the user beyond a reply's own: fillers, and the words of calls that speak."""

from __future__ import annotations

from typing import Any

from gateway.core.conversation.wire_message import choose_separator
from gateway.core.turn.asides import AsideReader, Asides, Voice
from gateway.core.turn.client_view import ClientView
from gateway.core.turn.draft import MessageDraft


class SpokenText:
    """Collects the spoken text of a reply, and shows it to the client as it comes in."""

    def __init__(self, asides: Asides | None, view: ClientView, content_before: Any, filler: str) -> None:
        """Begins with the filler that was shown before the reply.

        content_before: the content of the earlier rounds, a text or a list of parts.
        """
        # The filler, which is shown before the reply's own text.
        self.filler = filler
        # The words of calls that speak to the user, which are shown after the reply's own text.
        self.words = ""
        # The content that was shown last. The next text may need a separator from it.
        self.content_before = content_before
        self._view = view
        # Reads the arguments that are shown; None: no argument is shown.
        self._reader = None if asides is None else AsideReader(asides)
        # The call that spoke last, by its index in the reply, and its voice.
        self._speaker: tuple[int, Voice] | None = None

    @property
    def text(self) -> str:
        """All spoken text: the filler, then the words."""
        return self.filler + choose_separator(self.filler, self.words) + self.words

    def read(self, draft: MessageDraft, *, is_shown: bool) -> None:
        """Reads the thoughts, words and fillers in the arguments of calls, as far as they have come.

        draft: the reply so far.
        is_shown: True if the client gets the text at once; otherwise the text is only collected.
        """
        if self._reader is None:
            return
        for index, voice, text in self._reader.read(draft.calls):
            if voice is Voice.THOUGHT:
                if is_shown:
                    self._view.add_thought(text)
            elif (index, voice) == self._speaker:
                self._add(voice, text, "", index, is_shown=is_shown)
            elif voice is Voice.WORDS:
                self._speaker = (index, voice)
                blanks = choose_separator(
                    self.words or draft.text or self.filler or self.content_before, text
                )
                self.words += choose_separator(self.words, text)
                self._add(voice, text, blanks, index, is_shown=is_shown)
            elif not (self.text or draft.text) and text.strip():
                # A filler fills the silence before a tool: once the reply has text, there is no silence.
                self._speaker = (index, voice)
                self.add_filler(text.lstrip(), is_shown=is_shown)

    def add_filler(self, text: str, *, is_shown: bool) -> None:
        """Adds a filler, or its beginning. is_shown: True if the client gets the filler at once."""
        self._add(Voice.FILLER, text, choose_separator(self.content_before, text), is_shown=is_shown)

    def _add(self, voice: Voice, text: str, blanks: str, call_index: int = 0, *, is_shown: bool) -> None:
        """Adds spoken text.

        blanks: the white space that is shown before the text.
        call_index: the index of the text's call in the reply.
        """
        if voice is Voice.FILLER:
            self.filler += text
        else:
            self.words += text
        self.content_before = self.text
        if not is_shown:
            return
        if voice is Voice.FILLER:
            self._view.add_text(blanks + text)
        else:
            self._view.add_spoken_text(text, blanks, call_index)
