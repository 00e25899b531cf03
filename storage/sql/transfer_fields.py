"""The fields of exported records, part by part, and how each is converted between its row and a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from storage.records import LEARNER, RULE
from storage.run_records import TokenCounts
from storage.transfer_commands import TransferPart

# The readers with exported cursors, by their names in the export.
READERS = {"learner": LEARNER, "rule": RULE}
# The fields of a record, part by part, in the order in which rows are read and written. The caller adds `key` to the
# record of a fact before `ImportWriter.write`.
FIELDS: Mapping[TransferPart, Sequence[str]] = {
    "conversation": ("uid", "key", "begun", "last_at", "settled_at", "is_stored"),
    "definition": ("kind", "uid", "name", "created", "updated", "body"),
    "block": ("label", "description", "limit", "read_only", "uid", "details"),
    "version": ("block", "version", "restores", "at", "origin", "exchange", "sources", "value"),
    "file": ("uid", "state", "bytes", "created", "type", "name"),
    "passage": ("seq", "at", "exchange", "sources", "text", "tags", "file", "metadata"),
    "fact": (
        "seq", "at", "valid_from", "exchange", "sources", "about", "text", "origin", "muted", "standing",
    ),
    "ended": ("fact", "at", "successor"),
    "learned": ("seq", "reader"),
    "edit": ("exchange", "call", "state", "at", "op", "label", "arguments", "seen"),
    "tag": ("tag",),
    "run": ("uid", "conversation", "state", "stop", "depth", "background", "created", "begun", "ended"),
    "step": (
        "exchange", "run", "number", "begun", "ended", *TokenCounts._fields, "stop", "feedback", "error", "waiting",
    ),
    "import": ("uid", "format", "status", "learns", "created", "touched", "data"),
    "imported": ("exchange", "import", "what", "learns"),
    "imported_fact": ("fact", "import"),
}  # fmt: skip
# The fields that name another record by its public id. Each has the name of the other record's part.
REFERENCES: tuple[TransferPart, ...] = ("conversation", "run", "file", "import")


class FieldKind(NamedTuple):
    """The conversion of a field between its row and a record."""

    # The JSON of an empty column; None: the field is no JSON.
    json_default: bytes | str | None = None
    # True if the field is true or false in a record, and 1 or 0 in a row.
    is_flag: bool = False
    # True if an import writes the field as JSON. Otherwise the writer of its part (transfer_import.py) does so.
    is_dumped: bool = False
    # True if older exports lack the field.
    is_optional: bool = False
    # False for a field that only this gateway needs, such as calls that wait: they are answered here alone.
    is_exported: bool = True

    def from_column(self, column: Any) -> Any:
        """Returns the value that a record has for a column of its row."""
        if self.json_default is not None:
            return orjson.loads(column or self.json_default)
        return bool(column) if self.is_flag else column

    def to_column(self, value: Any) -> Any:
        """Returns the column that a row has for a value of its record."""
        if self.is_dumped:
            return orjson.dumps(value)
        return int(value or 0) if self.is_flag else value


# The fields that need a conversion. A field's name has the same kind in every part.
_KINDS: Mapping[str, FieldKind] = {
    "sources": FieldKind(b"[]", is_dumped=True),
    "arguments": FieldKind(b"{}", is_dumped=True),
    "data": FieldKind(b"{}", is_dumped=True),
    "body": FieldKind(b"{}"),
    "details": FieldKind(b"{}", is_optional=True),
    "tags": FieldKind("[]", is_optional=True),
    "metadata": FieldKind("{}", is_optional=True),
    "read_only": FieldKind(is_flag=True),
    "background": FieldKind(is_flag=True),
    "learns": FieldKind(is_flag=True),
    "is_stored": FieldKind(is_flag=True, is_optional=True),
    "muted": FieldKind(is_flag=True, is_optional=True),
    "standing": FieldKind(is_flag=True, is_optional=True),
    "uid": FieldKind(is_optional=True),
    "file": FieldKind(is_optional=True),
    "origin": FieldKind(is_optional=True),
    "reader": FieldKind(is_optional=True),
    "seen": FieldKind(is_optional=True),
    "waiting": FieldKind(is_exported=False),
}
_PLAIN = FieldKind()


def get_kind(name: str) -> FieldKind:
    """Returns how a field is converted."""
    return _KINDS.get(name, _PLAIN)
