"""The fields of chat completions in upstreams' errors, as another dialect calls them: its client has sent no others."""

from __future__ import annotations

import re
from collections.abc import Mapping

# A message or a part of it, as upstreams write its place; in another dialect it has another one.
_MESSAGE = r"messages(?:\.?\[?\d{1,9}\]?(?:\.?\[\d{1,9}\]|\.\w{1,64}){0,16})"
_OF_FUNCTION = (
    r"(?P<tool>\btools\.?\[?\d{1,9}\]?|\btool_choice)\.function(?:(?P<schema>\.parameters)\b|(?!\w))"
)


class FieldNames:
    """The names of one dialect."""

    def __init__(self, names: Mapping[str, str], messages: str, schema: str, common: tuple[str, ...]) -> None:
        """Makes them.

        names: by those of chat completions.
        messages: what has the messages.
        schema: the schema of a tool.
        common: those of `names` that are words of a language as well, and count in a sentence only in quotes.
        """
        self._names, self._messages, self._schema = names, messages, schema
        quoted = "|".join(("messages", *common))
        plain = "|".join(name for name in names if name not in common)
        self._in_words = re.compile(
            rf"{_OF_FUNCTION}|\b{_MESSAGE}|(?<=['\"`])(?:{quoted})(?=['\"`])|\b(?:{plain})(?:\.json_schema)?\b"
        )
        self._alone = re.compile(
            rf"{_OF_FUNCTION}|^(?:{_MESSAGE}|messages\b|(?:{'|'.join(names)})(?:\.json_schema)?\b)"
        )

    def in_words(self, text: str) -> str:
        """Returns an upstream's sentence with these names."""
        return self._in_words.sub(self._name, text)

    def of(self, field: str) -> str:
        """Returns the name of a field."""
        return self._alone.sub(self._name, field)

    def _name(self, found: re.Match[str]) -> str:
        if found["tool"]:
            return found["tool"] + (f".{self._schema}" if found["schema"] else "")
        return self._names.get(found[0].removesuffix(".json_schema"), self._messages)
