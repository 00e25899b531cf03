"""Reads the settings file, the environment and the flags, in this order of rising precedence, and has them checked.

It is the only reader of the environment, but for the `OTEL_` variables (gateway/traces), and of `mnemogate.toml`. A
name that does not exist is an error that suggests the right one, wherever it stands.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct, structs
from msgspec.structs import replace

from gateway.errors import SettingsError
from gateway.settings import (
    DEMO_PROFILE,
    DatabaseSettings,
    Settings,
    UpstreamSettings,
)
from gateway.settings.check import check_address, find_mistakes
from gateway.settings.mistakes import Mistakes, convert_text, read_tables, unknown_name

DEFAULT_CONFIG = "mnemogate.toml"
_FILE_BYTES = 1024 * 1024  # chosen: far above any real one, and parsed within two seconds whatever is in it
# A key written so is the value of the variable that follows.
FROM_ENVIRONMENT = "env:"

# variable -> setting: short names of what people set most. Each scalar also has a name like MNEMOGATE_<TABLE>_<KEY>.
_SHORT_NAMES = {
    "MNEMOGATE_HOST": ("server", "host"),
    "MNEMOGATE_PORT": ("server", "port"),
    "MNEMOGATE_KEY": ("server", "key"),
    "MNEMOGATE_OPERATOR_KEY": ("server", "operator_key"),
    "MNEMOGATE_DB": ("database", "path"),
    "MNEMOGATE_SINGLE_USER": ("memory", "single_user"),
    "MNEMOGATE_BACKGROUND_MODEL": ("memory", "background_model"),
    "MNEMOGATE_SECRETS_KEY": ("tools", "secrets_key"),
}
_UPSTREAM_KEY = "MNEMOGATE_UPSTREAM_KEY"
# Variables that are no setting of a table.
_OTHER_VARIABLES = ("MNEMOGATE_CONFIG", "MNEMOGATE_UPSTREAM", _UPSTREAM_KEY)
# Besides the keys of upstreams, these may be written `env:NAME`.
_SECRETS = (
    ("memory", "openwebui_jwt_secret"),
    ("tools", "webhook_secret"),
    ("tools", "secrets_key"),
    ("database", "url"),
    ("database", "listen_url"),
)
# Kubernetes gives these to each container beside a service whose name begins with mnemogate
# (https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables).
_SERVICE_LINK = re.compile(
    r"MNEMOGATE(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|MNEMOGATE(_\w+)?_PORT=(tcp|udp|sctp)://.*",
    re.DOTALL,
)
_DATABASE = {("database", "path"), ("database", "url")}
_SQLITE = "sqlite:///"
# The tables that a variable can set a value of; lists of tables can only stand in the file.
_SCALAR_TABLES: dict[str, type[Struct]] = {
    each.name: each.type
    for each in structs.fields(Settings)
    if isinstance(each.type, type) and issubclass(each.type, Struct)
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

    config: a file that must exist; without it and without MNEMOGATE_CONFIG, `mnemogate.toml` is read if
        there.
    flags: (table, key) -> value.
    upstream: base URL of the one upstream to use.
    needs_secrets: with False, a key or a secret is left out if its variable is not set, but for the database's:
        whoever looks into a database has none.

    Raises: SettingsError: names the setting, what was seen and what would do.
    """
    for flag, text in (("--config", config), ("--upstream", upstream)):
        if text == "":  # a script's variable that is not set
            raise SettingsError(f"{flag}: expected a value, saw ''", in_file=False)
    loader = _Loader(
        os.environ if environ is None else environ, config, flags or {}, upstream, needs_secrets=needs_secrets
    )
    return loader.load()


class _Loader:
    """Reads settings from all of their sources, and gathers the mistakes in them. Its arguments: `load_settings`."""

    def __init__(
        self,
        environ: Mapping[str, str],
        config: str | None,
        flags: Mapping[tuple[str, str], Any],
        upstream: str | None,
        *,
        needs_secrets: bool,
    ) -> None:
        # The variables as they are, which "env:NAME" in the settings names.
        self._raw_environ = environ
        # The variables without white space at their ends: env files and mounted secrets often end in a newline.
        self._environ = {name: text.strip() for name, text in environ.items()}
        # The settings file.
        self._file = _read_file(config or self._environ.get("MNEMOGATE_CONFIG") or None)
        self._flags = flags
        self._upstream = upstream
        self._needs_secrets = needs_secrets
        self._mistakes = Mistakes()

    def load(self) -> Settings:
        """Returns the settings. Raises: SettingsError: names all mistakes."""
        values, errors, bad_tables = read_tables(self._file, Settings)
        for error in errors:
            self._mistakes.add(error)
        settings = self._with_overrides(Settings(**values))
        settings = self._with_upstreams_and_secrets(settings)
        settings = _with_demo_profile(_with_canonical_values(settings))
        # An invalid address in the environment leaves no upstreams; that they are missing is not reported, too.
        if not settings.upstreams and "upstreams" not in self._file:
            bad_tables.add("upstreams")
        for error in find_mistakes(settings, bad_tables):
            self._mistakes.add(error)
        self._mistakes.raise_if_any()
        return settings

    def _with_upstreams_and_secrets(self, settings: Settings) -> Settings:
        """Returns the settings with the upstreams to use, and with the secrets that variables hold."""
        is_upstream_given = bool(self._upstream or self._environ.get("MNEMOGATE_UPSTREAM"))
        if self._needs_secrets and not is_upstream_given:
            self._check_no_upstream_key(settings)
        if not is_upstream_given and "upstreams" in self._file:
            return self._with_secrets(settings)
        settings = self._with_secrets(replace(settings, upstreams=()))
        # After the secrets: the value of a variable of the SDKs is used as it is, whatever it begins with.
        with self._mistakes.collecting(), _not_from_file():
            return replace(settings, upstreams=_default_upstreams(self._environ, self._upstream))
        return settings

    def _with_overrides(self, settings: Settings) -> Settings:
        """Returns the file's settings with those of the environment and the flags in their places."""
        for (table, key), value in self._read_overrides(settings).items():
            settings = replace(settings, **{table: replace(getattr(settings, table), **{key: value})})
        return settings

    def _read_overrides(self, settings: Settings) -> dict[tuple[str, str], Any]:
        """Returns what overrides the file's settings: (table, key) -> value."""
        overrides = self._read_environment(_referenced_variables(settings))
        for (table, key), value in self._flags.items():
            with self._mistakes.collecting(), _not_from_file():
                overrides[table, key] = convert_text(str(value), _SCALAR_TABLES[table], key, f"{table}.{key}")
                if (table, key) == ("database", "path"):
                    overrides["database", "url"] = None
        if overrides.keys() & _DATABASE:
            # A database path from the environment or a flag overrides a URL in the settings file.
            overrides.setdefault(("database", "url"), None)
        elif isinstance(given := self._file.get("database"), dict) and {"path", "url"} <= given.keys():
            self._mistakes.add(
                SettingsError(
                    "database: `path` is a SQLite file and `url` a PostgreSQL server; name one of them"
                )
            )
        return overrides

    def _read_environment(self, referenced: Collection[str]) -> dict[tuple[str, str], Any]:
        """Returns the settings that the environment has: (table, key) -> value.

        referenced: variables that the file names for keys. They are no settings, whatever they begin with.
        """
        setting_of = _variables()
        # setting -> the variable that has it, and its value.
        values: dict[tuple[str, str], tuple[str, Any]] = {}
        for name, text in self._environ.items():
            if not name.startswith("MNEMOGATE_") or name in _OTHER_VARIABLES or name in referenced:
                continue
            if _SERVICE_LINK.fullmatch(f"{name}={text}"):
                continue
            with self._mistakes.collecting(), _not_from_file():
                if name not in setting_of:
                    raise SettingsError(unknown_name("environment", name, [*setting_of, *_OTHER_VARIABLES]))
                # `NAME=` is how compose files and shells say that a variable is not set.
                if text:
                    table, key = setting_of[name]
                    value = convert_text(text, _SCALAR_TABLES[table], key, name)
                    first_name, earlier = values.setdefault((table, key), (name, value))
                    if value != earlier:
                        raise SettingsError(
                            f"environment: {first_name} and {name} say different things; leave one out"
                        )
        overrides = {setting: value for setting, (_, value) in values.items()}
        path, url = overrides.get(("database", "path")), overrides.get(("database", "url"))
        if path is not None and url not in (None, f"{_SQLITE}{path}"):
            names = " and ".join(values[each][0] for each in sorted(_DATABASE))
            self._mistakes.add(
                SettingsError(f"environment: {names} say different things; leave one out", in_file=False)
            )
        return overrides

    def _check_no_upstream_key(self, settings: Settings) -> None:
        """Adds a mistake where the environment has the key of an upstream that is not given."""
        if self._environ.get(_UPSTREAM_KEY) and _UPSTREAM_KEY not in _referenced_variables(settings):
            self._mistakes.add(
                SettingsError(
                    f"environment: {_UPSTREAM_KEY} is the key of MNEMOGATE_UPSTREAM or --upstream, which is not given",
                    in_file=False,
                )
            )

    def _with_secrets(self, settings: Settings) -> Settings:
        """Returns the settings with the values of the variables that they name."""

        def resolve(where: str, text: str) -> str | None:
            name = _referenced_variable(text)
            if name is None:
                return text
            if not self._raw_environ.get(name):
                if self._needs_secrets or where.startswith("database."):
                    self._mistakes.add(SettingsError(f"{where} names {name}, which is not set"))
                return None
            return self._raw_environ[name]

        return _replace_secrets(settings, resolve)


def _variables() -> dict[str, tuple[str, str]]:
    """Returns the variables that set a value: name -> (table, key)."""
    variables = dict(_SHORT_NAMES)
    for table, cls in _SCALAR_TABLES.items():
        variables |= {f"MNEMOGATE_{table}_{name}".upper(): (table, name) for name in cls.__struct_fields__}
    # A list of tables can only stand in the file.
    del variables["MNEMOGATE_MEMORY_SIDE_REQUESTS"], variables["MNEMOGATE_TOOLS_HEADERS"]
    return variables


def _with_canonical_values(settings: Settings) -> Settings:
    """Returns the settings with the values that may be written in several ways in one."""
    headers = tuple(replace(each, host=each.host.lower()) for each in settings.tools.headers)
    return replace(
        settings,
        database=_with_sqlite_path(settings.database),
        tools=replace(settings.tools, headers=headers),
    )


def _with_demo_profile(settings: Settings) -> Settings:
    """Returns the settings with a profile for the demo, where only the scripted model answers."""
    if [each.kind for each in settings.upstreams] != ["scripted"] or settings.profiles:
        return settings
    demo = replace(DEMO_PROFILE, upstream=settings.upstreams[0].name)
    return replace(settings, profiles=(demo,))


@contextmanager
def _not_from_file() -> Iterator[None]:
    """Marks the errors raised inside as not about the settings file, but about a flag or a variable."""
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
        with file.open("rb") as opened:
            data = opened.read(_FILE_BYTES + 1)
        if len(data) > _FILE_BYTES:
            large = f"it has more than {_FILE_BYTES:,} bytes"
            raise SettingsError(f"The settings file {file} cannot be read: {large}.", in_file=False)
        return tomllib.loads(data.decode("utf-8-sig"))  # editors of Windows begin a file with a mark
    except FileNotFoundError:
        if path is None:
            return {}
        raise SettingsError(f"The settings file {file} does not exist.", in_file=False) from None
    except OSError as error:
        why = error.strerror or error
        raise SettingsError(f"The settings file {file} cannot be read: {why}.", in_file=False) from error
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8"
        raise SettingsError(f"The settings file {file} cannot be read: {why}.", in_file=False) from error
    except ValueError as error:  # a number of some thousand digits is one, and no TOMLDecodeError
        raise SettingsError(f"The settings file {file} is not TOML: {error}.", in_file=False) from error
    except RecursionError as error:
        why = "its values are nested too deeply"
        raise SettingsError(f"The settings file {file} cannot be read: {why}.", in_file=False) from error


def _referenced_variables(settings: Settings) -> set[str]:
    """Returns the variables that the file names for keys and secrets."""
    names: set[str] = set()

    def collect(_: str, text: str) -> str:
        if (name := _referenced_variable(text)) is not None:
            names.add(name)
        return text

    _replace_secrets(settings, collect)
    return names


def _with_sqlite_path(database: DatabaseSettings) -> DatabaseSettings:
    """Returns the settings with the URL of a SQLite file as its path."""
    url = database.url
    if url is None or not url.startswith(_SQLITE):
        return database
    return replace(database, path=url.removeprefix(_SQLITE), url=None)


def _default_upstreams(environ: Mapping[str, str], upstream: str | None) -> tuple[UpstreamSettings, ...]:
    """Returns the upstreams that stand in for the file's.

    These are the one at `upstream` or MNEMOGATE_UPSTREAM, which is never sent OPENAI_API_KEY, else those that the
    provider SDKs' own variables name, else the scripted model.

    upstream: base URL from the command line.

    Raises: SettingsError: an address is not a valid URL.
    """
    if url := upstream or environ.get("MNEMOGATE_UPSTREAM"):
        check_address("--upstream" if upstream else "MNEMOGATE_UPSTREAM", url)
        return (UpstreamSettings("openai", base_url=url, api_key=environ.get(_UPSTREAM_KEY) or None),)
    found = []
    key, base = _sdk_variables(environ, "OPENAI")
    if key or base:
        found.append(UpstreamSettings("openai", base_url=base or "https://api.openai.com/v1", api_key=key))
    key, base = _sdk_variables(environ, "ANTHROPIC")
    if key or base:
        # The SDK's base URL is without the version.
        base = (base or "https://api.anthropic.com").rstrip("/").removesuffix("/v1") + "/v1"
        found.append(
            UpstreamSettings("anthropic", "anthropic", base_url=base, api_key=key, models=("claude-*",))
        )
    return tuple(found) or (UpstreamSettings("scripted", kind="scripted"),)


def _sdk_variables(environ: Mapping[str, str], provider: str) -> tuple[str | None, str | None]:
    """Returns the key and the base URL that the SDK of a provider reads. Raises: SettingsError: it is no URL."""
    base = environ.get(f"{provider}_BASE_URL") or None
    if base:
        check_address(f"{provider}_BASE_URL", base)
    return environ.get(f"{provider}_API_KEY") or None, base


# -- values from `env:NAME`


def _replace_secrets(settings: Settings, resolve: Callable[[str, str], str | None]) -> Settings:
    """Returns the settings with another value wherever one may name a variable; these places are listed here alone.

    resolve: returns the value, given the setting's name and its text; None: the value is left out.
    """

    def resolve_optional(where: str, text: str | None) -> str | None:
        return None if text is None else resolve(where, text)

    upstreams = []
    for upstream in settings.upstreams:
        where = f"upstreams {upstream.name!r}"
        found = [resolve(f"{where}: api_key", key) for key in upstream.keys]
        keys = tuple(key for key in found if key is not None)
        api_key = keys[0] if keys and isinstance(upstream.api_key, str) else keys or None
        upstreams.append(
            replace(upstream, api_key=api_key, proxy=resolve_optional(f"{where}: proxy", upstream.proxy))
        )
    settings = replace(settings, upstreams=tuple(upstreams))
    for table, key in _SECRETS:
        table_settings = getattr(settings, table)
        value = resolve_optional(f"{table}.{key}", getattr(table_settings, key))
        settings = replace(settings, **{table: replace(table_settings, **{key: value})})
    headers = []
    for header in settings.tools.headers:
        secret = resolve(f"tools.headers {header.name!r}: value", header.value)
        if secret is not None:
            headers.append(replace(header, value=secret))
    return replace(settings, tools=replace(settings.tools, headers=tuple(headers)))


def _referenced_variable(text: str) -> str | None:
    """Returns the name of the variable that a value stands for; None where it is the value itself."""
    return text.removeprefix(FROM_ENVIRONMENT) if text.startswith(FROM_ENVIRONMENT) else None
