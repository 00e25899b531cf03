"""The fields of a Responses request that chat completions have no place for, as a header of the reply names them."""

from __future__ import annotations

import re
from typing import Final

from adapters.types import Json

_INDEX: Final = re.compile(r"\[\d+\]")
# Others of a client's names may break the header.
_VALID_NAME: Final = re.compile(r"[\w.-]{1,100}", re.ASCII)
_MAX_NAMES: Final = 30  # OpenAI's types have fewer fields without a place


class LeftOutFields:
    """The names of what is left out, in the order in which it came: paths without the indices of lists."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def add(self, where: str) -> None:
        name = _INDEX.sub("", where)
        if len(self._names) >= _MAX_NAMES or not _VALID_NAME.fullmatch(name):
            name = "..."
        self._names[name] = None

    def add_rest(self, value: Json, read: frozenset[str], where: object) -> None:
        """Adds the fields of an object that say something, but for those that are read. where: the path to it."""
        if read.issuperset(value):
            return
        for key, field in value.items():
            if key not in read and field not in (None, "", [], {}):
                self.add(f"{where}.{key}")
