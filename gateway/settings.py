"""What the operator can decide, as frozen values; the only reader of the environment and of `mnemogate.toml`.

Precedence: file < environment < flags. A name that does not exist is an error that suggests the right one,
wherever it stands; so is a value of the wrong type. How values are checked lies in
`gateway/settings_schema.py`; what each
setting is for is said in `mnemogate.example.toml`, which a test compares with this module.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from gateway.core.request.identity import CONVERSATION_ORDER, SIDE_RULES, USER_ORDER, IdentityRules, SideRule
from gateway.errors import SettingsError
from gateway.settings_schema import build, convert_text, ranged, unknown_name

__all__ = [
    "DEMO_PROFILE",
    "BlockSettings",
    "DatabaseSettings",
    "DeploymentSettings",
    "MemorySettings",
    "ModelSettings",
    "ProfileSettings",
    "ProjectSettings",
    "ServerSettings",
    "Settings",
    "SideRequest",
    "UpstreamSettings",
    "is_loopback",
    "load_settings",
]

DefaultMode = Literal["on", "read", "off"]
Compaction = Literal["summary", "truncate"]
History = Literal["full", "client", "append"]
# What an upstream is: "openai" is any that speaks OpenAI's dialect, the others are rows of adapters/providers.py
# (a test compares), and "scripted" is the built-in model.
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
NEEDS_ADDRESS = ("openai", "azure")  # the other kinds have one of their own
DEFAULT_CONFIG = "mnemogate.toml"
DEFAULT_PROFILE = "default"
SINGLE_USER = "owner"  # whose memory it is when --single-user makes one person of all callers


@dataclass(frozen=True, slots=True)
class ServerSettings:
    host: str = "127.0.0.1"
    port: int = ranged(8080, 0, 65535)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = ranged(32 * 1024 * 1024, 1024)
    max_upload_bytes: int = ranged(512 * 1024 * 1024, 1024)
    max_messages: int = ranged(5000, 1)
    bodies_in_flight_bytes: int = ranged(256 * 1024 * 1024, 1024)
    header_timeout_s: float = ranged(20.0, 0.1)
    body_timeout_s: float = ranged(30.0, 0.1)
    send_timeout_s: float = ranged(60.0, 0.1)
    keep_alive_s: int = ranged(
        135, 130
    )  # longer than the 120 s after which clients and balancers drop idle ones
    shutdown_s: int = ranged(30, 0)
    drain_s: float = ranged(0.0, 0.0)
    access_log: bool = True
    models_refresh_s: float = ranged(300.0, 0.0)  # 0: never ask upstreams for their lists
    consume_envelopes: bool = True
    keep_alive_comment_s: float = ranged(0.0, 0.0)  # 0: none


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    path: str = "mnemogate.db"
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    commit_wait_ms: int = ranged(250, 1)


@dataclass(frozen=True, slots=True)
class SideRequest:
    """A request an application makes for itself, besides those that are known (gateway/core/request/identity.py).

    pattern: matched at the start of the last message if it is the user's, or of the first if it is a system message.
    """

    name: str
    pattern: str
    memory: Literal["off", "read"] = "off"
    where: Literal["user", "system"] = "user"


@dataclass(frozen=True, slots=True)
class MemorySettings:
    default: DefaultMode = "on"
    recall_tokens: int = ranged(1000, 0)
    recall_deadline_ms: int = ranged(150, 1)
    voice_deadline_ms: int = ranged(30, 1)
    idle_s: float = ranged(120.0, 0.0)
    cache_s: float = ranged(300.0, 0.0)
    history: History = "full"
    user_order: tuple[str, ...] = USER_ORDER
    conversation_order: tuple[str, ...] = CONVERSATION_ORDER
    default_user: str | None = None
    single_user: bool = False
    max_tool_rounds: int = ranged(10, 1)
    compaction: Compaction = "summary"
    embedder: str | None = None  # `local`, or a model that an upstream serves
    embedder_wait_ms: int = ranged(100, 0)  # 0: never for one that is not local
    background_model: str | None = None
    background_concurrency: int = ranged(2, 1)
    background_daily_tokens: int = ranged(2_000_000, 0)  # 0: no bound
    background_timeout_s: float = ranged(120.0, 0.1)
    learn_every: int = ranged(8, 0)  # messages; 0: nothing is learned
    learn_secrets: bool = False
    known_side_requests: bool = True
    side_requests: tuple[SideRequest, ...] = ()


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    name: str
    kind: Kind = "openai"
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    api_key_env: str | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    api_keys_env: tuple[str, ...] = ()
    connect_timeout_s: float = ranged(10.0, 0.1)
    first_byte_timeout_s: float = ranged(
        600.0, 0.1
    )  # the OpenAI SDK's own default; reasoning models think long
    idle_timeout_s: float = ranged(300.0, 0.1)
    total_timeout_s: float | None = ranged(None, 0.1)
    retries: int = ranged(0, 0, 10)
    retry_budget: float = ranged(0.2, 0.0, 1.0)
    retry_wait_s: float = ranged(2.0, 0.0)
    breaker_failures: int = ranged(5, 0)  # 0: no breaker
    breaker_s: float = ranged(10.0, 0.1)
    takes_developer_role: bool | None = None  # None: what is known of its kind
    takes_max_completion_tokens: bool | None = None
    takes_metadata: bool | None = None
    takes_stream_usage: bool | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    models: tuple[str, ...] = ()
    context_window: int | None = ranged(None, 1)


@dataclass(frozen=True, slots=True)
class DeploymentSettings:
    """A further place where a model is served. model: its name there; None: the same."""

    upstream: str
    model: str | None = None
    context_window: int | None = ranged(None, 1)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`alias` is what callers ask for. fallbacks: other names that callers could ask for.

    price: for a million tokens, in whatever currency: it is only compared.
    """

    alias: str
    model: str
    upstream: str | None = None
    context_window: int | None = ranged(None, 1)
    price: float | None = ranged(None, 0)
    fallbacks: tuple[str, ...] = ()
    deployments: tuple[DeploymentSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockSettings:
    label: str
    description: str = ""
    value: str = ""
    limit: int = ranged(2000, 1)
    read_only: bool = False
    shared: bool = False
    writable: bool = False


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    name: str
    model: str | None = None
    upstream: str | None = None
    system: str | None = None
    memory: DefaultMode | None = None
    memory_tools: bool = False
    history: History | None = None
    rebuild: Literal["free", "always"] = "free"
    compaction: Compaction | None = None
    context_window: int | None = ranged(None, 1)
    blocks: tuple[BlockSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    memory: DefaultMode | None = None
    profile: str | None = None
    retention_days: float | None = ranged(None, 1)


@dataclass(frozen=True, slots=True)
class Settings:
    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    memory: MemorySettings = MemorySettings()
    upstreams: tuple[UpstreamSettings, ...] = (UpstreamSettings("scripted", kind="scripted"),)
    models: tuple[ModelSettings, ...] = ()
    profiles: tuple[ProfileSettings, ...] = ()
    projects: dict[str, ProjectSettings] = field(default_factory=dict)

    @property
    def default_user(self) -> str | None:
        """Who speaks when a request names nobody; None: nobody."""
        return self.memory.default_user or (SINGLE_USER if self.memory.single_user else None)

    @property
    def background_model(self) -> str | None:
        """Who answers calls of our own: whoever is named, else the cheapest whose price is known; None: nobody."""
        named = self.memory.background_model
        if named is not None:
            return None if named == NOBODY else named
        priced = [each for each in self.models if each.price is not None]
        return min(priced, key=lambda each: each.price or 0.0).alias if priced else None

    def default_profile(self, project: str) -> str:
        """Whose memory a request of this project means when it names no profile."""
        own = self.projects.get(project)
        return (own.profile if own else None) or DEFAULT_PROFILE

    def profile(self, name: str) -> ProfileSettings | None:
        return next((each for each in self.profiles if each.name == name), None)


# With the scripted model, so that memory tools can be watched without a settings file. It is the profile of requests
# that name none: what is told in the first minute is known under any model's name, to the command line's defaults,
# and to the real model that comes later.
DEMO_PROFILE = ProfileSettings(
    DEFAULT_PROFILE,
    model="scripted",
    upstream="scripted",  # named, since a list of aliases hides what is not in it
    memory_tools=True,
    blocks=(BlockSettings("human", "What is known about the person you talk to.", limit=2000),),
)

NOBODY = "none"  # as memory.background_model

# Short names for what people set most; every scalar also answers to MNEMOGATE_<TABLE>_<KEY>.
_SHORT = {
    "MNEMOGATE_HOST": ("server", "host"),
    "MNEMOGATE_PORT": ("server", "port"),
    "MNEMOGATE_DB": ("database", "path"),
    "MNEMOGATE_SINGLE_USER": ("memory", "single_user"),
    "MNEMOGATE_BACKGROUND_MODEL": ("memory", "background_model"),
}
_SPECIAL = ("MNEMOGATE_CONFIG", "MNEMOGATE_UPSTREAM", "MNEMOGATE_DATABASE_URL")
_TABLES: dict[str, Any] = {"server": ServerSettings, "database": DatabaseSettings, "memory": MemorySettings}


def load_settings(
    *,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[tuple[str, str], Any] | None = None,
    upstream: str | None = None,
) -> Settings:
    """Read file, environment and flags, in this order of rising precedence.

    config: a file that must exist; without it and without MNEMOGATE_CONFIG, `mnemogate.toml` is read if there.
    flags: (table, key) -> value. upstream: base URL of the one upstream to use.
    Raises: SettingsError: names the setting, what was seen and what would do.
    """
    environ = os.environ if environ is None else environ
    raw = _read_file(config or environ.get("MNEMOGATE_CONFIG"))
    settings = build(Settings, raw, "")
    named = {each.api_key_env for each in settings.upstreams if each.api_key_env}
    named |= {name for each in settings.upstreams for name in each.api_keys_env}
    overrides = _read_environment({k: v for k, v in environ.items() if k not in named})
    for (table, key), value in (flags or {}).items():
        overrides[table, key] = convert_text(str(value), _TABLES[table], key, f"{table}.{key}")
    for (table, key), value in overrides.items():
        settings = replace(settings, **{table: replace(getattr(settings, table), **{key: value})})
    upstream = upstream or environ.get("MNEMOGATE_UPSTREAM") or None
    if upstream or "upstreams" not in raw:
        settings = replace(settings, upstreams=_default_upstreams(environ, upstream))
    else:
        settings = replace(settings, upstreams=tuple(_with_key(each, environ) for each in settings.upstreams))
    if [each.kind for each in settings.upstreams] == ["scripted"] and not settings.profiles:
        demo = replace(DEMO_PROFILE, upstream=settings.upstreams[0].name)
        settings = replace(settings, profiles=(demo,))
    return _checked(settings)


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    host = host.strip("[]").lower().rstrip(".")
    return (
        host in ("localhost", "::1")
        or host.endswith(".localhost")
        or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
    )


def _read_file(path: str | None) -> dict[str, Any]:
    file = Path(path or DEFAULT_CONFIG)
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        if path is None:
            return {}
        raise SettingsError(f"{file}: there is no such settings file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file}: cannot be read as TOML: {error}") from error


def _read_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    known = dict(_SHORT)
    for table, cls in _TABLES.items():
        known |= {f"MNEMOGATE_{table}_{each.name}".upper(): (table, each.name) for each in fields(cls)}
    del known["MNEMOGATE_MEMORY_SIDE_REQUESTS"]  # a list of tables: only in the file
    found: dict[tuple[str, str], tuple[str, Any]] = {}

    def add(name: str, place: tuple[str, str], value: Any) -> None:
        other, earlier = found.setdefault(place, (name, value))
        if value != earlier:
            raise SettingsError(f"environment: {other} and {name} say different things")

    for name, text in environ.items():
        if not name.startswith("MNEMOGATE_") or name in _SPECIAL:
            continue
        if name not in known:
            raise SettingsError(unknown_name("environment", name, [*known, *_SPECIAL]))
        if text:  # `NAME=` is how compose files and shells say that there is none
            table, key = known[name]
            add(name, known[name], convert_text(text, _TABLES[table], key, name))
    url = environ.get("MNEMOGATE_DATABASE_URL", "")
    if url.startswith(("postgresql:", "postgres:")):
        raise SettingsError(
            "MNEMOGATE_DATABASE_URL: PostgreSQL comes later; use sqlite:///path or MNEMOGATE_DB"
        )
    if url:
        if not url.startswith("sqlite:///"):
            raise SettingsError(f"MNEMOGATE_DATABASE_URL: expected sqlite:///path, saw {url.split(':')[0]!r}")
        add("MNEMOGATE_DATABASE_URL", ("database", "path"), url.removeprefix("sqlite:///"))
    return {place: value for place, (_, value) in found.items()}


def _default_upstreams(environ: Mapping[str, str], url: str | None) -> tuple[UpstreamSettings, ...]:
    """The upstreams that the provider SDKs' own variables name; without any, the scripted model."""
    found = []
    key, base = environ.get("OPENAI_API_KEY") or None, url or environ.get("OPENAI_BASE_URL") or None
    if key or base:
        found.append(UpstreamSettings("openai", base_url=base or "https://api.openai.com/v1", api_key=key))
    key, base = environ.get("ANTHROPIC_API_KEY") or None, environ.get("ANTHROPIC_BASE_URL") or None
    if (key or base) and not url:
        # The SDK's base URL is without the version.
        base = (base or "https://api.anthropic.com").rstrip("/").removesuffix("/v1") + "/v1"
        found.append(
            UpstreamSettings("anthropic", "anthropic", base_url=base, api_key=key, models=("claude-*",))
        )
    return tuple(found) or (UpstreamSettings("scripted", kind="scripted"),)


def _with_key(upstream: UpstreamSettings, environ: Mapping[str, str]) -> UpstreamSettings:
    """With its keys in `api_key` or `api_keys`, wherever they stood."""
    where = f"upstreams {upstream.name!r}"
    given = (upstream.api_key, upstream.api_key_env, upstream.api_keys, upstream.api_keys_env)
    if sum(map(bool, given)) > 1:
        raise SettingsError(f"{where}: give one of api_key, api_key_env, api_keys and api_keys_env")
    for setting, names in (
        ("api_key_env", (upstream.api_key_env,) if upstream.api_key_env else ()),
        ("api_keys_env", upstream.api_keys_env),
    ):
        for name in names:
            if not environ.get(name):
                raise SettingsError(f"{where}: {setting} names {name}, which is not set")
    if upstream.api_key_env is not None:
        return replace(upstream, api_key=environ[upstream.api_key_env])
    keys = upstream.api_keys or tuple(environ[name] for name in upstream.api_keys_env)
    _unique(f"{where}: its keys", list(keys), is_secret=True)
    return replace(upstream, api_keys=keys)


def _is_origin(text: str) -> bool:
    """Whether a browser would send it so; what it writes in another way would never be matched. (RFC 6454 6.2)"""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/?#\s]+)", text)
    if found is None:
        return False
    own_port = {"http": ":80", "https": ":443"}.get(found[1])
    host = found[2]
    return own_port is None or (host.isascii() and host == host.lower() and not host.endswith(own_port))


def _checked(settings: Settings) -> Settings:
    """What no single value can say: names that must be unique, names that must exist."""
    path = settings.database.path
    if not path or "\0" in path:
        raise SettingsError(f"database.path: expected the name of a file, saw {path!r}")
    for origin in settings.server.cors_origins:
        if origin != "*" and not _is_origin(origin):
            raise SettingsError(
                "server.cors_origins: expected scheme://host or scheme://host:port as browsers send it "
                f"(lower case, without a scheme's own port), saw {origin!r}"
            )
    _unique("upstreams", [each.name for each in settings.upstreams])
    _unique("models", [each.alias for each in settings.models])
    _unique("profiles", [each.name for each in settings.profiles])
    upstreams = [each.name for each in settings.upstreams]
    if not upstreams:
        raise SettingsError(
            "upstreams: the list is empty; leave it out to use the environment or the scripted model"
        )
    for upstream in settings.upstreams:
        if "#" in upstream.name:
            raise SettingsError(f"upstreams {upstream.name!r}: '#' is for the numbers of its keys")
        sent = (upstream.api_key or "", *upstream.api_keys, *upstream.headers, *upstream.headers.values())
        if any(re.search(r"[\x00-\x1f\x7f]", each) for each in sent):
            raise SettingsError(
                f"upstreams {upstream.name!r}: a key or a header has a line end or another control character in it"
            )
        url = upstream.base_url
        may_lack = url is None and upstream.kind not in NEEDS_ADDRESS
        if not may_lack and (url is None or not re.match(r"https?://[^/\s]", url)):
            raise SettingsError(f"upstreams {upstream.name!r}: base_url must be an http(s) URL, saw {url!r}")
    for model in settings.models:
        _exists(f"models {model.alias!r}: upstream", model.upstream, upstreams)
        if model.upstream is None and len(upstreams) > 1:
            raise SettingsError(
                f"models {model.alias!r}: there are several upstreams; say which one with upstream"
            )
        for place in model.deployments:
            _exists(f"models {model.alias!r}: deployments: upstream", place.upstream, upstreams)
        _unique(f"models {model.alias!r}: fallbacks", list(model.fallbacks))
        if model.alias in model.fallbacks:
            raise SettingsError(f"models {model.alias!r}: it is its own fallback")
    for profile in settings.profiles:
        if not re.fullmatch(r"[\w.:@-]+", profile.name):
            raise SettingsError(f"profiles {profile.name!r}: a name is letters, digits and . _ : @ -")
        _exists(f"profiles {profile.name!r}: upstream", profile.upstream, upstreams)
        _unique(f"profiles {profile.name!r}: blocks", [each.label for each in profile.blocks])
        for block in profile.blocks:
            if len(block.value) > block.limit:
                raise SettingsError(
                    f"profiles {profile.name!r}: block {block.label!r}: its value has "
                    f"{len(block.value)} characters, its limit is {block.limit}"
                )
    for name, project in settings.projects.items():
        _exists(f"projects.{name}: profile", project.profile, [each.name for each in settings.profiles])
    rules = list(SIDE_RULES)
    for rule in settings.memory.side_requests:
        rules.append(SideRule(rule.name, rule.pattern, rule.memory, rule.where))
        try:  # all become one pattern, in which not all can stand that can alone
            IdentityRules(side_rules=tuple(rules))
        except re.error as error:
            raise SettingsError(f"memory.side_requests {rule.name!r}: pattern: {error}") from error
    return settings


def _unique(where: str, names: list[str], *, is_secret: bool = False) -> None:
    for name in names:
        if not name:
            raise SettingsError(f"{where}: an empty name")
        if names.count(name) > 1:
            raise SettingsError(f"{where}: {'one' if is_secret else repr(name)} is there twice")


def _exists(where: str, name: str | None, known: list[str]) -> None:
    if name is not None and name not in known:
        raise SettingsError(unknown_name(where, name, known))
