"""Definitions: the documents of the agents API, as frozen values."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct


class DefinitionKind(StrEnum):
    """The kind of a definition."""

    AGENT = "agent"
    TOOL = "tool"
    MCP = "mcp"
    CONVERSATION = "conversation"
    BLOCK = "block"
    ARCHIVE = "archive"
    FOLDER = "folder"
    IDENTITY = "identity"


class Definition(Struct, frozen=True):
    """A document of the agents API.

    The definition of an agent, an archive, a folder, a conversation or a block has the uid of its object.
    """

    # The row of the definition; 0: the definition has no row, like that of an agent's own archive.
    id: int
    # The public id, random, without a prefix.
    uid: str
    # The name of the project.
    project: str
    # The kind of the object.
    kind: DefinitionKind
    # The row in `agents` that the definition has or belongs to; 0: none.
    memory_row: int
    # The name of the object. The names of a project's tools, MCP servers and identities are unique; the name of an
    # identity is the application's key for it.
    name: str
    # A number that rises with every change.
    version: int
    # The time of the first change, in seconds since the epoch.
    created: float
    # The time of the last change, in seconds since the epoch.
    updated: float
    # The JSON of the document, in the gateway's words.
    body: dict[str, Any]

    @property
    def is_stored(self) -> bool:
        """True if the definition has a row."""
        return self.id != 0
