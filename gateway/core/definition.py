"""The configuration of an agent that was made over REST: the body of its definition, in the gateway's words.

A dialect makes it of a request and shows it again; what a turn needs of it goes into `AgentSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import msgspec
from msgspec import Struct, field
from msgspec.structs import fields

# Of the JSON schema of one tool; a model's window would hold few of this size.
MOST_SCHEMA_BYTES = 64 * 1024
# So many turns make a sleeptime agent's run due, where nobody says how many.
SLEEP_EVERY = 5


class _Stored(Struct, frozen=True):
    """A definition, which is stored as JSON."""

    def body(self) -> dict[str, Any]:
        """Returns it as it is stored."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """Reads what was stored. A field of another version that is not known here is left alone."""
        known = {each.name for each in fields(cls)}
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in body.items()
                if name in known
            }
        )


class Sleeptime(_Stored, frozen=True):
    """The agents that read, beside the conversation, what is said to an agent, and edit its blocks.

    agents: their public names. frequency: so many turns make a run due; None: each does. at_rest: none does, they read
    when the conversation rests.
    """

    agents: tuple[str, ...] = ()
    frequency: int | None = SLEEP_EVERY
    at_rest: bool = False

    @property
    def every(self) -> int:
        """After so many turns a run is due; 0: turns make none due."""
        return 0 if self.at_rest else self.frequency or 1


class AgentDefinition(_Stored, frozen=True):
    """One agent's configuration.

    kind: its loop: how it speaks, and which tools and rules it begins with (gateway.core.memory.builtin).
    model: as its caller names it, `<upstream>/<model>` or `<model>`; None: the gateway's first. context_window: tokens.
    sampling: fields of a chat completion that each of its requests bears (temperature, max_tokens, response_format, …).
    rules: tool rules, each {"type", "tool_name", …} (gateway.core.tool_rule). thinks_aloud: its tools get an argument
    for thoughts; None: as its kind says.
    most_messages, least_messages: above so many the window begins anew, and then keeps at least so many; None: only its
    tokens count. clears: each turn of the user begins with an empty window.
    timezone: an IANA name, for dates that the model reads. compaction: mode, model, prompt,
    sliding_window_percentage, clip_chars, as far as they are given.
    initial_messages: chat messages with which a conversation begins.
    rebuilds: the memory section is rendered anew before each call. recall_tokens: of a note; None: as the settings say.
    learns: facts are learned from what is said. filler: what is said ahead of a tool: "model", {"after_ms", "say"} or
    "none"; None: as its kind says. sleeptime: None: nobody works after its turns.
    kept: fields of a dialect that have no effect here, to be given back.
    """

    kind: str
    system: str = ""
    description: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    hidden: bool = False
    model: str | None = None
    context_window: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    rules: tuple[dict[str, Any], ...] = ()
    thinks_aloud: bool | None = None
    most_messages: int | None = None
    least_messages: int | None = None
    clears: bool = False
    timezone: str = "UTC"
    compaction: dict[str, Any] = field(default_factory=dict)
    initial_messages: tuple[dict[str, Any], ...] = ()
    rebuilds: bool = False
    recall_tokens: int | None = None
    learns: bool = False
    filler: Literal["model", "none"] | dict[str, Any] | None = None
    sleeptime: Sleeptime | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        sleeptime = body.get("sleeptime")
        read = None if sleeptime is None else Sleeptime.of(sleeptime)
        return super().of({**body, "sleeptime": read})


class ToolDefinition(_Stored, frozen=True):
    """A tool that was made over REST; its name is its definition's.

    schema: {"name", "description", "parameters"} as a model is shown it. source_type: python | webhook | mcp | json
    (only declared) | typescript (of an agent file): nobody runs the last two here. source: Python, TypeScript, a
    webhook's URL, or `<uid of an MCP server>/<its name there>`.
    needs_approval: a person must approve each call. is_parallel: calls of it may run beside one another.
    result_chars: the most of a result that a model reads.
    """

    schema: dict[str, Any]
    source_type: Literal["python", "typescript", "webhook", "json", "mcp"] = "python"
    source: str = ""
    description: str | None = None
    needs_approval: bool = False
    is_parallel: bool = False
    result_chars: int = 50_000
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)


class McpServerDefinition(_Stored, frozen=True):
    """An MCP server that was named over REST; its name is its definition's."""

    url: str = ""  # of one that speaks HTTP
    command: tuple[str, ...] = ()  # starts one that speaks over its pipes; empty: there is a url
    header: str | None = None  # the name of an entry of the setting tools.headers, which is sent to it
    left_out: tuple[
        str, ...
    ] = ()  # names of tools that it listed when it was asked last, and that cannot be called
    transport: Literal["streamable_http", "sse"] = "streamable_http"  # where there is a url
    token_header: str | None = None  # in which its token is sent; None: Authorization
    secrets: dict[str, str] = field(
        default_factory=dict
    )  # field -> value, encrypted (gateway.agents.core.mcp_server)


class IdentityDefinition(_Stored, frozen=True):
    """A user or an organisation of an application, to whom agents belong.

    The application's key for it is its definition's name; `name` is for people. properties: each {"key", "value",
    "type"}.
    """

    name: str
    type: Literal["org", "user", "other"] = "user"
    properties: tuple[dict[str, Any], ...] = ()


class ConversationDefinition(_Stored, frozen=True):
    """A conversation, as it was described over REST, and the model that it goes on with.

    summary, description: in its caller's words. archived: when it was put aside, in seconds since the epoch; None: it
    is not. model, context_window, sampling: before those of the agent. kept: as in `AgentDefinition`.
    """

    summary: str | None = None
    description: str | None = None
    hidden: bool = False
    archived: float | None = None
    model: str | None = None
    context_window: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)
