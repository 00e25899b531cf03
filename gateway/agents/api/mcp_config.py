"""Reads the config of an MCP server in a request into a definition of the server, with its secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType
from msgspec.structs import replace

from gateway.agents.core.mcp_server import HEADERS, TOKEN, VARIABLES, McpServerConfig, get_group
from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.sent_values import get_sent_fields
from gateway.agents.wire.struct_fields import Body, Maybe, convert
from gateway.core.definition import McpServerDefinition
from gateway.validation import Fault

# The path of the config in a request, for errors.
_CONFIG_PATH = ("body", "config")
_SERVER_TYPES = ("streamable_http", "sse", "stdio")
# The fields of which a null counts as left out.
_NEVER_NULL = ("mcp_server_type", "server_url", "command", "args")
# Servers accept about 8 kB of headers altogether (nginx: 8 kB a line), so a longer secret could not be sent.
_Secret = Annotated[str, Meta(max_length=8_000)]
_Secrets = Annotated[dict[str, _Secret], Meta(max_length=50)]
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")  # RFC 9110 5.1
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
# Headers that the gateway or the protocol sets, by their names and their beginnings.
_RESERVED_HEADERS = frozenset(
    ("accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
     "keep-alive", "last-event-id", "te", "trailer", "transfer-encoding", "upgrade", "user-agent")
)  # fmt: skip
_RESERVED_PREFIXES = ("mcp-", "proxy-")


class HttpConfig(Body):
    """A server that speaks HTTP: streamable, or with server-sent events."""

    server_url: str
    mcp_server_type: Literal["streamable_http", "sse"] | UnsetType = UNSET
    # With a token, the header in which the token is sent. Without one, the name of an entry of the setting
    # tools.headers, which has a header and its value.
    auth_header: Maybe[str] = UNSET
    auth_token: Maybe[_Secret] = UNSET
    custom_headers: Maybe[_Secrets] = UNSET


class StdioConfig(Body):
    """A program that speaks over its pipes."""

    command: Annotated[str, Meta(min_length=1)]
    args: list[str]
    mcp_server_type: Literal["stdio"] | UnsetType = UNSET
    env: Maybe[_Secrets] = UNSET


def parse_config(config: Mapping[str, Any], previous: McpServerDefinition | None = None) -> McpServerConfig:
    """Reads the config of a server in a request.

    config: the fields of a `HttpConfig` or a `StdioConfig`.
    previous: the stored definition of the server that the request changes; None: the server is new.

    Raises: Unprocessable.
    """
    if previous is not None:
        default_type = get_server_type(previous)
    else:
        default_type = "stdio" if "command" in config else "streamable_http"
    server_type = config.get("mcp_server_type") or default_type
    if server_type not in _SERVER_TYPES:
        message = "Input should be 'streamable_http', 'sse' or 'stdio'"
        raise Unprocessable(Fault((*_CONFIG_PATH, "mcp_server_type"), message, "enum", server_type))
    # A null removes a secret or a header. A field that cannot be null counts as left out.
    fields = {name: value for name, value in config.items() if value is not None or name not in _NEVER_NULL}
    complete_config = {**_read_defaults(previous, server_type), **fields}
    try:
        if server_type == "stdio":
            return _parse_stdio(complete_config)
        return _parse_http(complete_config, server_type, previous)
    except Unprocessable as error:
        # The values may be secrets, which no error repeats.
        raise Unprocessable(replace(error.fault, value=None)) from None


def _read_defaults(previous: McpServerDefinition | None, server_type: str) -> dict[str, Any]:
    """Returns the fields that a config may leave out, with the values of the server that it changes.

    The config of a new server may leave out no field, nor may a config by which a program becomes an address, or an
    address a program.
    """
    if previous is None or (server_type == "stdio") != bool(previous.command):
        return {}
    if previous.command:
        command, *args = previous.command
        return {"command": command, "args": args}
    return {"server_url": previous.url}


def _parse_stdio(config: dict[str, Any]) -> McpServerConfig:
    """Reads the config of a program. Raises: Unprocessable."""
    program = convert(config, StdioConfig, _CONFIG_PATH)
    fields = get_sent_fields(program)
    variables = fields.get(VARIABLES) or {}
    for name, value in variables.items():
        if not _VARIABLE_NAME.fullmatch(name) or "\0" in value:
            raise _make_error(VARIABLES, f"{name[:100]!r} is not a valid environment variable")
    return McpServerConfig(
        McpServerDefinition(command=(program.command, *program.args)),
        {f"{VARIABLES}.{name}": value for name, value in variables.items()},
        # A program has no headers, so the headers of an earlier address are removed.
        replaced_groups=frozenset({TOKEN, HEADERS} | ({VARIABLES} & fields.keys())),
    )


def _parse_http(
    config: dict[str, Any], server_type: str, previous: McpServerDefinition | None
) -> McpServerConfig:
    """Reads the config of a server that speaks HTTP. Raises: Unprocessable."""
    http = convert(config, HttpConfig, _CONFIG_PATH)
    fields = get_sent_fields(http)
    stored = previous or McpServerDefinition()
    headers = fields.get(HEADERS) or {}
    header_names = [*headers]
    if HEADERS not in fields:
        header_names += [name.partition(".")[2] for name in stored.secrets if get_group(name) == HEADERS]
    names = [(HEADERS, name) for name in header_names]
    entry_name, token_header = None, None
    if fields.get(TOKEN, TOKEN in stored.secrets):
        token_header = fields.get("auth_header", stored.token_header)
        names.append(("auth_header", token_header or "Authorization"))
    else:
        entry_name = fields.get("auth_header", stored.header)
    _check_headers(names)
    secrets = {f"{HEADERS}.{name}": value for name, value in headers.items()}
    if fields.get(TOKEN):
        secrets[TOKEN] = fields[TOKEN]
    for name, value in secrets.items():
        _check_secret(name, value)
    definition = McpServerDefinition(
        http.server_url,
        header=entry_name,
        transport="sse" if server_type == "sse" else "streamable_http",
        token_header=token_header,
    )
    # A server at an address has no environment, so the environment of an earlier program is removed.
    replaced_groups = frozenset({VARIABLES} | ({TOKEN, HEADERS} & fields.keys()))
    return McpServerConfig(definition, secrets, replaced_groups=replaced_groups)


def _check_secret(name: str, value: str) -> None:
    """Raises: Unprocessable if a value cannot be sent in a header. name: the field of the secret."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise _make_error(get_group(name), f"the value of {name} has a line end or control character")


def _check_headers(names: list[tuple[str, str]]) -> None:
    """Raises: Unprocessable if a server may not name one of these headers, or two are the same (RFC 9110 5.1).

    names: the field and the name of each header.
    """
    lower_names = set()
    for field, name in names:
        lower = name.lower()
        is_reserved = lower in _RESERVED_HEADERS or lower.startswith(_RESERVED_PREFIXES)
        if is_reserved or not _HEADER_NAME.fullmatch(name):
            raise _make_error(field, f"{name[:100]!r} is no header that can be sent")
        if lower in lower_names:
            raise _make_error(field, f"the header {name!r} is named twice; its case makes no difference")
        lower_names.add(lower)


def _make_error(field: str, message: str) -> Unprocessable:
    return Unprocessable(Fault((*_CONFIG_PATH, field), message))


def get_server_type(server: McpServerDefinition) -> str:
    """Returns the `mcp_server_type` of a server."""
    return "stdio" if server.command else server.transport
