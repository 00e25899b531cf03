"""Reads the settings file, the environment and the flags, in this order of rising precedence, and checks them.

It is the only reader of the environment and of `mnemogate.toml`. A name that does not exist is an error that suggests
the right one, wherever it stands, and so is a value of the wrong type (gateway/settings_schema.py).
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import SettingsError
from gateway.settings import (
    DEMO_PROFILE,
    FORMER,
    NEEDS_ADDRESS,
    SECRET_PREFIX,
    BatchSettings,
    DatabaseSettings,
    FillerSettings,
    HostRule,
    MemorySettings,
    ModelSettings,
    ProfileSettings,
    ServerSettings,
    Settings,
    SideRequest,
    ToolSettings,
    UpstreamSettings,
    without_password,
)
from gateway.settings_schema import build, convert_text, former_name, unknown_name

DEFAULT_CONFIG = "mnemogate.toml"
# A key written so is the value of the variable that follows.
FROM_ENVIRONMENT = "env:"

_KEY = re.compile(r"mg-[A-Za-z0-9_-]{32,}")
# So many different characters at least. Of 32 random hexadecimal digits one set in thirty million has fewer.
_KEY_LETTERS = 8
_SECRET_BYTES = 24  # that Standard Webhooks asks for
_HOST = re.compile(r"[^\s/*:\[\]]+|[0-9A-Fa-f]*(?::[0-9A-Fa-f.]*){2,}")  # the second: an address of IPv6
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 5.1
# They say where a request ends, which only the one who sends it knows.
_FRAMING = ("connection", "content-length", "transfer-encoding")

# Short names for what people set most; every scalar also answers to MNEMOGATE_<TABLE>_<KEY>.
_SHORT = {
    "MNEMOGATE_HOST": ("server", "host"),
    "MNEMOGATE_PORT": ("server", "port"),
    "MNEMOGATE_KEY": ("server", "key"),
    "MNEMOGATE_DB": ("database", "path"),
    "MNEMOGATE_SINGLE_USER": ("memory", "single_user"),
    "MNEMOGATE_BACKGROUND_MODEL": ("memory", "background_model"),
}
_UPSTREAM_KEY = "MNEMOGATE_UPSTREAM_KEY"
_SPECIAL = ("MNEMOGATE_CONFIG", "MNEMOGATE_UPSTREAM", _UPSTREAM_KEY)
# Besides the keys of upstreams these may name a variable that has their value.
_SECRETS = (
    ("memory", "openwebui_jwt_secret"),
    ("tools", "webhook_secret"),
    ("database", "url"),
    ("database", "listen_url"),
)
_DATABASE = {("database", "path"), ("database", "url")}
_SQLITE = "sqlite:///"
# What the URL of a server begins with.
POSTGRES = ("postgresql://", "postgres://")
_TABLES: dict[str, Any] = {
    "server": ServerSettings,
    "database": DatabaseSettings,
    "memory": MemorySettings,
    "tools": ToolSettings,
    "batch": BatchSettings,
}


def load_settings(
    *,
    config: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[tuple[str, str], Any] | None = None,
    upstream: str | None = None,
    needs_secrets: bool = True,
) -> Settings:
    """Reads and checks the settings.

    config: a file that must exist; without it and without MNEMOGATE_CONFIG, `mnemogate.toml` is read if there.
    flags: (table, key) -> value. upstream: base URL of the one upstream to use. needs_secrets: with False a key or a
    secret is left out whose variable is not set, but for the database's: whoever looks into a database has none.
    Raises: SettingsError: names the setting, what was seen and what would do.
    """
    given = os.environ if environ is None else environ
    # Files of variables and mounted secrets end lines with blanks that nobody sees. What a name in the settings stands
    # for ("env:NAME") is taken as it is.
    environ = {name: text.strip() for name, text in given.items()}
    for flag, text in (("--config", config), ("--upstream", upstream)):
        if text == "":  # a script's variable that is not set
            raise SettingsError(f"{flag}: expected a value, saw ''", in_file=False)
    raw = _read_file(config or environ.get("MNEMOGATE_CONFIG") or None)
    settings = build(Settings, raw, FORMER)
    for (table, key), value in _overrides(raw, settings, environ, flags or {}).items():
        settings = replace(settings, **{table: replace(getattr(settings, table), **{key: value})})
    named_by = "--upstream" if upstream else "MNEMOGATE_UPSTREAM"
    upstream = upstream or environ.get("MNEMOGATE_UPSTREAM") or None
    if (
        needs_secrets
        and not upstream
        and environ.get(_UPSTREAM_KEY)
        and _UPSTREAM_KEY not in _named(settings)
    ):
        raise SettingsError(
            f"environment: {_UPSTREAM_KEY} is the key of MNEMOGATE_UPSTREAM or --upstream, which is not given",
            in_file=False,
        )
    if upstream or "upstreams" not in raw:
        # What the SDKs' own variables say is a value, whatever it begins with.
        settings = _with_secrets(replace(settings, upstreams=()), given, needs_all=needs_secrets)
        with _outside_file():
            settings = replace(settings, upstreams=_default_upstreams(environ, named_by, upstream))
    else:
        settings = _with_secrets(settings, given, needs_all=needs_secrets)
    hosts = tuple(replace(each, host=each.host.lower()) for each in settings.tools.headers)
    settings = replace(
        settings, database=_named_file(settings.database), tools=replace(settings.tools, headers=hosts)
    )
    if [each.kind for each in settings.upstreams] == ["scripted"] and not settings.profiles:
        demo = replace(DEMO_PROFILE, upstream=settings.upstreams[0].name)
        settings = replace(settings, profiles=(demo,))
    _check(settings)
    return settings


@contextmanager
def _outside_file() -> Iterator[None]:
    """Notes of an error that it is about a flag or a variable, with which the settings file has nothing to do."""
    try:
        yield
    except SettingsError as error:
        error.in_file = False
        raise


def settings_file(config: str | None) -> Path | None:
    """Returns the file that `load_settings` reads; None: there is none."""
    file = Path(config or os.environ.get("MNEMOGATE_CONFIG", "").strip() or DEFAULT_CONFIG)
    return file.absolute() if file.exists() else None


def _read_file(path: str | None) -> dict[str, Any]:
    file = Path(path or DEFAULT_CONFIG)
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))  # editors of Windows begin a file with a mark
    except FileNotFoundError:
        if path is None:
            return {}
        raise SettingsError(f"{file}: there is no such settings file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file}: cannot be read as TOML: {error}") from error


def _overrides(
    raw: Mapping[str, Any],
    settings: Settings,
    environ: Mapping[str, str],
    flags: Mapping[tuple[str, str], Any],
) -> dict[tuple[str, str], Any]:
    """Returns what the environment and the flags say in place of the file: (table, key) -> value.

    raw, settings: the file's.
    """
    # A variable that holds a key may have a name of ours: it is no setting.
    named = _named(settings)
    with _outside_file():
        overrides = _read_environment({k: v for k, v in environ.items() if k not in named})
        for (table, key), value in flags.items():
            overrides[table, key] = convert_text(str(value), _TABLES[table], key, f"{table}.{key}")
            if (table, key) == ("database", "path"):
                overrides["database", "url"] = None
    if overrides.keys() & _DATABASE:
        # A file that is named closer by takes the place of a URL that the settings file names.
        overrides.setdefault(("database", "url"), None)
    elif {"path", "url"} <= raw.get("database", {}).keys():
        raise SettingsError(
            "database: `path` is a SQLite file and `url` a PostgreSQL server; name one of them"
        )
    return overrides


def _named(settings: Settings) -> set[str]:
    """Returns the variables that the file names for keys and secrets."""
    found: set[str] = set()

    def note(where: str, said: str) -> str:
        if (name := _variable_of(said)) is not None:
            found.add(name)
        return said

    _map_secrets(settings, note)
    return found


def _read_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    known = dict(_SHORT)
    for table, cls in _TABLES.items():
        known |= {f"MNEMOGATE_{table}_{each.name}".upper(): (table, each.name) for each in fields(cls)}
    former = {f"MNEMOGATE_{path.replace('.', '_')}".upper(): text for path, text in FORMER.items()}
    # A list of tables can only stand in the file.
    del known["MNEMOGATE_MEMORY_SIDE_REQUESTS"], known["MNEMOGATE_TOOLS_HEADERS"]
    found: dict[tuple[str, str], tuple[str, Any]] = {}

    def add(name: str, setting: tuple[str, str], value: Any) -> None:
        other, earlier = found.setdefault(setting, (name, value))
        if value != earlier:
            raise SettingsError(f"environment: {other} and {name} say different things")

    for name, text in environ.items():
        if not name.startswith("MNEMOGATE_") or name in _SPECIAL:
            continue
        if name not in known:
            if name in former:
                raise SettingsError(former_name("environment", name, former[name]))
            raise SettingsError(unknown_name("environment", name, [*known, *_SPECIAL]))
        # `NAME=` is how compose files and shells say that a variable is not set.
        if text:
            table, key = known[name]
            add(name, known[name], convert_text(text, _TABLES[table], key, name))
    overrides = {setting: value for setting, (_, value) in found.items()}
    path, url = overrides.get(("database", "path")), overrides.get(("database", "url"))
    if path is not None and url not in (None, f"{_SQLITE}{path}"):
        names = " and ".join(found[each][0] for each in sorted(_DATABASE))
        raise SettingsError(f"environment: {names} say different things")
    return overrides


def _named_file(database: DatabaseSettings) -> DatabaseSettings:
    """Returns the settings with the URL of a SQLite file as its path. Raises: SettingsError: no such database."""
    url, listen_url = database.url, database.listen_url
    if url is not None and url.startswith(_SQLITE):
        return replace(database, path=url.removeprefix(_SQLITE), url=None)
    for name, each in (("url", url), ("listen_url", listen_url)):
        if each is not None and not each.startswith(POSTGRES):
            scheme = each.partition(":")[0] if ":" in each else ""
            expected = "postgresql://…" if name == "listen_url" else "postgresql://… or sqlite:///path"
            raise SettingsError(f"database.{name}: expected {expected}, saw {scheme!r}")
    if url is not None and database.pooled and listen_url is None:
        raise SettingsError(
            "database.listen_url is missing: notifications do not come through a pooler (database.pooled); "
            "name the server itself"
        )
    if database.pooler_prepares and not database.pooled:
        raise SettingsError(
            "database.pooler_prepares: says something of a pooler, but database.pooled is false"
        )
    return database


def _default_upstreams(
    environ: Mapping[str, str], named_by: str, url: str | None
) -> tuple[UpstreamSettings, ...]:
    """Returns the upstream at `url`, else those that the provider SDKs' own variables name, else the scripted model.

    A key that was set for OpenAI goes to no other address that is named here. named_by: who gives `url`.
    Raises: SettingsError: an address is none.
    """
    if url:
        _check_address(named_by, url)
        return (UpstreamSettings("openai", base_url=url, api_key=environ.get(_UPSTREAM_KEY) or None),)
    found = []
    key, base = environ.get("OPENAI_API_KEY") or None, environ.get("OPENAI_BASE_URL") or None
    if base:
        _check_address("OPENAI_BASE_URL", base)
    if key or base:
        found.append(UpstreamSettings("openai", base_url=base or "https://api.openai.com/v1", api_key=key))
    key, base = environ.get("ANTHROPIC_API_KEY") or None, environ.get("ANTHROPIC_BASE_URL") or None
    if base:
        _check_address("ANTHROPIC_BASE_URL", base)
    if key or base:
        # The SDK's base URL is without the version.
        base = (base or "https://api.anthropic.com").rstrip("/").removesuffix("/v1") + "/v1"
        found.append(
            UpstreamSettings("anthropic", "anthropic", base_url=base, api_key=key, models=("claude-*",))
        )
    return tuple(found) or (UpstreamSettings("scripted", kind="scripted"),)


# -- what may name a variable that has its value


def _map_secrets(settings: Settings, value_of: Callable[[str, str], str | None]) -> Settings:
    """Returns the settings with another value wherever one may name a variable; these places are listed here alone.

    value_of: is given the setting's name and what it says; None: it is left out.
    """

    def mapped(where: str, said: str | None) -> str | None:
        return None if said is None else value_of(where, said)

    upstreams = []
    for upstream in settings.upstreams:
        where = f"upstreams {upstream.name!r}"
        found = [value_of(f"{where}: api_key", key) for key in upstream.keys]
        keys = tuple(key for key in found if key is not None)
        api_key = keys[0] if keys and isinstance(upstream.api_key, str) else keys or None
        upstreams.append(replace(upstream, api_key=api_key, proxy=mapped(f"{where}: proxy", upstream.proxy)))
    settings = replace(settings, upstreams=tuple(upstreams))
    for table, key in _SECRETS:
        of_table = getattr(settings, table)
        value = mapped(f"{table}.{key}", getattr(of_table, key))
        settings = replace(settings, **{table: replace(of_table, **{key: value})})
    headers = []
    for header in settings.tools.headers:
        secret = value_of(f"tools.headers {header.name!r}: value", header.value)
        if secret is not None:
            headers.append(replace(header, value=secret))
    return replace(settings, tools=replace(settings.tools, headers=tuple(headers)))


def _with_secrets(settings: Settings, environ: Mapping[str, str], *, needs_all: bool) -> Settings:
    """Returns the settings with the values of the variables that they name.

    needs_all: with False what names a variable that is not set is left out, but for the database's URLs.
    Raises: SettingsError.
    """

    def value_of(where: str, said: str) -> str | None:
        name = _variable_of(said)
        if name is None:
            return said
        if not environ.get(name):
            if needs_all or where.startswith("database."):
                raise SettingsError(f"{where} names {name}, which is not set")
            return None
        return environ[name]

    return _map_secrets(settings, value_of)


def _variable_of(key: str) -> str | None:
    """Returns the name of the variable that a key stands for; None where it is the key itself."""
    return key.removeprefix(FROM_ENVIRONMENT) if key.startswith(FROM_ENVIRONMENT) else None


# -- what no single value can say: names that must be unique, names that must exist


def _check(settings: Settings) -> None:
    _check_server(settings.server)
    _check_memory(settings.memory)
    upstreams = [each.name for each in settings.upstreams]
    profiles = [each.name for each in settings.profiles]
    if not upstreams:
        raise SettingsError(
            "upstreams: the list is empty; leave it out to use the environment or the scripted model"
        )
    _unique("upstreams", upstreams)
    _unique("models", [each.alias for each in settings.models])
    _unique("profiles", profiles)
    for upstream in settings.upstreams:
        _check_upstream(upstream)
    for model in settings.models:
        _check_model(model, upstreams)
    for profile in settings.profiles:
        if profile.sleeptime and settings.background_model is None:
            raise SettingsError(
                f"profiles {profile.name!r}: sleeptime needs a model: set memory.background_model"
            )
        _check_profile(profile, upstreams)
    for name, project in settings.projects.items():
        _exists(f"projects.{name}: profile", project.profile, profiles)
    _check_tools(settings.tools)


def _check_server(server: ServerSettings) -> None:
    if server.key is not None:
        _check_key(server.key)
    for host in server.allowed_hosts:
        if _HOST.fullmatch(host) is None:
            raise SettingsError(
                f"server.allowed_hosts: expected a name without a scheme, a port or *, saw {host!r}"
            )
    for origin in server.cors_origins:
        if origin != "*" and not _is_origin(origin):
            raise SettingsError(
                "server.cors_origins: expected scheme://host or scheme://host:port as browsers send it "
                f"(lower case, without a scheme's own port), saw {origin!r}"
            )


def _check_memory(memory: MemorySettings) -> None:
    for kind in ("user", "conversation"):
        for name in getattr(memory, f"{kind}_order") or ():
            # Requests with another one are refused, since it may be a misspelt one of ours.
            if name.lower().startswith("x-mnemogate-") and name.lower() != f"x-mnemogate-{kind}":
                raise SettingsError(
                    f"memory.{kind}_order: {name!r}: of headers that begin with x-mnemogate- "
                    f"only x-mnemogate-{kind} can stand here"
                )
    for rule in memory.side_requests:
        _check_side_request(rule)


def _check_key(key: str) -> None:
    """Refuses a gateway key that could be guessed: only its plain SHA-256 is kept, which protects random keys alone."""
    if _KEY.fullmatch(key) is None or len(set(key.removeprefix("mg-"))) < _KEY_LETTERS:
        raise SettingsError(
            "server.key (MNEMOGATE_KEY): expected mg- and at least 32 random letters, digits, - or _; "
            'make one with `echo "mg-$(openssl rand -hex 24)"`'
        )


def _check_upstream(upstream: UpstreamSettings) -> None:
    where = f"upstreams {upstream.name!r}"
    _unique(f"{where}: api_key", upstream.keys, is_secret=True)
    if "#" in upstream.name:
        raise SettingsError(f"{where}: '#' is for the numbers of its keys")
    sent = (*upstream.keys, *upstream.headers, *upstream.headers.values())
    if any(re.search(r"[\x00-\x1f\x7f]", each) for each in sent):
        raise SettingsError(f"{where}: a key or a header has a line end or another control character in it")
    for name in upstream.headers:
        if _HEADER.fullmatch(name) is None or name.lower() in _FRAMING:
            raise SettingsError(f"{where}: headers: {name!r} is no header that can be sent")
    if upstream.proxy is not None and not _is_proxy(upstream.proxy):
        # It may have a password in it, so it is not told.
        words = "proxy: expected http://host:port (in a password, # is written %23, ? %3F and / %2F)"
        raise SettingsError(f"{where}: {words}")
    url = upstream.base_url
    if url is None and upstream.kind not in NEEDS_ADDRESS:
        return
    _check_address(f"{where}: base_url", url)


def _check_address(name: str, url: str | None) -> None:
    """Raises: SettingsError: this is no upstream's address. name: whose value it is."""
    text = url or ""
    try:
        found = urlsplit(text)
        is_address = re.match(r"https?://[^/\s]", text) and found.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        seen = None if url is None else without_password(url)
        raise SettingsError(f"{name} must be an http(s) URL, saw {seen!r}")
    if "@" in found.netloc or "?" in text or "#" in text:
        raise SettingsError(f"{name}: an upstream's address has neither a user, nor a query, nor a fragment")


def _is_proxy(url: str) -> bool:
    try:
        found = urlsplit(url)
        is_whole = bool(found.hostname) and found.port != 0
    except ValueError:
        return False
    return is_whole and re.fullmatch(r"http://[^/?#\s]+/?", url) is not None


def _check_model(model: ModelSettings, upstreams: list[str]) -> None:
    where = f"models {model.alias!r}"
    _exists(f"{where}: upstream", model.upstream, upstreams)
    if model.upstream is None and len(upstreams) > 1:
        raise SettingsError(f"{where}: there are several upstreams; say which one with upstream")
    for deployment in model.deployments:
        _exists(f"{where}: deployments: upstream", deployment.upstream, upstreams)
    _unique(f"{where}: fallbacks", list(model.fallbacks))
    if model.alias in model.fallbacks:
        raise SettingsError(f"{where}: it is its own fallback")


def _check_profile(profile: ProfileSettings, upstreams: list[str]) -> None:
    where = f"profiles {profile.name!r}"
    if not re.fullmatch(r"[\w.:@-]+", profile.name):
        raise SettingsError(f"{where}: a name is letters, digits and . _ : @ -")
    if profile.name == "@":  # storage.records.API_PROFILE
        raise SettingsError(f"{where}: this name is for agents that are made over REST")
    _exists(f"{where}: upstream", profile.upstream, upstreams)
    if isinstance(profile.filler, FillerSettings) and not profile.filler.say.strip():
        raise SettingsError(f"{where}: filler.say: there is nothing to be said")
    _unique(f"{where}: blocks", [each.label for each in profile.blocks])
    for block in profile.blocks:
        if len(block.value) > block.limit:
            raise SettingsError(
                f"{where}: block {block.label!r}: its value has "
                f"{len(block.value)} characters, its limit is {block.limit}"
            )


def _check_side_request(rule: SideRequest) -> None:
    where = f"memory.side_requests {rule.name!r}: pattern"
    before = "|(?:"
    try:
        # All patterns become alternatives of one, in which flags cannot stand, nor two groups of one name.
        pattern = re.compile(f"{before}{rule.pattern})")
    except re.error as error:
        at = min(max((error.pos or 0) - len(before), 0), len(rule.pattern))
        pointed = f"{rule.pattern[:at]} >>> {rule.pattern[at:]}"
        raise SettingsError(f"{where}: {error.msg}, here: {pointed}") from error
    if all(re.match(rule.pattern, text) for text in ("", "any")):
        raise SettingsError(f"{where}: it matches every message")
    if pattern.groupindex:
        raise SettingsError(f"{where}: its groups cannot have names, saw {', '.join(pattern.groupindex)}")


def _check_tools(tools: ToolSettings) -> None:
    if tools.webhook_secret is not None and not _is_webhook_secret(tools.webhook_secret):
        raise SettingsError(
            f"tools.webhook_secret: expected {SECRET_PREFIX} and at least {_SECRET_BYTES} random bytes in base64; "
            f'make one with `echo "{SECRET_PREFIX}$(openssl rand -base64 32)"`'
        )
    for setting, entries in (("hosts", tools.hosts), ("private_hosts", tools.private_hosts)):
        for entry in entries:
            rule = HostRule.of(entry)
            if rule is None or (setting == "private_hosts" and rule.name == "*"):
                raise SettingsError(
                    f"tools.{setting}: expected a host such as api.example.org, *.example.org or "
                    f"http://localhost:9000, saw {entry!r}"
                )

    _unique("tools.headers", [each.name for each in tools.headers])
    for header in tools.headers:
        if not re.fullmatch(r"[A-Za-z0-9-]+", header.header) or re.search(r"[\x00-\x1f\x7f]", header.value):
            raise SettingsError(f"tools.headers {header.name!r}: it is no header that can be sent")
        if _HOST.fullmatch(header.host) is None:
            raise SettingsError(
                f"tools.headers {header.name!r}: host: expected a name without a scheme, a port or *, "
                f"saw {header.host!r}"
            )
    for command in tools.mcp_stdio:
        try:
            shlex.split(command)
        except ValueError as error:
            raise SettingsError(f"tools.mcp_stdio: {command!r}: {error}") from error


def _is_webhook_secret(text: str) -> bool:
    try:
        secret = b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except ValueError:
        return False
    return text.startswith(SECRET_PREFIX) and len(secret) >= _SECRET_BYTES


def _is_origin(text: str) -> bool:
    """Returns whether a browser would send an origin in this form; another form never matches (RFC 6454 6.2)."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/?#\s]+)", text)
    if found is None:
        return False
    own_port = {"http": ":80", "https": ":443"}.get(found[1])
    host = found[2]
    return own_port is None or (host.isascii() and host == host.lower() and not host.endswith(own_port))


def _unique(where: str, names: Sequence[str], *, is_secret: bool = False) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{where}: {'one' if is_secret else repr(name)} is there twice")


def _exists(where: str, name: str | None, known: list[str]) -> None:
    if name is not None and name not in known:
        raise SettingsError(unknown_name(where, name, known))
