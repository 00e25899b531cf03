"""The check of the settings before a start: the mistakes for which it would fail, and the settings without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from msgspec import structs

from gateway.open_database import DatabaseFindings, check_database
from gateway.provider_factory import make_embedder, make_providers
from gateway.run.background.background_model import find_background_route
from gateway.run.upstream.route import check_models
from gateway.serve import check_exposure, check_mcp, read_otlp_settings
from gateway.settings import Settings, Table, list_secret_fields
from gateway.settings.mistakes import Mistakes
from gateway.web.listening import resolve_address
from storage.masked_url import mask_password

# The user and the password before a proxy's host. A proxy may take a token in place of both.
_PROXY_LOGIN = re.compile(r"(?<=://).*@")
# Secret settings that are URLs -> the function that masks the secret in the URL.
_URL_MASKS: dict[str, Callable[[str], str]] = {
    "url": mask_password,
    "listen_url": mask_password,
    "proxy": lambda url: _PROXY_LOGIN.sub("***@", url),
}


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


def _check_address(settings: Settings) -> None:
    resolve_address(settings.server.host, settings.server.port)


def render_settings(table: Table) -> dict[str, Any]:
    """Returns the settings of a table, or all settings, as JSON, without secrets."""
    secret_names = list_secret_fields(type(table))
    return {
        name: _mask_secret(name, value) if name in secret_names else _render_value(value)
        for name, value in structs.asdict(table).items()
    }


def _render_value(value: Any) -> Any:
    if isinstance(value, Table):
        return render_settings(value)
    if isinstance(value, dict):
        return {key: _render_value(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_render_value(item) for item in value]
    return value


def _mask_secret(name: str, value: Any) -> Any:
    """Returns the part of a secret setting that is shown: a URL without its password, or "(set)"."""
    if not value:
        return value
    mask = _URL_MASKS.get(name)
    return "(set)" if mask is None else mask(value)
