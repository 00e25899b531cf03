"""The names of the store's statements, by their texts in either database."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from storage.sql.statements import load

_FOLDERS = {"": resources.files("storage.sql"), "agents_api/": resources.files("storage.sql.agents_api")}
_FILES = {
    f"{name}{each.name}"
    for name, folder in _FOLDERS.items()
    for each in folder.iterdir()
    if each.name.endswith(".sql")
}
_FILES.remove("pieces.sql")
# Two files may have the same text under two names: those of turns count.
_FIRST = ["exchanges.sql", "agents.sql", "blocks.sql", "keys.sql", "passages.sql", "terms.sql"]
_NAMES: dict[str, str] = {}
for _file in [*_FIRST, *sorted(_FILES.difference(_FIRST))]:
    for _name, _statement in load(_file).items():
        for _text in (str(_statement), _statement.postgres):
            _NAMES.setdefault(_text, _name)


def name_of(text: str) -> str:
    """Returns the name of a statement, or the text of one that is not the store's."""
    return _NAMES.get(text, text)


def without_transactions(names: Sequence[str]) -> list[str]:
    """Returns names of statements without those that begin and end transactions."""
    return [name for name in names if not name.startswith(("BEGIN", "COMMIT", "ROLLBACK"))]


def is_named(text: str) -> bool:
    """Returns whether a statement is one of the store's."""
    return text in _NAMES
