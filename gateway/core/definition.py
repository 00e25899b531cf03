"""The definitions of agents, tools and other objects of the agents API, as they are stored.

The agents API makes them from requests and renders them; a turn gets an agent's definition in its `AgentSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, Self

import msgspec
from msgspec import Struct, field

# The largest JSON schema of a tool; a model's window would hold few of this size.
MAX_SCHEMA_BYTES = 64 * 1024
# The delay of a fixed filler that names none, in milliseconds; the same as in the settings.
FILLER_AFTER_MS: Final = 1000.0
# The number of turns that make a sleeptime agent's run due, unless its definition has another.
SLEEP_EVERY = 5


class _Stored(Struct, frozen=True):
    """A definition, which is stored as JSON."""

    def dump(self) -> dict[str, Any]:
        """Returns the definition as it is stored."""
        body: dict[str, Any] = msgspec.to_builtins(self)
        return body

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """Reads a stored definition. A field that this version does not know is ignored."""
        return msgspec.convert(body, cls)


class FixedFiller(_Stored, frozen=True):
    """A sentence for the user when a tool takes longer than `after_ms`."""

    # The sentence.
    say: str
    # The delay in milliseconds.
    after_ms: float = FILLER_AFTER_MS


# The filler before a tool: a sentence of the model's own, a fixed one, or nothing.
Filler = Literal["model", "none"] | FixedFiller


class Sleeptime(_Stored, frozen=True):
    """The sleeptime agents of an agent, which read its conversations in the background and edit its blocks."""

    # The public ids of these agents.
    agents: tuple[str, ...] = ()
    # The number of turns after which a run is due; None: each turn makes a run due.
    frequency: int | None = SLEEP_EVERY
    # True: a run is due when the conversation rests, whatever the number of turns.
    at_rest: bool = False

    @property
    def every(self) -> int:
        """The number of turns after which a run is due; 0: turns make no run due."""
        return 0 if self.at_rest else self.frequency or 1


class AgentDefinition(_Stored, frozen=True):
    """The configuration of one agent."""

    # The kind of the agent's loop, which decides how the agent speaks, and its first tools and rules
    # (gateway.core.memory.builtin).
    kind: str
    # The agent's own prompt.
    system: str = ""
    # A text for people.
    description: str | None = None
    # The application's own fields.
    metadata: dict[str, Any] = field(default_factory=dict)
    # True: lists leave the agent out.
    hidden: bool = False
    # `<upstream>/<model>` or `<model>`; None: the gateway's first model.
    model: str | None = None
    # The agent's context window in tokens; None: the model's window.
    context_window: int | None = None
    # Fields that are added to each of the agent's requests (temperature, max_tokens, response_format, …).
    sampling: dict[str, Any] = field(default_factory=dict)
    # Tool rules, each {"type", "tool_name", …} (gateway.core.tool_rule).
    rules: tuple[dict[str, Any], ...] = ()
    # The agent's tools get an argument for the model's thoughts; None: the default of the agent's kind.
    thinks_aloud: bool | None = None
    # The most messages in the window; None: tokens alone limit the window.
    most_messages: int | None = None
    # The fewest messages that stay in the window when it is cut; None: half of the most.
    least_messages: int | None = None
    # True: each turn of the user begins with an empty window.
    clears: bool = False
    # The IANA time zone of the dates that the model reads.
    timezone: str = "UTC"
    # The terms for summaries: mode, model, prompt, sliding_window_percentage, clip_chars, each optional.
    compaction: dict[str, Any] = field(default_factory=dict)
    # Chat messages with which a conversation begins.
    initial_messages: tuple[dict[str, Any], ...] = ()
    # True: the memory section is rendered again before each call of the model.
    rebuilds: bool = False
    # The most tokens of a note; None: the value of the settings.
    recall_tokens: int | None = None
    # True: facts are learned from the agent's conversations.
    learns: bool = False
    # The filler before a tool; None: that of the agent's kind.
    filler: Filler | None = None
    # The sleeptime agents that read the agent's turns; None: no sleeptime agents.
    sleeptime: Sleeptime | None = None
    # Fields of a dialect that have no effect here and are returned as they came.
    retained: dict[str, Any] = field(default_factory=dict, name="kept")


# The definition of a profile, in which no field has an effect.
NO_DEFINITION: Final = AgentDefinition("")


class ToolDefinition(_Stored, frozen=True):
    """A tool that a caller has defined. Its name is that of the record that stores the definition."""

    # The tool as a model gets it: {"name", "description", "parameters"}.
    schema: dict[str, Any]
    # The kind of the source. The gateway runs no "json" (declared only) and no "typescript" (from agent files).
    source_type: Literal["python", "typescript", "webhook", "json", "mcp"] = "python"
    # Program text, a webhook's URL, or `<uid of an MCP server>/<name of the tool there>` (`McpToolSource`).
    source: str = ""
    # A text for people.
    description: str | None = None
    # True: a person must approve each call.
    needs_approval: bool = False
    # True: calls of the tool may run at the same time.
    is_parallel: bool = False
    # The most characters of a result that the model gets.
    result_chars: int = 50_000
    # The application's own tags.
    tags: tuple[str, ...] = ()
    # The application's own fields.
    metadata: dict[str, Any] = field(default_factory=dict)
    # Fields of a dialect that have no effect here and are returned as they came.
    retained: dict[str, Any] = field(default_factory=dict, name="kept")


class McpServerDefinition(_Stored, frozen=True):
    """An MCP server that a caller has registered. Its name is that of the record that stores the definition."""

    # The URL of a server that speaks HTTP.
    url: str = ""
    # The command that starts a server over stdio; empty: the server has a URL.
    command: tuple[str, ...] = ()
    # The entry of the setting tools.headers that is sent to the server; None: no entry is sent.
    header: str | None = None
    # The tools in the server's last list that cannot be called.
    left_out: tuple[str, ...] = ()
    # The transport of a server with a URL.
    transport: Literal["streamable_http", "sse"] = "streamable_http"
    # The header in which the token is sent; None: Authorization.
    token_header: str | None = None
    # The encrypted secrets by their fields (gateway.agents.core.mcp_server).
    secrets: dict[str, str] = field(default_factory=dict)


class IdentityDefinition(_Stored, frozen=True):
    """A user or an organisation of an application, to which agents belong.

    The name of the record that stores the definition is the application's key for it.
    """

    # The name that people read.
    name: str
    # The kind of the identity.
    type: Literal["org", "user", "other"] = "user"
    # The properties, each {"key", "value", "type"}.
    properties: tuple[dict[str, Any], ...] = ()


class ConversationDefinition(_Stored, frozen=True):
    """A conversation as a caller has described it, and the model with which it goes on."""

    # A short text about the conversation, for people.
    summary: str | None = None
    # A description of the conversation, for people.
    description: str | None = None
    # True: lists leave the conversation out.
    hidden: bool = False
    # The time at which the conversation was archived, in seconds since the epoch; None: not archived.
    archived: float | None = None
    # The model that answers in place of the agent's; None: the agent's.
    model: str | None = None
    # The tokens of the window in place of the agent's; None: the agent's.
    context_window: int | None = None
    # The settings of sampling that replace the agent's.
    sampling: dict[str, Any] = field(default_factory=dict)
    # The fields that `AgentDefinition` retains, too.
    retained: dict[str, Any] = field(default_factory=dict, name="kept")
