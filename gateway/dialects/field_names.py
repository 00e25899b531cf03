"""Translates the names of chat completions' fields in upstreams' errors into the names of another dialect.

A client of the other dialect has not sent the fields that such an error names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The path of a message or of its part, as upstreams write it. It becomes the name of the dialect's field with the
# messages, since the same words have another path in the dialect's request.
_MESSAGE_PATH = r"messages(?:\.?\[?\d{1,9}\]?(?:\.?\[\d{1,9}\]|\.\w{1,64}){0,16})"
_FUNCTION_PATH = (
    r"(?P<tool>\btools\.?\[?\d{1,9}\]?|\btool_choice)\.function(?:(?P<schema>\.parameters)\b|(?!\w))"
)

# Matches nothing: an empty alternative would match between any two words.
_NOTHING = "(?!)"
# The first characters of an error that are translated. Some servers quote the whole request after the error, and 30 MB
# would hold up all requests for six seconds. Chosen: far above a sentence.
_TRANSLATED_CHARS = 16 * 1024


class FieldNames:
    """The names of one dialect."""

    def __init__(self, names: Mapping[str, str], messages: str, schema: str, words: tuple[str, ...]) -> None:
        """Compiles the patterns.

        names: the names of the dialect by the names of chat completions.
        messages: the name of the field with the messages.
        schema: the name of the field of a tool with its schema.
        words: the names of chat completions that are English words, too. In a sentence they count only in quotes.
        """
        self._names = names
        self._messages = messages
        self._schema = schema
        quoted_names = "|".join(("messages", *words))
        plain_names = "|".join(name for name in names if name not in words) or _NOTHING
        all_names = "|".join(names) or _NOTHING
        self._in_sentence = re.compile(
            rf"{_FUNCTION_PATH}|\b{_MESSAGE_PATH}|(?<=['\"`])(?:{quoted_names})(?=['\"`])"
            rf"|\b(?:{plain_names})(?:\.json_schema)?\b"
        )
        self._at_start = re.compile(
            rf"{_FUNCTION_PATH}|^(?:{_MESSAGE_PATH}|messages\b|(?:{all_names})(?:\.json_schema)?\b)"
        )

    def translate_sentence(self, text: str) -> str:
        """Returns an error's message with the dialect's names in its first `_TRANSLATED_CHARS` characters."""
        beginning, remainder = text[:_TRANSLATED_CHARS], text[_TRANSLATED_CHARS:]
        return self._in_sentence.sub(self._translate, beginning) + remainder

    def translate_path(self, field: str) -> str:
        """Returns the path to a field, such as the `param` of an error, with the dialect's names."""
        return self._at_start.sub(self._translate, field)

    def _translate(self, match: re.Match[str]) -> str:
        if match["tool"]:
            return match["tool"] + (f".{self._schema}" if match["schema"] else "")
        return self._names.get(match[0].removesuffix(".json_schema"), self._messages)
