"""The beginning that batches of providers with an official SDK share; its HTTP client goes the way of live calls."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any


def as_live(proxy: str | None) -> dict[str, Any]:
    """Returns the options of an SDK's client: the machine's certificates, and no proxy but the one of the settings.

    By itself it would take its proxy from the environment, and certificates of its own.
    """
    return {"proxy": proxy, "trust_env": False, "verify": ssl.create_default_context()}


class SdkBatches:
    """An account whose batches outlive this process. headers: sent with every request."""

    again_s: float | None = None
    is_durable = True

    def __init__(
        self,
        base_url: str,
        key: str | None,
        headers: Mapping[str, str],
        now: Callable[[], float],
        proxy: str | None = None,
    ) -> None:
        self._base_url = base_url
        self._key = key
        self._headers = dict(headers)
        self._now = now
        self._proxy = proxy
