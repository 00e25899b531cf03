"""The fields of a Responses request without a place in chat completions, as a header of the reply names them."""

from __future__ import annotations

import re
from typing import Final

from adapters.types import Json
from gateway.dialects.fields import FieldPath

_INDEX: Final = re.compile(r"\[\d+\]")
# A client's field may have any name, which might break the header.
_VALID_NAME: Final = re.compile(r"[\w.-]{1,100}", re.ASCII)
# The most names in the header: more than the fields of OpenAI's types that chat completions lack.
_MAX_NAMES: Final = 30


class LeftOutFields:
    """The names of fields that are left out, in the order in which they came: paths without the indices of lists."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def add(self, path: str) -> None:
        """Adds the field at a path."""
        name = _INDEX.sub("", path)
        has_room = len(self._names) < _MAX_NAMES or name in self._names
        self._names[name if has_room and _VALID_NAME.fullmatch(name) else "..."] = None

    def add_rest(self, value: Json, read_fields: frozenset[str], path: FieldPath) -> None:
        """Adds the fields of an object that have a value and are not in `read_fields`. path: the object's path."""
        if read_fields.issuperset(value):
            return
        for key, field in value.items():
            if key not in read_fields and field not in (None, "", [], {}):
                self.add(f"{path}.{key}")
