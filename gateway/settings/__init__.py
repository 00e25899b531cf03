"""The settings that an operator can make, as frozen values.

`load` reads them, `check` judges what no single value can say, and `schema` knows names, types and ranges.
`docs/settings.toml` says what each setting is for; a test compares it with this module.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from gateway.settings.schema import prose, ranged

DefaultMode = Literal["on", "read", "off"]
Compaction = Literal["summary", "truncate"]
MetricsKeys = Literal["auto", "any", "metrics"]
History = Literal["full", "client", "append"]
Capability = Literal[
    "any_call_id", "developer_role", "max_completion_tokens", "metadata", "responses", "stream_usage"
]
# For `responses`, where true is "stored".
ResponsesWay = Literal["stored", "stateless"]
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
# The user whose memory it is when --single-user makes one person of all callers.
SINGLE_USER = "owner"
# With this name as memory.background_model no model is used, even if [[models]] has prices.
NO_MODEL = "none"
# Standard Webhooks writes its secrets so.
SECRET_PREFIX = "whsec_"

# A password stands among the parameters or before the host. Whatever looks like one goes, however wrong the URL is.
_PASSWORD_GIVEN = re.compile(r"([?&](?:ssl)?password=)[^&]*", re.IGNORECASE)
_PASSWORD_BEFORE = re.compile(r"(?<=://)([^:]*):.*@")


def without_password(url: str) -> str:
    """Returns the URL of a database as it may be shown and logged."""
    return _PASSWORD_BEFORE.sub(r"\1:***@", _PASSWORD_GIVEN.sub(r"\1***", url))


@dataclass(frozen=True, slots=True)
class ServerSettings:
    host: str = "127.0.0.1"
    port: int = ranged(8080, 0, 65535)
    key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = ranged(32 * 1024 * 1024, 1024)
    max_upload_bytes: int = ranged(512 * 1024 * 1024, 1024)
    max_messages: int = ranged(5000, 1)
    shutdown_s: int = ranged(30, 0)
    access_log: bool = True
    metrics_keys: MetricsKeys = "auto"
    keep_alive_comment_s: float = ranged(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """The database: the SQLite file at `path`, or the PostgreSQL at `url`. pool and what follows it: PostgreSQL's."""

    path: str = "mnemogate.db"
    url: str | None = field(default=None, repr=False)
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    pool: int = ranged(8, 2, 1000)
    pooled: bool = False
    pooler_prepares: bool = False
    listen_url: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The database's name, for people: without a password."""
        return os.path.abspath(self.path) if self.url is None else without_password(self.url)


@dataclass(frozen=True, slots=True)
class SideRequest:
    """A request that an application makes for itself. gateway/core/request/side_requests.py knows some more.

    pattern: matched at the start of the last message if that is the user's, or of the first if it is a system message.
    """

    name: str
    pattern: str = prose()
    memory: Literal["off", "read"] = "off"
    where: Literal["user", "system"] = "user"

    @property
    def leaves_nothing(self) -> bool:
        return self.where == "system"


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """The table [memory]."""

    default: DefaultMode = "on"
    recall_tokens: int = ranged(1000, 0)
    recall_deadline_ms: int = ranged(150, 1)
    idle_s: float = ranged(120.0, 0.0)
    cache_s: float = ranged(300.0, 0.0)
    history: History = "full"
    # user_order, conversation_order: None means the orders of gateway/core/request/identity.py.
    user_order: tuple[str, ...] | None = None
    conversation_order: tuple[str, ...] | None = None
    default_user: str | None = None
    single_user: bool = False
    max_tool_rounds: int = ranged(10, 1)
    compaction: Compaction = "summary"
    embedder: str | None = None
    embedder_wait_ms: int = ranged(100, 0)
    background_model: str | None = None
    background_daily_tokens: int = ranged(2_000_000, 0)
    learn_every: int = ranged(8, 0)
    learn_secrets: bool = False
    # `env:NAME` stands for the variable NAME until the settings are loaded.
    openwebui_jwt_secret: str | None = field(default=None, repr=False)
    side_requests: tuple[SideRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class HostRule:
    """A host that tools may speak to. name: in lower case; `*.example.org`: each below it; `*`: each."""

    scheme: str
    name: str
    port: int

    @classmethod
    def of(cls, text: str) -> HostRule | None:
        """Reads `[http[s]://]name[:port]`; None: it is no such thing. Without a scheme it is https."""
        found = _HOST_RULE.fullmatch(text.lower())
        if found is None:
            return None
        scheme = found[1] or "https"
        port = int(found[3]) if found[3] else {"http": 80, "https": 443}[scheme]
        return cls(scheme, found[2].strip("[]"), port) if port < 65536 else None

    def allows(self, scheme: str, host: str, port: int) -> bool:
        if (self.scheme, self.port) != (scheme, port):
            return False
        return self.name in ("*", host) or (self.name.startswith("*.") and host.endswith(self.name[1:]))


# A name, with its labels; an IPv6 address stands in brackets.
_HOST_RULE = re.compile(
    r"(?:(https?)://)?(\*|(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::(\d{1,5}))?/?"
)


@dataclass(frozen=True, slots=True)
class ToolHeader:
    """A header for MCP servers on a host. value: `env:NAME` stands for a variable until the settings are loaded."""

    name: str
    host: str
    header: str
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """The table [tools], about tools that are not the gateway's own."""

    # hosts, private_hosts: as `HostRule` reads them.
    hosts: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    # SECRET_PREFIX and base64; `env:NAME` stands for the variable NAME until the settings are loaded.
    webhook_secret: str | None = field(default=None, repr=False)
    # 32 bytes in base64, likewise; None: no secrets are stored.
    secrets_key: str | None = field(default=None, repr=False)
    # An interpreter for tools that are written in Python; None: the gateway's own.
    python: str | None = None
    python_timeout_s: float = ranged(30.0, 1.0, 180.0)
    # Command lines of MCP servers.
    mcp_stdio: tuple[str, ...] = ()
    # The variables that these may be given over REST.
    mcp_stdio_env: tuple[str, ...] = ()
    headers: tuple[ToolHeader, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The table [batch]. poll_s: the first wait before a provider is asked again; waits grow tenfold at most.

    daily_tokens: of each project; 0 sets no bound.
    """

    poll_s: float = ranged(60.0, 0.05)
    daily_tokens: int = ranged(0, 0)


# Headers that say whose a request is, and are no keys.
_NO_KEYS = frozenset(
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


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """An upstream."""

    name: str
    kind: Kind = "openai"
    base_url: str | None = None
    # One key or several; `env:NAME` stands for the variable NAME until the settings are loaded.
    api_key: str | tuple[str, ...] | None = field(default=None, repr=False)
    connect_timeout_s: float = ranged(10.0, 0.1)
    # The OpenAI SDK's own default; reasoning models think long before their first byte.
    first_byte_timeout_s: float = ranged(600.0, 0.1)
    idle_timeout_s: float = ranged(300.0, 0.1)
    total_timeout_s: float | None = ranged(None, 0.1)
    retries: int = ranged(0, 0, 10)
    # Capability -> whether it has it, where its kind does not tell.
    takes: dict[Capability, bool | ResponsesWay] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    models: tuple[str, ...] = ()
    context_window: int | None = ranged(None, 1)
    # Whose batch API it has; None: as its kind has it.
    batches: Literal["openai", "anthropic", "none"] | None = None
    # The HTTP proxy before it, or `env:NAME`.
    proxy: str | None = field(default=None, repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """Its keys; none where callers bring their own."""
        if self.api_key is None:
            return ()
        return (self.api_key,) if isinstance(self.api_key, str) else self.api_key

    @property
    def capabilities(self) -> dict[str, bool | str]:
        """Returns what the settings say of its capabilities, by the names that adapters have for them."""
        responses = self.takes.get("responses")
        takes: dict[str, bool | str] = {str(name): value for name, value in self.takes.items()}
        return {**takes, "responses": "stored"} if responses is True else takes

    @property
    def has_key(self) -> bool:
        """Says whether the settings may have a key of its account: any header may be one that is not known as none.

        What lies in the account is guarded by this. Whom to ask for a key is another question (`is_keyless`): beside a
        header of their own, some upstreams take the caller's.
        """
        return bool(self.keys) or not {name.lower() for name in self.headers} <= _NO_KEYS

    @property
    def is_keyless(self) -> bool:
        """Says whether the caller's key is the one that counts there."""
        own = {name.lower() for name in self.headers} & {"authorization", "x-api-key", "api-key"}
        return self.kind != "scripted" and not self.keys and not own


@dataclass(frozen=True, slots=True)
class DeploymentSettings:
    """A further place where a model is served. model: its name there; None means the same name."""

    upstream: str
    model: str | None = None
    context_window: int | None = ranged(None, 1)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A name that callers ask for (`alias`)."""

    alias: str
    model: str
    upstream: str | None = None
    context_window: int | None = ranged(None, 1)
    # Of a million tokens, in whatever currency, since prices are only compared.
    price: float | None = ranged(None, 0)
    # Other names that callers could ask for.
    fallbacks: tuple[str, ...] = ()
    deployments: tuple[DeploymentSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockSettings:
    label: str
    description: str = prose("")
    value: str = prose("")
    limit: int = ranged(2000, 1)
    read_only: bool = False
    shared: bool = False
    writable: bool = False


@dataclass(frozen=True, slots=True)
class FillerSettings:
    """A sentence that is said when a tool takes longer than `after_ms`."""

    say: str = prose()
    after_ms: float = ranged(1000.0, 0, 60_000)


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """A profile. None means that the setting of the same name in [memory], or of its upstream, holds."""

    name: str
    model: str | None = None
    upstream: str | None = None
    system: str | None = prose(None)
    memory: DefaultMode | None = None
    memory_tools: bool = False
    history: History | None = None
    rebuild: Literal["free", "always"] = "free"
    filler: Literal["model"] | FillerSettings | None = None
    compaction: Compaction | None = None
    context_window: int | None = ranged(None, 1)
    sleeptime: bool = False
    blocks: tuple[BlockSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    memory: DefaultMode | None = None
    profile: str | None = None
    retention_days: float | None = ranged(None, 1)
    lists_account: bool | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    memory: MemorySettings = MemorySettings()
    tools: ToolSettings = ToolSettings()
    batch: BatchSettings = BatchSettings()
    upstreams: tuple[UpstreamSettings, ...] = (UpstreamSettings("scripted", kind="scripted"),)
    models: tuple[ModelSettings, ...] = ()
    profiles: tuple[ProfileSettings, ...] = ()
    projects: dict[str, ProjectSettings] = field(default_factory=dict)

    @property
    def default_user(self) -> str | None:
        """The user of requests that name nobody; None where they have none."""
        return self.memory.default_user or (SINGLE_USER if self.memory.single_user else None)

    @property
    def background_model(self) -> str | None:
        """The model for our own calls: the named one, else the cheapest whose price is known; None without either."""
        named = self.memory.background_model
        if named is not None:
            return None if named == NO_MODEL else named
        priced = [each for each in self.models if each.price is not None]
        return min(priced, key=lambda each: each.price or 0.0).alias if priced else None

    def default_profile(self, project: str) -> str:
        """Returns the profile of this project's requests that name none."""
        own = self.projects.get(project)
        return (own.profile if own else None) or DEFAULT_PROFILE

    def profile(self, name: str) -> ProfileSettings | None:
        return next((each for each in self.profiles if each.name == name), None)


# With the scripted model, so that memory tools can be watched without a settings file. It is the profile of requests
# that name none: what is remembered in the first minute is known under any model's name, to the command line's
# defaults, and to the real model that comes later.
DEMO_PROFILE = ProfileSettings(
    DEFAULT_PROFILE,
    model="scripted",
    # Named, since a list of aliases hides what is not in it.
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
