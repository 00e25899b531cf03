"""Named statements from .sql files beside this module: SQL stays in SQL.

A file holds statements that begin with `-- name: <name>`; a missing name fails at import, not in the middle of a turn.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

__all__ = ["load_queries"]

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_queries(file: str = "statements.sql") -> Mapping[str, str]:
    """Name to statement, comments dropped. Raises: ValueError for a name that is there twice."""
    text = resources.files(__package__).joinpath(file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    queries: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in queries:
            raise ValueError(f"{file} has two statements named {name}")
        lines = (line for line in body.splitlines() if not line.startswith("--"))
        queries[name] = "\n".join(lines).strip().rstrip(";")
    return MappingProxyType(queries)
