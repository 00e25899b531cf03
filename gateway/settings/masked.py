"""The settings as operators may see them: without their secrets."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from msgspec import structs

from gateway.settings import Table, list_secret_fields
from storage.masked_url import mask_password

# The user and the password before a proxy's host. A proxy may take a token in place of both.
_PROXY_LOGIN = re.compile(r"(?<=://).*@")
# The functions that mask the secret in a URL, by the secret setting with the URL.
_URL_MASKS: dict[str, Callable[[str], str]] = {
    "url": mask_password,
    "listen_url": mask_password,
    "proxy": lambda url: _PROXY_LOGIN.sub("***@", url),
}


def render_masked(table: Table) -> dict[str, Any]:
    """Returns a table of settings, or all settings, as JSON without secrets."""
    secret_names = list_secret_fields(type(table))
    return {
        name: _mask_secret(name, value) if name in secret_names else _render_value(value)
        for name, value in structs.asdict(table).items()
    }


def _render_value(value: Any) -> Any:
    if isinstance(value, Table):
        return render_masked(value)
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
