"""Translates the names of chat completions' fields in upstreams' errors into those of another dialect.

Its client has sent no fields under the names of chat completions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The path of a message or of a part of it, as upstreams write it. The other dialect has the same words at another path.
_MESSAGE = r"messages(?:\.?\[?\d{1,9}\]?(?:\.?\[\d{1,9}\]|\.\w{1,64}){0,16})"
_FUNCTION = r"(?P<tool>\btools\.?\[?\d{1,9}\]?|\btool_choice)\.function(?:(?P<schema>\.parameters)\b|(?!\w))"

# Matches nothing: an empty alternative would match between any two words.
_NOTHING = "(?!)"
# Some servers quote the whole request after what is wrong with it, and 30 MB would hold up all requests for six
# seconds. Chosen: far above a sentence.
_TRANSLATED_CHARS = 16 * 1024


class FieldNames:
    """The names of one dialect."""

    def __init__(self, names: Mapping[str, str], messages: str, schema: str, words: tuple[str, ...]) -> None:
        """Compiles the patterns.

        names: by the names of chat completions.
        messages: the name of the field with the messages.
        schema: the name of a tool's field with its schema.
        words: those of `names` that are English words as well. In a sentence they count only in quotes.
        """
        self._names, self._messages, self._schema = names, messages, schema
        quoted = "|".join(("messages", *words))
        plain = "|".join(name for name in names if name not in words) or _NOTHING
        named = "|".join(names) or _NOTHING
        self._in_sentence = re.compile(
            rf"{_FUNCTION}|\b{_MESSAGE}|(?<=['\"`])(?:{quoted})(?=['\"`])|\b(?:{plain})(?:\.json_schema)?\b"
        )
        self._at_start = re.compile(
            rf"{_FUNCTION}|^(?:{_MESSAGE}|messages\b|(?:{named})(?:\.json_schema)?\b)"
        )

    def translate_sentence(self, text: str) -> str:
        """Returns an error's message with the dialect's names in its first `_TRANSLATED_CHARS`."""
        head, rest = text[:_TRANSLATED_CHARS], text[_TRANSLATED_CHARS:]
        return self._in_sentence.sub(self._translate, head) + rest

    def translate_path(self, field: str) -> str:
        """Returns the path to a field, such as the `param` of an error."""
        return self._at_start.sub(self._translate, field)

    def _translate(self, match: re.Match[str]) -> str:
        if match["tool"]:
            return match["tool"] + (f".{self._schema}" if match["schema"] else "")
        return self._names.get(match[0].removesuffix(".json_schema"), self._messages)
