"""The settings of an operator, as frozen values.

`load` reads them, `check` finds the mistakes that no single value shows, and `schema` knows names, types and ranges.
`docs/settings.toml` describes each setting in full; a test compares it with this module.
"""

from __future__ import annotations

import os
import re
from functools import cache, lru_cache
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from gateway.settings.mistakes import MAX_NUMBER
from gateway.validation import list_field_types, list_metas
from storage.masked_url import mask_password

DefaultMode = Literal["on", "read", "off"]
Compaction = Literal["summary", "truncate"]
MetricsKeys = Literal["auto", "any", "metrics"]
History = Literal["full", "client", "append"]
Capability = Literal[
    "any_call_id",
    "custom_tools",
    "developer_role",
    "max_completion_tokens",
    "metadata",
    "replies_without_thoughts",
    "responses",
    "stream_usage",
]
# The value of the capability `responses`; true in its place means "stored".
ResponsesSupport = Literal["stored", "stateless"]
# "openai" is any upstream that speaks OpenAI's dialect, and "scripted" is the built-in model. The others are rows of
# adapters/providers.py, with which a test compares them.
Kind = Literal[
    "openai",
    "anthropic",
    "azure",
    "deepseek",
    "fireworks",
    "gemini",
    "groq",
    "llama.cpp",
    "lmstudio",
    "mistral",
    "ollama",
    "openrouter",
    "together",
    "vllm",
    "xai",
    "scripted",
]
# The other kinds have an address of their own.
NEEDS_ADDRESS = ("openai", "azure")
DEFAULT_PROFILE = "default"
# With --single-user all callers are one person; this is the name of that user.
SINGLE_USER = "owner"
# With this name as memory.background_model no model is used, even if [[models]] has prices.
NO_MODEL = "none"
# Standard Webhooks writes its secrets so.
SECRET_PREFIX = "whsec_"

# A text of one line that is not empty. Fields of the type `str` may be empty and have lines.
_LINE = r"\A[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*\Z"
Text = Annotated[str, Meta(pattern=_LINE)]
# Marks a field with secrets, which a repr leaves out and `check-config` masks.
_SECRET_MARK = Meta(extra_json_schema={"writeOnly": True})
# A secret in one line. `env:NAME` stands for the variable NAME until the settings are loaded.
Secret = Annotated[str, Meta(pattern=_LINE), _SECRET_MARK]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveInt = Annotated[int, Meta(ge=1)]


class Table(Struct, frozen=True):
    """A table of settings. Its repr leaves secrets out."""

    def __repr__(self) -> str:
        secret_names = list_secret_fields(type(self))
        shown = (
            f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name not in secret_names
        )
        return f"{type(self).__name__}({', '.join(shown)})"


@cache
def list_secret_fields(table_type: type[Struct]) -> tuple[str, ...]:
    """Returns the names of a table's fields with secrets."""
    return tuple(
        name for name, hint in list_field_types(table_type).items() if _SECRET_MARK in list_metas(hint)
    )


class ServerSettings(Table, frozen=True):
    """The table [server]."""

    # The address on which the gateway listens.
    host: Text = "127.0.0.1"
    # The port; 0: any free port.
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    # A gateway key, which is installed at the start; None: no key of the settings.
    key: Secret | None = None
    # An operator's key for all projects, which is installed at the start.
    operator_key: Secret | None = None
    # Host names, besides this machine's own, under which requests are answered while there are no keys.
    allowed_hosts: tuple[Text, ...] = ()
    # The origins of pages that may ask from a browser.
    cors_origins: tuple[Text, ...] = ()
    # The most bytes of a JSON body.
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 32 * 1024 * 1024
    # The most bytes of a file or another form, which is passed on while it is read.
    max_upload_bytes: Annotated[int, Meta(ge=1024)] = 512 * 1024 * 1024
    # The most messages of a request.
    max_messages: PositiveInt = 5000
    # The seconds that running replies have to end at a stop.
    shutdown_s: NonNegativeInt = 30
    # True: each request has a line on stderr.
    access_log: bool = True
    # True: /mcp is served.
    mcp: bool = False
    # The kinds of keys that open /metrics.
    metrics_keys: MetricsKeys = "auto"
    # The seconds without an event after which a stream gets a comment; 0: no comments.
    keep_alive_comment_s: Annotated[float, Meta(ge=0.0, le=MAX_NUMBER)] = 0.0


class DatabaseSettings(Table, frozen=True):
    """The table [database]: the SQLite file at `path`, or the PostgreSQL at `url`."""

    # The path of the SQLite file.
    path: Text = "mnemogate.db"
    # The URL of a PostgreSQL, in place of the file.
    url: Secret | None = None
    # SQLite's `PRAGMA synchronous`.
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    # From here on for PostgreSQL alone.
    pool: Annotated[int, Meta(ge=2, le=1000)] = 8
    # True: a pooler in transaction mode is before PostgreSQL.
    pooled: bool = False
    # True: the pooler carries prepared statements.
    pooler_prepares: bool = False
    # The URL of the server itself, for notifications; None: `url`.
    listen_url: Secret | None = None

    @property
    def shown(self) -> str:
        """The database's name, for people: without a password."""
        return os.path.abspath(self.path) if self.url is None else mask_password(self.url)


class SideRequest(Table, frozen=True):
    """A request that an application makes for itself. gateway/core/request/side_requests.py knows some more."""

    # The name in errors about this entry.
    name: Text
    # The pattern that is matched at the start of a message.
    pattern: str
    # The memory mode of such a request.
    memory: Literal["off", "read"] = "off"
    # The message that is matched: the last if it is the user's; for "system" the first or the last, if it is a system
    # message.
    where: Literal["user", "system"] = "user"

    @property
    def leaves_nothing(self) -> bool:
        """True if nothing of the request is stored, not even hashes."""
        return self.where == "system"


class MemorySettings(Table, frozen=True):
    """The table [memory]."""

    # The memory mode of requests that name none.
    default: DefaultMode = "on"
    # The most tokens of a recalled note; 0: nothing is recalled.
    recall_tokens: NonNegativeInt = 1000
    # The most milliseconds that a reply waits for recall; a streamed reply waits for a fifth.
    recall_deadline_ms: PositiveInt = 150
    # The seconds after which an unchallenged turn is confirmed.
    idle_s: Annotated[float, Meta(ge=0.0, le=MAX_NUMBER)] = 120.0
    # The seconds after which a provider's prompt cache has expired.
    cache_s: Annotated[float, Meta(ge=0.0, le=MAX_NUMBER)] = 300.0
    # The treatment of messages that the client leaves out: put back ("full"), left out ("client"), or the client sends
    # new messages only ("append").
    history: History = "full"
    # The headers and body fields that may name the user; None: `USER_ORDER` of gateway/core/request/request_ids.py.
    user_order: tuple[Text, ...] | None = None
    # Those that may name the conversation; None: `CONVERSATION_ORDER` of the same module.
    conversation_order: tuple[Text, ...] | None = None
    # The user of requests that name none.
    default_user: Text | None = None
    # True: all callers are one person.
    single_user: bool = False
    # The most hidden tool rounds within one reply.
    max_tool_rounds: PositiveInt = 10
    # The days for which the recall of a turn is recorded; fractions are allowed, and 0 records nothing.
    keep_why_days: Annotated[float, Meta(ge=0, le=MAX_NUMBER)] = 7.0
    # The treatment of messages that leave a full window.
    compaction: Compaction = "summary"
    # The model that makes vectors, or "local"; None: memory is searched by words alone.
    embedder: Text | None = None
    # The most milliseconds that a reply waits for the vector of its question.
    embedder_wait_ms: NonNegativeInt = 100
    # The model of background work; None: `Settings.background_model` chooses one.
    background_model: Text | None = None
    # The most tokens a day of a project's background work; 0: no bound.
    background_daily_tokens: NonNegativeInt = 2_000_000
    # The number of confirmed messages after which facts are learned; 0: never.
    learn_every: NonNegativeInt = 8
    # True: facts may hold texts that look like a password, a key or a card number.
    learn_secrets: bool = False
    # The secret with which Open WebUI signs its users.
    openwebui_jwt_secret: Secret | None = None
    # The requests that applications make for themselves.
    side_requests: tuple[SideRequest, ...] = ()


class HostRule(Struct, frozen=True):
    """A host that tools may speak to."""

    # "http" or "https".
    scheme: str
    # The host's name, in lower case. `*.example.org` stands for each host below example.org, `*` for each host.
    name: str
    # The port of the host.
    port: int

    @classmethod
    def parse(cls, text: str) -> HostRule | None:
        """Reads `[http[s]://]name[:port]`, https without a scheme. Returns None if the text is no such rule."""
        match = _HOST_RULE.fullmatch(text.lower())
        if match is None:
            return None
        scheme = match[1] or "https"
        port = int(match[3]) if match[3] else {"http": 80, "https": 443}[scheme]
        return cls(scheme, match[2].strip("[]"), port) if port < 65536 else None

    def allows(self, scheme: str, host: str, port: int) -> bool:
        """Returns whether an address fits the rule. host: the name or address, without brackets."""
        if (self.scheme, self.port) != (scheme, port):
            return False
        return self.name in ("*", host) or (self.name.startswith("*.") and host.endswith(self.name[1:]))


# A name, with its labels; an IPv6 address stands in brackets.
_HOST_RULE = re.compile(
    r"(?:(https?)://)?(\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(\d{1,5}))?/?"
)


class ToolHeader(Table, frozen=True):
    """A header that MCP servers on a host are sent."""

    # The name by which an MCP server of the agents API names the header.
    name: Text
    # The only host that gets the header.
    host: Text
    # The name of the header.
    header: Text
    # The value of the header.
    value: Secret


class ToolSettings(Table, frozen=True):
    """The table [tools], about tools that are not the gateway's own."""

    # hosts, private_hosts: as `HostRule` reads them.
    hosts: tuple[Text, ...] = ()
    # The hosts that may have addresses of this machine or its network.
    private_hosts: tuple[Text, ...] = ()
    # The key that signs calls of webhooks: SECRET_PREFIX and base64; None: calls are not signed.
    webhook_secret: Secret | None = None
    # 32 bytes in base64; None: no secrets are stored.
    secrets_key: Secret | None = None
    # An interpreter for tools that are written in Python; None: the gateway's own.
    python: Text | None = None
    # The most seconds of a call of a tool in Python.
    python_timeout_s: Annotated[float, Meta(ge=1.0, le=180.0)] = 30.0
    # Command lines of MCP servers.
    mcp_stdio: tuple[Text, ...] = ()
    # The environment variables that the agents API may give to these servers.
    mcp_stdio_env: tuple[Text, ...] = ()
    # The headers for MCP servers.
    headers: tuple[ToolHeader, ...] = ()


class BatchSettings(Table, frozen=True):
    """The table [batch]."""

    # The seconds of the first wait before a provider is asked again; waits grow tenfold at most.
    poll_s: Annotated[float, Meta(ge=0.05, le=MAX_NUMBER)] = 60.0
    # The tokens that the batches of one project may use in a day; 0 sets no bound.
    daily_tokens: NonNegativeInt = 0


class UsageSettings(Table, frozen=True):
    """The table [usage]."""

    # The seconds between two writes of the counters.
    write_s: Annotated[float, Meta(ge=0.1, le=MAX_NUMBER)] = 60.0
    # The days after which the counters of users lose their names.
    keep_users_days: Annotated[int, Meta(ge=1, le=36_500)] = 62
    # True: the usage of every stream is asked for.
    ask_streams: bool = True


class ResponsesSettings(Table, frozen=True):
    """The table [responses]."""

    # The days for which a stored response stays if its request named no user.
    keep_days: Annotated[float, Meta(ge=1, le=MAX_NUMBER)] = 30


class TraceSettings(Table, frozen=True):
    """The table [traces]."""

    # The form in which spans name a user.
    user: Literal["hash", "plain", "none"] = "hash"


class UiSettings(Table, frozen=True):
    """The table [ui], about the page."""

    # True: the page is served.
    enabled: bool = True
    # True: the page is served over TLS, by a proxy before the gateway.
    https: bool = False
    # The seconds that a session lasts.
    session_s: Annotated[float, Meta(ge=60.0, le=MAX_NUMBER)] = 43_200.0
    # The seconds that a session lasts without a request.
    idle_s: Annotated[float, Meta(ge=60.0, le=MAX_NUMBER)] = 1_800.0
    # The origins of applications that may show "about me" in a frame.
    frame_origins: tuple[Text, ...] = ()
    # The days for which the audit holds the actions of operators; fractions are allowed.
    audit_days: Annotated[float, Meta(ge=0, le=MAX_NUMBER)] = 90.0


# Headers that identify an account or an application, and are no keys.
_HEADERS_WITHOUT_KEY = frozenset(
    {
        "openai-organization",
        "openai-project",
        "http-referer",
        "x-title",
        "user-agent",
        "anthropic-version",
        "anthropic-beta",
    }
)


class UpstreamSettings(Table, frozen=True):
    """An upstream."""

    # The name by which models, headers and metrics name the upstream.
    name: Text
    # The dialect and the capabilities.
    kind: Kind = "openai"
    # The base URL; None: the address of the kind.
    base_url: Text | None = None
    # One key or several.
    api_key: Secret | tuple[Secret, ...] | None = None
    # The most seconds of connecting.
    connect_timeout_s: Annotated[float, Meta(ge=0.1, le=MAX_NUMBER)] = 10.0
    # The OpenAI SDK's own default; reasoning models think long before their first byte.
    first_byte_timeout_s: Annotated[float, Meta(ge=0.1, le=MAX_NUMBER)] = 600.0
    # The most seconds between two pieces of a reply.
    idle_timeout_s: Annotated[float, Meta(ge=0.1, le=MAX_NUMBER)] = 300.0
    # The most seconds of a whole reply; None: no limit.
    total_timeout_s: Annotated[float, Meta(ge=0.1, le=MAX_NUMBER)] | None = None
    # The most retries of a request that got nothing of a reply.
    retries: Annotated[int, Meta(ge=0, le=10)] = 0
    # The capabilities that the kind leaves open: True if the upstream has the capability.
    takes: dict[Capability, bool | ResponsesSupport] = field(default_factory=dict)
    # Headers of each request.
    headers: Annotated[dict[str, Text], _SECRET_MARK] = field(default_factory=dict)
    # Patterns of the model names that go to this upstream; empty: the names that no other upstream takes.
    models: tuple[Text, ...] = ()
    # The tokens of the context window; None: not known.
    context_window: PositiveInt | None = None
    # The provider with whose batch API it works; None: its kind and its address decide.
    batches: Literal["openai", "anthropic", "none"] | None = None
    # The HTTP proxy before it, or `env:NAME`.
    proxy: Secret | None = None
    # Whether the upstream gets the headers of a trace; None: at a private address, or if the client has sent some.
    propagate: Literal["always", "never"] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """Its keys; empty if callers bring their own."""
        if self.api_key is None:
            return ()
        return (self.api_key,) if isinstance(self.api_key, str) else self.api_key

    @property
    def capabilities(self) -> dict[str, bool | str]:
        """The settings of its capabilities, by the names that adapters have for them."""
        responses = self.takes.get("responses")
        takes: dict[str, bool | str] = {str(name): value for name, value in self.takes.items()}
        return {**takes, "responses": "stored"} if responses is True else takes

    @property
    def has_key(self) -> bool:
        """True if the settings may hold a key of its account. A header counts as a key unless it is known to be none.

        With a key the account's files and the like are guarded. Whether callers have to bring a key is decided by
        `gets_caller_key`: some upstreams take the caller's key next to a header of the settings.
        """
        return bool(self.keys) or not {name.lower() for name in self.headers} <= _HEADERS_WITHOUT_KEY

    @property
    def gets_caller_key(self) -> bool:
        """True if the upstream gets the caller's key."""
        key_headers = {name.lower() for name in self.headers} & {"authorization", "x-api-key", "api-key"}
        return self.kind != "scripted" and not self.keys and not key_headers


class DeploymentSettings(Table, frozen=True):
    """A further upstream that serves a model."""

    # The name of the upstream.
    upstream: Text
    # The model's name there; None: the same name.
    model: Text | None = None
    # The tokens of the context window; None: the upstream's.
    context_window: PositiveInt | None = None


class PriceSettings(Table, frozen=True):
    """The price of a million tokens."""

    # The price of input.
    input: Annotated[float, Meta(ge=0, le=MAX_NUMBER)]
    # The price of output.
    output: Annotated[float, Meta(ge=0, le=MAX_NUMBER)]
    # The price of input that the upstream has read from its cache; None: the price of other input.
    cached: Annotated[float, Meta(ge=0, le=MAX_NUMBER)] | None = None


class ModelSettings(Table, frozen=True):
    """A name that callers ask for (`alias`)."""

    # The name that callers ask for.
    alias: Text
    # The model's name at the upstream.
    model: Text
    # The name of the upstream; None: the only one.
    upstream: Text | None = None
    # The tokens of the context window; None: the upstream's.
    context_window: PositiveInt | None = None
    # The price of a million tokens, in whatever currency; a number is the price of input and output alike.
    price: Annotated[float, Meta(ge=0, le=MAX_NUMBER)] | PriceSettings | None = None
    # Other names that callers could ask for.
    fallbacks: tuple[Text, ...] = ()
    # Further upstreams over which conversations are spread.
    deployments: tuple[DeploymentSettings, ...] = ()

    @property
    def prices(self) -> PriceSettings | None:
        """The prices of input and of output, if the model has a price."""
        if self.price is None or isinstance(self.price, PriceSettings):
            return self.price
        return PriceSettings(self.price, self.price)


class BlockSettings(Table, frozen=True):
    """A memory block of a profile."""

    # The name of the block in a memory.
    label: Text
    # The text that explains the block to the model.
    description: str = ""
    # The value with which the block of each user begins.
    value: str = ""
    # The most characters of a value.
    limit: PositiveInt = 2000
    # True: the model cannot change the block.
    read_only: bool = False
    # True: all users of the profile share one block.
    shared: bool = False
    # True: models can change a shared block.
    writable: bool = False


class FillerSettings(Table, frozen=True):
    """A sentence for the user when a tool takes longer than `after_ms`."""

    # The sentence.
    say: str
    # The milliseconds after which the sentence is sent.
    after_ms: Annotated[float, Meta(ge=0, le=60_000)] = 1000.0


class ProfileSettings(Table, frozen=True):
    """A profile. None means that the setting of the same name in [memory], or of its upstream, holds."""

    # The name in `model = "agent/<name>"`.
    name: Text
    # The model: an alias, or a name that the upstream knows.
    model: Text | None = None
    # The upstream that has `model` under this name.
    upstream: Text | None = None
    # The agent's own system prompt.
    system: str | None = None
    # The memory mode of requests that name none.
    memory: DefaultMode | None = None
    # True: the model is offered memory tools.
    memory_tools: bool = False
    # The treatment of messages that the client leaves out: put back ("full"), left out ("client"), or the client sends
    # new messages only ("append").
    history: History | None = None
    # The occasions on which the memory section is rendered again: if that costs no cache, or every request.
    rebuild: Literal["free", "always"] = "free"
    # The sentence for the user while tools run; "model": the model writes one.
    filler: Literal["model"] | FillerSettings | None = None
    # The treatment of messages that leave a full window.
    compaction: Compaction | None = None
    # The tokens of the context window.
    context_window: PositiveInt | None = None
    # True: an agent of each user's own edits the user's blocks in the background.
    sleeptime: bool = False
    # The memory blocks of each user.
    blocks: tuple[BlockSettings, ...] = ()


class ProjectSettings(Table, frozen=True):
    """A project, to which gateway keys belong."""

    # The memory mode of requests that name none; None: `MemorySettings.default`.
    memory: DefaultMode | None = None
    # The profile of requests that name none.
    profile: Text | None = None
    # The days after which messages and all that follows from them are forgotten; None: never.
    retention_days: Annotated[float, Meta(ge=1, le=MAX_NUMBER)] | None = None
    # True: the project may list the files and batches of an upstream's account; None: the default project may.
    lists_account: bool | None = None


class Settings(Table, frozen=True):
    """All settings. Each field is the table, or the list of tables, of its name."""

    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    memory: MemorySettings = MemorySettings()
    tools: ToolSettings = ToolSettings()
    batch: BatchSettings = BatchSettings()
    responses: ResponsesSettings = ResponsesSettings()
    usage: UsageSettings = UsageSettings()
    ui: UiSettings = UiSettings()
    traces: TraceSettings = TraceSettings()
    upstreams: tuple[UpstreamSettings, ...] = (UpstreamSettings("scripted", kind="scripted"),)
    models: tuple[ModelSettings, ...] = ()
    profiles: tuple[ProfileSettings, ...] = ()
    projects: dict[str, ProjectSettings] = field(default_factory=dict)

    @property
    def default_user(self) -> str | None:
        """The user of requests that name no user, if the settings have one."""
        return self.memory.default_user or (SINGLE_USER if self.memory.single_user else None)

    @property
    def background_model(self) -> str | None:
        """The model for background work: the model that the settings name for it, else the cheapest with a price.

        None if there is no such model, or if the settings exclude one.
        """
        named_model = self.memory.background_model
        if named_model is not None:
            return None if named_model == NO_MODEL else named_model
        # The embedder is left out: it may have the lowest price, but it writes no text.
        writers = [model for model in self.models if model.alias != self.memory.embedder]
        priced = [
            (price.input + price.output, model.alias)
            for model in writers
            if (price := model.prices) is not None
        ]
        return min(priced, key=lambda each: each[0])[1] if priced else None

    def choose_default_profile(self, project: str) -> str:
        """Returns the profile of this project's requests that name no profile."""
        project_settings = self.projects.get(project)
        return (project_settings.profile if project_settings else None) or DEFAULT_PROFILE

    def get_upstream(self, name: str) -> UpstreamSettings:
        """Returns the upstream with a name that these settings have, such as the name in a route."""
        return next(each for each in self.upstreams if each.name == name)

    def find_profile(self, name: str) -> ProfileSettings | None:
        """Returns the profile with a name, if there is one."""
        return next((each for each in self.profiles if each.name == name), None)


# A profile with the scripted model, so that memory tools can be watched without a settings file. It is the default
# profile, so memories of the first minute are known under any model's name, to the command line's defaults, and to the
# real model that comes later.
DEMO_PROFILE = ProfileSettings(
    DEFAULT_PROFILE,
    model="scripted",
    # Named, because a list of aliases hides models that are not in it.
    upstream="scripted",
    memory_tools=True,
    blocks=(BlockSettings("human", "What is known about the person you talk to.", limit=2000),),
)


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Returns whether a host name or address means this machine alone."""
    host = host.strip("[]").lower().rstrip(".")
    return (
        host in ("localhost", "::1")
        or host.endswith(".localhost")
        or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
    )
