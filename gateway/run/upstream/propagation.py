"""Which upstreams get the headers of a trace: those on this network, and others as the settings or the client want."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from adapters.base import Provider
from gateway.settings import UpstreamSettings

# The ends of names that only a network's own servers know (RFC 6761, 6762 and 8375; ICANN has reserved `internal`).
_PRIVATE_NAMES: Final = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


def address_of(provider: Provider) -> str:
    """Returns the base URL of a provider; "": the model is built in."""
    address: str = getattr(provider, "base_url", "")
    return address


def propagates(upstream: UpstreamSettings, provider: Provider) -> bool | None:
    """Returns whether the headers of a trace go to an upstream; None: where the client has sent some."""
    if upstream.propagate is not None:
        return upstream.propagate == "always"
    return True if is_private(address_of(provider)) else None


def is_private(url: str) -> bool:
    """Returns whether a URL is of a machine on this network, by its address or the form of its name."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        return not ip_address(host).is_global
    except ValueError:
        return bool(host) and ("." not in host or host.endswith(_PRIVATE_NAMES))
