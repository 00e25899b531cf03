"""The check of the settings before a start: the mistakes for which it would fail."""

from __future__ import annotations

import os

from gateway.open_database import DatabaseFindings, check_database
from gateway.provider_factory import make_embedder, make_providers
from gateway.run.background.background_model import find_background_route
from gateway.run.upstream.route import check_models
from gateway.serve import check_exposure, check_mcp, read_otlp_settings
from gateway.settings import Settings
from gateway.settings.mistakes import Mistakes
from gateway.web.listening import resolve_address


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
