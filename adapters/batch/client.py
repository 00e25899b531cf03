"""The HTTP client of the providers' official SDKs, which goes the way that live calls go."""

from __future__ import annotations

import ssl
from typing import Any


def as_live(proxy: str | None) -> dict[str, Any]:
    """Returns the options of an SDK's client: the machine's certificates, and no proxy but the one of the settings.

    By itself it would take its proxy from the environment, and certificates of its own.
    """
    return {"proxy": proxy, "trust_env": False, "verify": ssl.create_default_context()}
