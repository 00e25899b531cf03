"""The configuration of an MCP server in a request, with its secrets, and the stored secrets that it leaves.

A secret is named by a field: `auth_token`, `custom_headers.<name>` or `env.<name>`. Secrets are stored encrypted
(gateway.agents.tools.secret), and shown as a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from gateway.core.definition import McpServerDefinition, ToolDefinition
from gateway.errors import BadRequest

# The text that is shown in place of each secret. A request with the mask leaves the secret as it is.
MASK = "********"
TOKEN, HEADERS, VARIABLES = "auth_token", "custom_headers", "env"


class McpToolSource(NamedTuple):
    """The `source` of a tool that an MCP server has."""

    # The uid of the server.
    server_uid: str
    # The name of the tool at the server.
    tool_name: str

    @classmethod
    def of(cls, definition: ToolDefinition) -> Self | None:
        """Returns the source of a tool; None if the tool is not an MCP server's."""
        if definition.source_type != "mcp":
            return None
        server_uid, _, tool_name = definition.source.partition("/")
        return cls(server_uid, tool_name)

    def __str__(self) -> str:
        return f"{self.server_uid}/{self.tool_name}"


@dataclass(frozen=True, slots=True)
class McpSecrets:
    """The secrets of a server in plain text, for one session with it."""

    # The headers of each request over HTTP.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    # The environment variables of a program.
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class McpServerConfig:
    """A server as a request configures it."""

    # The definition of the server, without secrets.
    definition: McpServerDefinition
    # The secrets by their fields, in plain text or MASK.
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    # The groups of secrets (TOKEN, HEADERS, VARIABLES) that are replaced. The stored secrets of other groups stay.
    replaced_groups: frozenset[str] = frozenset()

    def list_new_secrets(self) -> dict[str, str]:
        """Returns the secrets that the request gives in plain text, by their fields."""
        return {name: value for name, value in self.secrets.items() if value != MASK}

    def find_retained_secrets(self, before: McpServerDefinition) -> dict[str, str]:
        """Returns the stored secrets that stay, encrypted, by their fields.

        before: the stored definition of the server, with its encrypted secrets.

        Raises: BadRequest if a mask stands for no secret, or the secrets were given for another address or program.
        """
        for name, value in self.secrets.items():
            if value == MASK and name not in before.secrets:
                raise BadRequest(
                    f"{name}: {MASK} leaves a secret as it is, and there is none.", param="config"
                )
        retained = {
            name: value
            for name, value in before.secrets.items()
            if self.secrets.get(name) == MASK or get_group(name) not in self.replaced_groups
        }
        definition = self.definition
        if retained and (definition.url, definition.command) != (before.url, before.command):
            raise BadRequest(
                f"The secrets {', '.join(sorted(retained))} were given for another address or program: give them again "
                "with this one, or null in their place.",
                param="config",
            )
        return retained


def get_group(name: str) -> str:
    """Returns the group of a secret's field: TOKEN, HEADERS or VARIABLES."""
    return name.partition(".")[0]


def find_group_secrets(secrets: Mapping[str, str], group: str) -> dict[str, str]:
    """Returns the secrets of the group HEADERS or VARIABLES, by the names of the headers or variables."""
    return {name.partition(".")[2]: value for name, value in secrets.items() if get_group(name) == group}


def make_secrets(server: McpServerDefinition, secrets: Mapping[str, str]) -> McpSecrets:
    """Returns the secrets of a server as they are sent.

    A token without a scheme for `Authorization` is a bearer token (RFC 6750, 2.1).

    secrets: the secrets in plain text, by their fields.
    """
    headers = find_group_secrets(secrets, HEADERS)
    if (token := secrets.get(TOKEN)) is not None:
        name = server.token_header or "Authorization"
        headers[name] = f"Bearer {token}" if name.lower() == "authorization" and " " not in token else token
    return McpSecrets(headers, find_group_secrets(secrets, VARIABLES))
