"""Judges settings that were read: names that must be unique, names that must exist, addresses, keys and patterns.

Every mistake names the setting, what was seen and what would do. All are found, not the first alone.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from gateway.errors import SettingsError
from gateway.settings import (
    NEEDS_ADDRESS,
    SECRET_PREFIX,
    DatabaseSettings,
    FillerSettings,
    HostRule,
    MemorySettings,
    ModelSettings,
    ProfileSettings,
    ServerSettings,
    Settings,
    SideRequest,
    ToolHeader,
    ToolSettings,
    UiSettings,
    UpstreamSettings,
)
from gateway.settings.mistakes import describe_unknown_name
from gateway.settings.value_syntax import (
    MIN_WEBHOOK_SECRET_BYTES,
    POSTGRES,
    SECRETS_KEY_BYTES,
    check_address,
    is_gateway_key,
    is_header_name,
    is_host,
    is_origin,
    is_proxy,
    is_secrets_key,
    is_webhook_secret,
)

T = TypeVar("T")
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A reference to a group of a pattern by its number.
_GROUP_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*(?:\\[1-9]|\(\?\(\d)")
# These headers say where a request ends, which only its sender knows.
_FRAMING_HEADERS = ("connection", "content-length", "transfer-encoding")


def find_mistakes(settings: Settings, faulty_tables: Collection[str] = ()) -> list[SettingsError]:
    """Returns the mistakes that no single value shows.

    faulty_tables: the tables with mistakes in single values. A setting that depends on such a table is not checked: its
        mistake may only follow from that mistake.
    """
    upstreams = [each.name for each in settings.upstreams]
    profiles = [each.name for each in settings.profiles]
    checks: tuple[tuple[tuple[str, ...], Iterable[str]], ...] = (
        (("server",), _find_mistakes_in_server(settings.server)),
        (("database",), _find_mistakes_in_database(settings.database)),
        (("memory",), _find_mistakes_in_memory(settings.memory)),
        (("upstreams",), _find_mistakes_in_upstreams(settings.upstreams)),
        (("models",), _find_repeated_names("models", [each.alias for each in settings.models])),
        (("profiles",), _find_repeated_names("profiles", profiles)),
        (
            ("models", "upstreams"),
            _find_mistakes_in_each(lambda each: _find_mistakes_in_model(each, upstreams), settings.models),
        ),
        (
            ("profiles", "upstreams"),
            _find_mistakes_in_each(
                lambda each: _find_mistakes_in_profile(each, upstreams), settings.profiles
            ),
        ),
        (("profiles", "memory", "models", "upstreams"), _find_mistakes_in_sleeptime(settings)),
        (("projects", "profiles"), _find_mistakes_in_projects(settings, profiles)),
        (("tools",), _find_mistakes_in_tools(settings.tools)),
        (("ui",), _find_mistakes_in_ui(settings.ui)),
    )
    judged = (messages for tables, messages in checks if not set(tables) & set(faulty_tables))
    return [SettingsError(message) for messages in judged for message in messages]


def _find_mistakes_in_each(find: Callable[[T], Iterable[str]], values: Iterable[T]) -> Iterator[str]:
    """Yields the mistakes that `find` returns for each of the values."""
    for value in values:
        yield from find(value)


def _find_mistakes_in_upstreams(upstreams: Sequence[UpstreamSettings]) -> Iterator[str]:
    if not upstreams:
        yield "upstreams: the list is empty; leave it out to use the environment or the scripted model"
    yield from _find_repeated_names("upstreams", [each.name for each in upstreams])
    yield from _find_mistakes_in_each(_find_mistakes_in_upstream, upstreams)


def _find_mistakes_in_sleeptime(settings: Settings) -> Iterator[str]:
    for profile in settings.profiles:
        if profile.sleeptime and settings.background_model is None:
            yield f"profiles {profile.name!r}: sleeptime needs a model: set memory.background_model"


def _find_mistakes_in_projects(settings: Settings, profiles: list[str]) -> Iterator[str]:
    for name, project in settings.projects.items():
        yield from _find_unknown_reference(f"projects.{name}: profile", project.profile, profiles)


def _find_mistakes_in_server(server: ServerSettings) -> Iterator[str]:
    if server.key is not None:
        yield from _find_mistakes_in_key("server.key (MNEMOGATE_KEY)", server.key)
    if server.operator_key is not None:
        yield from _find_mistakes_in_key("server.operator_key (MNEMOGATE_OPERATOR_KEY)", server.operator_key)
        if server.operator_key == server.key:
            yield "server.operator_key: expected another key than server.key; operators' keys open no chat"
    for host in server.allowed_hosts:
        if not is_host(host):
            yield f"server.allowed_hosts: expected a name without a scheme, a port or *, saw {host!r}"
    yield from _find_mistakes_in_origins(
        "server.cors_origins", [each for each in server.cors_origins if each != "*"]
    )


def _find_mistakes_in_ui(ui: UiSettings) -> Iterator[str]:
    """Yields the mistakes in values that go into a header as they are."""
    yield from _find_mistakes_in_origins("ui.frame_origins", ui.frame_origins)
    for origin in ui.frame_origins:
        if re.search(r"[^\x21-\x7e]|[;,'\"]", origin):
            yield f"ui.frame_origins: {origin!r} has a character that no origin has"


def _find_mistakes_in_origins(name: str, origins: Iterable[str]) -> Iterator[str]:
    """Yields the mistakes in a list of origins. name: the name of the setting."""
    for origin in origins:
        if not is_origin(origin):
            yield (
                f"{name}: expected scheme://host or scheme://host:port as browsers send it "
                f"(lower case, without a scheme's own port), saw {origin!r}"
            )


def _find_mistakes_in_database(database: DatabaseSettings) -> Iterator[str]:
    """Yields the mistakes in the database's settings; the URL of a SQLite file has become its path."""
    url = database.url
    listen_url = database.listen_url
    for name, each in (("url", url), ("listen_url", listen_url)):
        if each is not None and not each.startswith(POSTGRES):
            scheme = each.partition(":")[0] if ":" in each else ""
            expected = "postgresql://…" if name == "listen_url" else "postgresql://… or sqlite:///path"
            yield f"database.{name}: expected {expected}, saw {scheme!r}"
    if url is not None and database.pooled and listen_url is None:
        yield (
            "database.listen_url is missing: notifications do not come through a pooler (database.pooled); "
            "name the server itself"
        )
    if database.pooler_prepares and not database.pooled:
        yield "database.pooler_prepares: says something of a pooler, but database.pooled is false"


def _find_mistakes_in_memory(memory: MemorySettings) -> Iterator[str]:
    """Yields the mistakes in how memory works."""
    for kind in ("user", "conversation"):
        for name in getattr(memory, f"{kind}_order") or ():
            # Requests with another such header are refused, since it may be a misspelt header of the gateway.
            if name.lower().startswith("x-mnemogate-") and name.lower() != f"x-mnemogate-{kind}":
                yield (
                    f"memory.{kind}_order: {name!r}: of headers that begin with x-mnemogate- "
                    f"only x-mnemogate-{kind} can stand here"
                )
    for rule in memory.side_requests:
        yield from _find_mistakes_in_side_request(rule)


def _find_mistakes_in_key(name: str, key: str) -> Iterator[str]:
    """Yields the mistake in a key of the gateway, if any. name: the name of the setting."""
    if not is_gateway_key(key):
        yield (
            f"{name}: expected mg- and at least 32 random letters, digits, - or _; "
            'make one with `echo "mg-$(openssl rand -hex 24)"`'
        )


def _find_mistakes_in_upstream(upstream: UpstreamSettings) -> Iterator[str]:
    path = f"upstreams {upstream.name!r}"
    yield from _find_repeated_names(f"{path}: api_key", upstream.keys, is_secret=True)
    for capability, value in upstream.takes.items():
        if capability != "responses" and not isinstance(value, bool):
            yield f"{path}.takes.{capability}: expected true or false, saw {value!r}"
    if "#" in upstream.name:
        yield f"{path}: '#' is for the numbers of its keys"
    header_texts = (*upstream.keys, *upstream.headers, *upstream.headers.values())
    if any(re.search(r"[\x00-\x1f\x7f]", text) for text in header_texts):
        yield f"{path}: a key or a header has a line end or another control character in it"
    for name in upstream.headers:
        if not is_header_name(name) or name.lower() in _FRAMING_HEADERS:
            yield f"{path}: headers: {name!r} is no header that can be sent"
    if upstream.proxy is not None and not is_proxy(upstream.proxy):
        # It may have a password in it, so the message does not show it.
        yield f"{path}: proxy: expected http://host:port (in a password, # is written %23, ? %3F and / %2F)"
    url = upstream.base_url
    if url is None and upstream.kind not in NEEDS_ADDRESS:
        return
    try:
        check_address(f"{path}: base_url", url)
    except SettingsError as error:
        yield error.message


def _find_mistakes_in_model(model: ModelSettings, upstreams: list[str]) -> Iterator[str]:
    """Yields the mistakes in a model. upstreams: the names of all upstreams."""
    path = f"models {model.alias!r}"
    yield from _find_unknown_reference(f"{path}: upstream", model.upstream, upstreams)
    if model.upstream is None and len(upstreams) > 1:
        yield f"{path}: there are several upstreams; say which one with upstream"
    for deployment in model.deployments:
        yield from _find_unknown_reference(f"{path}: deployments: upstream", deployment.upstream, upstreams)
    yield from _find_repeated_names(f"{path}: fallbacks", list(model.fallbacks))
    if model.alias in model.fallbacks:
        yield f"{path}: it is its own fallback"


def _find_mistakes_in_profile(profile: ProfileSettings, upstreams: list[str]) -> Iterator[str]:
    """Yields the mistakes in a profile. upstreams: the names of all upstreams."""
    path = f"profiles {profile.name!r}"
    if not re.fullmatch(r"[\w.:@-]+", profile.name):
        yield f"{path}: a name is letters, digits and . _ : @ -"
    if profile.name == "@":  # storage.records.API_PROFILE
        yield f"{path}: this name is for agents of the agents API"
    yield from _find_unknown_reference(f"{path}: upstream", profile.upstream, upstreams)
    if isinstance(profile.filler, FillerSettings) and not profile.filler.say.strip():
        yield f"{path}: filler.say: there is nothing to be said"
    yield from _find_repeated_names(f"{path}: blocks", [each.label for each in profile.blocks])
    for block in profile.blocks:
        if len(block.value) > block.limit:
            yield (
                f"{path}: block {block.label!r}: its value has "
                f"{len(block.value)} characters, its limit is {block.limit}"
            )


def _find_mistakes_in_side_request(rule: SideRequest) -> Iterator[str]:
    path = f"memory.side_requests {rule.name!r}: pattern"
    try:
        pattern = re.compile(rule.pattern)
        # All patterns become alternatives of one, in which flags cannot stand, nor two groups of one name.
        re.compile(f"|(?:{rule.pattern})")
    except re.error as error:
        start = str(error.pattern).index(rule.pattern)
        at = min(max((error.pos or 0) - start, 0), len(rule.pattern))
        pointed = f"{rule.pattern[:at]} >>> {rule.pattern[at:]}"
        yield f"{path}: {error.msg}, here: {pointed}"
        return
    if all(pattern.match(text) for text in ("", "any")):  # texts that have nothing in common
        yield f"{path}: it matches every message"
    if pattern.groupindex:
        yield f"{path}: its groups cannot have names, saw {', '.join(pattern.groupindex)}"
    if reference := _GROUP_REFERENCE.search(rule.pattern):
        yield f"{path}: its groups have other numbers among the other patterns, saw {reference[0]}"


def _find_mistakes_in_tools(tools: ToolSettings) -> Iterator[str]:
    yield from _find_mistakes_in_tool_secrets(tools)
    for setting, entries in (("hosts", tools.hosts), ("private_hosts", tools.private_hosts)):
        for entry in entries:
            rule = HostRule.parse(entry)
            if rule is None or (setting == "private_hosts" and rule.name == "*"):
                yield (
                    f"tools.{setting}: expected a host such as api.example.org, *.example.org or "
                    f"http://localhost:9000, saw {entry!r}"
                )
    yield from _find_mistakes_in_tool_headers(tools.headers)
    for command in tools.mcp_stdio:
        try:
            shlex.split(command)
        except ValueError as error:
            yield f"tools.mcp_stdio: {command!r}: {error}"
    for name in tools.mcp_stdio_env:
        if _VARIABLE_NAME.fullmatch(name) is None:
            yield f"tools.mcp_stdio_env: expected the name of a variable, saw {name!r}"


def _find_mistakes_in_tool_secrets(tools: ToolSettings) -> Iterator[str]:
    if tools.webhook_secret is not None and not is_webhook_secret(tools.webhook_secret):
        yield (
            f"tools.webhook_secret: expected {SECRET_PREFIX} and at least {MIN_WEBHOOK_SECRET_BYTES} random bytes "
            f'in base64; make one with `echo "{SECRET_PREFIX}$(openssl rand -base64 32)"`'
        )
    if tools.secrets_key is not None and not is_secrets_key(tools.secrets_key):
        yield (
            f"tools.secrets_key (MNEMOGATE_SECRETS_KEY): expected {SECRETS_KEY_BYTES} random bytes in base64; "
            "make them with `openssl rand -base64 32`"
        )


def _find_mistakes_in_tool_headers(headers: Sequence[ToolHeader]) -> Iterator[str]:
    yield from _find_repeated_names("tools.headers", [each.name for each in headers])
    for header in headers:
        if not re.fullmatch(r"[A-Za-z0-9-]+", header.header) or re.search(r"[\x00-\x1f\x7f]", header.value):
            yield f"tools.headers {header.name!r}: it is no header that can be sent"
        if not is_host(header.host):
            yield (
                f"tools.headers {header.name!r}: host: expected a name without a scheme, a port or *, "
                f"saw {header.host!r}"
            )


def _find_repeated_names(path: str, names: Sequence[str], *, is_secret: bool = False) -> Iterator[str]:
    """Yields a mistake for each name that comes more than once.

    path: the path of the setting.
    is_secret: True: the message does not show the name.
    """
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"{path}: {'one' if is_secret else repr(name)} is there twice"


def _find_unknown_reference(path: str, name: str | None, known: list[str]) -> Iterator[str]:
    """Yields the mistake in a reference, if there is nothing of this name. path: the path of the setting."""
    if name is not None and name not in known:
        yield describe_unknown_name(path, name, known)
