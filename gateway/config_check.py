"""The check of the settings before a start: the mistakes for which it would fail, and the settings without secrets."""

from __future__ import annotations

import os
import re
from typing import Any

import msgspec

from gateway.open_database import DatabaseFindings, check_database
from gateway.provider_factory import make_embedder, make_providers
from gateway.run.background.background_model import find_background_route
from gateway.run.upstream.route import check_models
from gateway.serve import check_exposure, check_mcp, read_otlp_settings
from gateway.settings import Settings
from gateway.settings.mistakes import Mistakes
from gateway.web.listening import resolve_address
from storage.masked_url import mask_password

# Settings with URLs of databases, which may have a password.
_URL_SETTINGS = ("url", "listen_url")
# The user and the password before a proxy's host. A proxy may take a token in place of both.
_PROXY_LOGIN = re.compile(r"(?<=://).*@")
# Settings that are not printed.
_SECRET_SETTINGS = (
    "api_key",
    "headers",
    "key",
    "operator_key",
    "openwebui_jwt_secret",
    "secrets_key",
    "webhook_secret",
)


def check_start(settings: Settings) -> DatabaseFindings:
    """Returns what there is to report of the database. Makes no file and opens no port.

    Raises: SettingsError: the mistakes for which a start would fail.
    """
    mistakes = Mistakes()
    database = DatabaseFindings()
    for check in (
        check_models,
        _check_address,
        make_providers,
        find_background_route,
        make_embedder,
        check_mcp,
    ):
        with mistakes.collecting():
            check(settings)
    with mistakes.collecting():
        database = check_database(settings)
        check_exposure(settings, has_keys=database.is_keyed or settings.server.key is not None)
    with mistakes.collecting():
        read_otlp_settings(os.environ)
    mistakes.raise_if_any()
    return database


def render_settings(settings: Settings) -> dict[str, Any]:
    """Returns the settings as JSON, without secrets."""
    rendered: dict[str, Any] = _without_secrets(msgspec.to_builtins(settings))
    return rendered


def _check_address(settings: Settings) -> None:
    resolve_address(settings.server.host, settings.server.port)


def _without_secrets(value: Any, name: str = "") -> Any:
    """Returns the value of a setting without secrets.

    Keys and headers become "(set)", URLs of databases lose their password, and proxies their user and password.
    """
    if name in _SECRET_SETTINGS:
        return "(set)" if value else value
    if isinstance(value, dict):
        return {key: _without_secrets(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    if name == "proxy" and value:
        return _PROXY_LOGIN.sub("***@", value)
    return mask_password(value) if name in _URL_SETTINGS and value else value
