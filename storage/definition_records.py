"""Definitions: the documents that are made over REST, as frozen values."""

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
    """A document that was made over REST.

    The definition of an agent, an archive, a folder, a conversation or a block has the uid of its object.
    """

    # The row of the definition; 0: it has no row, as an agent's own archive has none.
    id: int
    # The public id, random, without a prefix.
    uid: str
    project: str
    kind: DefinitionKind
    # The row in `agents` that the definition has or belongs to; 0: none.
    memory_row: int
    name: str
    # A number that rises with every change.
    version: int
    created: float
    updated: float
    # JSON, in the gateway's words. The name of a tool, of an MCP server and of an identity (the application's key
    # for it) is unique in a project.
    body: dict[str, Any]

    @property
    def is_stored(self) -> bool:
        return self.id != 0
