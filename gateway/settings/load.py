"""Reads the settings from the file, the environment and the flags, and checks them. The last source wins.

This module alone reads `mnemogate.toml` and the environment, but for the `OTEL_` variables (gateway/traces). An unknown
name in any source is an error that suggests the right one.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct, structs
from msgspec.structs import replace

from gateway.errors import SettingsError
from gateway.settings import (
    DEMO_PROFILE,
    DatabaseSettings,
    Settings,
    UpstreamSettings,
    list_secret_fields,
)
from gateway.settings.check import find_mistakes
from gateway.settings.mistakes import Mistakes, convert_text, describe_unknown_name, read_tables
from gateway.settings.value_syntax import check_address

_DEFAULT_CONFIG = "mnemogate.toml"
# The largest settings file: far above any real one, and parsed within two seconds whatever it holds.
_FILE_BYTES = 1024 * 1024
# `env:NAME` in place of a secret stands for the value of the variable NAME.
_FROM_ENVIRONMENT = "env:"


class _SettingName(NamedTuple):
    """The name of a setting."""

    table: str
    key: str


class _VariableValue(NamedTuple):
    """The value that a variable gives a setting."""

    variable: str
    value: Any


# Short names of variables for the settings that are set most. Each scalar also has a name like
# MNEMOGATE_<TABLE>_<KEY>.
_SHORT_NAMES = {
    "MNEMOGATE_HOST": _SettingName("server", "host"),
    "MNEMOGATE_PORT": _SettingName("server", "port"),
    "MNEMOGATE_KEY": _SettingName("server", "key"),
    "MNEMOGATE_OPERATOR_KEY": _SettingName("server", "operator_key"),
    "MNEMOGATE_DB": _SettingName("database", "path"),
    "MNEMOGATE_SINGLE_USER": _SettingName("memory", "single_user"),
    "MNEMOGATE_BACKGROUND_MODEL": _SettingName("memory", "background_model"),
    "MNEMOGATE_SECRETS_KEY": _SettingName("tools", "secrets_key"),
}
_UPSTREAM_KEY = "MNEMOGATE_UPSTREAM_KEY"
# Variables that are no setting of a table.
_OTHER_VARIABLES = ("MNEMOGATE_CONFIG", "MNEMOGATE_UPSTREAM", _UPSTREAM_KEY)
# Kubernetes sets these variables if the namespace has a service with a name that begins with mnemogate
# (https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables).
_SERVICE_LINK = re.compile(
    r"MNEMOGATE(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|MNEMOGATE(_\w+)?_PORT=(tcp|udp|sctp)://.*",
    re.DOTALL,
)
# The settings that name the database, of which one is set.
_DATABASE_PATH, _DATABASE_URL = _SettingName("database", "path"), _SettingName("database", "url")
_SQLITE = "sqlite:///"
# The tables with values that a variable can set. Lists of tables can only stand in the file.
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

    config: the path of a file that must exist; None: the file of MNEMOGATE_CONFIG, else `mnemogate.toml` if it exists.
    environ: the environment's variables; None: `os.environ`.
    flags: the values of the command line's options by (table, key), which override all others.
    upstream: the base URL of the one upstream to use; None: the upstreams of the file or of the variables.
    needs_secrets: False: a secret is left out if its variable is not set, unless it belongs to the database. So a
        command that only reads the database needs no other secrets.

    Raises: SettingsError: names each wrong setting, with the value that was seen and the allowed values.
    """
    for flag, text in (("--config", config), ("--upstream", upstream)):
        if text == "":  # from a script that passes a variable which is not set
            raise SettingsError(f"{flag}: expected a value, saw ''", is_in_file=False)
    loader = _Loader(
        os.environ if environ is None else environ, config, flags or {}, upstream, needs_secrets=needs_secrets
    )
    return loader.load()


class _Loader:
    """Reads the settings from all sources, and gathers the mistakes. `load_settings` documents the parameters."""

    def __init__(
        self,
        environ: Mapping[str, str],
        config: str | None,
        flags: Mapping[tuple[str, str], Any],
        upstream: str | None,
        *,
        needs_secrets: bool,
    ) -> None:
        # The variables as they are, for `env:NAME`.
        self._raw_environ = environ
        # The variables without white space at their ends: env files and mounted secrets often end in a newline.
        self._environ = {name: text.strip() for name, text in environ.items()}
        # The settings file, parsed.
        self._file = _read_file(config or self._environ.get("MNEMOGATE_CONFIG") or None)
        self._flags = flags
        self._upstream = upstream
        self._needs_secrets = needs_secrets
        self._mistakes = Mistakes()

    def load(self) -> Settings:
        """Returns the settings. Raises: SettingsError: names all mistakes."""
        tables = read_tables(self._file, Settings)
        for error in tables.mistakes:
            self._mistakes.add(error)
        settings = self._with_overrides(Settings(**tables.values))
        settings = self._with_upstreams_and_secrets(settings)
        settings = _with_demo_profile(_with_canonical_values(settings))
        # An invalid address in the environment leaves no upstreams, and is reported already.
        if not settings.upstreams and "upstreams" not in self._file:
            tables.bad_tables.add("upstreams")
        for error in find_mistakes(settings, tables.bad_tables):
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
        # After the secrets, because a key in a variable of the SDKs may itself begin with `env:`.
        with self._mistakes.collecting(), _not_from_file():
            return replace(settings, upstreams=_make_default_upstreams(self._environ, self._upstream))
        return settings

    def _with_overrides(self, settings: Settings) -> Settings:
        """Returns the file's settings, overridden by the environment and the flags."""
        for (table, key), value in self._read_overrides(settings).items():
            settings = replace(settings, **{table: replace(getattr(settings, table), **{key: value})})
        return settings

    def _read_overrides(self, settings: Settings) -> dict[_SettingName, Any]:
        """Returns the values that override those of the file."""
        overrides = self._read_environment(_list_referenced_variables(settings))
        for (table, key), value in self._flags.items():
            with self._mistakes.collecting(), _not_from_file():
                name = _SettingName(table, key)
                overrides[name] = convert_text(str(value), _SCALAR_TABLES[table], key, f"{table}.{key}")
                if name == _DATABASE_PATH:
                    overrides[_DATABASE_URL] = None
        if _DATABASE_PATH in overrides or _DATABASE_URL in overrides:
            # A database path from the environment or a flag overrides a URL in the settings file.
            overrides.setdefault(_DATABASE_URL, None)
        elif isinstance(in_file := self._file.get("database"), dict) and {"path", "url"} <= in_file.keys():
            self._mistakes.add(
                SettingsError(
                    "database: `path` is a SQLite file and `url` a PostgreSQL server; name one of them"
                )
            )
        return overrides

    def _read_environment(self, referenced: Collection[str]) -> dict[_SettingName, Any]:
        """Returns the values of the settings that the environment has.

        referenced: the variables that hold secrets of the file. They are no settings, whatever their names.
        """
        setting_of = _list_settings_by_variable()
        values: dict[_SettingName, _VariableValue] = {}
        for variable, text in self._environ.items():
            if not variable.startswith("MNEMOGATE_") or variable in (*_OTHER_VARIABLES, *referenced):
                continue
            if _SERVICE_LINK.fullmatch(f"{variable}={text}"):
                continue
            with self._mistakes.collecting(), _not_from_file():
                if variable not in setting_of:
                    known = [*setting_of, *_OTHER_VARIABLES]
                    raise SettingsError(describe_unknown_name("environment", variable, known))
                # `NAME=` in a compose file or a shell stands for a variable that is not set.
                if text:
                    name = setting_of[variable]
                    value = convert_text(text, _SCALAR_TABLES[name.table], name.key, variable)
                    first = values.setdefault(name, _VariableValue(variable, value))
                    if value != first.value:
                        raise SettingsError(
                            f"environment: {first.variable} and {variable} say different things; leave one out"
                        )
        self._check_one_database(values)
        return {name: given.value for name, given in values.items()}

    def _check_one_database(self, values: Mapping[_SettingName, _VariableValue]) -> None:
        """Adds a mistake if variables name two databases."""
        path, url = values.get(_DATABASE_PATH), values.get(_DATABASE_URL)
        if path is not None and url is not None and url.value != f"{_SQLITE}{path.value}":
            message = f"environment: {path.variable} and {url.variable} say different things; leave one out"
            self._mistakes.add(SettingsError(message, is_in_file=False))

    def _check_no_upstream_key(self, settings: Settings) -> None:
        """Adds a mistake if the environment has the key of an upstream that is not given."""
        if self._environ.get(_UPSTREAM_KEY) and _UPSTREAM_KEY not in _list_referenced_variables(settings):
            self._mistakes.add(
                SettingsError(
                    f"environment: {_UPSTREAM_KEY} is the key of MNEMOGATE_UPSTREAM or --upstream, which is not given",
                    is_in_file=False,
                )
            )

    def _with_secrets(self, settings: Settings) -> Settings:
        """Returns the settings with the values of variables in place of `env:NAME`."""

        def resolve(path: str, text: str) -> str | None:
            name = _find_referenced_variable(text)
            if name is None:
                return text
            if not self._raw_environ.get(name):
                if self._needs_secrets or path.startswith("database."):
                    self._mistakes.add(SettingsError(f"{path} names {name}, which is not set"))
                return None
            return self._raw_environ[name]

        return _replace_secrets(settings, resolve)


def _list_settings_by_variable() -> dict[str, _SettingName]:
    """Returns the settings that variables set, by the names of the variables."""
    variables = dict(_SHORT_NAMES)
    for table, cls in _SCALAR_TABLES.items():
        variables |= {
            f"MNEMOGATE_{table}_{key}".upper(): _SettingName(table, key) for key in cls.__struct_fields__
        }
    # A list of tables can only stand in the file.
    del variables["MNEMOGATE_MEMORY_SIDE_REQUESTS"], variables["MNEMOGATE_TOOLS_HEADERS"]
    return variables


def _with_canonical_values(settings: Settings) -> Settings:
    """Returns the settings with one spelling for each value that has several."""
    headers = tuple(replace(header, host=header.host.lower()) for header in settings.tools.headers)
    return replace(
        settings,
        database=_with_sqlite_path(settings.database),
        tools=replace(settings.tools, headers=headers),
    )


def _with_demo_profile(settings: Settings) -> Settings:
    """Returns the settings with the demo's profile, if the scripted model is the only upstream and none is set."""
    if [each.kind for each in settings.upstreams] != ["scripted"] or settings.profiles:
        return settings
    demo = replace(DEMO_PROFILE, upstream=settings.upstreams[0].name)
    return replace(settings, profiles=(demo,))


@contextmanager
def _not_from_file() -> Iterator[None]:
    """Marks the errors that are raised inside as those of a flag or a variable, not of the settings file."""
    try:
        yield
    except SettingsError as error:
        error.is_in_file = False
        raise


def find_settings_file(config: str | None) -> Path | None:
    """Returns the file that `load_settings` reads, if there is one."""
    file = Path(config or os.environ.get("MNEMOGATE_CONFIG", "").strip() or _DEFAULT_CONFIG)
    return file.absolute() if file.exists() else None


def _read_file(path: str | None) -> dict[str, Any]:
    """Returns the settings file; it is empty if there is none. path: a file that must exist; None: the default file."""
    file = Path(path or _DEFAULT_CONFIG)
    try:
        with file.open("rb") as opened:
            data = opened.read(_FILE_BYTES + 1)
        if len(data) > _FILE_BYTES:
            large = f"it has more than {_FILE_BYTES:,} bytes"
            raise SettingsError(f"The settings file {file} cannot be read: {large}.", is_in_file=False)
        return tomllib.loads(data.decode("utf-8-sig"))  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        if path is None:
            return {}
        raise SettingsError(f"The settings file {file} does not exist.", is_in_file=False) from None
    except OSError as error:
        why = error.strerror or error
        raise SettingsError(f"The settings file {file} cannot be read: {why}.", is_in_file=False) from error
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8"
        raise SettingsError(f"The settings file {file} cannot be read: {why}.", is_in_file=False) from error
    except ValueError as error:  # TOMLDecodeError is one; a number of some thousand digits raises another
        raise SettingsError(f"The settings file {file} is not TOML: {error}.", is_in_file=False) from error
    except RecursionError as error:
        why = "its values are nested too deeply"
        raise SettingsError(f"The settings file {file} cannot be read: {why}.", is_in_file=False) from error


def _list_referenced_variables(settings: Settings) -> set[str]:
    """Returns the names of the variables that stand for secrets in the settings."""
    names: set[str] = set()

    def collect(_: str, text: str) -> str:
        if (name := _find_referenced_variable(text)) is not None:
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


def _make_default_upstreams(environ: Mapping[str, str], upstream: str | None) -> tuple[UpstreamSettings, ...]:
    """Returns the upstreams that replace the file's.

    They are the one at `upstream` or MNEMOGATE_UPSTREAM, else those that the variables of the providers' SDKs name,
    else the scripted model. The first is never sent OPENAI_API_KEY.

    upstream: base URL from the command line.

    Raises: SettingsError: an address is not a valid URL.
    """
    if url := upstream or environ.get("MNEMOGATE_UPSTREAM"):
        check_address("--upstream" if upstream else "MNEMOGATE_UPSTREAM", url)
        return (UpstreamSettings("openai", base_url=url, api_key=environ.get(_UPSTREAM_KEY) or None),)
    upstreams = []
    openai = _read_sdk_variables(environ, "OPENAI")
    if openai.key or openai.base_url:
        base_url = openai.base_url or "https://api.openai.com/v1"
        upstreams.append(UpstreamSettings("openai", base_url=base_url, api_key=openai.key))
    anthropic = _read_sdk_variables(environ, "ANTHROPIC")
    if anthropic.key or anthropic.base_url:
        # The SDK's base URL is without the version.
        base_url = (anthropic.base_url or "https://api.anthropic.com").rstrip("/").removesuffix("/v1") + "/v1"
        upstreams.append(
            UpstreamSettings(
                "anthropic", "anthropic", base_url=base_url, api_key=anthropic.key, models=("claude-*",)
            )
        )
    return tuple(upstreams) or (UpstreamSettings("scripted", kind="scripted"),)


class _SdkVariables(NamedTuple):
    """The values of the variables that the SDK of a provider reads; None: the variable is not set."""

    key: str | None
    base_url: str | None


def _read_sdk_variables(environ: Mapping[str, str], provider: str) -> _SdkVariables:
    """Returns the variables of a provider's SDK. Raises: SettingsError: the base URL is no URL."""
    base_url = environ.get(f"{provider}_BASE_URL") or None
    if base_url:
        check_address(f"{provider}_BASE_URL", base_url)
    return _SdkVariables(environ.get(f"{provider}_API_KEY") or None, base_url)


# -- values from `env:NAME`


def _replace_secrets(settings: Settings, resolve: Callable[[str, str], str | None]) -> Settings:
    """Returns the settings with each secret resolved.

    resolve: returns the secret, given the setting's name and its text; None: the secret is left out.
    """

    def resolve_optional(path: str, text: str | None) -> str | None:
        return None if text is None else resolve(path, text)

    upstreams = []
    for upstream in settings.upstreams:
        path = f"upstreams {upstream.name!r}"
        resolved = [resolve(f"{path}: api_key", key) for key in upstream.keys]
        keys = tuple(key for key in resolved if key is not None)
        api_key = keys[0] if keys and isinstance(upstream.api_key, str) else keys or None
        upstreams.append(
            replace(upstream, api_key=api_key, proxy=resolve_optional(f"{path}: proxy", upstream.proxy))
        )
    settings = replace(settings, upstreams=tuple(upstreams))
    for table_name, table_type in _SCALAR_TABLES.items():
        table = getattr(settings, table_name)
        secrets = {
            key: resolve_optional(f"{table_name}.{key}", getattr(table, key))
            for key in list_secret_fields(table_type)
        }
        settings = replace(settings, **{table_name: replace(table, **secrets)})
    headers = []
    for header in settings.tools.headers:
        secret = resolve(f"tools.headers {header.name!r}: value", header.value)
        if secret is not None:
            headers.append(replace(header, value=secret))
    return replace(settings, tools=replace(settings.tools, headers=tuple(headers)))


def _find_referenced_variable(text: str) -> str | None:
    """Returns NAME of `env:NAME`; None: the text is the value itself."""
    return text.removeprefix(_FROM_ENVIRONMENT) if text.startswith(_FROM_ENVIRONMENT) else None
